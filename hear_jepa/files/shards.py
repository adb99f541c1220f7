"""One output that many machines write: each embeds its share of the sounds, into a part of its own.

    OUT/_dataset.json                    what all parts have in common
    OUT/part-00003-of-00064.parquet      the share of machine 3 of 0 … 63
    OUT/_part-00003-of-00064.json        its manifest, written last

Readers of data sets (pyarrow, DuckDB) take the parts as one table, and leave out what begins with an underscore.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hear_jepa.disk import file_sha256, locked, read_json, write_json
from hear_jepa.errors import OptionError
from hear_jepa.files.records import EXCERPT, FileRecord, as_text
from hear_jepa.files.sounds import Sound

DATASET = "_dataset.json"
OURS = re.compile(r"_dataset\.json|\.?_?part-\d{5}-of-\d{5}\..*|\._dataset\..*")
WAIT_S = 60.0  # for another machine that is just writing `_dataset.json`


@dataclass(frozen=True)
class Shard:
    """Share `index`, from 0, of `count`."""

    index: int
    count: int

    @property
    def stem(self) -> str:
        """Of the names of its files."""
        return f"part-{self.index:05d}-of-{self.count:05d}"


def share_of(sound: Sound, count: int) -> Shard:
    """The share that a sound is in: by a hash of the path below the folder that was named, and of the excerpt."""
    key = as_text(sound.name or os.fspath(sound.path)) + (repr(sound.excerpt) if sound.excerpt else "")
    return Shard(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % count, count)


def parse_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """`I/N`, I from 0, or `auto`: the task of a SLURM array, whose tasks are numbered from 0 to N - 1.

    Raises OptionError. A task that is run again alone, as `--array=3`, needs `I/N`: SLURM then counts one task.
    """
    if text == "auto":
        try:
            text = f"{environment['SLURM_ARRAY_TASK_ID']}/{environment['SLURM_ARRAY_TASK_COUNT']}"
        except KeyError as error:
            raise OptionError("--shard auto is for tasks of a SLURM array: give --shard I/N") from error
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise OptionError(f"--shard must be I/N with I in 0 … N - 1, not {text}")
    return Shard(int(found[1]), int(found[2]))


def check_folder(out: Path) -> None:
    """Raise OptionError where a folder holds anything but parts."""
    if out.exists() and not out.is_dir():
        raise OptionError(f"{out} is a file: the parts need a folder; choose another --out")
    foreign = [entry.name for entry in out.iterdir() if not OURS.fullmatch(entry.name)] if out.is_dir() else []
    if foreign:
        raise OptionError(f"{out} holds {foreign[0]}, which is no part of an output: choose another --out")


def columns_of(sounds: Sequence[Sound]) -> list[str]:
    """The columns that a table of inputs brings: every part has them, also where its share has no value for one."""
    excerpts = EXCERPT if any(sound.excerpt for sound in sounds) else ()
    return [*excerpts, *dict.fromkeys(name for sound in sounds for name, _ in sound.columns)]


def join(out: Path, shard: Shard, form: str, inputs: list[str], settings: dict[str, Any]) -> None:
    """Declare the data set, or check that it is the same one. Raises OptionError for another."""
    wanted = json.loads(json.dumps({"count": shard.count, "format": form, "inputs": inputs, "settings": settings}))
    path = out / DATASET
    with locked(out / f".{DATASET[:-5]}.lock", WAIT_S):
        if not path.exists():
            write_json(path, wanted)
            return
    found = read_dataset(out)
    other = [key for key in ("count", "format", "inputs") if found[key] != wanted[key]]
    other += [key for key, value in wanted["settings"].items() if found["settings"].get(key) != value]
    if other:
        raise OptionError(
            f"{out} is written with other {', '.join(other)}: give the same command, but for --shard, or another --out"
        )


def read_dataset(out: Path) -> dict[str, Any]:
    """What all parts have in common. Raises OptionError for a folder that is no such output."""
    try:
        return read_json(out / DATASET)
    except (OSError, ValueError) as error:
        raise OptionError(f"{out} is no output in parts ({error}): write one with --shard") from error


def write_manifest(part: Path, records: list[FileRecord]) -> None:
    """Say that a part is finished, and what it holds."""
    manifest = {
        "part": part.name,
        "files": len(records),
        "failed": sum(record.error is not None for record in records),
        "rows": sum(count for record in records for _, count in record.rows),
        "duration_s": sum(record.duration_s for record in records),
        "sha256": file_sha256(part) if part.is_file() else None,
    }
    write_json(manifest_path(part), manifest)


def manifest_path(part: Path) -> Path:
    """Where a part's manifest is."""
    return part.with_name(f"_{part.stem}.json")


def missing(out: Path) -> tuple[list[int], int]:
    """Which shares have not been finished, and how many there are."""
    dataset = read_dataset(out)
    parts = [out / f"{Shard(n, dataset['count']).stem}.{dataset['format']}" for n in range(dataset["count"])]
    return [n for n, part in enumerate(parts) if not (part.exists() and manifest_path(part).exists())], len(parts)


def array_expression(numbers: list[int]) -> str:
    """Numbers as SLURM's `--array` takes them: `3,17-20`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
