"""One source file -> its clips as FLAC in a tar of its own, the work that a kill must not lose.

A staged file holds `clips.json` (the clips and what was skipped) and KEY.flac for each clip. It is named after all that
decides its content, so one made for other settings is never taken for it.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hear_jepa.train.corpus.clips import Excerpt, Skipped, excerpts
from hear_jepa.train.corpus.domains import Origin
from hear_jepa.train.corpus.exclusion import Exclusions
from hear_jepa.train.data.shards import add_member, encode_flac, flac_length, members

RECORD = "clips.json"


@dataclass(frozen=True)
class SourceFile:
    """A file to prepare: where it lies, its path below the source folder, what it is, where its clips are staged."""

    path: Path
    name: str
    origin: Origin
    staged: Path


@dataclass(frozen=True)
class StagedClip:
    """A clip in a staged file: a name made of its content, where it starts in the source file, its length."""

    key: str
    start_s: float
    samples: int


def stage(file: SourceFile, sample_rate: int, exclusions: Exclusions | None) -> None:
    """Decode, split, check and encode one file, and keep the result: the work of a worker."""
    clips, flacs, skipped = [], {}, []
    for item in excerpts(file.path, file.name, file.origin.longest_s, sample_rate):
        if isinstance(item, Excerpt):
            item = _unless_excluded(item, file, sample_rate, exclusions)
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            clips.append(StagedClip(item.key, item.start_s, len(item.samples)))
            flacs[item.key] = encode_flac(item.samples, sample_rate)
    if any(item.reason.startswith("unreadable") for item in skipped):  # damaged further on: nothing of it is used
        clips, flacs = [], {}
    record = {"clips": [asdict(clip) for clip in clips], "skipped": [asdict(item) for item in skipped]}
    partial = file.staged.with_suffix(f".{os.getpid()}.partial")
    with tarfile.open(partial, "w") as tar:
        add_member(tar, RECORD, json.dumps(record).encode())
        for key, flac in flacs.items():
            add_member(tar, f"{key}.flac", flac)
    # Not synced to the disk one by one: that would take longer than the work, and a cut file is noticed and made again.
    os.replace(partial, file.staged)


def is_staged(file: SourceFile) -> bool:
    """Whether the file's clips are staged and whole."""
    try:
        clips, _ = staged_clips(file)
        found = {key: flac_length(flac) for key, flac in staged_flacs(file)}
    except (OSError, ValueError, KeyError, TypeError, tarfile.TarError):
        return False
    return found == {clip.key: clip.samples for clip in clips}


def staged_clips(file: SourceFile) -> tuple[list[StagedClip], list[dict]]:
    """The clips of a staged file, and what was skipped of it."""
    with tarfile.open(file.staged) as tar:
        _, text = next(members(tar))
    record = json.loads(text)
    return [StagedClip(**clip) for clip in record["clips"]], record["skipped"]


def staged_flacs(file: SourceFile) -> Iterator[tuple[str, bytes]]:
    """Yield (key, bytes) of the FLAC files of a staged file."""
    with tarfile.open(file.staged) as tar:
        for name, data in members(tar):
            if name != RECORD:
                yield name.removesuffix(".flac"), data


def _unless_excluded(
    excerpt: Excerpt, file: SourceFile, sample_rate: int, exclusions: Exclusions | None
) -> Excerpt | Skipped:
    if exclusions is not None and (match := exclusions.match(excerpt, sample_rate)):
        return Skipped(f"{file.name} from {excerpt.start_s:g} s", f"excluded: the same sound as {match}")
    return excerpt
