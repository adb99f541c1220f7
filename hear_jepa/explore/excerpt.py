"""A stretch of a sound file, decoded no further than its end."""

from pathlib import Path

import torch
from torch import Tensor

from hear_jepa.errors import OptionError
from hear_jepa.files.audio import SAMPLE_RATE, read_blocks

BLOCK_S = 10.0


def read_excerpt(
    path: str | Path,
    start_s: float = 0.0,
    end_s: float = float("inf"),
    channel: int | None = None,
    sample_rate: int = SAMPLE_RATE,
) -> Tensor:
    """Seconds `start_s … end_s` of a file, [samples] at `sample_rate`; of one channel, or the mix of all.

    Raises OptionError for times that are not in the file, AudioError for what cannot be decoded.
    """
    if not 0 <= start_s < end_s:
        raise OptionError(f"a stretch from {start_s} to {end_s} s is none: the start is from 0, before the end")
    first, last = start_s * sample_rate, end_s * sample_rate
    pieces, n_read = [], 0
    for block in read_blocks(path, BLOCK_S, sample_rate, mono=channel is None):
        samples = block[channel or 0]
        here = slice(round(max(first - n_read, 0)), round(min(max(last - n_read, 0), len(samples))))
        pieces.append(samples[here])
        n_read += len(samples)
        if n_read >= last:
            break
    audio = torch.cat(pieces)
    if not len(audio):
        raise OptionError(f"{path} ends at {n_read / sample_rate:.2f} s, before {start_s} s")
    return audio
