"""What is known of embedded files, whichever format it is written to."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy

from hear_jepa.model.grid import Grid


@dataclass(frozen=True)
class FileRecord:
    """A finished file: its error, or the rows of each of its channels, (first, count), in the array of all rows."""

    path: str
    error: str | None
    duration_s: float
    n_samples: int
    rows: list[tuple[int, int]]


@dataclass
class Embeddings:
    """What a file of embeddings holds, as `load_embeddings` reads it; one entry a file and channel, in order.

    `embeddings`: [n, size] for scenes; for timestamps a list of [n_timestamps, size], with the centres of each in
    `timestamps_ms`. `failed` has the reason of every file that could not be embedded.
    """

    paths: list[str]
    channels: list[int]
    embeddings: numpy.ndarray | list[numpy.ndarray]
    timestamps_ms: list[numpy.ndarray] | None = None
    failed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def channels_of(records: list[FileRecord]) -> Iterator[tuple[FileRecord, int, slice]]:
    """Every channel of every embedded file, and its rows."""
    for record in records:
        for channel, (start, count) in enumerate(record.rows):
            yield record, channel, slice(start, start + count)


def centres(record: FileRecord, place: slice, settings: dict[str, Any]) -> numpy.ndarray:
    """Centres in ms of the timestamps in the rows `place`."""
    grid = Grid(**settings["grid"])
    return grid.centres_ms(record.n_samples, settings["hop_ms"], 0, place.stop - place.start).numpy()


def as_text(path: str) -> str:
    """A path as text that any encoder takes, also where the file system's bytes are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
