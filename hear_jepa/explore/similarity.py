"""How alike embeddings are: the cosine, after each dimension is standardised over a collection.

Without it every two embeddings are alike: most of their length is what all sounds share.
"""

from dataclasses import dataclass

import numpy

QUERIES_AT_ONCE = 512


@dataclass(frozen=True)
class Standardiser:
    """Mean and deviation [size] of a collection's embeddings; a dimension that never changes counts for nothing."""

    mean: numpy.ndarray
    deviation: numpy.ndarray

    @classmethod
    def of(cls, embeddings: numpy.ndarray) -> "Standardiser":
        """Those of [n, size]."""
        deviation = embeddings.std(0, dtype=numpy.float64)
        constant = deviation <= 1e-6 * (numpy.abs(embeddings).max(0, initial=0.0) + 1e-12)
        deviation = numpy.where(constant, numpy.inf, deviation)
        return cls(embeddings.mean(0, dtype=numpy.float64).astype("f4"), deviation.astype("f4"))

    def __call__(self, embeddings: numpy.ndarray) -> numpy.ndarray:
        """Standardised [n, size]."""
        return (embeddings - self.mean) / self.deviation

    def directions(self, embeddings: numpy.ndarray) -> numpy.ndarray:
        """Standardised, and of length 1: their products are cosines."""
        standard = self(embeddings)
        return standard / numpy.maximum(numpy.linalg.norm(standard, axis=-1, keepdims=True), 1e-12)


def nearest(directions: numpy.ndarray, queries: numpy.ndarray, k: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The k rows of `directions` [n, size] nearest to each of `queries` [q, size], all of length 1; exact.

    Returns their indices and cosines, [q, min(k, n)], the nearest first; of equal ones the earlier row first.
    """
    k = min(k, len(directions))
    indices, cosines = numpy.empty((len(queries), k), numpy.int64), numpy.empty((len(queries), k), numpy.float32)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        here = slice(start, min(start + QUERIES_AT_ONCE, len(queries)))
        scores = queries[here] @ directions.T
        chosen = numpy.sort(numpy.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
        values = numpy.take_along_axis(scores, chosen, axis=1)
        order = numpy.argsort(-values, axis=1, kind="stable")
        indices[here] = numpy.take_along_axis(chosen, order, axis=1)
        cosines[here] = numpy.take_along_axis(values, order, axis=1)
    return indices, cosines


def neighbours(directions: numpy.ndarray, k: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The k other rows nearest to each row: indices and cosines [n, min(k, n - 1)]."""
    n = len(directions)
    indices, cosines = nearest(directions, directions, k + 1)
    others = indices != numpy.arange(n)[:, None]
    others[others.all(1), -1] = False  # more than k rows equal to it hid the row itself
    shape = (n, indices.shape[1] - 1)
    return indices[others].reshape(shape), cosines[others].reshape(shape)
