"""The online probe: validation scores of both encoders while the run goes on, and the state that scored best."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from hear_jepa.model.checkpoint import Checkpoint, ServedConfig, grid_of
from hear_jepa.model.embedder import Embedder
from hear_jepa.model.front_end import FrontEndConfig
from hear_jepa.model.vit import ViT
from hear_jepa.train.config import TrainConfig
from hear_jepa.train.jepa import JEPA
from hear_jepa.train.metrics_log import MetricsLog
from hear_jepa.train.run_state import BEST, RunState

log = logging.getLogger(__name__)

Scores = dict[str, dict[str, float]]  # encoder -> task, or "mean" -> per cent


class OnlineProbe:
    """Scores the encoders on the configured tasks, as they would be served; keeps the best state in best.pt."""

    def __init__(self, config: TrainConfig, front_end: FrontEndConfig, device: torch.device):
        self.tasks, self.max_clips = config.monitor.probe_tasks, config.monitor.probe_clips
        self.serve, self.front_end, self.device = config.serve, front_end, device
        self.best_mean, self.best_scores = -math.inf, {}

    def __call__(self, jepa: JEPA, step: int, metrics: MetricsLog, state: RunState) -> Scores:
        """Probe both encoders; save the state where it scores best. Nothing where there is no task, or on failure."""
        if not self.tasks:
            return {}
        scores = {}
        for name, encoder in jepa.encoders.items():
            # columns a patch apart, whatever the distance served: a fraction of the work
            column_ms = grid_of(self.front_end, encoder.config).column_ms
            served = ServedConfig(name, self.serve.layers, column_ms, self.serve.pooling)
            checkpoint = snapshot(encoder, self.front_end, served, {}, self.serve.columns)
            try:
                scores[name] = probe(checkpoint, self.tasks, self.max_clips, self.device)
            except Exception:  # hours of training are worth more than one look
                log.exception("step %d: the probe failed; the run goes on", step)
                return {}
            metrics.write(step, {f"{name}/probe/{task}": score for task, score in scores[name].items()})
            log.info("step %d: %s encoder, probe %s", step, name, scores[name])
        best = scores[self.better(scores)]["mean"]
        if best > self.best_mean:
            self.best_mean, self.best_scores = best, scores
            state.save(step, self.state_dict(), name=BEST)
        return scores

    def better(self, scores: Scores) -> str:
        """The encoder that these scores would have served; without any, the context encoder or the one asked for."""
        if self.serve.encoder != "auto":
            return self.serve.encoder
        return max(scores, key=lambda name: scores[name]["mean"], default="context")

    def state_dict(self) -> dict:
        return {"best_mean": self.best_mean, "best_scores": self.best_scores, "of": self._what()}

    def load_state_dict(self, state: dict) -> None:
        """Take over the best score so far, unless it is of other tasks, or of what will not be served."""
        if state["of"] == self._what():
            self.best_mean, self.best_scores = state["best_mean"], state["best_scores"]

    def _what(self) -> list:
        """What a score depends on besides the weights."""
        tasks = [str(task) for task in self.tasks]
        serve = self.serve
        return [tasks, self.max_clips, serve.encoder, list(serve.layers), serve.pooling, serve.columns]


def snapshot(
    encoder: ViT, front_end: FrontEndConfig, served: ServedConfig, provenance: dict, columns: int = 0
) -> Checkpoint:
    """The encoder as it is now, as a serving checkpoint in windows of `columns`, or of a crop's if these are more."""
    weights = {name: tensor.detach().float().cpu().clone() for name, tensor in encoder.state_dict().items()}
    checkpoint = Checkpoint(encoder.config, weights, front_end, served, provenance)
    return checkpoint.in_windows_of(columns) if columns > encoder.config.n_time_patches else checkpoint


def check_probe_tasks(tasks: Sequence[Path]) -> None:
    """Raise `TaskError` for a folder that is not a task which the probes can score."""
    if not tasks:
        return
    from hear_jepa.evaluation.scoring import check_protocol  # evaluation libraries only when probing
    from hear_jepa.evaluation.tasks import read_task

    for folder in tasks:
        check_protocol(read_task(folder), "linear")


def probe(checkpoint: Checkpoint, tasks: Sequence[Path], max_clips: int, device: torch.device) -> dict[str, float]:
    """Validation scores (%) on HEAR-format tasks of a quick linear probe, by task, and their `mean`; and of a
    nearest-neighbour probe, as `knn/…`."""
    from hear_jepa.evaluation.scoring import probe_model

    scores = probe_model(Embedder(checkpoint).to(device), tasks, max_clips=max_clips, device=str(device))
    by_name = {}
    for protocol, prefix in (("linear", ""), ("knn", "knn/")):
        by_name |= {f"{prefix}{task}": 100 * score for task, score in scores[protocol].items()}
        by_name[f"{prefix}mean"] = 100 * sum(scores[protocol].values()) / len(tasks)
    return by_name
