"""A task's features -> scores on its validation and test splits, over seeds or folds."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from hear_jepa.errors import TaskError
from hear_jepa.evaluation.events import EVENT_METRICS, PostProcessing, select_post_processing
from hear_jepa.evaluation.features import SplitFeatures, embed_clips, embed_split
from hear_jepa.evaluation.metrics import SCENE_METRICS
from hear_jepa.evaluation.model_spec import LoadedModel, loaded_module
from hear_jepa.evaluation.probes import LinearConfig, Predict, knn_probe, linear_probe
from hear_jepa.evaluation.tasks import Fold, Task, read_task

N_SEEDS = 3  # where a task has one split into train, valid and test
QUICK = LinearConfig(learning_rates=(3e-4, 3e-3), penalties=(0.0,), max_epochs=60, patience=8)
FRAMES = {"batch_size": 256, "learning_rates": (1e-3, 1e-2), "penalties": (0.0,)}  # an event task has many rows
Scores = dict[str, float]
Fit = Callable[..., Predict]


@dataclass(frozen=True)
class TaskScores:
    """Scores of every run (seed or fold), the validation split's apart from the test split's (None: not looked at)."""

    valid: list[Scores]
    test: list[Scores] | None


def probe_task(
    task: Task,
    model: LoadedModel,
    *,
    protocol: str = "linear",
    splits: str = "test",
    cache_dir: Path | None = None,
    device: str = "cpu",
) -> TaskScores:
    """Embed a task and probe it: `protocol` is linear or knn; `splits` "valid" never computes a test score."""
    check_scores(task)
    features = {split: embed_split(task, split, model, cache_dir) for split in task.clips}
    runs = [(fold, seed) for fold in task.folds for seed in range(_n_seeds(task, protocol))]
    scored = [
        score_fold(task, features, fold, fitter(task, protocol, seed, device), with_test=splits == "test")
        for fold, seed in runs
    ]
    return TaskScores([valid for valid, _ in scored], [test for _, test in scored] if splits == "test" else None)


def _n_seeds(task: Task, protocol: str) -> int:
    return N_SEEDS if protocol == "linear" and len(task.folds) == 1 else 1


def fitter(task: Task, protocol: str, seed: int, device: str = "cpu", quick: bool = False) -> Fit:
    """The probe of a protocol with its seed and settings bound; the frames of an event task come in larger batches."""
    if protocol == "knn":
        return partial(knn_probe, device=device)
    return partial(linear_probe, seed=seed, device=device, config=linear_config(task, quick))


def linear_config(task: Task, quick: bool = False) -> LinearConfig:
    """Settings of the linear probe on this task."""
    config = QUICK if quick else LinearConfig()
    return replace(config, **FRAMES) if task.kind == "event" else config


def check_scores(task: Task) -> None:
    """TaskError where the task's first score is one that the probes do not compute."""
    known = EVENT_METRICS if task.kind == "event" else SCENE_METRICS
    if task.scores[0] not in known:
        raise TaskError(
            f"{task.folder / 'task_metadata.json'}: the first score {task.scores[0]!r} is not one of "
            f"{', '.join(known)}; put one of these first, or use --protocol hear"
        )


def score_fold(
    task: Task, features: dict[str, SplitFeatures], fold: Fold, fit: Fit, with_test: bool = True
) -> tuple[Scores, Scores]:
    """Train on a fold; (validation scores, test scores), the latter empty without `with_test`."""
    train = [examples(task, split, features[split]) for split in fold.train]
    train_x, train_y = (np.concatenate(parts) for parts in zip(*train, strict=True))
    valid = examples(task, fold.valid, features[fold.valid])
    predict = fit((train_x, train_y), valid, multilabel=task.multilabel or task.kind == "event")
    if task.kind == "scene":
        return (
            _scene_scores(task, predict(valid[0]), valid[1]),
            _scene_scores(task, *_predicted(task, fold.test, features, predict)) if with_test else {},
        )
    chosen = select_post_processing(task, fold.valid, features[fold.valid], predict(valid[0]))
    return (
        _event_scores(task, fold.valid, features, predict, chosen),
        _event_scores(task, fold.test, features, predict, chosen) if with_test else {},
    )


def examples(task: Task, split: str, features: SplitFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] and targets [N, C] of 0 and 1: of the clips, or of the frames of an event task."""
    index = {label: i for i, label in enumerate(task.vocabulary)}
    targets = np.zeros((len(features.values), len(index)), np.float32)
    row = 0
    for clip, count in zip(task.clips[split], features.counts, strict=True):
        for label in clip.labels:
            targets[row, index[label]] = 1
        times = features.times_ms[row : row + count]
        for event in clip.events:
            targets[row : row + count, index[event.label]][(times >= event.start_ms) & (times <= event.end_ms)] = 1
        row += count
    return features.values, targets


def _predicted(
    task: Task, split: str, features: dict[str, SplitFeatures], predict: Predict
) -> tuple[np.ndarray, np.ndarray]:
    x, y = examples(task, split, features[split])
    return predict(x), y


def _scene_scores(task: Task, predictions: np.ndarray, targets: np.ndarray) -> Scores:
    return {name: SCENE_METRICS[name](predictions, targets) for name in task.scores if name in SCENE_METRICS}


def _event_scores(
    task: Task, split: str, features: dict[str, SplitFeatures], predict: Predict, chosen: PostProcessing
) -> Scores:
    found = chosen.events(task, features[split], predict(features[split].values))
    expected = [clip.events for clip in task.clips[split]]
    return {name: EVENT_METRICS[name](found, expected) for name in task.scores if name in EVENT_METRICS}


def probe_model(
    model: nn.Module | LoadedModel,
    task_folders: Sequence[str | Path],
    *,
    protocols: Sequence[str] = ("linear", "knn"),
    max_clips: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Scores]:
    """A quick look at a model, also one in training: by protocol, each task's first score on its validation split.

    One fold and one seed, at most `max_clips` clips for training and as many for validation, the same ones every time;
    test splits are never read. `model` is what `hear_jepa.load_model` returns.
    """
    if not isinstance(model, LoadedModel):
        model = loaded_module(importlib.import_module("hear_jepa"), model, "hear_jepa")
    scores: dict[str, Scores] = {protocol: {} for protocol in protocols}
    for folder in task_folders:
        task = read_task(folder)
        check_scores(task)
        fold = task.folds[0]
        clips = {}
        for part in (fold.train, (fold.valid,)):
            clips |= subsample(task, part, max_clips, seed)
        task = replace(task, clips=clips)
        features = {split: embed_clips(clips[split], task.kind, task.sample_rate, model) for split in clips}
        for protocol in protocols:
            fit = fitter(task, protocol, seed, device, quick=True)
            valid, _ = score_fold(task, features, fold, fit, with_test=False)
            scores[protocol][task.name] = valid[task.scores[0]]
    return scores


def subsample(task: Task, splits: tuple[str, ...], max_clips: int | None, seed: int) -> dict:
    """At most `max_clips` clips of these splits together, each split keeping its share."""
    total = max(1, sum(len(task.clips[split]) for split in splits))
    share = 1.0 if max_clips is None else min(1.0, max_clips / total)
    random = np.random.default_rng(seed)
    kept = {}
    for split in splits:
        clips = task.clips[split]
        chosen = np.sort(random.permutation(len(clips))[: max(1, round(share * len(clips)))])
        kept[split] = tuple(clips[i] for i in chosen)
    return kept
