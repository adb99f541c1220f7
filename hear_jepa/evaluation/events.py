"""Predictions at timestamps -> sound events -> onset scores, for event tasks.

The scores equal sed_eval's event-based F-measure with onsets alone (within a tolerance, label by label, pooled over
labels and clips), as HEAR uses it: matching points on a line in order of time is an optimal matching.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from hear_jepa.evaluation.features import SplitFeatures
from hear_jepa.evaluation.tasks import Event, Task

ClipEvents = Sequence[Sequence[Event]]  # of each clip


@dataclass(frozen=True)
class PostProcessing:
    """How probabilities become events: smoothed by a median, above a threshold, of a least duration."""

    threshold: float = 0.5
    median_ms: float = 250.0
    least_ms: float = 125.0

    def events(self, task: Task, features: SplitFeatures, probabilities: np.ndarray) -> list[list[Event]]:
        """Probabilities [frames, C] of all the clips, one after another -> the events of each clip."""
        ends = np.cumsum(features.counts)
        spans = [slice(end - count, end) for end, count in zip(ends, features.counts, strict=True)]
        return [self._clip_events(task, features.times_ms[span], probabilities[span]) for span in spans]

    def _clip_events(self, task: Task, times_ms: np.ndarray, probabilities: np.ndarray) -> list[Event]:
        from scipy.ndimage import median_filter

        hop_ms = float(np.diff(times_ms).mean()) if len(times_ms) > 1 else 1.0
        width = round(self.median_ms / hop_ms)
        if width > 1:
            probabilities = median_filter(probabilities, size=(width, 1))
        found = []
        for label, active in zip(task.vocabulary, (probabilities > self.threshold).T, strict=True):
            edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
            for first, after in edges.reshape(-1, 2):
                start, end = float(times_ms[first]), float(times_ms[after - 1])
                if end - start >= self.least_ms:
                    found.append(Event(label, start, end))
        return found


GRID = [PostProcessing(*values) for values in product((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0, 125, 250), (0, 60, 125, 250))]


def onset_f_measure(found: ClipEvents, expected: ClipEvents, tolerance_ms: float) -> float:
    """2 · matched / (found + expected), with one-to-one matches of equal labels, onsets within `tolerance_ms`."""
    matched = 0
    for clip_found, clip_expected in zip(found, expected, strict=True):
        for label in {event.label for event in clip_expected}:
            matched += _matches(_onsets(clip_found, label), _onsets(clip_expected, label), tolerance_ms)
    total = sum(map(len, found)) + sum(map(len, expected))
    return 2 * matched / total if total else 0.0


def _onsets(events: Sequence[Event], label: str) -> list[float]:
    return sorted(event.start_ms for event in events if event.label == label)


def _matches(found: list[float], expected: list[float], tolerance_ms: float) -> int:
    """Size of the largest one-to-one matching of two sorted lists of times."""
    matched = i = j = 0
    while i < len(found) and j < len(expected):
        if abs(found[i] - expected[j]) <= tolerance_ms:
            matched, i, j = matched + 1, i + 1, j + 1
        elif found[i] < expected[j]:
            i += 1
        else:
            j += 1
    return matched


EVENT_METRICS: dict[str, Callable[[ClipEvents, ClipEvents], float]] = {
    "event_onset_200ms_fms": partial(onset_f_measure, tolerance_ms=200.0),
    "event_onset_50ms_fms": partial(onset_f_measure, tolerance_ms=50.0),
}


def select_post_processing(
    task: Task, split: str, features: SplitFeatures, probabilities: np.ndarray
) -> PostProcessing:
    """The post-processing of the best validation score; of equal ones the first in the grid."""
    metric = EVENT_METRICS[task.scores[0]]
    expected = [clip.events for clip in task.clips[split]]
    return max(GRID, key=lambda choice: metric(choice.events(task, features, probabilities), expected))
