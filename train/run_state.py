"""A run's state on disk, written whole or not at all, and the signals that ask a run to stop."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hear_jepa.disk import atomic_path
from hear_jepa.errors import CheckpointError, OptionError
from hear_jepa.train.config import TrainConfig, differences, to_json
from hear_jepa.train.jepa import JEPA
from hear_jepa.train.optimisation import Optimiser

log = logging.getLogger(__name__)

LATEST = "latest.pt"
BEST = "best.pt"
FREE_TO_CHANGE = (  # how and where a run goes on, and what a run in trouble needs changed
    "resume",
    "out",
    "serve",
    "compute.",
    "monitor.",
    "data.source",
    "data.cache_dir",
    "data.prefetch",
    "data.timeout_s",
    "optim.base_lr",
    "optim.clip",
    "optim.max_bad_steps",
)


class StopRequest:
    """Whether SIGTERM or SIGINT has asked the run to save and end."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def _note(self, number: int, frame: object) -> None:
        if number == self.signal == signal.SIGINT:  # Ctrl-C twice; schedulers and torchrun both send SIGTERM
            raise KeyboardInterrupt
        self.signal = number
        log.warning("%s: saving after this step, then stopping", signal.Signals(number).name)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a request that the loop looks at; the former handlers come back afterwards."""
    request = StopRequest()
    before = {number: signal.signal(number, request._note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def save_state(path: Path, config: TrainConfig, step: int, jepa: JEPA, optimiser: Optimiser, extra: dict) -> bool:
    """Write everything that resuming needs. A failure (disk full) is logged and leaves the last good file.

    Crops, masks and schedules are functions of the seed and the step, so the step is their state.
    """
    state = {
        "step": step,
        "config": to_json(config),
        "jepa": jepa.state_dict(),
        "optimiser": optimiser.state_dict(),
        "rng": torch.get_rng_state(),
        "extra": extra,
    }
    try:
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError when the disk is full
        log.error("%s was not written (%s); the one before stays. Free some space: the run goes on.", path, error)
        return False
    return True


def _free(config: TrainConfig) -> tuple[str, ...]:
    """A constant learning rate does not depend on when the run will end."""
    return (*FREE_TO_CHANGE, "optim.steps") if config.optim.schedule == "constant" else FREE_TO_CHANGE


def load_state(path: Path, config: TrainConfig, jepa: JEPA, optimiser: Optimiser) -> tuple[int, dict[str, Any]]:
    """Restore a saved run into the given objects. Returns the next step and what `extra` was."""
    if not path.is_file():
        raise CheckpointError(f"nothing to resume: {path} does not exist; start the run without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(f"{path} cannot be read ({error}); resume from another copy of it") from error
    changed = [line for line in differences(state["config"], to_json(config)) if not line.startswith(_free(config))]
    if changed:
        raise OptionError(
            f"the run in {path.parent} was started with other options ({'; '.join(changed)}): "
            "resume with the same ones, or start a new run in another --out "
            "(--init-from takes over the weights of a finished one)"
        )
    jepa.load_state_dict(state["jepa"], strict=True)
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["rng"])
    return state["step"], state["extra"]
