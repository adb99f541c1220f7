"""Embeddings as Parquet: a row a file and channel, or a timestamp; a file that failed has a row with its error."""

import json
from pathlib import Path
from typing import Any

import numpy

from hear_jepa.disk import atomic_path
from hear_jepa.errors import OptionError
from hear_jepa.files.records import Embeddings, FileRecord, as_text, centres, channels_of

ROWS_AT_ONCE = 4096


def pyarrow_or_advice():
    """The library; raises OptionError, with what to install, where it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OptionError("parquet files need pyarrow: pip install 'hear-jepa[parquet]', or write .npz") from error
    return pyarrow


def write_parquet(path: Path, records: list[FileRecord], rows: numpy.ndarray, settings: dict[str, Any]) -> None:
    """Write all `records`, whose rows are in `rows` [total, size], a group of rows at a time."""
    pyarrow = pyarrow_or_advice()
    timestamps = settings["kind"] == "timestamps"
    columns = [("path", pyarrow.string()), ("channel", pyarrow.int32()), ("duration_s", pyarrow.float64())]
    columns += [("timestamp_ms", pyarrow.float64())] if timestamps else []
    columns += [("embedding", pyarrow.list_(pyarrow.float32(), rows.shape[1])), ("error", pyarrow.string())]
    schema = pyarrow.schema(columns, metadata={"hear_jepa": json.dumps(settings)})

    waiting: list[tuple[tuple, numpy.ndarray | None]] = []  # (the other columns, embedding): a row group in the making

    def flush() -> None:
        vectors = [vector for _, vector in waiting]
        flat = numpy.concatenate([numpy.zeros(rows.shape[1], "f4") if v is None else v for v in vectors])
        mask = pyarrow.array([vector is None for vector in vectors])
        embedding = pyarrow.FixedSizeListArray.from_arrays(flat, rows.shape[1], mask=mask)
        others = [list(column) for column in zip(*(row for row, _ in waiting), strict=True)]
        values = [*others[:-1], embedding, others[-1]]
        arrays = [pyarrow.array(v, f.type) if v is not embedding else v for v, f in zip(values, schema, strict=True)]
        writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
        waiting.clear()

    with atomic_path(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
        for record in records:
            if record.error is not None:
                row = (as_text(record.path), None, None, *([None] if timestamps else []), record.error)
                waiting.append((row, None))
            for _, channel, place in channels_of([record]):
                times = [(float(time),) for time in centres(record, place, settings)] if timestamps else [()]
                for number, time in zip(range(place.start, place.stop), times, strict=True):
                    waiting.append(((as_text(record.path), channel, record.duration_s, *time, None), rows[number]))
                    if len(waiting) == ROWS_AT_ONCE:
                        flush()
        if waiting:
            flush()


def read_parquet(path: Path) -> Embeddings:
    """Read what `write_parquet` wrote."""
    table = pyarrow_or_advice().parquet.read_table(path)
    settings = json.loads(table.schema.metadata[b"hear_jepa"])
    errors, names = table["error"].to_pylist(), table["path"].to_pylist()
    failed = {name: error for name, error in zip(names, errors, strict=True) if error is not None}
    good = table.filter(pyarrow_or_advice().array([error is None for error in errors], "bool"))
    size = settings["embedding_size"]
    vectors = good["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, size)
    keys = list(zip(good["path"].to_pylist(), good["channel"].to_pylist(), strict=True))
    if settings["kind"] == "scene":
        return Embeddings([p for p, _ in keys], [c for _, c in keys], vectors, None, failed, settings)
    starts = [number for number, key in enumerate(keys) if number == 0 or key != keys[number - 1]]
    vectors = numpy.split(vectors, starts[1:]) if keys else []
    times = numpy.split(good["timestamp_ms"].to_numpy(), starts[1:]) if keys else []
    return Embeddings([keys[n][0] for n in starts], [keys[n][1] for n in starts], vectors, times, failed, settings)
