"""Files of embeddings: .npz, .parquet, .lance, or a folder of .npy; written a few rows at a time, and read back.

All formats hold the same: the entries in order, and the files that failed, with their reasons.
"""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from hear_jepa.errors import OptionError
from hear_jepa.files.arrays import NpyFolder, Npz
from hear_jepa.files.records import FileRecord, RowFile, Stored, channels_of, times_of
from hear_jepa.files.tables import Lance, Parquet, lance_or_advice, pyarrow_or_advice

FORMATS = {"npz": Npz, "parquet": Parquet, "lance": Lance, "npy-folder": NpyFolder}
ADVICE = {"parquet": pyarrow_or_advice, "lance": lance_or_advice}  # raise, with what to install


@dataclass
class Embeddings:
    """What a file of embeddings holds, as `load_embeddings` reads it; one entry a file and channel, in order.

    embeddings: [n, size] of scenes; of timestamps and windows a list of [n_rows, size];
    timestamps_ms: the centres [n_rows] of each entry, None but for timestamps;
    spans_s: seconds from, to [n, 2] of scenes, a list of [n_rows, 2] of windows, None for timestamps;
    failed: the reason of every file that could not be embedded; columns: those that a table of inputs added;
    excerpts: seconds from, to of each entry, None for a whole file.
    """

    paths: list[str]
    channels: list[int]
    embeddings: Any
    timestamps_ms: Any = None
    spans_s: Any = None
    failed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)
    excerpts: list[tuple[float, float] | None] = field(default_factory=list)


def format_of(path: str | Path) -> str:
    """The format that a path asks for by its suffix; none asks for a folder. Raises OptionError for another."""
    suffix = Path(path).suffix.lower().removeprefix(".") or "npy-folder"
    if suffix not in FORMATS:
        raise OptionError(
            f"cannot write {path}: give a name that ends in .npz, .parquet or .lance, or without suffix for a folder"
        )
    if suffix in ADVICE:
        ADVICE[suffix]()
    return suffix


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
        excerpts=[record.excerpt for record, *_ in good],
    )
    if kind == "timestamps":
        found.timestamps_ms = [entry[:, 0] for entry in times]
    else:
        found.spans_s = numpy.concatenate([numpy.zeros((0, 2)), *times]) if kind == "scene" else times
    return found
