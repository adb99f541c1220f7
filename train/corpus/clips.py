"""A sound file -> clips worth training on: mono 16 bit, at most 30 s, neither silent nor clipped away."""

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hear_jepa.errors import AudioError
from hear_jepa.files.audio import read_blocks
from hear_jepa.files.resample import SAMPLE_RATE

SHORTEST_S = 0.25
LONGEST_S = 30.0
SILENCE = 10 ** (-60 / 20)  # peak, relative to full scale, after the offset is removed
CLIPPED_SHARE = 0.5  # of samples at full scale: nothing of the sound is left
FULL_SCALE = 0.99


@dataclass(frozen=True)
class Excerpt:
    """At most 30 s of a file: `samples` int16 [n], starting `start_s` seconds into it."""

    samples: np.ndarray
    start_s: float

    @property
    def key(self) -> str:
        """A name made of the content, so that equal names mean exact duplicates."""
        return hashlib.sha256(self.samples.astype("<i2").tobytes()).hexdigest()[:24]


@dataclass(frozen=True)
class Skipped:
    """A file, or a part of one, that is not used, and why."""

    path: str
    reason: str


def excerpts(
    path: Path, name: str, longest_s: float = math.inf, sample_rate: int = SAMPLE_RATE
) -> Iterator[Excerpt | Skipped]:
    """Yield the usable parts of a file's first `longest_s` seconds (in whole pieces of 30 s), in order, and a Skipped
    named `name` for what is not usable. A file that turns out damaged ends with a Skipped."""
    count = None if math.isinf(longest_s) else math.ceil(longest_s / LONGEST_S)
    try:
        for index, audio in enumerate(itertools.islice(_pieces(path, sample_rate), count)):
            start_s = index * LONGEST_S
            whole = index == 0 and len(audio) < LONGEST_S * sample_rate
            if reason := unusable(audio, sample_rate):
                yield Skipped(name if whole else f"{name} from {start_s:g} s", reason)
            else:
                yield Excerpt(to_int16(audio), start_s)
    except (AudioError, OSError, RuntimeError) as error:
        yield Skipped(name, f"unreadable: {str(error).removeprefix(f'{path}: ')}")


def unusable(audio: np.ndarray, sample_rate: int) -> str:
    """Say why float32 [samples] must not be trained on; empty where nothing is wrong with it."""
    if len(audio) < SHORTEST_S * sample_rate:
        return f"shorter than {SHORTEST_S:g} s"
    if not np.isfinite(audio).all():
        return "not finite: NaN or infinite samples"
    if np.abs(audio - audio.mean()).max() < SILENCE:
        return "silent: peak below -60 dB of full scale"
    if (np.abs(audio) >= FULL_SCALE).mean() > CLIPPED_SHARE:
        return "clipped: most samples are at full scale"
    return ""


def to_int16(audio: np.ndarray) -> np.ndarray:
    """float32 in [-1, 1] -> int16; exact for what came from 16-bit samples."""
    return np.clip(np.rint(audio * 32768.0), -32768, 32767).astype(np.int16)


def _pieces(path: Path, sample_rate: int) -> Iterator[np.ndarray]:
    """Cut the decoded blocks, whatever their lengths, into float32 pieces of 30 s and a remainder."""
    length = int(LONGEST_S * sample_rate)
    pending = np.zeros(0, dtype=np.float32)
    for block in read_blocks(path, LONGEST_S, sample_rate, mono=True):
        pending = np.concatenate([pending, block[0].numpy()])
        while len(pending) >= length:
            yield pending[:length]
            pending = pending[length:]
    if len(pending):
        yield pending
