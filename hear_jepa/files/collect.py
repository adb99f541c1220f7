"""The columns of one channel -> its embeddings of a kind: a scene, timestamps, or windows of time."""

import math
from collections.abc import Callable
from functools import partial

import numpy
import torch
from torch import Tensor

from hear_jepa.errors import OptionError
from hear_jepa.files.live import TimestampOrder
from hear_jepa.model.embedder import Embedder
from hear_jepa.model.grid import Window
from hear_jepa.model.pooling import Pool


class Scene:
    """The pooled columns of one channel."""

    def __init__(self, embedder: Embedder):
        self._pool = embedder.pool()

    def add(self, window: Window, columns: Tensor) -> numpy.ndarray | None:
        self._pool.add(columns)
        return None

    def end(self, n_samples: int) -> numpy.ndarray | None:
        return self._pool.embedding()[None].cpu().numpy()


class Timestamps:
    """The columns of one channel in order of time, given on at once."""

    def __init__(self):
        self._order = TimestampOrder()

    def add(self, window: Window, columns: Tensor) -> numpy.ndarray | None:
        embeddings = self._order.add(window, columns)
        return None if embeddings is None else embeddings.numpy()

    def end(self, n_samples: int) -> numpy.ndarray | None:
        return None


class PooledWindows:
    """The columns of one channel pooled over stretches of time, each given on when it is complete."""

    def __init__(self, embedder: Embedder, window_ms: int, hop_ms: int):
        self._embedder, self._window_ms, self._hop_ms = embedder, window_ms, hop_ms
        self._order = TimestampOrder()
        self._pools: dict[int, Pool] = {}  # by number of the window: those that further columns may join
        self._n_complete = 0

    def add(self, window: Window, columns: Tensor) -> numpy.ndarray | None:
        first = self._order.count
        ordered = self._order.add(window, columns)
        if ordered is None:
            return None
        centres = self._embedder.grid.centres_ms(None, self._embedder.scene_hop_ms, first, len(ordered))
        number = max(0, math.floor((centres[0].item() - self._window_ms) / self._hop_ms) + 1)
        while number * self._hop_ms <= centres[-1].item():
            start = number * self._hop_ms
            inside = ordered[(centres >= start) & (centres < start + self._window_ms)]
            if len(inside):
                self._pools.setdefault(number, self._embedder.pool()).add(inside)
            number += 1
        latest = centres[-1].item()
        return self._rows(lambda number: number * self._hop_ms + self._window_ms <= latest)

    def end(self, n_samples: int) -> numpy.ndarray | None:
        count = n_windows(1000 * n_samples / self._embedder.sample_rate, self._window_ms, self._hop_ms)
        return self._rows(lambda number: number < count)

    def _rows(self, complete: Callable[[int], bool]) -> numpy.ndarray | None:
        rows = []
        while self._n_complete in self._pools and complete(self._n_complete):
            rows.append(self._pools.pop(self._n_complete).embedding())
            self._n_complete += 1
        return torch.stack(rows).cpu().numpy() if rows else None


Collector = Scene | Timestamps | PooledWindows


def collector_of(embedder: Embedder, kind: str, window_s: float | None, hop_s: float | None) -> Callable[[], Collector]:
    """What makes the embeddings of a kind of the columns of one channel."""
    if kind == "scene":
        return partial(Scene, embedder)
    if kind == "timestamps":
        return Timestamps
    return partial(PooledWindows, embedder, *check_windows(embedder, window_s, hop_s))


def check_windows(embedder: Embedder, window_s: float | None, hop_s: float | None = None) -> tuple[int, int]:
    """Length and distance of windows in ms. Raises OptionError unless both are whole, and a window holds columns."""
    hop_s = window_s if hop_s is None else hop_s
    shortest_s = max(embedder.grid.settled_samples / embedder.sample_rate, embedder.scene_hop_ms / 1000)
    if window_s is None or hop_s is None or not window_s >= shortest_s or not hop_s > 0:
        raise OptionError(
            f"windows need window_s of at least {shortest_s:g} and hop_s above 0, not {window_s}, {hop_s}"
        )
    milliseconds = [round(1000 * seconds) for seconds in (window_s, hop_s)]
    if any(abs(1000 * seconds - ms) > 1e-6 for seconds, ms in zip((window_s, hop_s), milliseconds, strict=True)):
        raise OptionError(f"window_s and hop_s must be whole milliseconds, not {window_s}, {hop_s}")
    return milliseconds[0], milliseconds[1]


def n_windows(duration_ms: float, window_ms: int, hop_ms: int) -> int:
    """Windows of a recording: all that fit into it, and one more where sound is left over after the last of them."""
    if duration_ms <= window_ms:
        return 1
    fitting = math.floor((duration_ms - window_ms) / hop_ms) + 1
    end = (fitting - 1) * hop_ms + window_ms
    return fitting + (end < duration_ms and fitting * hop_ms < duration_ms)


def spans_s(count: int, window_s: float, hop_s: float, duration_s: float) -> numpy.ndarray:
    """Seconds from, to [count, 2] of the first windows of a recording; the last ends with it."""
    starts = hop_s * numpy.arange(count)
    return numpy.stack([starts, numpy.minimum(starts + window_s, duration_s)], axis=1)
