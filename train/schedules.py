"""Learning rate and EMA momentum as pure functions of the step; `SCHEDULES` and `RAMPS` hold their shapes by name."""

import math
from collections.abc import Callable


def warm_up(step: int, steps: int, peak: float, from_zero: bool = False) -> float:
    """Linear over `steps` steps: step k takes peak · (k + 1) / steps; from zero, peak · k / (steps - 1)."""
    return peak * step / max(1, steps - 1) if from_zero else peak * (step + 1) / steps


def cosine(step: int, steps: int, decay: int, peak: float, final: float) -> float:
    """Half a cosine from `peak` at step 0 to `final` at step `steps`."""
    progress = min(1.0, step / max(1, steps))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def constant(step: int, steps: int, decay: int, peak: float, final: float) -> float:
    """`peak`, then linear to `final` over the last `decay` steps."""
    left = steps - 1 - step  # 0 at the last step
    return peak if left >= decay else final + (peak - final) * (left + 1) / (decay + 1)


SCHEDULES = {"cosine": cosine, "constant": constant}  # of the learning rate after its warm-up, steps counted from there

RAMPS = {  # from 0 to 1
    "linear": lambda progress: progress,
    "cosine": lambda progress: 0.5 * (1 - math.cos(math.pi * progress)),
}


def interpolate(start: float, end: float, progress: float, ramp: Callable[[float], float]) -> float:
    """From `start` at progress 0 to `end` at progress 1, where it stays."""
    return start + (end - start) * ramp(min(1.0, progress))
