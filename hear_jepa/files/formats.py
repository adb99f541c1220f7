"""Files of embeddings: .npz, .parquet, or a folder of .npy with an index; written a few rows at a time, and read back.

An *entry* is one channel of a file, or of an excerpt of it: a row of a scene, as many rows as there are timestamps or
windows. All formats hold the same: the entries in order, and the files that failed, with their reasons.
"""

import csv
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from hear_jepa.disk import atomic_path
from hear_jepa.errors import OptionError
from hear_jepa.files.embed import spans_s
from hear_jepa.model.grid import Grid

ROWS_AT_ONCE = 4096
INDEX, SETTINGS = "index.csv", "settings.json"  # of a folder
TIMES = {"timestamps": ("timestamp_ms",), "scene": ("start_s", "end_s"), "windows": ("start_s", "end_s")}
EXCERPT = ("excerpt_start_s", "excerpt_end_s")
NEEDS_PYARROW = "parquet files need pyarrow: pip install pyarrow, or write .npz"


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


@dataclass
class Embeddings:
    """What a file of embeddings holds, as `load_embeddings` reads it; one entry a file and channel, in order.

    embeddings: [n, size] of scenes; of timestamps and windows a list of [n_rows, size];
    timestamps_ms: the centres [n_rows] of each entry, None but for timestamps;
    spans_s: seconds from, to [n, 2] of scenes, a list of [n_rows, 2] of windows, None for timestamps;
    failed: the reason of every file that could not be embedded; columns: those that a table of inputs added.
    """

    paths: list[str]
    channels: list[int]
    embeddings: Any
    timestamps_ms: Any = None
    spans_s: Any = None
    failed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)


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


def format_of(path: str | Path) -> str:
    """The format that a path asks for by its suffix; none asks for a folder. Raises OptionError for another."""
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        pyarrow_or_advice()
    if suffix in (".npz", ".parquet"):
        return suffix[1:]
    if suffix in ("", ".npy-folder"):
        return "npy-folder"
    raise OptionError(f"cannot write {path}: give a name that ends in .npz or .parquet, or without suffix for a folder")


def named_output(path: str | Path, form: str | None) -> str:
    """The path of an output in a format: with its suffix. Raises OptionError where the path has another."""
    if form is None or form == format_of(path):
        return str(path)
    if Path(path).suffix:
        raise OptionError(f"{path} names another format than {form}: give a name without suffix, or leave it out")
    return f"{path}.{form}"


def write_output(path: Path, records: list[FileRecord], rows: RowFile, settings: dict[str, Any]) -> None:
    """Write all `records`, whose rows are in `rows`, to `path`, in the format of its suffix."""
    FORMATS[format_of(path)].write(path, records, rows, settings)


def open_output(path: str | Path) -> Stored:
    """An output of `hear-jepa embed`. Raises OptionError for anything else."""
    path = Path(path)
    if not path.exists():
        raise OptionError(f"there are no embeddings {path}: write them with `hear-jepa embed`")
    try:
        return _open_parts(path) if is_parts(path) else FORMATS[format_of(path)].open(path)
    except (KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"{path} does not hold embeddings of `hear-jepa embed` ({error})") from error


def is_output(path: str | Path) -> bool:
    """Whether a path is certainly an output of `hear-jepa embed`, with nothing else in it."""
    try:
        stored = open_output(path)
    except OptionError:
        return False
    return (
        not is_parts(path)
        and "kind" in stored.settings
        and FORMATS[format_of(path)].holds_nothing_else(Path(path), stored)
    )


def is_parts(path: str | Path) -> bool:
    """Whether an output is a folder of parts that many machines wrote (see `hear_jepa.files.shards`)."""
    return (Path(path) / "_dataset.json").is_file()


def _open_parts(path: Path) -> Stored:
    parts = [open_output(part) for part in sorted(path.glob("part-*")) if part.suffix != ".parts"]
    if not parts:
        raise ValueError("none of its parts is finished")
    settings = {name: value for name, value in parts[0].settings.items() if name != "columns"}
    records = [record for part in parts for record in part.records]
    return Stored(settings, records, lambda: (chunk for part in parts for chunk in part.chunks()))


def load_embeddings(path: str | Path) -> Embeddings:
    """Read a file or folder that `hear-jepa embed` wrote. Raises OptionError for anything else."""
    settings, records, chunks = open_output(path)
    good = [(record, channel, count) for record, channel, (_, count) in channels_of(records)]
    kind, size = settings["kind"], settings["embedding_size"]
    rows = numpy.concatenate([numpy.zeros((0, size), settings.get("dtype", "float32")), *chunks()])
    ends = numpy.cumsum([count for *_, count in good])[:-1]
    per_entry = numpy.split(rows, ends) if good else []
    times = [times_of(record, count, settings) for record, _, count in good]
    names = dict.fromkeys(name for record, *_ in good for name in record.columns)
    found = Embeddings(
        paths=[record.path for record, *_ in good],
        channels=[channel for _, channel, _ in good],
        embeddings=rows if kind == "scene" else per_entry,
        failed={record.name: record.error for record in records if record.error is not None},
        settings=settings,
        columns={name: [record.columns.get(name, "") for record, *_ in good] for name in names},
    )
    if kind == "timestamps":
        found.timestamps_ms = [entry[:, 0] for entry in times]
    else:
        found.spans_s = numpy.concatenate([numpy.zeros((0, 2)), *times]) if kind == "scene" else times
    return found


def channels_of(records: list[FileRecord]) -> Iterator[tuple[FileRecord, int, tuple[int, ...]]]:
    """Every channel of every embedded file, and its rows (first, count)."""
    for record in records:
        for channel, rows in enumerate(record.rows):
            yield record, channel, tuple(rows)


def times_of(record: FileRecord, count: int, settings: dict[str, Any]) -> numpy.ndarray:
    """Of `count` rows of a file: centres in ms [count, 1] of timestamps, else seconds from, to [count, 2]."""
    start_s = record.excerpt[0] if record.excerpt else 0.0
    if settings["kind"] == "timestamps":
        grid = Grid(**settings.get("grid", {}))
        n_samples = round(record.duration_s * grid.sample_rate)
        return grid.centres_ms(n_samples, settings["hop_ms"], 0, count).numpy()[:, None] + 1000 * start_s
    if settings["kind"] == "windows":
        return start_s + spans_s(count, settings["window_s"], settings["hop_s"], record.duration_s)
    return numpy.array([[start_s, start_s + record.duration_s]] * count).reshape(count, 2)


def as_text(path: str | Path) -> str:
    """A path as text that any encoder takes, also where the file system's bytes are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def pyarrow_or_advice():
    """The library; raises OptionError, with what to install, where it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OptionError(NEEDS_PYARROW) from error
    return pyarrow


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


RESERVED_COLUMNS = {  # that a table of inputs may not bring
    *("path", "channel", "duration_s", *EXCERPT, "warning", "error", "file_size", "file_mtime_ns", "embedding"),
    *("timestamp_ms", "start_s", "end_s", "file", "paths", "channels", "durations_s", "timestamps_ms", "embeddings"),
    *("settings", "starts", "failed_paths", "failed_reasons"),
}


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


class Npz:
    """One array a column; those of the files that failed are `failed_paths` and `failed_reasons`."""

    @staticmethod
    def write(path: Path, records: list[FileRecord], rows: RowFile, settings: dict[str, Any]) -> None:
        good = [record for record in records if record.error is None]
        items = list(channels_of(good))
        counts = [count for *_, (_, count) in items]
        times = [times_of(record, count, settings) for record, _, (_, count) in items]
        joined = numpy.concatenate([numpy.zeros((0, len(TIMES[settings["kind"]]))), *times])
        arrays = {"settings": numpy.array(json.dumps(settings)), "starts": numpy.cumsum([0, *counts], dtype="i8")}
        for name, column in zip(TIMES[settings["kind"]], joined.T, strict=True):
            arrays[name] = column
        for name, values in entry_columns(good, settings).items():
            if name != "error":
                arrays[name] = _array(values)
        failed = [record for record in records if record.error is not None]
        arrays["failed_paths"] = numpy.array([record.name for record in failed], dtype=str)
        arrays["failed_reasons"] = numpy.array([record.error for record in failed], dtype=str)
        renamed = {old: new for new, old in Npz.PUBLIC.items()}
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{renamed.get(name, name)}.npy", "w", force_zip64=True) as file:
                    numpy.lib.format.write_array(file, array, allow_pickle=False)
            with archive.open("embeddings.npy", "w", force_zip64=True) as file:
                header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (sum(counts), rows.size)}
                numpy.lib.format.write_array_header_1_0(file, header)
                for *_, place in items:
                    for chunk in rows.chunks(*place):
                        file.write(chunk.data)

    @staticmethod
    def open(path: Path) -> Stored:
        with numpy.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != "embeddings"}
        settings = json.loads(arrays.pop("settings").item())
        failed = list(zip(arrays.pop("failed_paths").tolist(), arrays.pop("failed_reasons").tolist(), strict=True))
        columns = {str(Npz.PUBLIC.get(name, name)): array for name, array in arrays.items()}
        starts = columns.pop("starts", numpy.arange(len(columns["path"]) + 1))
        for name in TIMES[settings["kind"]]:
            columns.pop(name, None)
        if any(array.shape != (len(starts) - 1,) for array in columns.values()):
            raise ValueError("it holds other arrays")
        lists = {name: _values(array) for name, array in columns.items()} | {"error": [None] * (len(starts) - 1)}
        records = records_of(lists, numpy.diff(starts).tolist())
        records += [FileRecord(name, reason, 0.0) for name, reason in failed]
        return Stored(settings, records, lambda: Npz._chunks(path))

    @staticmethod
    def holds_nothing_else(path: Path, stored: Stored) -> bool:
        return True  # it opened: numpy arrays, and the settings among them

    PUBLIC = {  # name of the array: of the column
        "paths": "path",
        "channels": "channel",
        "durations_s": "duration_s",
        "timestamps_ms": "timestamp_ms",
    }

    @staticmethod
    def _chunks(path: Path) -> Iterator[numpy.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open("embeddings.npy") as file:
            version = numpy.lib.format.read_magic(file)
            assert version == (1, 0)
            (n_rows, size), _, dtype = numpy.lib.format.read_array_header_1_0(file)
            for first in range(0, n_rows, ROWS_AT_ONCE):
                count = min(ROWS_AT_ONCE, n_rows - first)
                yield numpy.frombuffer(file.read(count * size * dtype.itemsize), dtype).reshape(count, size)


class NpyFolder:
    """One .npy an entry, its times beside it; `index.csv` and `settings.json`."""

    @staticmethod
    def write(path: Path, records: list[FileRecord], rows: RowFile, settings: dict[str, Any]) -> None:
        columns = entry_columns(records, settings)
        places = iter(channels_of(records))
        with atomic_path(path) as folder:
            folder.mkdir()
            with open(folder / INDEX, "w", newline="", encoding="utf-8") as file:
                index = csv.writer(file)
                index.writerow(["file", *columns])
                for number, values in enumerate(zip(*columns.values(), strict=True)):
                    failed = columns["error"][number] is not None
                    name = "" if failed else NpyFolder._write_entry(folder, number, *next(places), rows, settings)
                    index.writerow([name, *("" if value is None else value for value in values)])
            (folder / SETTINGS).write_text(json.dumps(settings))

    @staticmethod
    def _write_entry(folder, number, record, channel, place, rows, settings) -> str:
        stem = re.sub(r"[^\w.-]", "_", Path(record.path).stem, flags=re.ASCII)[:80]
        name = f"{number:06d}_{stem}"
        shape = (rows.size,) if settings["kind"] == "scene" else (place[1], rows.size)
        with open(folder / f"{name}.npy", "wb") as file:
            header = {"descr": rows.dtype.str, "fortran_order": False, "shape": shape}
            numpy.lib.format.write_array_header_1_0(file, header)
            for chunk in rows.chunks(*place):
                file.write(chunk.data)
        times = times_of(record, place[1], settings)
        if settings["kind"] == "timestamps":
            numpy.save(folder / f"{name}.timestamps_ms.npy", times[:, 0])
        if settings["kind"] == "windows":
            numpy.save(folder / f"{name}.start_end_s.npy", times)
        return f"{name}.npy"

    @staticmethod
    def open(path: Path) -> Stored:
        settings = json.loads((path / SETTINGS).read_text())
        with open(path / INDEX, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        columns: dict[str, list] = {name: [line[name] or None for line in lines] for name in (lines or [{}])[0]}
        files = columns.pop("file", [])
        for name, kind in [("channel", int), ("duration_s", float), ("file_size", int), ("file_mtime_ns", int)] + [
            (name, float) for name in EXCERPT
        ]:
            if name in columns:
                columns[name] = [None if value is None else kind(value) for value in columns[name]]
        arrays = [None if name is None else numpy.load(path / name, mmap_mode="r") for name in files]
        counts = [0 if array is None else len(numpy.atleast_2d(array)) for array in arrays]
        good = [name for name in files if name is not None]

        def chunks() -> Iterator[numpy.ndarray]:
            for name in good:
                yield numpy.atleast_2d(numpy.load(path / name, allow_pickle=False))

        return Stored(settings, records_of(columns, counts), chunks)

    @staticmethod
    def holds_nothing_else(path: Path, stored: Stored) -> bool:
        with open(path / INDEX, newline="", encoding="utf-8") as file:
            names = {line["file"] for line in csv.DictReader(file)}
        stems = {name.removesuffix(".npy") for name in names}
        known = (
            names
            | {INDEX, SETTINGS}
            | {f"{stem}.{kind}.npy" for stem in stems for kind in ("timestamps_ms", "start_end_s")}
        )
        return all(entry.name in known and entry.is_file() for entry in path.iterdir())


class Parquet:
    """A row an entry's row; a file that failed has a row with its error and no embedding."""

    @staticmethod
    def write(path: Path, records: list[FileRecord], rows: RowFile, settings: dict[str, Any]) -> None:
        pyarrow = pyarrow_or_advice()
        columns, times = entry_columns(records, settings), TIMES[settings["kind"]]
        types = {
            "channel": pyarrow.int32(),
            "duration_s": pyarrow.float64(),
            "file_size": pyarrow.int64(),
            "file_mtime_ns": pyarrow.int64(),
        } | dict.fromkeys(EXCERPT, pyarrow.float64())
        vector = pyarrow.list_(pyarrow.from_numpy_dtype(rows.dtype), rows.size)
        fields = [(name, types.get(name, pyarrow.string())) for name in columns]
        fields[3:3] = [(name, pyarrow.float64()) for name in times]
        schema = pyarrow.schema([*fields, ("embedding", vector)], metadata={"hear_jepa": json.dumps(settings)})
        places = iter(channels_of(records))

        def pieces() -> Iterator[tuple[int, numpy.ndarray | None, numpy.ndarray]]:
            """Number of the entry, rows [k, size] or None, their times [k, …]."""
            for number, error in enumerate(columns["error"]):
                if error is not None:
                    yield number, None, numpy.full((1, len(times)), numpy.nan)
                    continue
                record, _, place = next(places)
                when, first = times_of(record, place[1], settings), 0
                for chunk in rows.chunks(*place):
                    yield number, chunk, when[first : first + len(chunk)]
                    first += len(chunk)

        waiting: list[tuple[int, numpy.ndarray | None, numpy.ndarray]] = []  # a row group in the making

        def flush() -> None:
            lengths = [len(when) for *_, when in waiting]
            entries = numpy.repeat([number for number, *_ in waiting], lengths)
            blank = numpy.zeros((1, rows.size), rows.dtype)
            flat = numpy.concatenate([blank if chunk is None else chunk for _, chunk, _ in waiting]).ravel()
            missing = numpy.repeat([chunk is None for _, chunk, _ in waiting], lengths)
            when = numpy.concatenate([when for *_, when in waiting])
            arrays = {"embedding": pyarrow.FixedSizeListArray.from_arrays(flat, rows.size, mask=pyarrow.array(missing))}
            for name, column in zip(times, when.T, strict=True):
                arrays[name] = pyarrow.array(column, mask=missing)
            for name, values in columns.items():
                arrays[name] = pyarrow.array([values[number] for number in entries], schema.field(name).type)
            writer.write_table(pyarrow.Table.from_arrays([arrays[name] for name in schema.names], schema=schema))
            waiting.clear()

        with atomic_path(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
            n_rows = 0
            for piece in pieces():
                waiting.append(piece)
                n_rows += len(piece[2])
                if n_rows >= ROWS_AT_ONCE:
                    flush()
                    n_rows = 0
            if waiting:
                flush()

    @staticmethod
    def open(path: Path) -> Stored:
        file = pyarrow_or_advice().parquet.ParquetFile(path)
        settings = json.loads((file.schema_arrow.metadata or {})[b"hear_jepa"])
        times = TIMES[settings["kind"]]
        names = [name for name in file.schema_arrow.names if name != "embedding" and name not in times]
        table = file.read(names).to_pydict()
        keys = list(zip(*(table[name] for name in ("path", "channel", *EXCERPT) if name in table), strict=True))
        single = settings["kind"] == "scene"
        first = [n for n, key in enumerate(keys) if single or n == 0 or key != keys[n - 1]]
        counts = numpy.diff([*first, len(keys)]).tolist()
        columns = {name: [values[number] for number in first] for name, values in table.items()}
        counts = [0 if e is not None else count for e, count in zip(columns["error"], counts, strict=True)]

        def chunks() -> Iterator[numpy.ndarray]:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=["embedding"]):
                column = batch.column(0).drop_null()
                yield column.flatten().to_numpy().reshape(len(column), settings["embedding_size"])

        return Stored(settings, records_of(columns, counts), chunks)

    @staticmethod
    def holds_nothing_else(path: Path, stored: Stored) -> bool:
        return True  # its metadata are ours


FORMATS = {"npz": Npz, "parquet": Parquet, "npy-folder": NpyFolder}


def _array(values: list) -> numpy.ndarray:
    """A column as an array without pickles: NaN for a missing number, "" for a missing text."""
    if any(isinstance(value, float) for value in values):
        return numpy.array([numpy.nan if value is None else value for value in values], dtype="f8")
    if all(isinstance(value, int) for value in values):
        return numpy.array(values, dtype="i8")
    return numpy.array(["" if value is None else value for value in values], dtype=str)


def _values(array: numpy.ndarray) -> list:
    """The inverse of `_array`."""
    return [None if isinstance(value, float) and numpy.isnan(value) else value for value in array.tolist()]
