"""The scores of HEAR's scene tasks, on arrays: `predictions` [N, C], `targets` [N, C] of 0 and 1.

Same definitions as in hear-eval-kit 2021.1.3. All lie in 0 … 1 except d-prime.
"""

from collections.abc import Callable

import numpy as np

Metric = Callable[[np.ndarray, np.ndarray], float]


def accuracy(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Share of clips whose highest prediction is their class."""
    return float(np.mean(predictions.argmax(1) == targets.argmax(1)))


def chroma_accuracy(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Accuracy of the pitch class: an error of whole octaves (12 places in the vocabulary) is none."""
    return float(np.mean(predictions.argmax(1) % 12 == targets.argmax(1) % 12))


def average_precision(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of each class that occurs: [K']."""
    occurring = targets.any(0)
    order = np.argsort(-predictions[:, occurring], axis=0, kind="stable")
    hits = np.take_along_axis(targets[:, occurring], order, axis=0)
    precision = hits.cumsum(0) / np.arange(1, len(hits) + 1)[:, None]
    return (precision * hits).sum(0) / hits.sum(0)


def mean_average_precision(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Average precision of each class that occurs, averaged over these."""
    return float(average_precision(predictions, targets).mean()) if targets.any() else 0.0


def class_auc(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class that has both positive and negative clips: [C']."""
    from scipy.stats import rankdata

    both = targets.any(0) & ~targets.astype(bool).all(0)
    ranks, positive = rankdata(predictions[:, both], axis=0), targets[:, both]
    n_positive = positive.sum(0)
    below = (ranks * positive).sum(0) - n_positive * (n_positive + 1) / 2
    return below / (n_positive * (len(targets) - n_positive))


def aucroc(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Mean over the classes of `class_auc`."""
    return float(np.mean(class_auc(predictions, targets)))


def d_prime(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Mean over the classes of √2 · Φ⁻¹(area under the ROC curve)."""
    from scipy.special import ndtri

    return float(np.mean(np.sqrt(2) * ndtri(class_auc(predictions, targets))))


SCENE_METRICS: dict[str, Metric] = {
    "top1_acc": accuracy,
    "pitch_acc": accuracy,
    "chroma_acc": chroma_accuracy,
    "mAP": mean_average_precision,
    "aucroc": aucroc,
    "d_prime": d_prime,
}
