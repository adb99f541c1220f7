"""What a study will take, from a few measured steps of every row."""

import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hear_jepa.device import choose_device
from hear_jepa.evaluation.model_spec import ModelSpec, load_spec
from hear_jepa.evaluation.table import table_head
from hear_jepa.evaluation.tasks import Task
from hear_jepa.train.config import TrainConfig
from hear_jepa.train.loop import train
from hear_jepa.train.metrics_log import read_metrics
from hear_jepa.train.run_state import LATEST

STEPS = 6  # the first ones, in which memory is found and caches fill, are left out
CROPS_ON_CPU = 32  # of a measured step at most
PROBED_S = 20.0  # seconds of sound


@dataclass(frozen=True)
class Estimate:
    """Of one row's run: hours of training, hours of embedding the tasks, bytes of its state and of its checkpoint."""

    crops: int
    crops_per_s: float
    training_h: float
    embedding_h: float
    state_bytes: int
    checkpoint_bytes: int


def estimate(config: TrainConfig, data: str, tasks: Sequence[Task]) -> Estimate:
    """Train a few steps of the row in a temporary folder, and embed a little sound with what came out."""
    crops = config.optim.steps * config.optim.batch_size
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = train(_short(config, Path(folder), data))
        speeds = [line["crops_per_s"] for line in read_metrics(Path(folder)) if "crops_per_s" in line]
        speed = sorted(speeds[1:])[len(speeds[1:]) // 2]
        state, size = (Path(folder) / LATEST).stat().st_size, checkpoint.stat().st_size
        embedding_s = _embedding_s(checkpoint, tasks)
    return Estimate(crops, speed, crops / speed / 3600, embedding_s / 3600, state, size)


def memory_gb(device: str) -> float:
    """The most memory that this process has held so far, of the GPU where it is one."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def markdown(estimates: Mapping[str, Estimate], seeds: int, batch: int, device: str) -> str:
    """The table, and the sums over rows and seeds."""
    lines = table_head("row", "crops", "crops/s", "training, h", "embedding, h")
    for row, one in estimates.items():
        lines.append(
            f"| {row} | {one.crops:,} | {one.crops_per_s:.1f} | {one.training_h:.2f} | {one.embedding_h:.2f} |"
        )
    all_of = list(estimates.values())
    training, embedding = (seeds * sum(getattr(one, name) for one in all_of) for name in ("training_h", "embedding_h"))
    state, checkpoint = (max(getattr(one, name) for one in all_of) for name in ("state_bytes", "checkpoint_bytes"))
    runs = seeds * len(all_of)
    lines += [
        "",
        f"{runs} runs on one process: {training:.1f} hours of training and {embedding:.1f} of embedding the tasks; "
        "fitting the probes comes on top. N processes (--shard) on N cores or GPUs take 1 / N of it.",
        f"Memory: {memory_gb(device):.1f} GB a process, at {measured_batch(batch, device)} of {batch} crops a step.",
        f"Disk: {runs * checkpoint / 1e9:.2f} GB of checkpoints, {2 * state / 1e9:.2f} GB of states a process at work.",
    ]
    return "\n".join(lines) + "\n"


def measured_batch(batch: int, device: str) -> int:
    return min(batch, CROPS_ON_CPU) if device == "cpu" else batch


def _short(config: TrainConfig, folder: Path, data: str) -> TrainConfig:
    device = choose_device(config.compute.device).type
    batch = measured_batch(config.optim.batch_size, device)
    half = config.compute.precision == "fp16" and device == "cpu"
    return replace(
        config,
        out=folder,
        data=replace(config.data, source=data),
        optim=replace(config.optim, steps=STEPS, batch_size=batch, warmup_steps=1),
        monitor=replace(
            config.monitor, log_every=1, collapse_every=STEPS + 1, probe_every=0, save_every=STEPS + 1, pictures=False
        ),
        compute=replace(config.compute, precision="fp32" if half else config.compute.precision),
    )


def _embedding_s(checkpoint: Path, tasks: Sequence[Task]) -> float:
    """Seconds that embedding all clips of the tasks will take."""
    model = load_spec(ModelSpec(str(checkpoint), "hear_jepa", str(checkpoint)))
    sound = 0.01 * torch.randn(4, int(PROBED_S / 4 * model.sample_rate), generator=torch.Generator().manual_seed(0))
    model.scene(sound[:, : model.sample_rate])
    started = time.monotonic()
    model.scene(sound)
    speed = PROBED_S / (time.monotonic() - started)
    seconds = sum(clip.samples / task.sample_rate for task in tasks for split in task.clips.values() for clip in split)
    return seconds / speed
