"""How far an evaluation is: one bar on a terminal; in a log file a line a finished run, and one a minute meanwhile."""

import logging
import sys
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)

EVERY_S = 60.0


class Progress:
    """A bar over `total` runs, or lines of the log; use it as a context."""

    def __init__(self, total: int, unit: str = "run"):
        self._bar = tqdm(total=total, unit=unit, desc="evaluate", disable=not sys.stderr.isatty(), dynamic_ncols=True)
        self._total, self._done, self._said = total, 0, time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def doing(self, text: str) -> None:
        """What is being done now."""
        self._bar.set_postfix_str(text)
        if time.monotonic() - self._said > EVERY_S:
            self._say(f"{text} …")

    def finished(self, text: str) -> None:
        """Count one; `text` says what came out."""
        self._done += 1
        self._bar.update()
        self._say(text)

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        if self._bar.disable:
            logger.info("%d/%d %s", self._done, self._total, text)
