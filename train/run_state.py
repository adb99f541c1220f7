"""A run's state on disk, written whole or not at all, and the signals that ask a run to stop."""

import logging
import os
import signal
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hear_jepa.cli import signals_go_to
from hear_jepa.disk import atomic_path
from hear_jepa.errors import CheckpointError, OptionError
from hear_jepa.model.front_end import FrontEndConfig
from hear_jepa.train.config import TrainConfig, differences, to_json
from hear_jepa.train.jepa import JEPA
from hear_jepa.train.optimisation import Optimiser

log = logging.getLogger(__name__)

LATEST = "latest.pt"
PREVIOUS = "previous.pt"  # the state before it, should it be damaged
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

    def note(self, number: int, frame: object) -> None:
        if number == self.signal == signal.SIGINT:  # Ctrl-C twice; schedulers and torchrun both send SIGTERM
            raise KeyboardInterrupt
        self.signal = number
        log.warning("%s: saving after this step, then stopping", signal.Signals(number).name)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a request that the loop looks at; the former handlers come back afterwards."""
    request = StopRequest()
    with signals_go_to(request.note, signal.SIGTERM, signal.SIGINT):
        yield request


class RunState:
    """The objects whose state a run is, and how they are saved.

    Crops, masks and schedules are functions of the seed and the step, so the step is their state.
    """

    def __init__(self, config: TrainConfig, front_end: FrontEndConfig, jepa: JEPA, optimiser: Optimiser):
        self.config, self.front_end, self.jepa, self.optimiser = config, front_end, jepa, optimiser
        self.hours_before, self._started = 0.0, time.monotonic()

    def hours(self) -> float:
        """Hours that the run has taken so far, those before a resume included."""
        return self.hours_before + (time.monotonic() - self._started) / 3600

    def save(self, step: int, probe: dict, must: bool = False, name: str = LATEST) -> None:
        """Write everything that resuming needs; the latest state before becomes the previous one.

        A failure (disk full) is logged and leaves the last good file; raises CheckpointError where the state `must` be
        written.
        """
        state = {
            "step": step,
            "config": to_json(self.config),
            "front_end": asdict(self.front_end),  # with the statistics of the sound that the run began with
            "jepa": self.jepa.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "probe": probe,
            "hours": self.hours(),
        }
        path = self.config.out / name
        try:
            with atomic_path(path) as temporary:
                torch.save(state, temporary)
                if name == LATEST and path.exists():
                    os.replace(path, path.with_name(PREVIOUS))
        except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError when the disk is full
            log.error("%s was not written (%s); the one before stays. Free some space: the run goes on.", path, error)
            if must:
                raise CheckpointError(f"the run ends without its last state: {path} could not be written") from error

    def load(self, state: dict[str, Any]) -> int:
        """Put a saved state into the objects; returns the next step."""
        self.jepa.load_state_dict(state["jepa"], strict=True)
        self.optimiser.load_state_dict(state["optimiser"])
        self.hours_before = state["hours"]
        return state["step"]


def read_state(path: Path) -> dict[str, Any]:
    """Read a saved state. Raises CheckpointError where it is damaged: by the checksums of its parts, not only by what
    torch happens to notice."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise CheckpointError(f"{path} is damaged: {damaged} does not match its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and torch raise many kinds for a damaged file
        raise CheckpointError(f"{path} cannot be read ({error})") from error


def saved_state(config: TrainConfig) -> dict[str, Any]:
    """The last state in the run's folder that can be read.

    Raises CheckpointError where there is none, OptionError where the run was started with other options.
    """
    path, state = _last_readable(config.out)
    free, hint = FREE_TO_CHANGE, ""
    if config.optim.schedule == "constant":
        free += ("optim.decay_share",)
        if config.optim.warmup_steps and (config.ema.ramp_steps or config.target.frozen_from):
            free += ("optim.steps",)  # nothing before the decay depends on when the run will end
        else:
            hint = "; the steps may change in a run with --optim.warmup-steps and --ema.ramp-steps, not with shares"
    changed = [line for line in differences(state["config"], to_json(config)) if not line.startswith(free)]
    if changed:
        raise OptionError(
            f"the run in {config.out} was started with other options ({'; '.join(changed)}): "
            "resume with the same ones, or start a new run in another --out "
            f"(--init-from takes over the weights of a finished one){hint}"
        )
    log.info("resuming from %s, step %d", path, state["step"])
    return state


def check_out(config: TrainConfig) -> None:
    """Raise where `out` holds a run that was not asked to be resumed, or none that could be."""
    known = any((Path(config.out) / name).is_file() for name in (LATEST, PREVIOUS))
    if known and not config.resume:
        raise OptionError(f"{config.out} holds a run already: resume it (--resume), or name another --out")
    if config.resume and not known:
        raise CheckpointError(f"nothing to resume: {config.out} holds no state; start the run without --resume")


def _last_readable(folder: Path) -> tuple[Path, dict[str, Any]]:
    paths = [folder / name for name in (LATEST, PREVIOUS) if (folder / name).is_file()]
    if not paths:
        raise CheckpointError(f"nothing to resume: {folder / LATEST} does not exist; start the run without --resume")
    errors = []
    for path in paths:
        try:
            return path, read_state(path)
        except CheckpointError as error:
            log.warning("%s", error)
            errors.append(str(error))
    raise CheckpointError(f"nothing to resume: {'; '.join(errors)}; start again in another --out")
