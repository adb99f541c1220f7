"""Embeddings as NumPy files: one .npz, or a folder of .npy with an index; written a few rows at a time."""

import csv
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

from hear_jepa.disk import atomic_path
from hear_jepa.files.records import (
    EXCERPT,
    ROWS_AT_ONCE,
    TIMES,
    FileRecord,
    RowFile,
    Stored,
    channels_of,
    entry_columns,
    merged,
    records_of,
    times_of,
)

INDEX, SETTINGS = "index.csv", "settings.json"  # of a folder


class Npz:
    """One array a column; those of the files that failed begin with `failed_`."""

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
        arrays["failed_paths"] = numpy.array([record.path for record in failed], dtype=str)
        excerpts = [record.excerpt or (numpy.nan, numpy.nan) for record in failed]
        arrays["failed_excerpts"] = numpy.array(excerpts, dtype="f8").reshape(-1, 2)
        arrays["failed_reasons"] = numpy.array([record.error for record in failed], dtype=str)
        renamed = {old: new for new, old in Npz.PUBLIC.items()}
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{renamed.get(name, name)}.npy", "w", force_zip64=True) as file:
                    numpy.lib.format.write_array(file, array, allow_pickle=False)
            with archive.open("embeddings.npy", "w", force_zip64=True) as file:
                header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (sum(counts), rows.size)}
                numpy.lib.format.write_array_header_1_0(file, header)
                for place in merged(place for *_, place in items):
                    for chunk in rows.chunks(*place):
                        file.write(chunk.data)

    @staticmethod
    def open(path: Path) -> Stored:
        with numpy.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != "embeddings"}
        settings = json.loads(arrays.pop("settings").item())
        paths, reasons = arrays.pop("failed_paths").tolist(), arrays.pop("failed_reasons").tolist()
        excerpts = arrays.pop("failed_excerpts", numpy.full((len(paths), 2), numpy.nan)).tolist()  # not in older ones
        columns = {str(Npz.PUBLIC.get(name, name)): array for name, array in arrays.items()}
        starts = columns.pop("starts", numpy.arange(len(columns["path"]) + 1))
        for name in TIMES[settings["kind"]]:
            columns.pop(name, None)
        if any(array.shape != (len(starts) - 1,) for array in columns.values()):
            raise ValueError("it holds other arrays")
        lists = {name: _values(array) for name, array in columns.items()} | {"error": [None] * (len(starts) - 1)}
        records = records_of(lists, numpy.diff(starts).tolist())
        for failed, reason, (start_s, end_s) in zip(paths, reasons, excerpts, strict=True):
            excerpt = None if numpy.isnan(start_s) else (start_s, end_s)
            records.append(FileRecord(failed, reason, 0.0, excerpt=excerpt))
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
        counts = [0 if name is None else NpyFolder._n_rows(path / name) for name in files]
        good = [name for name in files if name is not None]

        def chunks() -> Iterator[numpy.ndarray]:
            for name in good:
                yield numpy.atleast_2d(numpy.load(path / name, allow_pickle=False))

        return Stored(settings, records_of(columns, counts), chunks)

    @staticmethod
    def _n_rows(path: Path) -> int:
        return len(numpy.atleast_2d(numpy.load(path, mmap_mode="r")))  # closed at once: there may be many

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
