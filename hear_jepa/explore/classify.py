"""Train a linear head on labelled sounds, and label others with it.

The head is logistic regression on standardised embeddings. Its score is cross-validated: no file is both trained on and
scored.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy

from hear_jepa.errors import OptionError
from hear_jepa.explore.head import Head
from hear_jepa.explore.labels import LabelTable
from hear_jepa.explore.points import Point, points_of
from hear_jepa.explore.same_model import load_same_model
from hear_jepa.explore.similarity import Standardiser
from hear_jepa.files.embed import embed_files
from hear_jepa.files.find import find_sources
from hear_jepa.files.formats import load_embeddings
from hear_jepa.files.records import start_of

FOLDS = 5
PENALTY = 100.0  # of 1 … 10,000, the best or near it on three tasks of 60 to 263 clips
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Trained:
    """A head, and the confusion [true, predicted] of its cross-validation, counts of examples."""

    head: Head
    confusion: numpy.ndarray


@dataclass(frozen=True)
class Scored:
    """A stretch of a file and the probability of each label of a head; or the reason why there is none."""

    point: Point
    probabilities: numpy.ndarray | None
    error: str | None = None


def train(labels: str | Path, embeddings: str | Path) -> Trained:
    """Fit a head on the embeddings that the table `labels` names. Raises OptionError."""
    regression = _logistic_regression()
    settings, examples = labelled_examples(labels, embeddings)
    features = numpy.stack([embedding for embedding, _, _ in examples])
    names = sorted({label for _, label, _ in examples})
    targets = numpy.array([names.index(label) for _, label, _ in examples])
    files = [file for _, _, file in examples]
    confusion = cross_validate(features, targets, files, names)
    standardise = Standardiser.of(features)
    fitted = regression.fit(standardise(features), targets)
    weights, biases = fitted.coef_, fitted.intercept_
    if len(names) == 2:  # one row, for the second against the first
        weights, biases = numpy.concatenate([0 * weights, weights]), numpy.concatenate([0 * biases, biases])
    weights = weights / standardise.deviation
    biases = biases - weights @ standardise.mean
    head = Head(tuple(names), weights, biases, settings, score_of(confusion, files))
    return Trained(head, confusion)


def apply(head: Head, sounds: list[str | Path], model: str = "") -> Iterator[Scored]:
    """Embed files, folders or patterns as the head's examples were, and score them as they come.

    Timestamps that follow each other and have one label most probable come as one stretch, with their mean
    probabilities. Raises OptionError where `model` is another than the head's.
    """
    embedder = load_same_model(model, head.settings, "the head")
    kind = head.settings["kind"]
    options = {name: head.settings[name] for name in ("channels", "window_s", "hop_s") if name in head.settings}
    for sound in embed_files(embedder, find_sources(sounds).sounds, kind, **options):
        path = str(sound.path)
        if sound.error is not None:
            yield Scored(Point(path, whole=True), None, sound.error)
        for channel, rows in enumerate(sound.embeddings):
            probabilities = head.probabilities(rows if rows.ndim == 2 else rows[None])
            if kind == "timestamps":
                yield from _stretches(path, channel, probabilities, sound.timestamps_ms, embedder.hop_ms)
            elif kind == "windows":
                spans = zip(sound.spans_s.tolist(), probabilities, strict=True)
                yield from (Scored(Point(path, channel, *span), scores) for span, scores in spans)
            else:
                start_s = start_of(sound.excerpt)
                span = start_s, start_s + sound.duration_s
                yield Scored(Point(path, channel, *span, whole=sound.excerpt is None), probabilities[0])


def labelled_examples(labels: str | Path, embeddings: str | Path) -> tuple[dict, list[tuple[numpy.ndarray, str, str]]]:
    """How they were embedded, and (embedding, label, file) of everything that has a label.

    An example is a file or a window; of timestamps, the mean of those that one row of the table covers.
    """
    table, found = LabelTable(labels), load_embeddings(embeddings)
    if found.timestamps_ms is None:
        points = points_of(found)
        rows = zip(points.embeddings, table.of_points(points.points), points.points, strict=True)
        return found.settings, [(row, name, point.path) for row, name, point in rows if name]
    examples = []
    for path, rows, times_ms in zip(found.paths, found.embeddings, found.timestamps_ms, strict=True):
        for label in table.of_file(path):
            inside = (times_ms >= 1000 * label.start_s) & (times_ms < 1000 * label.end_s)
            if label.name and inside.any():
                examples.append((rows[inside].mean(0, dtype="f4"), label.name, path))
    if not examples:
        raise OptionError(f"no row of {labels} is of the embedded files in {embeddings}")
    return found.settings, examples


def cross_validate(
    features: numpy.ndarray, targets: numpy.ndarray, files: list[str], names: list[str]
) -> numpy.ndarray:
    """Confusion [true, predicted], every example predicted by a head that saw nothing of its file.

    Raises OptionError for fewer than two labels, or a label of one file only.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if len(names) < 2:
        raise OptionError(f"all labelled sounds are {names[0]!r}: give sounds of two labels or more")
    pairs = set(zip(targets.tolist(), files, strict=True))
    n_files = numpy.bincount([target for target, _ in pairs], minlength=len(names))
    if n_files.min() < 2:
        raise OptionError(f"there is one file of {names[n_files.argmin()]!r}: give two or more of each label")
    confusion = numpy.zeros((len(names), len(names)), numpy.int64)
    folds = StratifiedGroupKFold(min(FOLDS, int(n_files.min())), shuffle=True, random_state=0)
    for rest, held_out in folds.split(features, targets, files):
        predicted = _predicted(features[rest], targets[rest], features[held_out])
        numpy.add.at(confusion, (targets[held_out], predicted), 1)
    return confusion


def score_of(confusion: numpy.ndarray, files: list[str]) -> dict:
    """Share of examples right, and the mean of it over labels, which no frequent label sways."""
    right, n = confusion.diagonal(), confusion.sum(1)
    return {
        "accuracy": float(right.sum() / n.sum()),
        "balanced_accuracy": float((right / n).mean()),
        "examples": int(n.sum()),
        "files": len(set(files)),
    }


def _logistic_regression():
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise OptionError("training a head needs scikit-learn: pip install scikit-learn") from error
    return LogisticRegression(C=1 / PENALTY, max_iter=MAX_ITERATIONS)


def _predicted(features: numpy.ndarray, targets: numpy.ndarray, others: numpy.ndarray) -> numpy.ndarray:
    """The targets of `others`, by a head fitted on the rest; where the rest has one target only, that one."""
    if len(set(targets.tolist())) == 1:
        return numpy.full(len(others), targets[0])
    standardise = Standardiser.of(features)
    return _logistic_regression().fit(standardise(features), targets).predict(standardise(others))


def _stretches(
    path: str, channel: int, probabilities: numpy.ndarray, timestamps_ms: numpy.ndarray, hop_ms: int
) -> Iterator[Scored]:
    best = probabilities.argmax(1)
    edges = [0, *(numpy.flatnonzero(best[1:] != best[:-1]) + 1).tolist(), len(best)]
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        start_s = max((float(timestamps_ms[first]) - hop_ms / 2) / 1000, 0.0)
        end_s = (float(timestamps_ms[last - 1]) + hop_ms / 2) / 1000
        yield Scored(Point(path, channel, start_s, end_s), probabilities[first:last].mean(0))
