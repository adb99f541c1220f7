"""What the paper claims, and what the study says to it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from hear_jepa.train.study.statistics import Interval, Scores

STRATEGIES = ("unstructured", "multi-block", "time")
DOMAINS = ("input", "latent")
DURATION_ROWS = {"2.08": "unstructured-input", "3.2": "duration-3.2s", "6.4": "duration-6.4s"}  # by seconds


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper, and the difference in points that is above 0 where it holds (None: not measured)."""

    text: str
    measured: str  # of what the difference is
    difference: Interval | None
    published: str = ""

    @property
    def verdict(self) -> str:
        """agrees, disagrees, undecided or not measured."""
        return self.difference.verdict if self.difference else "not measured"


@lru_cache
def published() -> dict[str, Any]:
    """The paper's figures, and which of its tasks is nearest to which of ours."""
    return json.loads((files("hear_jepa.train.study") / "published.json").read_text(encoding="utf-8"))


def nearest_published(task: str) -> str | None:
    """The paper's task that asks the same kind of question."""
    for name, beginnings in published()["nearest"].items():
        if task.startswith(tuple(beginnings)):
            return name
    return None


def published_gain(name: str, seconds: str) -> float:
    """Points that the paper's encoder gains on its task from crops of so many seconds, over those of 2.08."""
    durations = published()["durations"]
    return durations[seconds][name] - durations["2.08"][name]


def claims(scores: Scores) -> list[Claim]:
    """All of them, on the mean of all tasks, those on the duration task by task."""
    return [*_masking(scores), *_domain(scores), *_duration(scores)]


def _masking(scores: Scores) -> Iterator[Claim]:
    for other in STRATEGIES[1:]:
        for domain in DOMAINS:
            pair = f"unstructured-{domain}", f"{other}-{domain}"
            text = f"unstructured masking is better than {other}, targets of the {domain} domain"
            yield Claim(text, _minus(*pair), scores.difference(*pair))


def _domain(scores: Scores) -> Iterator[Claim]:
    pairs = [(f"{strategy}-input", f"{strategy}-latent") for strategy in STRATEGIES]
    for strategy, pair in zip(STRATEGIES, pairs, strict=True):
        text = f"targets of the input domain are better than latent ones, {strategy} masking"
        yield Claim(text, _minus(*pair), scores.difference(*pair))
    text = "targets of the input domain are better than latent ones, mean of the three maskings"
    yield Claim(text, "mean of the three", scores.mean_difference(pairs))


def _duration(scores: Scores) -> Iterator[Claim]:
    long, short = DURATION_ROWS["6.4"], DURATION_ROWS["2.08"]
    for task in scores.tasks:
        name = nearest_published(task)
        if name in published()["gains_with_duration"]:
            text, pair = f"{name} gains from longer crops; here {task}", (long, short)
        elif name in published()["loses_with_duration"]:
            text, pair = f"{name} loses by longer crops; here {task}", (short, long)
        else:
            continue
        change = published_gain(str(name), "6.4") * (1 if pair[0] == long else -1)
        yield Claim(text, _minus(*pair), scores.difference(*pair, task), f"{change:+.1f}")


def _minus(first: str, second: str) -> str:
    return f"{first} − {second}"
