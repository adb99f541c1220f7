"""What a training step costs, as ratios taken in one run:

    python benchmarks/training.py [--presets tiny paper] [--batch 32] [--threads 2] [--device cuda] [--precision bf16]

* mel: share of the log-mel in a step;
* mm rate: floating-point operations of a step (counted by torch, forward, backward, target pass) by the time it takes,
  over the rate that `torch.mm` of large square matrices reaches in the same process and precision;
* where the rest goes, on a CPU: share of the operators that are not matrix products, by torch's profiler.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from hear_jepa.model.checkpoint import grid_of
from hear_jepa.model.front_end import LogMel
from hear_jepa.train.config import PRESETS, TrainConfig
from hear_jepa.train.jepa import JEPA
from hear_jepa.train.masking import draw_masks
from hear_jepa.train.optimisation import AUTOCAST, Optimiser
from hear_jepa.train.ranks import choose_device

PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::linear")


class Step:
    """One optimiser step of a preset on noise, without data loading."""

    def __init__(self, config: TrainConfig, batch: int, device: torch.device, precision: str, compiled: bool = False):
        front_end = config.front_end.front_end(mean=-7.0, std=4.0)
        vit = config.encoder.vit(front_end.n_mels)
        self.config, self.device, self.grid = config, device, grid_of(front_end, vit)
        self.dtype = AUTOCAST[precision]
        torch.manual_seed(0)
        self.log_mel = LogMel(front_end).to(device)
        self.jepa = JEPA(vit, config.predictor, config.target, config.loss).to(device)
        self.forward = torch.compile(self.jepa) if compiled else self.jepa
        compute = replace(config.compute, precision=precision)
        self.optimiser = Optimiser(self.jepa.trained_parameters(), config.optim, compute, device)
        self.audio = (0.1 * torch.randn(batch, front_end.n_samples(config.encoder.frames))).to(device)
        self.generator = torch.Generator().manual_seed(0)

    def mel(self) -> torch.Tensor:
        """The log-mel of the batch."""
        return self.log_mel.valid(self.audio)

    def model(self, log_mel: torch.Tensor) -> tuple[float, float]:
        """Everything after the log-mel: loss and norm of the gradient."""
        mask = draw_masks(self.config.mask, len(log_mel), self.grid.rows, self.grid.columns, self.generator)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            output = self.forward(log_mel, mask.to(self.device))
        self.optimiser.backward(output.loss)
        norm, _ = self.optimiser.step(1e-4)
        self.jepa.update_target(0.999)
        self.jepa.update_position_mean(step_taken=True)
        return float(output.loss.detach()), norm


def seconds(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median time of a call, the device's work included."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def mm_rate(device: torch.device, dtype: torch.dtype | None) -> float:
    """Operations per second of a square matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype or torch.float32) for _ in range(2))
    torch.mm(a, b)
    return 2 * size**3 / seconds(lambda: torch.mm(a, b), 5, device)


def report(step: Step, name: str, repeats: int) -> None:
    """Measure one preset and print its lines."""
    log_mel, batch, device = step.mel(), len(step.audio), step.device
    step.model(log_mel)
    with FlopCounterMode(display=False) as counter:
        step.model(log_mel)
    rounds = [
        (mm_rate(device, step.dtype), seconds(step.mel, 3, device), seconds(lambda: step.model(log_mel), 3, device))
        for _ in range(repeats)
    ]
    rate, mel, model = (statistics.median(column) for column in zip(*rounds, strict=True))
    share = counter.get_total_flops() / model / rate
    print(f"{name}, batch {batch}: {batch / (mel + model):.1f} crops/s; model at {share:.1%} of the torch.mm rate")
    print(f"       mel {mel / (mel + model):.1%} of the step", flush=True)
    if device.type == "cpu":
        print(f"       of the model: {operators(step, log_mel)}", flush=True)


def operators(step: Step, log_mel: torch.Tensor) -> str:
    """Share of the matrix products, and of what comes next."""
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        step.model(log_mel)
    events = sorted(trace.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    products = sum(event.self_cpu_time_total for event in events if event.key in PRODUCTS)
    rest = [
        f"{event.key.removeprefix('aten::')} {event.self_cpu_time_total / total:.1%}"
        for event in events[:10]
        if event.key not in PRODUCTS
    ]
    return f"matrix products {products / total:.1%} of the time; then {', '.join(rest)}"


def main() -> None:
    """Measure the presets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["tiny"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=AUTOCAST, default="fp32")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for name in arguments.presets:
        step = Step(PRESETS[name][1], arguments.batch, choose_device(arguments.device), arguments.precision)
        report(step, f"{name}, {arguments.precision}", arguments.repeats)


if __name__ == "__main__":
    main()
