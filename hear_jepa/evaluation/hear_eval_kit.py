"""`--protocol hear`: the unmodified runners of hear-eval-kit on one task, in processes of their own.

`python -m hear_jepa.evaluation.hear_eval_kit` prints the folder to put on PYTHONPATH before running heareval's or
hear-validator's own commands by hand.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hear_jepa.cli import signals_go_to
from hear_jepa.errors import TaskError
from hear_jepa.evaluation.model_spec import LoadedModel
from hear_jepa.evaluation.resample import resampled_copy
from hear_jepa.evaluation.scoring import TaskScores
from hear_jepa.evaluation.tasks import Task

logger = logging.getLogger(__name__)

PYTHONPATH_DIR = Path(__file__).with_name("heareval_path")
SCORES_FILE = "test.predicted-scores.json"


def run_heareval(
    model: LoadedModel, task: Task, work_dir: Path, grid_points: int = 8, grid: str = "default"
) -> TaskScores:
    """Embed and predict with heareval; scores of each fold. TaskError with the end of its log when it fails.

    `work_dir` keeps `heareval.log` and heareval's own test.predicted-scores.json; its embeddings, and the ./logs
    where it leaves a checkpoint a grid point and fold, are deleted. A killed run finds its embeddings again.
    """
    work_dir = work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    tasks_dir = task.folder.parent.resolve()
    if not (task.folder / str(model.sample_rate)).is_dir():
        tasks_dir = resampled_copy(task, model.sample_rate, work_dir.parent.parent / f"{model.sample_rate}Hz").parent
    _run(["heareval.embeddings.runner", *_embedding_arguments(model, task, tasks_dir)], work_dir, model)
    (embedded,) = (path for path in (work_dir / "embeddings").glob("*/*") if path.is_dir())
    _check_finite(embedded, model, task)
    where = str(embedded.relative_to(work_dir))  # relative: heareval's logs then stay in work_dir too
    _run(["heareval.predictions.runner", where, "--grid-points", str(grid_points), "--grid", grid], work_dir, model)
    shutil.copy(embedded / SCORES_FILE, work_dir)
    scores = read_scores(work_dir / SCORES_FILE, task)
    for leftover in ("embeddings", "logs"):
        shutil.rmtree(work_dir / leftover, ignore_errors=True)
    return scores


def _check_finite(embedded: Path, model: LoadedModel, task: Task) -> None:
    """heareval would train on NaN and give a score: raise `TaskError` with the clip's name instead."""
    for path in embedded.rglob("*.embedding.npy"):
        if not np.isfinite(np.load(path)).all():
            clip = path.name.removesuffix(".embedding.npy")
            raise TaskError(f"{model.spec.text} on {task.name}: the embedding of {clip} holds NaN or infinity")


def _embedding_arguments(model: LoadedModel, task: Task, tasks_dir: Path) -> list[str]:
    options, weights = dict(model.spec.options), model.spec.weights
    arguments = [model.spec.module]
    if weights and Path(weights).exists():
        arguments += ["--model", str(Path(weights).resolve())]
    elif weights:  # a name that the module knows; heareval's --model takes paths alone
        options["model_file_path"] = weights
    arguments += ["--model-options", json.dumps(options), "--tasks-dir", str(tasks_dir), "--task", task.name]
    return [*arguments, "--embeddings-dir", "embeddings"]


def _run(arguments: list[str], work_dir: Path, model: LoadedModel) -> None:
    environment = dict(os.environ)
    path = [str(PYTHONPATH_DIR), environment.get("PYTHONPATH", ""), os.getcwd()]  # modules beside the user's work
    environment["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
    if model.device.type == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # heareval would take the GPU
    elif model.device.index and "CUDA_VISIBLE_DEVICES" not in environment:
        environment["CUDA_VISIBLE_DEVICES"] = str(model.device.index)
    log = work_dir / "heareval.log"
    command = [sys.executable, "-m", *arguments]
    # SIGTERM becomes an exception, upon which `subprocess.run` kills what it has started.
    with open(log, "ab") as output, signals_go_to(lambda *_: sys.exit(128 + signal.SIGTERM), signal.SIGTERM):
        _lock(output)
        finished = subprocess.run(command, cwd=work_dir, env=environment, stdout=output, stderr=output, check=False)
    if finished.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["(no output)"]
        raise TaskError(f"{arguments[0]} ended with {finished.returncode}: {lines[-1]}; the rest is in {log}")


def _lock(log: BinaryIO) -> None:
    """Lock the log, which heareval inherits as its output: where a killed run left one behind that still works in the
    folder, wait for it."""
    import fcntl  # not on Windows, where heareval does not run

    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("%s: waiting for the heareval that another run has started there", log.name)
        fcntl.flock(log, fcntl.LOCK_EX)


def read_scores(path: Path, task: Task) -> TaskScores:
    """heareval's test.predicted-scores.json -> scores of each fold; the validation score is that of the first score."""
    content = json.loads(path.read_text())
    entries = [content[key] for key in sorted(content)]
    folds = [entry for entry in entries if isinstance(entry, dict) and "validation_score" in entry]
    valid = [{task.scores[0]: float(fold["validation_score"])} for fold in folds]
    test = [{name: float(fold[f"test_{name}"]) for name in task.scores if f"test_{name}" in fold} for fold in folds]
    return TaskScores(valid, test)


if __name__ == "__main__":
    sys.stdout.write(f"{PYTHONPATH_DIR}\n")
