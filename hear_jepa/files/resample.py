"""Sound at any rate -> at the rate that the model wants, whole or in blocks."""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch

from hear_jepa.errors import OptionError

SAMPLE_RATE = 16000
LARGEST_DENOMINATOR = 1000
LOWPASS_WIDTH = 16


def resample(audio: torch.Tensor, rate: int, sample_rate: int = SAMPLE_RATE) -> torch.Tensor:
    """Resample float32 [channels, samples] from `rate` to `sample_rate` Hz -> [channels, ceil(samples · ratio)]."""
    return torch.cat(list(resample_blocks([audio], rate, sample_rate)), dim=1)


def resample_blocks(blocks, rate: int, sample_rate: int) -> Iterator[torch.Tensor]:
    """Resample consecutive pieces [channels, samples] as one signal, holding a block and a little context in memory.

    Resampling commutes with shifts by `old` samples (which are `new` samples after it), so every piece is cut at
    such a multiple and computed with the filter's context on either side.
    """
    old, new = _ratio(rate, sample_rate)
    if old == new:
        yield from blocks
        return
    resampler = _resampler(old, new)
    context = old * math.ceil((resampler.width + 1) / old)
    trimmed = context // old * new
    pending = None  # [channels, context + not yet resampled]
    for block in blocks:
        pending = torch.nn.functional.pad(block, (context, 0)) if pending is None else torch.cat([pending, block], 1)
        ready = (pending.shape[1] - 2 * context) // old * old
        if ready > 0:
            piece = resampler(pending[:, : ready + 2 * context])
            yield piece[:, trimmed : trimmed + ready // old * new]
            pending = pending[:, ready:]
    if pending is not None and pending.shape[1] > context:
        yield resampler(pending)[:, trimmed:]


def _ratio(rate: int, sample_rate: int) -> tuple[int, int]:
    """Return (old, new), small, with old / new = rate / sample_rate, exactly wherever both stay small.

    The filter bank has `new` filters of about `old` taps: a rate co-prime to 16000 (44101 Hz) would need gigabytes
    and minutes. The nearest fraction that is affordable bends the pitch by less than 1e-5, 0.02 cents.
    """
    exact = Fraction(rate, sample_rate)
    if exact > 1:
        near = exact.limit_denominator(LARGEST_DENOMINATOR)
    else:
        near = 1 / (1 / exact).limit_denominator(LARGEST_DENOMINATOR)
    return near.numerator, near.denominator


@lru_cache(maxsize=16)
def _resampler(old: int, new: int) -> Any:
    """torchaudio's resampler, imported only here: a torchaudio that does not fit the torch beside it refuses to be."""
    try:
        from torchaudio.transforms import Resample
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise OptionError(
            f"torchaudio, which resamples {old}:{new}, cannot be imported beside torch {torch.__version__} ({reason}): "
            "install the torchaudio made for it, or give audio at the model's own rate"
        ) from error
    return Resample(old, new, lowpass_filter_width=LOWPASS_WIDTH)
