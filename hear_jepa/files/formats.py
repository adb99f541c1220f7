"""Files of embeddings: .npz, .parquet, or a folder of .npy with an index; written in pieces, and read back."""

import csv
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

from hear_jepa.disk import atomic_path
from hear_jepa.errors import OptionError
from hear_jepa.files.parquet import pyarrow_or_advice, read_parquet, write_parquet
from hear_jepa.files.records import Embeddings, FileRecord, as_text, centres, channels_of

FORMATS = ("npz", "parquet", "npy-folder")
ROWS_AT_ONCE = 4096
INDEX = "index.csv"
INDEX_COLUMNS = ("file", "path", "channel", "duration_s", "error")
SETTINGS = "settings.json"


def format_of(path: str | Path) -> str:
    """The format that a path asks for by its suffix; none asks for a folder. Raises OptionError for another."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix in ("npz", "parquet"):
        if suffix == "parquet":
            pyarrow_or_advice()
        return suffix
    if suffix in ("", "npy-folder"):
        return "npy-folder"
    raise OptionError(f"cannot write {path}: give a name that ends in .npz or .parquet, or without suffix for a folder")


def write_output(path: Path, records: list[FileRecord], rows: numpy.ndarray, settings: dict[str, Any]) -> None:
    """Write all `records`, whose rows are in `rows` [total, size], to `path`, in the format of its suffix."""
    writers = {"npz": _write_npz, "parquet": write_parquet, "npy-folder": _write_folder}
    writers[format_of(path)](path, records, rows, settings)


def load_embeddings(path: str | Path) -> Embeddings:
    """Read a file or folder that `hear-jepa embed` wrote. Raises OptionError for anything else."""
    path = Path(path)
    if not path.exists():
        raise OptionError(f"there are no embeddings {path}: write them with `hear-jepa embed`")
    readers = {"npz": _read_npz, "parquet": read_parquet, "npy-folder": _read_folder}
    try:
        return readers[format_of(path)](path)
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"{path} does not hold embeddings of `hear-jepa embed` ({error})") from error


def _chunks(records: list[FileRecord], rows: numpy.ndarray) -> Iterator[numpy.ndarray]:
    """The rows of all channels in order, some at a time."""
    for *_, place in channels_of(records):
        for start in range(place.start, place.stop, ROWS_AT_ONCE):
            yield rows[start : min(start + ROWS_AT_ONCE, place.stop)]


def _write_npz(path: Path, records: list[FileRecord], rows: numpy.ndarray, settings: dict[str, Any]) -> None:
    items = list(channels_of(records))
    counts = [place.stop - place.start for *_, place in items]
    failed = [record for record in records if record.error is not None]
    arrays = {
        "paths": numpy.array([as_text(record.path) for record, *_ in items], dtype=str),
        "channels": numpy.array([channel for _, channel, _ in items], dtype=numpy.int64),
        "durations_s": numpy.array([record.duration_s for record, *_ in items], dtype=numpy.float64),
        "failed_paths": numpy.array([as_text(record.path) for record in failed], dtype=str),
        "failed_reasons": numpy.array([record.error for record in failed], dtype=str),
        "settings": numpy.array(json.dumps(settings)),
    }
    if settings["kind"] == "timestamps":
        arrays["starts"] = numpy.cumsum([0, *counts])
        times = [centres(record, place, settings) for record, _, place in items]
        arrays["timestamps_ms"] = numpy.concatenate([numpy.zeros(0), *times])
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                numpy.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open("embeddings.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (sum(counts), rows.shape[1])}
            numpy.lib.format.write_array_header_1_0(file, header)
            for chunk in _chunks(records, rows):
                file.write(numpy.ascontiguousarray(chunk).data)


def _read_npz(path: Path) -> Embeddings:
    with numpy.load(path, allow_pickle=False) as file:
        failed = dict(zip(file["failed_paths"].tolist(), file["failed_reasons"].tolist(), strict=True))
        found = Embeddings(file["paths"].tolist(), file["channels"].tolist(), file["embeddings"], None, failed)
        found.settings = json.loads(file["settings"].item())
        if "starts" in file:
            inner = file["starts"][1:-1]
            found.embeddings = numpy.split(found.embeddings, inner) if found.paths else []
            found.timestamps_ms = numpy.split(file["timestamps_ms"], inner) if found.paths else []
    return found


def _write_folder(path: Path, records: list[FileRecord], rows: numpy.ndarray, settings: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed here
    temporary.mkdir(parents=True)
    with open(temporary / INDEX, "w", newline="", encoding="utf-8") as file:
        index = csv.writer(file)
        index.writerow(INDEX_COLUMNS)
        for number, (record, channel, place) in enumerate(channels_of(records)):
            stem = re.sub(r"[^\w.-]", "_", Path(record.path).stem, flags=re.ASCII)[:80]
            name = f"{number:06d}_{stem}"
            index.writerow([f"{name}.npy", as_text(record.path), channel, record.duration_s, ""])
            if settings["kind"] == "timestamps":
                numpy.save(temporary / f"{name}.npy", rows[place])
                numpy.save(temporary / f"{name}.timestamps_ms.npy", centres(record, place, settings))
            else:
                numpy.save(temporary / f"{name}.npy", rows[place.start])
        for record in records:
            if record.error is not None:
                index.writerow(["", as_text(record.path), "", "", record.error])
    (temporary / SETTINGS).write_text(json.dumps(settings))
    if path.exists():
        shutil.rmtree(path)
    temporary.rename(path)


def _read_folder(path: Path) -> Embeddings:
    found = Embeddings([], [], [], None, settings=json.loads((path / SETTINGS).read_text()))
    timestamps = found.settings["kind"] == "timestamps"
    found.timestamps_ms = [] if timestamps else None
    with open(path / INDEX, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["error"]:
                found.failed[row["path"]] = row["error"]
                continue
            found.paths.append(row["path"])
            found.channels.append(int(row["channel"]))
            found.embeddings.append(numpy.load(path / row["file"], allow_pickle=False))
            if timestamps:
                centres_file = Path(row["file"]).with_suffix(".timestamps_ms.npy")
                found.timestamps_ms.append(numpy.load(path / centres_file, allow_pickle=False))
    if not timestamps:
        found.embeddings = numpy.array(found.embeddings, "f4").reshape(-1, found.settings["embedding_size"])
    return found
