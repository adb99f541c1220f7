"""From the clips of a domain to crops of one length: the rule that memory and streams share."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class CropRule:
    """Draws crops of `samples` samples from the clips of one domain, clips in proportion to their length.

    * A clip longer than a crop gives any part of itself.
    * One of at least half a crop's length is repeated in a circle, from a random point on.
    * A shorter one is strung together with other such clips of its domain, drawn at random, until the crop is full;
      the first starts at a random point. Short effects so come in company, as they do in a game.

    `lengths` int [clips] in samples; `read(clip, start, count)` returns int16 [count] of a clip.
    """

    def __init__(self, lengths: np.ndarray, read: Callable[[int, int, int], np.ndarray], samples: int):
        self._lengths, self._read, self._samples = np.asarray(lengths), read, samples
        self._ends = np.cumsum(self._lengths)
        self._short = np.flatnonzero(self._lengths * 2 < samples)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return int16 [samples]; the same generator state gives the same crop."""
        clip = int(np.searchsorted(self._ends, rng.integers(self._ends[-1]), side="right"))
        length = int(self._lengths[clip])
        if length >= self._samples:
            return self._read(clip, int(rng.integers(length - self._samples + 1)), self._samples)
        start = int(rng.integers(length))
        if 2 * length >= self._samples:
            return self._read(clip, 0, length)[(start + np.arange(self._samples)) % length]
        return self._string(clip, start, rng)

    def _string(self, clip: int, start: int, rng: np.random.Generator) -> np.ndarray:
        crop, filled = np.empty(self._samples, dtype=np.int16), 0
        while filled < self._samples:
            count = min(int(self._lengths[clip]) - start, self._samples - filled)
            crop[filled : filled + count] = self._read(clip, start, count)
            filled += count
            clip, start = int(rng.choice(self._short)), 0
        return crop


def to_float(crops: list[np.ndarray], gain_db: float, rngs: list[np.random.Generator]) -> Tensor:
    """int16 crops -> float32 [B, samples] in [-1, 1], each with a random gain of ± `gain_db`."""
    batch = torch.from_numpy(np.stack(crops)).float().div_(32768.0)
    if gain_db:
        gains = [10 ** (rng.uniform(-gain_db, gain_db) / 20) for rng in rngs]
        batch *= torch.tensor(gains)[:, None]
    return batch
