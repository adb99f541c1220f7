"""What a run writes while it goes on: metrics.jsonl, TensorBoard, and how far it is."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from hear_jepa.disk import atomic_path

METRICS = "metrics.jsonl"
LINE_EVERY_S = 60.0  # in a log file

log = logging.getLogger(__name__)


@contextmanager
def open_log(folder: Path, step: int, total: int, is_main: bool) -> Iterator["MetricsLog | None"]:
    """The log of a run that goes on from a step, on the main rank; None on the others."""
    if not is_main:
        yield None
        return
    metrics = MetricsLog(folder, step, total)
    try:
        yield metrics
    finally:
        metrics.close()


class MetricsLog:
    """Metrics of a run, appended as they come. Lines of steps that a kill undid are taken out on resuming."""

    def __init__(self, folder: Path, step: int, total: int):
        from torch.utils.tensorboard import SummaryWriter  # a training library: not at import

        kept = [json.dumps(line) + "\n" for line in read_metrics(folder) if line["step"] <= step] if step else []
        with atomic_path(folder / METRICS) as temporary:
            temporary.write_text("".join(kept))
        self.file = (folder / METRICS).open("a")
        self.cut = False  # whether the last line may be half-written
        self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self.progress = Progress(step, total)
        self._reset()

    def step(self, step: int, values: dict[str, Tensor | float], waited_s: float, crops: int, taken: bool) -> None:
        """Count one step; a line is written for those that carry the full `values` (with a `cosine`)."""
        self.waited_s += waited_s
        self.crops += crops
        self.skipped_steps += not taken
        self.progress.advance()
        if "cosine" not in values:
            return
        seconds = max(time.monotonic() - self.since, 1e-9)
        line = {name: float(value) for name, value in values.items()}
        line |= {"crops_per_s": self.crops / seconds, "data_wait_share": self.waited_s / seconds}
        line |= {"skipped_steps": self.skipped_steps}
        self.write(step, line)
        self.progress.describe(
            f"loss {line['loss']:.4f}, learning rate {line['learning_rate']:.1e}, {line['crops_per_s']:.0f} crops/s, "
            f"waiting for data {line['data_wait_share']:.0%}"
        )
        self._reset()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line and the same to TensorBoard."""
        try:
            self.file.write(("\n" if self.cut else "") + json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
            self.cut = False
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, step)
        except OSError as error:  # a full disk does not end a run
            self.cut = True
            log.error("the metrics of step %d were not written (%s); the run goes on", step, error)

    def close(self) -> None:
        """Flush and close."""
        self.progress.close()
        self.file.close()
        self.tensorboard.close()

    def _reset(self) -> None:
        self.since, self.waited_s, self.crops, self.skipped_steps = time.monotonic(), 0.0, 0, 0


class Progress:
    """A bar on a terminal; in a log file a line a minute."""

    def __init__(self, step: int, total: int):
        on_terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=step, unit="step", smoothing=0.02, disable=not on_terminal)
        self.done, self.total, self.since, self.start = step, total, time.monotonic(), (step, time.monotonic())

    def advance(self) -> None:
        """Count one step."""
        self.done += 1
        self.bar.update(1)

    def describe(self, text: str) -> None:
        """How the run is doing now."""
        self.bar.set_postfix_str(text)
        now = time.monotonic()
        if self.bar.disable and (now - self.since > LINE_EVERY_S or self.done == self.total):
            self.since = now
            hours = (now - self.start[1]) / (self.done - self.start[0]) * (self.total - self.done) / 3600
            log.info("step %d of %d: %s; %.1f hours left", self.done, self.total, text, hours)

    def close(self) -> None:
        """End the bar."""
        self.bar.close()


def read_metrics(folder: Path) -> list[dict]:
    """All lines of a run's metrics; one cut by a kill or a full disk is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # cut by a kill or a full disk
            continue
    return lines
