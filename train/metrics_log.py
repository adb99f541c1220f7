"""What a run writes while it goes on: metrics.jsonl, TensorBoard, and how far it is."""

import json
import logging
import time
from pathlib import Path

from torch import Tensor

from hear_jepa.disk import write_text
from hear_jepa.progress import progress_bar

METRICS = "metrics.jsonl"

log = logging.getLogger(__name__)


class MetricsLog:
    """Metrics of a run, appended as they come. Lines of steps that a kill undid are taken out on resuming."""

    def __init__(self, folder: Path, step: int, total: int):
        from torch.utils.tensorboard import SummaryWriter  # a training library: not at import

        kept = [json.dumps(line) + "\n" for line in read_metrics(folder) if line["step"] <= step] if step else []
        write_text(folder / METRICS, "".join(kept))
        self.file = (folder / METRICS).open("a")
        self.cut = False  # whether the last line may be half-written
        self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self.progress = progress_bar(desc="train", total=total, unit="step", initial=step, smoothing=0.02)
        self._reset()

    def step(self, step: int, values: dict[str, Tensor | float], waited_s: float, crops: int, taken: bool) -> None:
        """Count one step; a line is written for those that carry the full `values` (with a `cosine`)."""
        self.waited_s += waited_s
        self.crops += crops
        self.skipped_steps += not taken
        self.progress.update()
        if "cosine" not in values:
            return
        seconds = max(time.monotonic() - self.since, 1e-9)
        line = {name: float(value) for name, value in values.items()}
        line |= {"crops_per_s": self.crops / seconds, "data_wait_share": self.waited_s / seconds}
        line |= {"skipped_steps": self.skipped_steps}
        self.write(step, line)
        self.progress.set_postfix_str(
            f"loss {line['loss']:.4f}, learning rate {line['learning_rate']:.1e}, {line['crops_per_s']:.0f} crops/s, "
            f"waiting for data {line['data_wait_share']:.0%}",
            refresh=False,
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
        self.progress.close()
        self.file.close()
        self.tensorboard.close()

    def _reset(self) -> None:
        self.since, self.waited_s, self.crops, self.skipped_steps = time.monotonic(), 0.0, 0, 0


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
