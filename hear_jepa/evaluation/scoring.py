"""A task's features -> scores on its validation and test splits, over seeds or folds."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from hear_jepa.errors import TaskError
from hear_jepa.evaluation.events import EVENT_METRICS, select_post_processing
from hear_jepa.evaluation.features import Report, SplitFeatures, embed_split
from hear_jepa.evaluation.metrics import SCENE_METRICS
from hear_jepa.evaluation.model_spec import LoadedModel, loaded_module
from hear_jepa.evaluation.probes import LinearConfig, Predict, knn_probe, linear_probe
from hear_jepa.evaluation.retrieval import RETRIEVAL_SCORE, retrieval_score
from hear_jepa.evaluation.tasks import Clip, Fold, Task, read_task
from hear_jepa.options import check_name

PROTOCOLS = ("linear", "knn", "retrieval")
N_SEEDS = 3  # where a task has one split into train, valid and test
QUICK = LinearConfig(learning_rates=(3e-4, 3e-3), penalties=(0.0,), max_epochs=60, patience=8)
FRAMES = {"batch_size": 256, "learning_rates": (1e-3, 1e-2), "penalties": (0.0,)}  # an event task has many rows
Scores = dict[str, float]
Features = dict[str, SplitFeatures]  # by split
Examples = tuple[np.ndarray, np.ndarray]  # features [N, D] and targets [N, K] of 0 and 1
Scorer = Callable[[str], Scores]  # split -> scores


@dataclass(frozen=True)
class TaskScores:
    """Scores of every run (seed or fold), the validation split's apart from the test split's (None: never computed)."""

    valid: list[Scores]
    test: list[Scores] | None


def score_task(
    task: Task,
    model: LoadedModel,
    *,
    protocol: str = "linear",
    splits: str = "test",
    cache_dir: Path | None = None,
    device: str = "cpu",
    report: Report | None = None,
) -> TaskScores:
    """Embed a task and score it by one of `PROTOCOLS`; with `splits` "valid" no test split is embedded or scored."""
    check_protocol(task, protocol)
    with_test = splits == "test"
    used = sorted({split for fold in task.folds for split in fold.splits(with_test)})
    features = {split: embed_split(task, split, model, cache_dir, report) for split in used}
    n_seeds = N_SEEDS if protocol == "linear" and len(task.folds) == 1 else 1
    runs = [(fold, seed) for fold in task.folds for seed in range(n_seeds)]
    scored = []
    for number, (fold, seed) in enumerate(runs, start=1):
        if report:
            report(f"{protocol}, run {number} of {len(runs)}")
        scored.append(score_run(task, features, fold, protocol, seed=seed, device=device, with_test=with_test))
    return TaskScores([valid for valid, _ in scored], [test for _, test in scored] if with_test else None)


def check_protocol(task: Task, protocol: str) -> None:
    """Raise `OptionError` for an unknown protocol, `TaskError` for one that cannot score this task."""
    check_name(protocol, PROTOCOLS, "the protocol")
    if not can_score(task, protocol):
        raise TaskError(f"{task.folder}: retrieval compares whole clips, and this is an event task; use linear or knn")
    known = EVENT_METRICS if task.kind == "event" else SCENE_METRICS
    if protocol != "retrieval" and task.scores[0] not in known:
        raise TaskError(
            f"{task.folder / 'task_metadata.json'}: the first score {task.scores[0]!r} is not one of "
            f"{', '.join(known)}; put one of these first, or use --protocol hear"
        )


def can_score(task: Task, protocol: str) -> bool:
    """Whether a protocol is meant for this kind of task: retrieval is for scenes."""
    return protocol != "retrieval" or task.kind == "scene"


def main_score(task: Task, protocol: str) -> str:
    """Name of the score that tables show."""
    return RETRIEVAL_SCORE if protocol == "retrieval" else task.scores[0]


def score_run(
    task: Task,
    features: Features,
    fold: Fold,
    protocol: str,
    *,
    seed: int = 0,
    device: str = "cpu",
    quick: bool = False,
    with_test: bool = True,
) -> tuple[Scores, Scores]:
    """One fold and seed by one of `PROTOCOLS`; (validation scores, test scores: empty without `with_test`)."""
    if protocol == "retrieval":
        score = _retrieval_scorer(task, features, fold)
    else:
        scorer = _event_scorer if task.kind == "event" else _scene_scorer
        score = scorer(task, features, fold, _fit(task, features, fold, protocol, seed, device, quick))
    return score(fold.valid), score(fold.test) if with_test else {}


def _fit(task: Task, features: Features, fold: Fold, protocol: str, seed: int, device: str, quick: bool) -> Predict:
    """The probe of a protocol, trained on the training splits and selected on the validation split."""
    train, valid = training_examples(task, features, fold), examples(task, fold.valid, features[fold.valid])
    multilabel = task.multilabel or task.kind == "event"
    if protocol == "knn":
        return knn_probe(train, valid, multilabel=multilabel, device=device)
    config = linear_config(task, quick)
    return linear_probe(train, valid, multilabel=multilabel, device=device, seed=seed, config=config)


def linear_config(task: Task, quick: bool = False) -> LinearConfig:
    """Settings of the linear probe on this task: the frames of an event task come in larger batches."""
    config = QUICK if quick else LinearConfig()
    return replace(config, **FRAMES) if task.kind == "event" else config


def training_examples(task: Task, features: Features, fold: Fold) -> Examples:
    """The training splits of a fold, one after another."""
    parts = [examples(task, split, features[split]) for split in fold.train]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def examples(task: Task, split: str, features: SplitFeatures) -> Examples:
    """Of the clips, or of the frames of an event task."""
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


def _retrieval_scorer(task: Task, features: Features, fold: Fold) -> Scorer:
    """Retrieval among the clips of a split; the training clips give the mean alone."""
    train, _ = training_examples(task, features, fold)
    return lambda split: {RETRIEVAL_SCORE: retrieval_score(*examples(task, split, features[split]), train)}


def _scene_scorer(task: Task, features: Features, fold: Fold, predict: Predict) -> Scorer:
    def score(split: str) -> Scores:
        x, targets = examples(task, split, features[split])
        predictions = predict(x)
        return {name: SCENE_METRICS[name](predictions, targets) for name in task.scores if name in SCENE_METRICS}

    return score


def _event_scorer(task: Task, features: Features, fold: Fold, predict: Predict) -> Scorer:
    """How probabilities become events is selected on the validation split."""
    chosen = select_post_processing(task, fold.valid, features[fold.valid], predict(features[fold.valid].values))

    def score(split: str) -> Scores:
        found = chosen.events(task, features[split], predict(features[split].values))
        expected = [clip.events for clip in task.clips[split]]
        return {name: EVENT_METRICS[name](found, expected) for name in task.scores if name in EVENT_METRICS}

    return score


def probe_model(
    model: nn.Module | LoadedModel,
    task_folders: Sequence[str | Path],
    *,
    protocols: Sequence[str] = ("linear", "knn"),
    max_clips: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Scores]:
    """A quick look at a model, also one in training: by protocol, each task's main score on its validation split.

    One fold and one seed, at most `max_clips` clips for training and as many for validation, the same ones every time;
    test splits are never read. `model` is what `hear_jepa.load_model` returns.
    """
    if not isinstance(model, LoadedModel):
        model = loaded_module(importlib.import_module("hear_jepa"), model, "hear_jepa")
    scores: dict[str, Scores] = {protocol: {} for protocol in protocols}
    for folder in task_folders:
        task = read_task(folder)
        fold = task.folds[0]
        clips = {}
        for part in (fold.train, (fold.valid,)):
            clips |= subsample(task, part, max_clips, seed)
        task = replace(task, clips=clips)
        features = {split: embed_split(task, split, model) for split in clips}
        for protocol in protocols:
            check_protocol(task, protocol)
            valid, _ = score_run(task, features, fold, protocol, seed=seed, device=device, quick=True, with_test=False)
            scores[protocol][task.name] = valid[main_score(task, protocol)]
    return scores


def subsample(task: Task, splits: tuple[str, ...], max_clips: int | None, seed: int) -> dict[str, tuple[Clip, ...]]:
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
