"""Sounds not to be trained on: known by their samples, and by a fingerprint that survives re-encoding and cutting.

The fingerprint is that of Haitsma and Kalker ("A highly robust audio fingerprinting system", ISMIR 2002): every 16 ms
one 32-bit word, whose bits say whether the energy difference of neighbouring bands rises or falls in time. Two sounds
are one where, at some alignment, few of their bits differ.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from hear_jepa.files.resample import SAMPLE_RATE, resample
from hear_jepa.train.corpus.clips import Excerpt, excerpts

WINDOW, HOP = 4096, 256  # samples: 256 ms, so that a misalignment of half a hop hardly shows
BANDS = 33
LOWEST_HZ, HIGHEST_HZ = 300.0, 3400.0  # present also in 8 kHz telephone versions
SILENT_POWER = 1e-3  # of a windowed frame of int16 / 32768; words of near-silence say nothing
LONG_OVERLAP, SHORTEST_OVERLAP = 64, 12  # words
LONG_ERRORS, SHORT_ERRORS = 0.32, 0.22  # share of bits that may differ; by chance it is 0.5
COMMONEST = 32  # a word that occurs more often than this points nowhere


@dataclass(frozen=True)
class ExcludedClip:
    """What is kept of an excluded clip."""

    name: str
    key: str
    words: np.ndarray


def excluded_clips(path: Path, sample_rate: int) -> list[ExcludedClip]:
    """Describe the clips of an excluded file; what `prepare` would not use is not excluded either."""
    clips = (item for item in excerpts(path, str(path), sample_rate=sample_rate) if isinstance(item, Excerpt))
    return [ExcludedClip(str(path), clip.key, fingerprint(clip.samples, sample_rate)) for clip in clips]


def fingerprint(samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """int16 [n] -> one word every 16 ms, int64; -1 where there is nothing to hear."""
    audio = torch.from_numpy(samples.astype(np.float32) / 32768.0)
    audio = resample(audio[None], sample_rate, SAMPLE_RATE)[0]
    spectrum = torch.stft(
        audio, WINDOW, HOP, window=torch.hann_window(WINDOW), pad_mode="constant", return_complex=True
    )
    power = spectrum.real.square() + spectrum.imag.square()
    energy = _band_matrix() @ power  # [bands, frames]
    bits = (energy[:-1] - energy[1:]).diff(dim=1) > 0  # [32, frames - 1]
    words = (bits.long() << torch.arange(BANDS - 1)[:, None]).sum(dim=0)
    return torch.where(energy.sum(dim=0)[1:] > SILENT_POWER, words, -1).numpy()


@lru_cache(maxsize=1)
def _band_matrix() -> torch.Tensor:
    edges = torch.logspace(np.log10(LOWEST_HZ), np.log10(HIGHEST_HZ), BANDS + 1)
    frequencies = torch.arange(WINDOW // 2 + 1) * SAMPLE_RATE / WINDOW
    return ((frequencies >= edges[:-1, None]) & (frequencies < edges[1:, None])).float()


class Exclusions:
    """An index of excluded clips."""

    def __init__(self, clips: list[ExcludedClip]):
        self._names = [clip.name for clip in clips]
        self._by_key = {clip.key: clip.name for clip in clips}
        lengths = [len(clip.words) for clip in clips]
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._words = np.concatenate([clip.words for clip in clips])
        self._order = np.argsort(self._words, kind="stable")
        self._sorted = self._words[self._order]

    def match(self, clip: Excerpt, sample_rate: int = SAMPLE_RATE) -> str:
        """Return the name of an excluded file that sounds in `clip`, or an empty string."""
        if name := self._by_key.get(clip.key):
            return name
        words = fingerprint(clip.samples, sample_rate)
        for excluded, shift in self._candidates(words):
            if self._same(words, excluded, shift):
                return self._names[excluded]
        return ""

    def _candidates(self, words: np.ndarray) -> list[tuple[int, int]]:
        """The alignments (excluded clip, shift in words) that share at least two words, best first."""
        first, last = np.searchsorted(self._sorted, words, "left"), np.searchsorted(self._sorted, words, "right")
        count = np.where((words >= 0) & (last - first <= COMMONEST), last - first, 0)
        mine = np.repeat(np.arange(len(words)), count)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        theirs = self._order[np.repeat(first, count) + within]  # positions in the joined words
        shifts, votes = np.unique(theirs - mine, return_counts=True)
        best = np.argsort(-votes, kind="stable")[:20]
        candidates = []
        for shift in shifts[best[votes[best] >= 2]]:
            for excluded in np.unique(np.searchsorted(self._starts, theirs[theirs - mine == shift], "right") - 1):
                candidates.append((int(excluded), int(shift - self._starts[excluded])))
        return candidates

    def _same(self, words: np.ndarray, excluded: int, shift: int) -> bool:
        """Compare where word i of `words` lies beside word i + shift of the excluded clip."""
        theirs = self._words[self._starts[excluded] : self._starts[excluded + 1]]
        first, last = max(0, -shift), min(len(words), len(theirs) - shift)
        mine, theirs_there = words[first:last], theirs[first + shift : last + shift]
        both = (mine >= 0) & (theirs_there >= 0)
        overlap = int(both.sum())
        shorter = min(int((words >= 0).sum()), int((theirs >= 0).sum()))
        if overlap < max(SHORTEST_OVERLAP, min(LONG_OVERLAP, 0.8 * shorter)):
            return False
        differing = np.unpackbits((mine[both] ^ theirs_there[both]).astype("<u4").view(np.uint8)).mean()
        return differing < (LONG_ERRORS if overlap >= LONG_OVERLAP else SHORT_ERRORS)
