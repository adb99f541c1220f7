"""Where in a collection does it sound like this? Exact search over any output of `hear-jepa embed`."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy

from hear_jepa.errors import OptionError
from hear_jepa.explore.excerpt import read_excerpt
from hear_jepa.explore.points import Point, Points, points_of
from hear_jepa.explore.same_model import load_same_model
from hear_jepa.explore.similarity import Standardiser
from hear_jepa.files.formats import Embeddings, load_embeddings
from hear_jepa.model.embedder import Embedder

CONTEXT_S = 2.5  # after a query's end that is embedded with it: more than a window


@dataclass(frozen=True)
class Hit:
    """A stretch of a collection, and the cosine between its embedding and the query's."""

    cosine: float
    point: Point


def search(
    index: str | Path, query: str | Path, k: int = 10, model: str = "", start_s: float = 0.0, end_s: float | None = None
) -> list[Hit]:
    """The k stretches most like seconds `start_s … end_s` of the file `query`, the nearest first.

    index: what `hear-jepa embed` wrote with `model`. Scenes and windows give themselves, timestamps stretches as
    long as the query; no two of one recording overlap. Raises OptionError, AudioError for a query that cannot be read.
    """
    if k < 1:
        raise OptionError(f"k must be at least 1, not {k}")
    found = load_embeddings(index)
    if not found.paths:
        raise OptionError(f"{index} holds no embeddings to search in")
    if sum(len(numpy.atleast_2d(rows)) for rows in found.embeddings) == 1:
        raise OptionError(
            f"{index} holds one embedding, and cosines need the deviation of several: embed two sounds or more"
        )
    settings = found.settings
    embedder = load_same_model(model, settings, str(index))
    end_s = float("inf") if end_s is None else end_s
    if settings["kind"] == "timestamps":
        return nearest_stretches(found, embed_in_context(embedder, query, start_s, end_s), k)
    audio = read_excerpt(query, start_s, end_s, sample_rate=embedder.sample_rate)
    return nearest_points(points_of(found), embedder.embed(audio, embedder.sample_rate).cpu().numpy(), k)


def nearest_points(found: Points, query: numpy.ndarray, k: int) -> list[Hit]:
    """The k points nearest to `query` [size]; of windows that overlap, the nearest one."""
    standardise = Standardiser.of(found.embeddings)
    cosines = standardise.directions(found.embeddings) @ standardise.directions(query)
    hits: list[Hit] = []
    taken: dict[tuple[str, int], list[Point]] = defaultdict(list)
    for number in numpy.argsort(-cosines, kind="stable"):
        point = found.points[number]
        others = taken[point.path, point.channel]
        if all(point.end_s <= other.start_s or other.end_s <= point.start_s for other in others):
            others.append(point)
            hits.append(Hit(float(cosines[number]), point))
        if len(hits) == k:
            break
    return hits


def embed_in_context(embedder: Embedder, path: str | Path, start_s: float, end_s: float) -> numpy.ndarray:
    """Timestamps [t, size] of a stretch of a file, embedded with what is around it, as those of the index were."""
    read_excerpt(path, start_s, min(end_s, start_s + 0.1))  # says what is wrong, before the file is embedded
    audio = read_excerpt(path, 0.0, end_s + CONTEXT_S, sample_rate=embedder.sample_rate)
    embeddings, centres_ms = embedder.embed(audio, embedder.sample_rate, "timestamps")
    centres_s = centres_ms / 1000
    inside = (centres_s >= start_s) & (centres_s <= end_s)
    nearest = (centres_s - start_s).abs().argmin()  # of a stretch shorter than a hop
    inside[nearest] |= not inside.any()
    return embeddings[inside].cpu().numpy()


def nearest_stretches(found: Embeddings, query: numpy.ndarray, k: int) -> list[Hit]:
    """The k stretches whose mean embedding is nearest to that of `query` [t, size]; no two of one recording overlap.

    A stretch has as many timestamps as the query, or all of a shorter recording.
    """
    standardise = Standardiser.of(numpy.concatenate(found.embeddings))
    wanted = standardise.directions(query.mean(0))
    candidates = []  # (cosine, entry, first timestamp, last timestamp): of each entry, more than can be needed
    for number, rows in enumerate(found.embeddings):
        length = min(len(query), len(rows))
        cosines = standardise.directions(moving_mean(rows, length)) @ wanted
        candidates += [(float(cosines[at]), number, at, at + length - 1) for at in _peaks(cosines, length, k)]
    candidates.sort(key=lambda candidate: (-candidate[0], candidate[1:]))
    half_ms = found.settings["hop_ms"] / 2

    def hit(cosine: float, number: int, first: int, last: int) -> Hit:
        times_ms = found.timestamps_ms[number]
        start_s, end_s = max(float(times_ms[first]) - half_ms, 0.0) / 1000, (float(times_ms[last]) + half_ms) / 1000
        return Hit(cosine, Point(found.paths[number], found.channels[number], start_s, end_s))

    return [hit(*candidate) for candidate in candidates[:k]]


def moving_mean(rows: numpy.ndarray, length: int) -> numpy.ndarray:
    """[n, size] -> [n - length + 1, size]: the mean of every `length` rows in a row."""
    sums = numpy.cumsum(rows, axis=0, dtype=numpy.float64)
    sums[length:] -= sums[:-length].copy()
    return (sums[length - 1 :] / length).astype(numpy.float32)


def _peaks(values: numpy.ndarray, apart: int, k: int) -> list[int]:
    """Positions of the k highest values, the highest first, any two at least `apart` from each other."""
    values, positions = values.copy(), []
    while len(positions) < k:
        best = int(values.argmax())
        if values[best] == -numpy.inf:
            break
        positions.append(best)
        values[max(best - apart + 1, 0) : best + apart] = -numpy.inf
    return positions
