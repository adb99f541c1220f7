"""From the clips of a domain to batches of crops of one length: what both backends share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

FULL_SCALE = 32768.0  # of int16
DOMAINS, CROPS, SHARDS, PARTNERS = range(4)  # what random numbers are for


class Source(Protocol):
    """What crops of one domain are drawn from."""

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return int16 [samples]."""
        ...


class NoiseSource(Protocol):
    """What makes noise to be mixed in."""

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """Return float32 [samples]."""
        ...


def generator(seed: int, *place: int) -> np.random.Generator:
    """A generator of random numbers of its own for every place (what for, step, row, …) of a run."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=place))


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


@dataclass(frozen=True)
class Mixing:
    """Which crops have another sound mixed in: `share` of them, `noise_share` of these with noise, others with a crop.

    The signal-to-noise ratio of each is drawn evenly between the two of `snr_db`.
    """

    share: float = 0.0
    noise_share: float = 0.5
    snr_db: tuple[float, float] = (0.0, 20.0)


@dataclass(frozen=True)
class BatchPlan:
    """Which crops are in which batch: a function of the seed, the number of the batch and the row in all ranks' batch.

    `shares` is the probability of each domain, in the order of the sources.
    """

    shares: tuple[float, ...]
    batch_size: int
    seed: int
    rank: int
    world_size: int
    gain_db: float
    mixing: Mixing = Mixing()

    def domains(self, index: int) -> np.ndarray:
        """The domain of each crop of this rank's batch `index`, int [batch_size]."""
        return self._own(self._choice(generator(self.seed, DOMAINS, index)))

    def partners(self, index: int) -> np.ndarray:
        """The domain of what is mixed into each crop, int [batch_size]; -1: nothing, len(shares): noise."""
        if not self.mixing.share:
            return np.full(self.batch_size, -1)
        rng = generator(self.seed, PARTNERS, index)
        partners = self._choice(rng)
        partners[rng.random(len(partners)) < self.mixing.noise_share] = len(self.shares)
        partners[rng.random(len(partners)) >= self.mixing.share] = -1
        return self._own(partners)

    def counts(self, index: int) -> np.ndarray:
        """How many crops of each domain batch `index` takes, int [domains]."""
        taken = np.concatenate([self.domains(index), self.partners(index)])
        return np.bincount(taken[(taken >= 0) & (taken < len(self.shares))], minlength=len(self.shares))

    def batch(self, index: int, sources: Sequence[Source], noise: NoiseSource) -> tuple[Tensor, Tensor | None]:
        """Batch `index`, float32 [batch_size, samples] in [-1, 1] before the gain, drawn from one source a domain.

        Returns (batch, the same before other sounds were mixed in; None where none are).
        """
        first = self.rank * self.batch_size
        rngs = [generator(self.seed, CROPS, index, row) for row in range(first, first + self.batch_size)]
        crops = [sources[domain].draw(rng) for domain, rng in zip(self.domains(index), rngs, strict=True)]
        clean = torch.from_numpy(np.stack(crops)).float().div_(FULL_SCALE)
        if self.gain_db:
            gains = [10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20) for rng in rngs]
            clean *= torch.tensor(gains)[:, None]
        if not self.mixing.share:
            return clean, None
        mixed = clean.clone()
        for row, (partner, rng) in enumerate(zip(self.partners(index), rngs, strict=True)):
            if partner >= 0:
                other = noise.noise(rng) if partner == len(sources) else sources[partner].draw(rng)
                self._mix_in(mixed[row], torch.from_numpy(np.array(other, dtype=np.float32)), rng)
        return mixed, clean

    def _mix_in(self, crop: Tensor, other: Tensor, rng: np.random.Generator) -> None:
        ratio = 10 ** (rng.uniform(*self.mixing.snr_db) / 20)
        crop += other * (crop.square().mean().sqrt() / other.square().mean().sqrt().clamp(min=1e-6) / ratio)

    def _choice(self, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(len(self.shares), self.batch_size * self.world_size, p=self.shares)

    def _own(self, whole: np.ndarray) -> np.ndarray:
        return whole[self.rank * self.batch_size :][: self.batch_size]
