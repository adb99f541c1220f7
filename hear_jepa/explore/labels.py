"""A table of labels: a CSV file with the columns `path` and `label`; `start_s` and `end_s` for a label of a part."""

import csv
from dataclasses import dataclass
from pathlib import Path

from hear_jepa.errors import OptionError
from hear_jepa.explore.points import Point

COLUMNS = "give a CSV file with the columns path and label (and start_s, end_s for labels of a part)"


@dataclass(frozen=True)
class Label:
    """What a file, or seconds `start_s … end_s` of it, is."""

    path: str
    name: str
    start_s: float = 0.0
    end_s: float = float("inf")


class LabelTable:
    """The labels by file; a path in the table names a file by its end: `a.wav`, `dogs/a.wav`."""

    def __init__(self, path: str | Path):
        """Raises OptionError for a file that is no table, or gives one part two labels."""
        self.path = Path(path)
        self._by_end: dict[tuple[str, ...], list[Label]] = {}
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                labels = [_label(row) for row in csv.DictReader(file)]
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise OptionError(f"{path} is no table of labels ({error}): {COLUMNS}") from error
        seen: dict[tuple[str, float, float], str] = {}
        for label in labels:
            part = (label.path, label.start_s, label.end_s)
            if seen.setdefault(part, label.name) != label.name:
                raise OptionError(f"{path} calls {label.path} both {seen[part]!r} and {label.name!r}: give one label")
            self._by_end.setdefault(Path(label.path).parts, []).append(label)
        self._longest = max(map(len, self._by_end), default=0)

    def of_file(self, name: str) -> list[Label]:
        """The labels of the file, by the longest end of its path that the table has."""
        parts = Path(name).parts
        ends = (parts[-length:] for length in range(min(self._longest, len(parts)), 0, -1))
        return next((self._by_end[end] for end in ends if end in self._by_end), [])

    def of_point(self, point: Point) -> str:
        """The label at the middle of a point; "" for none. A whole file has one only where the table has no other."""
        labels = self.of_file(point.path)
        if not point.whole:
            middle = (point.start_s + point.end_s) / 2
            labels = [label for label in labels if label.start_s <= middle < label.end_s]
        names = {label.name for label in labels}
        return names.pop() if len(names) == 1 else ""

    def of_points(self, points: list[Point]) -> list[str]:
        """The label of each. Raises OptionError where no point has any."""
        labels = [self.of_point(point) for point in points]
        if not any(labels):
            raise OptionError(f"no path in {self.path} is one of the embedded files, such as {points[0].path}")
        return labels


def _label(row: dict[str, str]) -> Label:
    start_s, end_s = float(row.get("start_s") or 0), float(row.get("end_s") or "inf")
    if not 0 <= start_s < end_s:
        raise ValueError(f"{row['path']} from {start_s} to {end_s} s")
    return Label(row["path"], row["label"].strip(), start_s, end_s)
