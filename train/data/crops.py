"""From the clips of a domain to batches of crops of one length: what both backends share, and the options."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hear_jepa.options import within

FULL_SCALE = 32768.0  # of int16
DOMAINS, CROPS, SHARDS, PARTNERS = range(4)  # what random numbers are for
Draw = Callable[[np.random.Generator], np.ndarray]  # -> a crop [samples]: int16 of sound, float32 of noise


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
            clip, start = int(self._short[rng.integers(len(self._short))]), 0
        return crop


@dataclass(frozen=True)
class DataConfig:
    """Where crops come from and how they are drawn."""

    source: str = "shards"
    """Folder of shards, local or any URL that WebDataset opens (a command: "pipe:aws s3 cp s3://x/{shard} -" with
    {shard} for the file's name); or a plain folder of sounds, whose top folders name the domains."""
    backend: Literal["auto", "decoded", "stream"] = "auto"
    """decoded: decode everything once into a memory-mapped file; stream: read shards as they are needed; auto: decoded
    for local audio of up to `decoded_hours`."""
    decoded_hours: float = 100.0
    """Hours (115 MB each) up to which `auto` takes decoded."""
    cache_dir: Path | None = None
    """Folder for the memory-mapped file; none: .cache inside the source."""
    domain_weights: dict[str, float] = field(default_factory=dict)
    """Share of crops from each domain (any scale; a domain not named gets none); empty: in proportion to hours.
    "synthetic" is sound made on the fly, unless the source has a domain of that name."""
    crops_per_clip: int = within(4, 1)
    """Stream: crops taken for every clip read, long clips giving more of them than short ones."""
    open_shards: int = within(2, 1)
    """Stream: shards of a domain held in memory at once, undecoded; crops are drawn from all of them at random."""
    workers: int = within(1, 0)
    """Processes of every rank that make batches; 0: a thread. Decoded: 1 is a thread too, and the crops are the same (a
    GPU takes more of them than a thread makes). Stream: other numbers give other crops."""
    prefetch: int = within(4, 1)
    """Batches made ahead."""
    timeout_s: float = within(900.0, 1)
    """Seconds to wait for a batch; then the run ends, to be resumed when the shards can be read again."""
    gain_db: float = within(0.0, 0)
    """Random gain of every crop, drawn evenly from ± this many dB; 0: none."""
    mix_share: float = within(0.0, 0, 1)
    """Share of crops with another sound mixed in."""
    mix_noise_share: float = within(0.5, 0, 1)
    """Share of these whose other sound is noise of a random colour; of the rest it is another crop."""
    mix_snr_db: tuple[float, float] = (0.0, 20.0)
    """Their signal-to-noise ratio is drawn evenly between these two, in dB."""


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
    config: DataConfig = DataConfig()

    def domains(self, index: int) -> np.ndarray:
        """The domain of each crop of this rank's batch `index`, int [batch_size]."""
        return self._own(self._choice(generator(self.seed, DOMAINS, index)))

    def partners(self, index: int) -> np.ndarray:
        """The domain of what is mixed into each crop, int [batch_size]; -1: nothing, len(shares): noise."""
        if not self.config.mix_share:
            return np.full(self.batch_size, -1)
        rng = generator(self.seed, PARTNERS, index)
        partners = self._choice(rng)
        partners[rng.random(len(partners)) < self.config.mix_noise_share] = len(self.shares)
        partners[rng.random(len(partners)) >= self.config.mix_share] = -1
        return self._own(partners)

    def counts(self, index: int) -> np.ndarray:
        """How many crops of each domain batch `index` takes, int [domains]."""
        taken = np.concatenate([self.domains(index), self.partners(index)])
        return np.bincount(taken[(taken >= 0) & (taken < len(self.shares))], minlength=len(self.shares))

    def batch(self, index: int, sources: Sequence[Draw], noise: Draw) -> Tensor:
        """Batch `index`, float32 [batch_size, samples], in [-1, 1] before gain and mixing, from one source a domain."""
        first = self.rank * self.batch_size
        rngs = [generator(self.seed, CROPS, index, row) for row in range(first, first + self.batch_size)]
        crops = [sources[domain](rng) for domain, rng in zip(self.domains(index), rngs, strict=True)]
        batch = torch.from_numpy(np.stack(crops)).float().div_(FULL_SCALE)
        if gain_db := self.config.gain_db:
            gains = [10 ** (rng.uniform(-gain_db, gain_db) / 20) for rng in rngs]
            batch *= torch.tensor(gains)[:, None]
        for row, (partner, rng) in enumerate(zip(self.partners(index), rngs, strict=True)):
            if partner >= 0:
                other = (noise if partner == len(sources) else sources[partner])(rng)
                self._mix_in(batch[row], torch.from_numpy(np.array(other, dtype=np.float32)), rng)
        return batch

    def _mix_in(self, crop: Tensor, other: Tensor, rng: np.random.Generator) -> None:
        ratio = 10 ** (rng.uniform(*self.config.mix_snr_db) / 20)
        crop += other * (_level(crop) / max(_level(other), 1e-6) / ratio)

    def _choice(self, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(len(self.shares), self.batch_size * self.world_size, p=self.shares)

    def _own(self, whole: np.ndarray) -> np.ndarray:
        return whole[self.rank * self.batch_size :][: self.batch_size]


def _level(crop: Tensor) -> float:
    """Root mean square, the same on any number of threads."""
    return float(np.square(crop.numpy(), dtype=np.float64).mean() ** 0.5)
