"""What an output of embeddings holds: files that are done, their rows, and the columns of an index of them.

An *entry* is one channel of a file, or of an excerpt of it: a row of a scene, as many rows as there are timestamps or
windows.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from hear_jepa.files.collect import spans_s
from hear_jepa.model.grid import Grid

ROWS_AT_ONCE = 4096
TIMES = {"timestamps": ("timestamp_ms",), "scene": ("start_s", "end_s"), "windows": ("start_s", "end_s")}
EXCERPT = ("excerpt_start_s", "excerpt_end_s")
RESERVED_COLUMNS = {  # that a table of inputs may not bring
    *("path", "channel", "duration_s", *EXCERPT, "warning", "error", "file_size", "file_mtime_ns", "embedding"),
    *("timestamp_ms", "start_s", "end_s", "file", "paths", "channels", "durations_s", "timestamps_ms", "embeddings"),
    *("settings", "starts", "failed_paths", "failed_excerpts", "failed_reasons"),
}


@dataclass(frozen=True)
class FileRecord:
    """A file, or an excerpt of it, that is done: its error, or the rows of each of its channels, (first, count).

    path: as text; size, mtime_ns: the file's, which tell whether it has changed since; excerpt: seconds from, to;
    columns: what a table of inputs said of it; warning: what is odd about the file.
    """

    path: str
    error: str | None
    duration_s: float
    rows: list[tuple[int, int]] = field(default_factory=list)
    size: int = -1
    mtime_ns: int = -1
    excerpt: tuple[float, float] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    warning: str = ""

    @property
    def name(self) -> str:
        """Path and, of an excerpt, seconds: `a.wav#t=1.5,3`."""
        return self.path if self.excerpt is None else f"{self.path}#t={self.excerpt[0]:g},{self.excerpt[1]:g}"


class Stored(NamedTuple):
    """An output as it lies on disk: `chunks()` gives the rows [k, size] of all `records` in order, a few at a time."""

    settings: dict[str, Any]
    records: list[FileRecord]
    chunks: Callable[[], Iterator[numpy.ndarray]]


class RowFile:
    """Rows [n, size] in a file; read, not mapped: mapped pages would count as memory of the process."""

    def __init__(self, path: str | Path, size: int, dtype: str = "float32"):
        self.size, self.dtype = size, numpy.dtype(dtype).newbyteorder("<")
        self.row_bytes = size * self.dtype.itemsize
        self._path = path

    def chunks(self, start: int, count: int) -> Iterator[numpy.ndarray]:
        """Rows `start … start + count - 1`, a few at a time."""
        for first in range(start, start + count, ROWS_AT_ONCE):
            n_rows = min(ROWS_AT_ONCE, start + count - first)
            offset = first * self.row_bytes
            yield numpy.fromfile(self._path, self.dtype, n_rows * self.size, offset=offset).reshape(-1, self.size)


def channels_of(records: list[FileRecord]) -> Iterator[tuple[FileRecord, int, tuple[int, ...]]]:
    """Every channel of every embedded file, and its rows (first, count)."""
    for record in records:
        for channel, rows in enumerate(record.rows):
            yield record, channel, tuple(rows)


def merged(places: Iterable[tuple[int, ...]]) -> Iterator[tuple[int, int]]:
    """Rows (first, count), those that follow each other in the file as one."""
    start = stop = 0
    for first, count in places:
        if first != stop:
            yield start, stop - start
            start = first
        stop = first + count
    yield start, stop - start


def start_of(excerpt: tuple[float, float] | None) -> float:
    """Seconds at which an excerpt of a recording starts; None is the whole recording."""
    return excerpt[0] if excerpt else 0.0


def times_of(record: FileRecord, count: int, settings: dict[str, Any]) -> numpy.ndarray:
    """Of `count` rows of a file: centres in ms [count, 1] of timestamps, else seconds from, to [count, 2]."""
    start_s = start_of(record.excerpt)
    if settings["kind"] == "timestamps":
        grid = Grid(**settings.get("grid", {}))
        n_samples = round(record.duration_s * grid.sample_rate)
        return grid.centres_ms(n_samples, settings["hop_ms"], 0, count).numpy()[:, None] + 1000 * start_s
    if settings["kind"] == "windows":
        return start_s + spans_s(count, settings["window_s"], settings["hop_s"], record.duration_s)
    return numpy.array([[start_s, start_s + record.duration_s]] * count).reshape(count, 2)


def as_text(path: str | Path) -> str:
    """A path, or what was read beside it, as text that any encoder takes, also where its bytes are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def entry_columns(records: list[FileRecord], settings: dict[str, Any]) -> dict[str, list]:
    """Columns of all entries, and of the files that failed (channel None).

    Those that only a table of inputs brings are there where a record has them, or `settings` names them.
    """
    named = settings.get("columns", [])
    entries = [
        entry for record in records for entry in [(record, n) for n in range(len(record.rows))] or [(record, None)]
    ]
    columns: dict[str, list] = {
        "path": [record.path for record, _ in entries],
        "channel": [channel for _, channel in entries],
        "duration_s": [record.duration_s for record, _ in entries],
    }
    if EXCERPT[0] in named or any(record.excerpt for record in records):
        for number, name in enumerate(EXCERPT):
            columns[name] = [record.excerpt[number] if record.excerpt else None for record, _ in entries]
    extra = [name for name in named if name not in EXCERPT]
    for name in dict.fromkeys([*extra, *(name for record in records for name in record.columns)]):
        columns[name] = [record.columns.get(name) for record, _ in entries]
    columns["warning"] = [record.warning for record, _ in entries]
    columns["error"] = [record.error for record, _ in entries]
    columns["file_size"] = [record.size for record, _ in entries]
    columns["file_mtime_ns"] = [record.mtime_ns for record, _ in entries]
    return columns


def records_of(columns: dict[str, list], counts: list[int]) -> list[FileRecord]:
    """The inverse of `entry_columns`; counts: rows of each entry."""
    records: list[FileRecord] = []
    extra = [name for name in columns if name not in RESERVED_COLUMNS]
    row = 0
    for number, count in enumerate(counts):
        entry = {name: values[number] for name, values in columns.items()}
        if entry["channel"]:  # another channel of the file before
            records[-1].rows.append((row, count))
        else:
            start_s, end_s = (entry.get(name) for name in EXCERPT)
            records.append(
                FileRecord(
                    path=entry["path"],
                    error=entry["error"],
                    duration_s=entry["duration_s"] or 0.0,
                    rows=[] if entry["error"] is not None else [(row, count)],
                    size=entry.get("file_size", -1),
                    mtime_ns=entry.get("file_mtime_ns", -1),
                    excerpt=None if start_s is None or end_s is None else (start_s, end_s),
                    columns={name: entry[name] for name in extra if entry[name] is not None},
                    warning=entry.get("warning") or "",
                )
            )
        row += count
    return records
