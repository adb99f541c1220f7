"""manifest.json beside the shards: what is in them and where it came from. Every field is checked when it is read."""

import json
import math
import re
import reprlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hear_jepa.disk import atomic_path
from hear_jepa.errors import CorpusError

FORMAT = "hear_jepa-shards"
VERSION = 1
FILE_NAME = "manifest.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")  # no folder, no command, no address
DOMAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")
HIGHEST_RATE = 768_000  # Hz


@dataclass(frozen=True)
class Shard:
    """One tar: its file name, domain, number of clips, hours of sound and SHA-256 (empty: not known)."""

    file: str
    domain: str
    clips: int
    hours: float
    sha256: str = ""


@dataclass
class Manifest:
    """The manifest as an object."""

    sample_rate: int
    shards: list[Shard] = field(default_factory=list)
    domains: dict[str, dict] = field(default_factory=dict)  # name: {clips, hours}
    sources: dict[str, dict] = field(default_factory=dict)  # name: {licence, domains: {name: {clips, hours}}}
    skipped: list[dict] = field(default_factory=list)  # {path, reason}
    input_sha256: str = ""  # of the list of files and settings that made it

    @property
    def hours(self) -> dict[str, float]:
        """Hours of sound by domain."""
        return {name: domain["hours"] for name, domain in self.domains.items()}

    def write(self, folder: Path) -> None:
        """Write `folder`/manifest.json, whole or not at all."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        with atomic_path(folder / FILE_NAME) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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
    return _Reader(name).manifest(content)


class _Reader:
    """Checks every field of a manifest; `name` is the file's, for errors."""

    def __init__(self, name: str):
        self._name = name

    def manifest(self, content: dict[str, Any]) -> Manifest:
        self._finite("", content)
        rate: Any = content.get("sample_rate")
        self._require(_is_count(rate) and rate <= HIGHEST_RATE, "sample_rate", rate, "must be a rate in Hz")
        shards = self._of_type(content, "shards", list)
        self._require(len(shards) > 0, "shards", shards, "must list a shard")
        manifest = Manifest(
            rate,
            [self._shard(f"shards.{index}", shard) for index, shard in enumerate(shards)],
            self._of_type(content, "domains", dict),
            self._of_type(content, "sources", dict),
            self._of_type(content, "skipped", list),
            self._of_type(content, "input_sha256", str),
        )
        self._domains_agree(manifest)
        return manifest

    def _shard(self, field: str, content: Any) -> Shard:
        self._require(isinstance(content, dict), field, content, "must be an object")
        file, domain = content.get("file"), content.get("domain")
        clips, hours = content.get("clips"), content.get("hours")
        sha256 = content.get("sha256", "")
        plain = isinstance(file, str) and SHARD_NAME.fullmatch(file)
        self._require(plain, f"{field}.file", file, "must be a tar's plain file name")
        named = isinstance(domain, str) and DOMAIN_NAME.fullmatch(domain)
        self._require(named, f"{field}.domain", domain, "must be a name of letters, digits, _ and -")
        self._require(_is_count(clips), f"{field}.clips", clips, "must be a whole number of at least 1")
        self._require(_is_positive(hours), f"{field}.hours", hours, "must be a number above 0")
        hexadecimal = isinstance(sha256, str) and re.fullmatch(r"([0-9a-f]{64})?", sha256)
        self._require(hexadecimal, f"{field}.sha256", sha256, "must be 64 hexadecimal digits")
        return Shard(file, domain, clips, hours, sha256)

    def _domains_agree(self, manifest: Manifest) -> None:
        """Each domain's clips and hours must be those of its shards, and no shard may be listed twice."""
        times = Counter(shard.file for shard in manifest.shards)
        for file, count in times.items():
            self._require(count == 1, "shards", file, "must be listed once")
        missing = {shard.domain for shard in manifest.shards} - manifest.domains.keys()
        self._require(not missing, "domains", sorted(manifest.domains), f"must have {', '.join(sorted(missing))}")
        for name, domain in manifest.domains.items():
            shards = [shard for shard in manifest.shards if shard.domain == name]
            self._require(len(shards) > 0, f"domains.{name}", name, "must have a shard")
            self._require(isinstance(domain, dict), f"domains.{name}", domain, "must be an object")
            clips, hours = domain.get("clips"), domain.get("hours")
            total_clips, total_hours = sum(shard.clips for shard in shards), sum(shard.hours for shard in shards)
            self._require(clips == total_clips, f"domains.{name}.clips", clips, f"its shards have {total_clips}")
            close = hours is not None and _is_positive(hours) and math.isclose(hours, total_hours, rel_tol=1e-6)
            self._require(close, f"domains.{name}.hours", hours, f"its shards have {total_hours:g}")

    def _of_type(self, content: dict[str, Any], field: str, kind: type) -> Any:
        value = content.get(field, kind())
        self._require(isinstance(value, kind), field, value, f"must be a {kind.__name__}")
        return value

    def _finite(self, field: str, value: Any) -> None:
        """Refuse NaN and infinity, which Python reads from JSON, in whatever field."""
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            self._finite(f"{field}.{key}".lstrip("."), item)
        self._require(not isinstance(value, float) or math.isfinite(value), field, value, "must be finite")

    def _require(self, holds: object, field: str, value: Any, expected: str) -> None:
        if not holds:
            raise CorpusError(f"{self._name}: {field} is {reprlib.repr(value)}: {expected}; prepare the shards again")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and value > 0
