"""Learning rate and EMA momentum as pure functions of the step."""

import math
from typing import Literal


def warmup_cosine(step: int, total: int, warmup: int, peak: float, final: float = 0.0) -> float:
    """Linear from 0 to `peak` over `warmup` steps (step 0 takes peak / warmup), then half a cosine to `final`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_constant(step: int, total: int, warmup: int, decay: int, peak: float, final: float = 0.0) -> float:
    """Linear from 0 to `peak` over `warmup` steps, constant, then linear to `final` over the last `decay` steps."""
    if step < warmup:
        return peak * (step + 1) / warmup
    left = total - 1 - step  # 0 at the last step
    return peak if left >= decay else final + (peak - final) * (left + 1) / (decay + 1)


def interpolate(step: int, total: int, start: float, end: float, shape: Literal["linear", "cosine"]) -> float:
    """From `start` at step 0 to `end` at the last step, in a straight line or along half a cosine."""
    progress = min(1.0, step / max(1, total - 1))
    if shape == "cosine":
        progress = 0.5 * (1 - math.cos(math.pi * progress))
    return start + (end - start) * progress
