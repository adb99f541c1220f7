"""Where in a collection does it sound like this? Exact search over any output of `hear-jepa embed`."""

from dataclasses import dataclass
from pathlib import Path

import numpy

from hear_jepa.errors import OptionError
from hear_jepa.explore.excerpt import read_excerpt
from hear_jepa.explore.points import Point
from hear_jepa.explore.same_model import load_same_model
from hear_jepa.explore.similarity import Standardiser
from hear_jepa.files.formats import load_embeddings
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

    index: what `hear-jepa embed` wrote with `model`. Scenes give whole files; timestamps give stretches as long as the
    query, none of which overlap. Raises OptionError, and AudioError for a query that cannot be read.
    """
    if k < 1:
        raise OptionError(f"k must be at least 1, not {k}")
    found = load_embeddings(index)
    if not found.paths:
        raise OptionError(f"{index} holds no embeddings to search in")
    kind = found.settings["kind"]
    embedder = load_same_model(model, found.settings, str(index))
    end_s = float("inf") if end_s is None else end_s
    entries = list(zip(found.paths, found.channels, strict=True))
    if kind == "timestamps":
        rows = embed_in_context(embedder, query, start_s, end_s)
        return nearest_stretches(entries, found.embeddings, found.timestamps_ms, rows, found.settings["hop_ms"], k)
    audio = read_excerpt(query, start_s, end_s, sample_rate=embedder.sample_rate)
    wanted = embedder.embed(audio, embedder.sample_rate, kind).cpu().numpy()
    standardise = Standardiser.of(found.embeddings)
    cosines = standardise.directions(found.embeddings) @ standardise.directions(wanted)
    return [Hit(float(cosines[i]), Point(*entries[i])) for i in numpy.argsort(-cosines, kind="stable")[:k]]


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


def nearest_stretches(entries, embeddings, timestamps_ms, query: numpy.ndarray, hop_ms: int, k: int) -> list[Hit]:
    """The k stretches whose mean embedding is nearest to that of `query` [t, size]; no two of one entry overlap.

    entries: (path, channel) of each array [n, size] in `embeddings`, whose centres are in `timestamps_ms`. A stretch
    has as many timestamps as the query, or all of a shorter recording.
    """
    standardise = Standardiser.of(numpy.concatenate(embeddings))
    wanted = standardise.directions(query.mean(0))
    candidates = []  # (cosine, entry, first timestamp, last timestamp): of each entry, more than can be needed
    for number, rows in enumerate(embeddings):
        length = min(len(query), len(rows))
        cosines = standardise.directions(moving_mean(rows, length)) @ wanted
        candidates += [(float(cosines[at]), number, at, at + length - 1) for at in _peaks(cosines, length, k)]
    candidates.sort(key=lambda candidate: (-candidate[0], candidate[1:]))
    half_s = hop_ms / 2000

    def hit(cosine: float, number: int, first: int, last: int) -> Hit:
        times = timestamps_ms[number]
        start_s = max(float(times[first]) / 1000 - half_s, 0.0)
        return Hit(cosine, Point(*entries[number], start_s, float(times[last]) / 1000 + half_s))

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
