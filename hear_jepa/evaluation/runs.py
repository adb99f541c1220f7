"""One model on one task under one protocol: run once, kept on disk, its failure contained."""

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hear_jepa.disk import atomic_path
from hear_jepa.errors import HearJepaError
from hear_jepa.evaluation.hear_eval_kit import run_heareval
from hear_jepa.evaluation.model_spec import LoadedModel, ModelSpec, load_spec
from hear_jepa.evaluation.probes import KnnConfig
from hear_jepa.evaluation.scoring import TaskScores, linear_config, probe_task
from hear_jepa.evaluation.tasks import Task, read_task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What changes a score besides the model, the task and the protocol; `device` does not."""

    splits: str = "test"
    grid_points: int = 8
    grid: str = "default"
    device: str = ""


@dataclass(frozen=True)
class RunResult:
    """Scores by name: `{"top1_acc": {"valid": {"mean", "std", "runs"}, "test": {…}}}`; or what went wrong."""

    model: str
    task: str
    protocol: str
    domain: str
    score: str  # the task's first, the one that the tables show
    scores: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    sha256: str = ""
    embedding_size: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


class Runner:
    """Runs pairs; a finished pair is read back from `out/pairs`, keyed by weights, options, task and settings."""

    def __init__(self, out: Path, settings: Settings):
        self.out, self.settings = out, settings
        self._loaded: tuple[ModelSpec, LoadedModel] | None = None  # the models come one after another

    def run(self, spec: ModelSpec, task: Task, protocol: str) -> RunResult:
        """The result of a pair; an exception becomes its `error`, which is not kept: the next run tries again."""
        try:
            model = self._load(spec)
            task = _heard_by(model, task)
            path = self._path(model, task, protocol)
            if path.is_file():
                return RunResult(**json.loads(path.read_text()) | {"model": spec.text})
            started = time.monotonic()
            scores = self._score(model, task, protocol)
            result = self._result(model, task, protocol, scores, time.monotonic() - started)
            _write(path, result)
            return result
        except HearJepaError as error:
            message = str(error)
        except Exception as error:  # of a foreign module: the other pairs still count
            logger.debug("%s on %s", spec.text, task.name, exc_info=True)
            message = f"{type(error).__name__}: {error}"
        logger.warning("%s on %s (%s) failed: %s", spec.text, task.name, protocol, message)
        return RunResult(spec.text, task.name, protocol, task.domain, task.scores[0], error=message)

    def _load(self, spec: ModelSpec) -> LoadedModel:
        if self._loaded is None or self._loaded[0] is not spec:
            self._loaded = None  # frees the previous model first
            self._loaded = (spec, load_spec(spec, self.settings.device))
        return self._loaded[1]

    def _settings(self, task: Task, protocol: str) -> dict[str, Any]:
        if protocol == "hear":
            return {"grid_points": self.settings.grid_points, "grid": self.settings.grid}
        probe = linear_config(task) if protocol == "linear" else KnnConfig()
        return {"splits": self.settings.splits, "probe": asdict(probe)}

    def _path(self, model: LoadedModel, task: Task, protocol: str) -> Path:
        identity = json.dumps([task.fingerprint, self._settings(task, protocol)], sort_keys=True)
        key = hashlib.sha256(identity.encode()).hexdigest()[:12]
        return self.out / "pairs" / protocol / model.key / f"{task.name}-{key}.json"

    def _score(self, model: LoadedModel, task: Task, protocol: str) -> TaskScores:
        if protocol == "hear":
            work_dir = self.out / "heareval" / self._path(model, task, protocol).stem / model.key
            return run_heareval(model, task, work_dir, self.settings.grid_points, self.settings.grid)
        device = self.settings.device or str(model.device)
        return probe_task(
            task,
            model,
            protocol=protocol,
            splits=self.settings.splits,
            cache_dir=self.out / "embeddings",
            device=device,
        )

    def _result(self, model: LoadedModel, task: Task, protocol: str, scores: TaskScores, seconds: float) -> RunResult:
        size = model.model.timestamp_embedding_size if task.kind == "event" else model.model.scene_embedding_size
        return RunResult(
            model=model.spec.text,
            task=task.name,
            protocol=protocol,
            domain=task.domain,
            score=task.scores[0],
            scores=summarise(scores),
            sha256=model.sha256,
            embedding_size=int(size),
            settings=self._settings(task, protocol),
            seconds=round(seconds, 1),
        )


def _heard_by(model: LoadedModel, task: Task) -> Task:
    """The task's audio at the model's own rate, where the folder has it."""
    if model.sample_rate == task.sample_rate or not (task.folder / str(model.sample_rate)).is_dir():
        return task
    return read_task(task.folder, model.sample_rate)


def summarise(scores: TaskScores) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean and deviation over the runs (seeds or folds) of each score and split."""
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for split, runs in (("valid", scores.valid), ("test", scores.test or [])):
        for name in runs[0] if runs else ():
            values = [run[name] for run in runs]
            summary.setdefault(name, {})[split] = {
                "mean": float(np.mean(values)),
                "std": float(np.std(values)),
                "runs": values,
            }
    return summary


def _write(path: Path, result: RunResult) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(asdict(result), indent=1))
