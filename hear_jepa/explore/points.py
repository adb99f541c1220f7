"""The output of `hear-jepa embed` as points: one embedding each, and the stretch of sound that it stands for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from hear_jepa.errors import OptionError
from hear_jepa.files.formats import Embeddings, load_embeddings
from hear_jepa.files.records import start_of

COLUMNS = ("path", "channel", "start_s", "end_s")  # columns of a table of points


@dataclass(frozen=True)
class Point:
    """A stretch of one channel of a file, in seconds; `whole`: all of it."""

    path: str
    channel: int = 0
    start_s: float = 0.0
    end_s: float = 0.0
    whole: bool = False

    @property
    def name(self) -> str:
        """For people: the path, and what of the file it is, where it is not all."""
        channel = f", channel {self.channel + 1}" if self.channel else ""
        times = "" if self.whole else f", {clock(self.start_s)}–{clock(self.end_s)}"
        return f"{self.path}{channel}{times}"


@dataclass(frozen=True)
class Points:
    """`embeddings` float32 [n, size], and the point of each row; `settings` is how they were embedded."""

    embeddings: numpy.ndarray
    points: list[Point]
    settings: dict[str, Any]


def load_points(path: str | Path, at_least: int = 1) -> Points:
    """A point a file, an excerpt or a window of one; timestamps count as one point a file or excerpt, their mean.

    Raises OptionError for what is no output of `hear-jepa embed`, or holds fewer points.
    """
    points = points_of(load_embeddings(path))
    if len(points.points) < at_least:
        raise OptionError(f"{path} holds {len(points.points)} embeddings: {at_least} or more are needed")
    return points


def points_of(found: Embeddings) -> Points:
    """As `load_points`, of embeddings that are loaded."""
    kind, size = found.settings["kind"], found.settings["embedding_size"]
    entries = zip(found.paths, found.channels, strict=True)
    rows = found.embeddings
    if kind == "windows":
        points = [
            Point(path, channel, float(start_s), float(end_s))
            for (path, channel), spans in zip(entries, found.spans_s, strict=True)
            for start_s, end_s in spans
        ]
        rows = numpy.concatenate([numpy.zeros((0, size), "f4"), *rows])
    else:
        spans = found.spans_s
        if kind == "timestamps":
            half_ms = found.settings["hop_ms"] / 2
            starts_s = [start_of(excerpt) for excerpt in found.excerpts]
            ends_s = [(float(times[-1]) + half_ms) / 1000 for times in found.timestamps_ms]
            spans = numpy.stack([starts_s, ends_s], axis=1)
            rows = [numpy.mean(entry, axis=0, dtype="f8") for entry in rows]
        points = [
            Point(*entry, *span, whole=excerpt is None)
            for entry, span, excerpt in zip(entries, spans.tolist(), found.excerpts, strict=True)
        ]
    return Points(numpy.asarray(rows, "f4").reshape(-1, size), points, found.settings)


def clock(seconds: float) -> str:
    """83.4 -> "1:23.4"; hours only where there are any."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    whole = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{whole}:{rest // 10:02d}.{rest % 10}"


def row_of(point: Point) -> tuple[str, int, str, str]:
    """A point's row of such a table."""
    return point.path, point.channel, f"{point.start_s:.3f}", f"{point.end_s:.3f}"
