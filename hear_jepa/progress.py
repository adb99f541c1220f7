"""How far a long task is: a bar on a terminal; in a log file a line now and then, without carriage returns."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

EVERY_S = 60.0  # between the lines of a log file


class _Lines:
    """What tqdm writes a bar to, to have lines."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(
    iterable: Iterable | None = None, desc: str = "", total: int | None = None, unit: str = "it", **options
):
    """tqdm's bar, by its own options."""
    style: dict[str, Any] = {"dynamic_ncols": True}
    if not sys.stderr.isatty():
        style = {"file": _Lines(), "mininterval": EVERY_S, "maxinterval": EVERY_S}
        style["bar_format"] = f"{{desc}}: {{n_fmt}} of {{total_fmt}} {unit}s in {{elapsed}}{{postfix}}"
    return tqdm(iterable, desc, total, unit=unit, **style, **options)
