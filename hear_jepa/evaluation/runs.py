"""A run is one model on one task under one protocol: scored once, kept on disk, its failure contained."""

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hear_jepa.disk import read_json, write_json
from hear_jepa.errors import HearJepaError
from hear_jepa.evaluation.features import Report
from hear_jepa.evaluation.hear_eval_kit import run_heareval
from hear_jepa.evaluation.model_spec import LoadedModel, ModelSpec, load_spec
from hear_jepa.evaluation.probes import KnnConfig
from hear_jepa.evaluation.scoring import TaskScores, linear_config, main_score, score_task
from hear_jepa.evaluation.tasks import Task, read_task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What changes a score besides the model, the task and the protocol; `device` does not."""

    splits: str = "test"
    grid_points: int = 8
    grid: str = "default"
    device: str = "auto"


@dataclass(frozen=True)
class RunResult:
    """Scores by name: `{"top1_acc": {"valid": {"mean", "std", "runs"}, "test": {…}}}`; or what went wrong."""

    model: str
    task: str
    protocol: str
    domain: str
    score: str  # the one that tables show
    kind: str = "scene"
    scores: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    sha256: str = ""
    embedding_size: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""

    def shown(self, split: str) -> dict[str, Any]:
        """Mean, standard deviation and runs of the score that tables show; empty where there is none."""
        return self.scores.get(self.score, {}).get(split, {})


class Runner:
    """Scores runs; a finished one is read back from `out/runs`, keyed by weights, options, task and settings."""

    def __init__(self, out: Path, options: RunOptions):
        self.out, self.options = out, options
        self._loaded: tuple[ModelSpec, LoadedModel] | None = None  # the models come one after another

    def run(self, spec: ModelSpec, task: Task, protocol: str, report: Report | None = None) -> RunResult:
        """The result of a run; an exception becomes its `error`, which is not kept: the next time it is tried again."""
        try:
            model = self._load(spec)
            task = _at_rate_of(model, task)
            path = self._path(model, task, protocol)
            if path.is_file():
                return RunResult(**read_json(path) | {"model": spec.text})
            started = time.monotonic()
            scores = self._score(model, task, protocol, report)
            result = self._result(model, task, protocol, scores, time.monotonic() - started)
            write_json(path, asdict(result))
            return result
        except HearJepaError as error:
            message = str(error)
        except Exception as error:  # of a foreign module: the other runs still count
            logger.debug("%s on %s", spec.text, task.name, exc_info=True)
            message = f"{type(error).__name__}: {error}"
        score = main_score(task, protocol)
        return RunResult(spec.text, task.name, protocol, task.domain, score, task.kind, error=message)

    def _load(self, spec: ModelSpec) -> LoadedModel:
        if self._loaded is None or self._loaded[0] is not spec:
            self._loaded = None  # frees the previous model first
            self._loaded = (spec, load_spec(spec, self.options.device))
        return self._loaded[1]

    def _settings(self, task: Task, protocol: str) -> dict[str, Any]:
        if protocol == "hear":
            return {"grid_points": self.options.grid_points, "grid": self.options.grid}
        probes = {"linear": linear_config(task), "knn": KnnConfig()}
        return {"splits": self.options.splits, "probe": asdict(probes[protocol]) if protocol in probes else {}}

    def _path(self, model: LoadedModel, task: Task, protocol: str) -> Path:
        identity = json.dumps([task.fingerprint, self._settings(task, protocol)], sort_keys=True)
        key = hashlib.sha256(identity.encode()).hexdigest()[:12]
        return self.out / "runs" / protocol / model.key / f"{task.name}-{key}.json"

    def _score(self, model: LoadedModel, task: Task, protocol: str, report: Report | None) -> TaskScores:
        if protocol == "hear":
            work_dir = self.out / "heareval" / self._path(model, task, protocol).stem / model.key
            return run_heareval(model, task, work_dir, self.options.grid_points, self.options.grid)
        return score_task(
            task,
            model,
            protocol=protocol,
            splits=self.options.splits,
            cache_dir=self.out / "embeddings",
            device=str(model.device),
            report=report,
        )

    def _result(self, model: LoadedModel, task: Task, protocol: str, scores: TaskScores, seconds: float) -> RunResult:
        size = model.model.timestamp_embedding_size if task.kind == "event" else model.model.scene_embedding_size
        return RunResult(
            model=model.spec.text,
            task=task.name,
            protocol=protocol,
            domain=task.domain,
            score=main_score(task, protocol),
            kind=task.kind,
            scores=summarise(scores),
            sha256=model.sha256,
            embedding_size=int(size),
            settings=self._settings(task, protocol),
            seconds=round(seconds, 1),
        )


def _at_rate_of(model: LoadedModel, task: Task) -> Task:
    """The task's audio at the model's own rate, where the folder has it."""
    if model.sample_rate == task.sample_rate or not (task.folder / str(model.sample_rate)).is_dir():
        return task
    return read_task(task.folder, model.sample_rate)


def summarise(scores: TaskScores) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean and standard deviation over the runs (seeds or folds) of each score and split."""
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
