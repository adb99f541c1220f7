"""Means, paired differences and intervals over seeds: plain functions of the results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Verdict = Literal["agrees", "disagrees", "undecided"]
MEAN = "mean"  # over all tasks
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and half the width of its 95 % interval (NaN: of one seed)."""

    mean: float
    half_width: float
    seeds: int

    @property
    def verdict(self) -> Verdict:
        """On the claim that the mean is above 0: decided where the whole interval is on one side of it."""
        if self.mean - self.half_width > 0:  # a comparison with NaN is false
            return "agrees"
        return "disagrees" if self.mean + self.half_width < 0 else "undecided"


def interval(values: Sequence[float]) -> Interval:
    """By Student's t distribution, of values that are independent."""
    from scipy.stats import t

    n = len(values)
    half = math.nan
    if n > 1:
        half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Interval(float(np.mean(values)), half, n)


class Scores:
    """Scores on one split in per cent, by row, seed and what is scored: a task, a category of sound, or all tasks.

    A category's score is the mean of its tasks, `mean` that of all tasks.
    """

    def __init__(self, results: Sequence[Mapping[str, Any]], split: str = "test"):
        self.tasks: dict[str, str] = {}  # category by task
        self._values: dict[str, dict[int, dict[str, float]]] = {}
        for result in results:
            tests = {task: score[split] for task, score in result["scores"].items()}
            self.tasks |= {task: score["category"] for task, score in result["scores"].items()}
            means = {category: _mean(tests, self.tasks, category) for category in self.categories}
            means[MEAN] = float(np.mean(list(tests.values())))
            self._values.setdefault(result["row"], {})[result["seed"]] = tests | means

    @property
    def categories(self) -> list[str]:
        """Categories of sound, in the order of the tasks."""
        return list(dict.fromkeys(self.tasks.values()))

    @property
    def rows(self) -> list[str]:
        return list(self._values)

    def of(self, row: str, what: str = MEAN) -> Interval | None:
        """Over the row's seeds; None where there is no result."""
        seeds = self._values.get(row, {})
        return interval([values[what] for values in seeds.values()]) if seeds else None

    def difference(self, first: str, second: str, what: str = MEAN) -> Interval | None:
        """first - second, paired by seed; None where they share none."""
        return self.mean_difference([(first, second)], what)

    def mean_difference(self, pairs: Sequence[tuple[str, str]], what: str = MEAN) -> Interval | None:
        """The mean over the pairs of first - second, of every seed that all of them have."""
        seeds = set.intersection(*(set(self._values.get(row, {})) for pair in pairs for row in pair))
        values = [
            float(
                np.mean([self._values[first][seed][what] - self._values[second][seed][what] for first, second in pairs])
            )
            for seed in sorted(seeds)
        ]
        return interval(values) if values else None


def _mean(tests: Mapping[str, float], categories: Mapping[str, str], category: str) -> float:
    values = [score for task, score in tests.items() if categories[task] == category]
    return float(np.mean(values)) if values else math.nan
