"""A table of labels for embedded files: a CSV file with the columns `path` and `label`."""

import csv
from pathlib import Path

from hear_jepa.errors import OptionError


def read_labels(path: str | Path, files: list[str]) -> list[str]:
    """The label of each file, "" for one without; a path in the table names a file by its end: `a.wav`, `dogs/a.wav`.

    Raises OptionError for a table that fits none of them.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = {Path(row["path"]).parts: row["label"] for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise OptionError(
            f"{path} is no table of labels ({error}): give a CSV file with columns path and label"
        ) from error
    longest = max(map(len, table), default=0)

    def label(name: str) -> str:
        parts = Path(name).parts
        ends = (parts[-length:] for length in range(min(longest, len(parts)), 0, -1))
        return next((table[end] for end in ends if end in table), "")

    labels = [label(name) for name in files]
    if not any(labels):
        raise OptionError(f"no path in {path} is one of the embedded files, such as {files[0]}")
    return labels
