"""One run of a study from its options to its result: trained, probed, kept."""

import logging
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hear_jepa import __version__
from hear_jepa.disk import locked, write_json
from hear_jepa.errors import HearJepaError, LockError
from hear_jepa.evaluation.model_spec import ModelSpec, load_spec
from hear_jepa.evaluation.runs import summarise
from hear_jepa.evaluation.scoring import check_protocol, main_score, score_task
from hear_jepa.evaluation.tasks import Task, find_tasks, read_task
from hear_jepa.model.checkpoint import load_checkpoint
from hear_jepa.train.config import TrainConfig, to_json
from hear_jepa.train.finish import ENCODER_FILE
from hear_jepa.train.loop import train
from hear_jepa.train.metrics_log import read_metrics
from hear_jepa.train.ranks import is_main_rank
from hear_jepa.train.run_state import BEST, LATEST, PREVIOUS
from hear_jepa.train.study.plan import StudyRun, result_path, run_folder
from hear_jepa.train.study.rows import SET_BY_THE_STUDY

log = logging.getLogger(__name__)

PROTOCOL = "linear"  # validation splits choose, test splits are reported
COLLAPSE = ("rank_me", "content_std", "std", "position_share")


class Stopped(HearJepaError):
    """A signal ended the run; its state is saved."""


def run_config(config: TrainConfig, run: StudyRun, out: Path, data: str) -> TrainConfig:
    """A row's options with what the study sets: folder, seed and data; it goes on where there is a state."""
    folder = run_folder(out, run)
    resume = any((folder / name).exists() for name in (LATEST, PREVIOUS))
    return replace(config, out=folder, seed=run.seed, resume=resume, data=replace(config.data, source=data))


def do_run(config: TrainConfig, run: StudyRun, out: Path, data: str, tasks: Sequence[Task]) -> str:
    """Train and probe one run, or what is left of it. Returns what came out, in words.

    Raises Stopped after a signal, and the errors of training and evaluation.
    """
    if is_main_rank():
        run_folder(out, run).mkdir(parents=True, exist_ok=True)
        try:
            with locked(run_folder(out, run).with_name(f".{run.name}.lock")):
                return _do_run(config, run, out, data, tasks)
        except LockError:
            return "left to the other process that is at it"
    return _train(run_config(config, run, out, data)).name


def _do_run(config: TrainConfig, run: StudyRun, out: Path, data: str, tasks: Sequence[Task]) -> str:
    path = result_path(out, run)
    if path.is_file():  # another process finished it meanwhile
        return "finished before"
    checkpoint = _train(run_config(config, run, out, data))
    result = _result(config, run, checkpoint, probe_tasks(checkpoint, tasks))
    write_json(path, result)
    for name in (LATEST, PREVIOUS, BEST):  # only going on needs them, and they are most of the disk
        (checkpoint.parent / name).unlink(missing_ok=True)
    mean = sum(score["test"] for score in result["scores"].values()) / len(result["scores"])
    return f"test mean {mean:.1f} %, RankMe {result['collapse'].get('rank_me', float('nan')):.0f}"


def _train(config: TrainConfig) -> Path:
    """The checkpoint of the run, trained now or before."""
    path = config.out / ENCODER_FILE
    if path.is_file():
        return path
    path = train(config)
    if path.name == LATEST and is_main_rank():
        raise Stopped(f"stopped by a signal, {config.out} has the state: the same command goes on")
    return path


def _result(config: TrainConfig, run: StudyRun, checkpoint: Path, scores: dict[str, Any]) -> dict[str, Any]:
    """config: the row's own, which does not say where the data lie on this machine."""
    provenance = load_checkpoint(checkpoint).provenance
    return {
        "row": run.row,
        "seed": run.seed,
        "scores": scores,
        "collapse": _collapse(checkpoint.parent),
        "width": config.encoder.width,
        "steps": config.optim.steps,
        "hours_of_training": provenance["hours_of_training"],
        "ranks": provenance["ranks"],
        "machine": machine(provenance["device"]),
        "version": __version__,
        "options": {name: value for name, value in to_json(config).items() if name not in SET_BY_THE_STUDY},
    }


def _collapse(folder: Path) -> dict[str, float]:
    found = {}
    for line in read_metrics(folder):
        found |= {name: line[f"context/{name}"] for name in COLLAPSE if f"context/{name}" in line}
    return found


def machine(device: str) -> str:
    """The GPU, or the processor with the threads that are used of it."""
    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {torch.get_num_threads()} thread(s)"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_tasks(folder: Path) -> list[Task]:
    """The tasks of a folder, checked: raises TaskError for one without a validation split, or that cannot be probed."""
    tasks = [read_task(path) for path in find_tasks(folder)]
    for task in tasks:
        check_protocol(task, PROTOCOL)
    return tasks


def probe_tasks(checkpoint: Path, tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """By task: its category of sound and its validation and test scores in per cent, means over folds or probe seeds.

    Windows are as long as the crops that the encoder was trained on: the checkpoint says so itself.
    """
    model = load_spec(ModelSpec(str(checkpoint), "hear_jepa", str(checkpoint)))
    found = {}
    for task in tasks:
        scores = summarise(score_task(task, model, protocol=PROTOCOL, device=str(model.device)))
        splits = scores[main_score(task, PROTOCOL)]
        found[task.name] = {"category": task.domain} | {split: 100 * splits[split]["mean"] for split in splits}
    return found
