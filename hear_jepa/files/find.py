"""What to embed: files, folders, patterns, lists, tables, tar archives and URLs -> one list of sounds, each once."""

import csv
import glob
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hear_jepa.errors import OptionError
from hear_jepa.files.folders import HEADERLESS, walk_audio
from hear_jepa.files.records import RESERVED_COLUMNS, as_text
from hear_jepa.files.sounds import Sound, is_archive, is_url, members, remote_sounds, sound_at
from hear_jepa.files.tables import pyarrow_or_advice

LIST_SUFFIX = ".txt"
TABLE_SUFFIXES = (".csv", ".parquet", ".jsonl")


@dataclass
class Found:
    """What names stand for.

    sounds: each once, in order; folders and links that cannot be followed too: whoever opens them says why;
    roots: the files and folders that were named, which no output may touch;
    left_out: the files without a header, which were not asked for.
    """

    sounds: list[Sound] = field(default_factory=list)
    roots: list[Path] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        """The paths of the sounds."""
        return [Path(sound.path) for sound in self.sounds]


def find_sources(paths: Iterable[str | Path], headerless: bool = False) -> Found:
    """Expand `paths` in their order; what is named twice is listed once, where it was named first.

    A folder stands for every sound below it, a pattern (`*`, `?`, `[…]`, `**`) for what it matches, a `.tar` archive
    for the sounds in it, a URL for what is there. A `.txt` file stands for what it lists, one a line; a table (.csv,
    .parquet, .jsonl; column `path`) for an excerpt a row where it has `start_s` and `end_s`, and its further columns
    travel on. Paths in lists and tables are relative to the current folder.
    headerless: take files without a header (.g722, .gsm) from folders and patterns too; named outright they are taken.
    Raises OptionError where a path does not exist, a list cannot be read, or nothing is found. A line of a list that
    names nothing stands for itself.
    """
    paths = [os.fspath(path) for path in paths]
    found, sounds = Found(), []
    for name in paths:
        suffix = Path(name).suffix.lower()
        if is_url(name):
            sounds += remote_sounds(name)
        elif suffix in TABLE_SUFFIXES:
            found.roots.append(Path(name))
            sounds += read_table(name)
        elif suffix == LIST_SUFFIX:
            found.roots.append(Path(name))
            for line in read_list(name):
                sounds += remote_sounds(line) if is_url(line) else _expand(line, found, headerless, listed=True)
        else:
            sounds += _expand(name, found, headerless)
    found.roots += [Path(sound.path) for sound in sounds if sound.excerpt or sound.columns]
    unique: dict[tuple, Sound] = {}
    for sound in sounds:
        unique.setdefault((sound.path if is_url(sound.path) else os.path.abspath(sound.path), sound.excerpt), sound)
    found.sounds = list(unique.values())
    if not found.sounds:
        reason = "give files, folders or patterns"
        if found.left_out:
            reason = f"only files without a header, such as {found.left_out[0]}: give --headerless"
        raise OptionError(f"no sound in {', '.join(paths) or 'an empty list'}: {reason}")
    return found


def _expand(name: str, found: Found, headerless: bool, listed: bool = False) -> Iterator[Sound]:
    """The sounds that a file, a folder or a pattern stands for."""
    roots = list(_named(name)) or [Path(name)]
    if not listed and not any(os.path.lexists(root) for root in roots):
        raise OptionError(f"there is no file or folder {name}, and no file that it matches: check the path")
    found.roots += roots
    for root in roots:
        if root.is_dir():
            for path, problem in walk_audio(root):
                if problem or headerless or path.suffix.lower() not in HEADERLESS:
                    relative = path.relative_to(root).as_posix()
                    yield Sound(path, name=relative)
                else:
                    found.left_out.append(path)
        elif is_archive(root.name):
            yield from members(root)
        elif listed or headerless or root == Path(name) or root.suffix.lower() not in HEADERLESS:
            yield Sound(root, name=root.as_posix())
        else:
            found.left_out.append(root)


def read_table(path: str | Path) -> list[Sound]:
    """A sound a row: `path`, seconds `start_s` and `end_s` (empty: its start, its end), and further columns.

    Raises OptionError for a table without paths, for a row that names no stretch of time, and for columns that the
    output has itself.
    """
    sounds = []
    for number, row in enumerate(_rows(path), 1):
        if not isinstance(row, dict):
            raise OptionError(f"{path}, row {number}: {str(row)[:40]!r} is no object; give one a line, with a path")
        values = {name: value for name, value in row.items() if name is not None and value not in (None, "")}
        if "path" not in values:
            raise OptionError(f"{path}, row {number}: it has no path; a table needs the column path")
        reserved = sorted(RESERVED_COLUMNS & set(values) - {"path", "start_s", "end_s"})
        if reserved:
            raise OptionError(f"{path}: the output has its own column {', '.join(reserved)}: rename it")
        start, end = values.pop("start_s", None), values.pop("end_s", None)
        source = str(values.pop("path"))
        sounds.append(
            replace(
                sound_at(source),
                excerpt=None if start is end is None else _excerpt(start, end, f"{path}, row {number}"),
                columns=tuple((as_text(name), as_text(str(value))) for name, value in values.items()),
                name=source,
            )
        )
    return sounds


def _rows(path: str | Path) -> Iterator[dict]:
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".parquet":
            pyarrow = pyarrow_or_advice()
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()
        else:
            with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
                yield from csv.DictReader(file) if suffix == ".csv" else map(json.loads, filter(str.strip, file))
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"the table {path} cannot be read ({error})") from error


def _excerpt(start: Any, end: Any, where: str) -> tuple[float, float]:
    try:
        span = float(start or 0), math.inf if end is None else float(end)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{where}: start_s {start!r} and end_s {end!r} are no seconds") from error
    if not 0 <= span[0] < span[1]:
        raise OptionError(f"{where}: from {start} to {end} s is no stretch of time")
    return span


def read_list(path: str | Path) -> list[str]:
    """The lines of a text file, empty ones left out; names in it need not be UTF-8. Raises OptionError."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise OptionError(f"the list of paths {path} cannot be read ({error.strerror})") from error
    if b"\0" in content:
        raise OptionError(f"the list of paths {path} is no text in UTF-8: give one path a line")
    lines = os.fsdecode(content.removeprefix(b"\xef\xbb\xbf")).split("\n")
    return [line.removesuffix("\r") for line in lines if line.strip()]


def check_out(out: str | Path, roots: Iterable[Path]) -> None:
    """Raise OptionError where an output is, holds, or lies inside one of the inputs."""
    out_path = Path(out).resolve()
    for root in dict.fromkeys(roots):
        source = root.resolve()
        if source == out_path:
            raise OptionError(f"--out {out} is one of the inputs: choose another name")
        if out_path in source.parents:
            raise OptionError(f"--out {out} holds the input {root}: choose another name")
        if source in out_path.parents:
            raise OptionError(f"--out {out} lies inside the input {root}: choose a name outside it")


def _named(name: str) -> Iterator[Path]:
    """The file or folder of that name, or what the pattern matches."""
    if not os.path.lexists(name) and glob.has_magic(name):
        yield from sorted(Path(match) for match in glob.glob(name, recursive=True))
    else:
        yield Path(name)
