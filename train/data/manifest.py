"""manifest.json beside the shards: what is in them, whence it came, and the statistics that training needs."""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hear_jepa.errors import CorpusError

FORMAT = "hear_jepa-shards"
VERSION = 1
FILE_NAME = "manifest.json"


@dataclass
class LogMelSums:
    """Running sums over log-mel values; they add, so domains can be weighted later."""

    values: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: int, total: float, squares: float) -> None:
        self.values, self.total, self.squares = self.values + values, self.total + total, self.squares + squares

    def mean_std(self) -> dict[str, float]:
        """{"mean", "std"} of all values added."""
        mean = self.total / self.values
        return {"mean": mean, "std": math.sqrt(max(self.squares / self.values - mean**2, 0.0))}


@dataclass
class Manifest:
    """The manifest as an object; see `read` and `write` for the file."""

    sample_rate: int
    shards: list[dict] = field(default_factory=list)  # {file, domain, clips, hours, sha256}
    domains: dict[str, dict] = field(default_factory=dict)  # name: {clips, hours, log_mel: {mean, std}}
    sources: dict[str, dict] = field(default_factory=dict)  # name: {licences, domains: {name: {clips, hours}}}
    log_mel: dict[str, float] = field(default_factory=dict)  # {mean, std} over everything
    skipped: list[dict] = field(default_factory=list)  # {path, reason}
    input_sha256: str = ""  # of the list of files and settings that made it

    @property
    def hours(self) -> float:
        """Hours of sound in all shards."""
        return sum(domain["hours"] for domain in self.domains.values())

    def write(self, folder: Path) -> None:
        """Write `folder`/manifest.json, whole or not at all."""
        partial = folder / (FILE_NAME + ".partial")
        text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False)
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / FILE_NAME)


def parse_manifest(text: str | bytes, name: str) -> Manifest:
    """Read a manifest from its text; `name` says in errors where it came from. Raises CorpusError."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CorpusError(f"{name} is not JSON ({error}); prepare the shards again") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CorpusError(
            f"{name} is no manifest of {FORMAT}; make shards with python -m hear_jepa.train.corpus.prepare"
        )
    if (version := content.pop("version", None)) != VERSION:
        raise CorpusError(
            f"{name} has version {version!r}, this code reads version {VERSION}; "
            "prepare the shards again, or use the hear_jepa that wrote them"
        )
    try:
        manifest = Manifest(**content)
        complete = all({"file", "domain", "clips", "hours"} <= shard.keys() for shard in manifest.shards)
    except (TypeError, AttributeError) as error:
        raise CorpusError(f"{name} is damaged ({error}); prepare the shards again") from error
    if not complete or not manifest.shards:
        raise CorpusError(f"{name} lists no shard, or shards without their clips; prepare the shards again")
    return manifest
