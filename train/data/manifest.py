"""manifest.json beside the shards: what is in them and where it came from. Every field is checked when it is read."""

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hear_jepa.disk import write_json
from hear_jepa.errors import CorpusError, OptionError
from hear_jepa.options import changed, check_fields, matching, within

FORMAT = "hear_jepa-shards"
VERSION = 1
FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One tar: its file name, domain, number of clips, hours of sound and SHA-256 (empty: not known)."""

    file: str = matching(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar", "a tar's plain file name")  # no folder, command, address
    domain: str = matching(r"[A-Za-z0-9_-]+", "a name of letters, digits, _ and -")
    clips: int = within(0, 1)
    hours: float = within(0.0, 1e-9)
    sha256: str = matching(r"([0-9a-f]{64})?", "64 hexadecimal digits")


@dataclass
class Manifest:
    """The manifest as an object."""

    sample_rate: int = within(0, 1, 768_000)
    shards: list[Shard] = field(default_factory=list)
    domains: dict[str, dict] = field(default_factory=dict)  # name: {clips, hours}
    sources: dict[str, dict] = field(default_factory=dict)  # name: {licence, domains: {name: {clips, hours}}}
    skipped: list[dict] = field(default_factory=list)  # {path, reason}
    input_sha256: str = ""  # of the list of files and settings that made it

    @property
    def hours(self) -> dict[str, float]:
        return {name: domain["hours"] for name, domain in self.domains.items()}

    def write(self, folder: Path) -> None:
        write_json(folder / FILE_NAME, {"format": FORMAT, "version": VERSION, **asdict(self)})


def parse_manifest(text: str | bytes, name: str) -> Manifest:
    """Read a manifest from its text; `name` says in errors where it came from. Raises CorpusError."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{name} is not JSON ({error}); prepare the shards again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CorpusError(f"{name} is not a manifest of {FORMAT}; make shards with python -m hear_jepa.train.corpus")
    if content.get("version") != VERSION:
        raise CorpusError(
            f"{name} has version {content.get('version')!r}, this code reads version {VERSION}; "
            "prepare the shards again, or use the hear_jepa that wrote them"
        )
    try:
        _check_finite("", content)
        known = [field.name for field in fields(Manifest)]  # older ones hold statistics of the log-mel too
        manifest = changed(Manifest(), {key: content[key] for key in known if key in content})
        check_fields(manifest)
        _check_shards(manifest)
    except OptionError as error:
        raise CorpusError(f"{name}: {error}; prepare the shards again") from error
    return manifest


def _check_shards(manifest: Manifest) -> None:
    """Each is listed once, and each domain's clips and hours are those of its shards."""
    _require(manifest.shards, "shards", manifest.shards, "it must list a shard")
    for index, shard in enumerate(manifest.shards):
        check_fields(shard, f"shards.{index}.")
    for file, count in Counter(shard.file for shard in manifest.shards).items():
        _require(count == 1, "shards", file, "it must be listed once")
    missing = {shard.domain for shard in manifest.shards} - manifest.domains.keys()
    _require(not missing, "domains", sorted(manifest.domains), f"it must have {', '.join(sorted(missing))}")
    for name, domain in manifest.domains.items():
        shards = [shard for shard in manifest.shards if shard.domain == name]
        _require(shards, f"domains.{name}", name, "it must have a shard")
        clips, hours = sum(shard.clips for shard in shards), sum(shard.hours for shard in shards)
        found = domain.get("clips"), domain.get("hours")
        _require(found[0] == clips, f"domains.{name}.clips", found[0], f"its shards have {clips}")
        close = isinstance(found[1], int | float) and math.isclose(found[1], hours, rel_tol=1e-6)
        _require(close, f"domains.{name}.hours", found[1], f"its shards have {hours:g}")


def _check_finite(name: str, value: Any) -> None:
    """Refuse NaN and infinity, which Python reads from JSON, in whatever field."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _check_finite(f"{name}.{key}".lstrip("."), item)
    _require(not isinstance(value, float) or math.isfinite(value), name, value, "it must be finite")


def _require(holds: object, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise OptionError(f"{name} is {value!r}: {expected}")
