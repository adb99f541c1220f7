"""The output of `hear-jepa embed` as points: one embedding each, and the stretch of sound that it stands for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from hear_jepa.errors import OptionError
from hear_jepa.files.formats import Embeddings, load_embeddings

TIMES = ("path", "channel", "start_s", "end_s")  # columns of a table of points


@dataclass(frozen=True)
class Point:
    """A stretch of one channel of a file, in seconds; `end_s` None: up to its end."""

    path: str
    channel: int = 0
    start_s: float = 0.0
    end_s: float | None = None

    @property
    def name(self) -> str:
        """For people: the path, and what of the file it is, where it is not all."""
        channel = f", channel {self.channel + 1}" if self.channel else ""
        times = "" if self.end_s is None else f", {clock(self.start_s)}–{clock(self.end_s)}"
        return f"{self.path}{channel}{times}"


@dataclass(frozen=True)
class Points:
    """`embeddings` float32 [n, size], and the point of each row; `settings` is how they were embedded."""

    embeddings: numpy.ndarray
    points: list[Point]
    settings: dict[str, Any]


def load_points(path: str | Path, at_least: int = 1) -> Points:
    """A point a file, or a window of one; timestamps count as one point a file, their mean.

    Raises OptionError for what is no output of `hear-jepa embed`, or holds fewer points.
    """
    points = points_of(load_embeddings(path))
    if len(points.points) < at_least:
        raise OptionError(f"{path} holds {len(points.points)} embeddings: {at_least} or more are needed")
    return points


def points_of(found: Embeddings) -> Points:
    """As `load_points`, of embeddings that are loaded."""
    points = [Point(*key) for key in zip(found.paths, found.channels, strict=True)]
    embeddings = found.embeddings
    if found.timestamps_ms is not None:
        embeddings = numpy.stack([rows.mean(0) for rows in embeddings]) if points else numpy.zeros((0, 1), "f4")
    return Points(numpy.asarray(embeddings, "f4"), points, found.settings)


def clock(seconds: float) -> str:
    """83.4 -> "1:23.4"; hours only where there are any."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    whole = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{whole}:{rest // 10:02d}.{rest % 10}"


def times_of(point: Point) -> tuple[str, int, str, str]:
    """A point's row of such a table; the times of a whole file are empty."""
    times = ("", "") if point.end_s is None else (f"{point.start_s:.3f}", f"{point.end_s:.3f}")
    return (point.path, point.channel, *times)
