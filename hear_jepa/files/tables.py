"""Embeddings as tables, a row an embedding: Parquet, and Lance where it is installed."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy

from hear_jepa.disk import atomic_path
from hear_jepa.errors import OptionError
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

NEEDS_PYARROW = "parquet files need pyarrow: pip install pyarrow, or write .npz"
OF_LANCE = re.compile(r".*\.(lance|manifest|txn)|latest_version_hint\.json")
NEEDS_LANCE = "Lance data sets need pylance: pip install pylance, or write .parquet"


def pyarrow_or_advice():
    """The library; raises OptionError, with what to install, where it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OptionError(NEEDS_PYARROW) from error
    return pyarrow


def lance_or_advice():
    """The library; raises OptionError, with what to install, where it is missing."""
    pyarrow_or_advice()
    try:
        import lance
    except ImportError as error:
        raise OptionError(NEEDS_LANCE) from error
    return lance


class Parquet:
    """A row an entry's row; a file that failed has a row with its error and no embedding."""

    @staticmethod
    def write(path: Path, records: list[FileRecord], rows: RowFile, settings: dict[str, Any]) -> None:
        schema, batches = _batches(records, rows, settings)
        with (
            atomic_path(path) as temporary,
            pyarrow_or_advice().parquet.ParquetWriter(temporary, schema) as writer,
        ):
            for batch in batches:
                writer.write_batch(batch)

    @staticmethod
    def open(path: Path) -> Stored:
        file = pyarrow_or_advice().parquet.ParquetFile(path)
        return _stored(file.schema_arrow, file.read, lambda: file.iter_batches(ROWS_AT_ONCE, columns=["embedding"]))

    @staticmethod
    def holds_nothing_else(path: Path, stored: Stored) -> bool:
        return True  # its metadata are ours


class Lance:
    """The same rows as a Lance data set, a folder."""

    @staticmethod
    def write(path: Path, records: list[FileRecord], rows: RowFile, settings: dict[str, Any]) -> None:
        lance, (schema, batches) = lance_or_advice(), _batches(records, rows, settings)
        with atomic_path(path) as folder:
            lance.write_dataset(pyarrow_or_advice().RecordBatchReader.from_batches(schema, batches), folder)

    @staticmethod
    def open(path: Path) -> Stored:
        data = lance_or_advice().dataset(path)
        options = {"scan_in_order": True, "batch_size": ROWS_AT_ONCE}
        return _stored(
            data.schema,
            lambda names: data.to_table(names, **options),
            lambda: data.to_batches(["embedding"], **options),
        )

    @staticmethod
    def holds_nothing_else(path: Path, stored: Stored) -> bool:
        names = [file.name for file in path.rglob("*") if not file.is_dir()]
        written_once = lance_or_advice().dataset(path).version == 1  # else someone changed it
        return written_once and all(OF_LANCE.fullmatch(name) for name in names)


def _batches(records: list[FileRecord], rows: RowFile, settings: dict[str, Any]) -> tuple[Any, Iterator[Any]]:
    """The schema of a table of all records, and its record batches, each in memory alone."""
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

    def batch(pieces: list[_Piece]) -> Any:
        lengths = [len(when) for *_, when in pieces]
        entries = numpy.repeat([number for number, *_ in pieces], lengths).tolist()
        missing = numpy.repeat([place is None for _, place, _ in pieces], lengths)
        when = numpy.concatenate([when for *_, when in pieces])
        vectors = numpy.zeros((len(missing), rows.size), rows.dtype)
        places = merged(place for _, place, _ in pieces if place is not None)
        found = [chunk for place in places for chunk in rows.chunks(*place)]
        vectors[~missing] = numpy.concatenate([vectors[:0], *found])
        mask = pyarrow.array(missing)
        arrays = {"embedding": pyarrow.FixedSizeListArray.from_arrays(vectors.ravel(), rows.size, mask=mask)}
        for name, column in zip(times, when.T, strict=True):
            arrays[name] = pyarrow.array(column, mask=missing)
        for name, values in columns.items():
            arrays[name] = pyarrow.array([values[number] for number in entries], schema.field(name).type)
        return pyarrow.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)

    return schema, map(batch, _grouped(_pieces(columns["error"], records, settings)))


_Piece = tuple[int, tuple[int, int] | None, numpy.ndarray]  # number of the entry, rows (first, k) or None, times [k, …]


def _pieces(errors: list, records: list[FileRecord], settings: dict[str, Any]) -> Iterator[_Piece]:
    places = iter(channels_of(records))
    for number, error in enumerate(errors):
        if error is not None:
            yield number, None, numpy.full((1, len(TIMES[settings["kind"]])), numpy.nan)
            continue
        record, _, (start, count) = next(places)
        when = times_of(record, count, settings)
        for first in range(0, count, ROWS_AT_ONCE):
            part = when[first : first + ROWS_AT_ONCE]
            yield number, (start + first, len(part)), part


def _grouped(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces of a row group together."""
    group: list[_Piece] = []
    n_rows = 0
    for piece in pieces:
        group.append(piece)
        n_rows += len(piece[2])
        if n_rows >= ROWS_AT_ONCE:
            yield group
            group, n_rows = [], 0
    if group:
        yield group


def _stored(schema: Any, read: Callable[[list[str]], Any], batches: Callable[[], Iterable[Any]]) -> Stored:
    """What a table holds. read: columns by name; batches: of the column of embeddings."""
    settings = json.loads((schema.metadata or {})[b"hear_jepa"])
    times = TIMES[settings["kind"]]
    table = read([name for name in schema.names if name != "embedding" and name not in times]).to_pydict()
    keys = list(zip(*(table[name] for name in ("path", "channel", *EXCERPT) if name in table), strict=True))
    single = settings["kind"] == "scene"
    first = [n for n, key in enumerate(keys) if single or n == 0 or key != keys[n - 1]]
    counts = numpy.diff([*first, len(keys)]).tolist()
    columns = {name: [values[number] for number in first] for name, values in table.items()}
    counts = [0 if e is not None else count for e, count in zip(columns["error"], counts, strict=True)]

    def chunks() -> Iterator[numpy.ndarray]:
        for batch in batches():
            column = batch.column(0).drop_null()
            yield column.flatten().to_numpy().reshape(len(column), settings["embedding_size"])

    return Stored(settings, records_of(columns, counts), chunks)
