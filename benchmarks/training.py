"""What a training step costs, as ratios taken in one run:

    python benchmarks/training.py [--presets tiny paper] [--batch 32] [--threads 2]

* mel: share of the log-mel in a step;
* mm rate: floating-point operations of a step (counted by torch, forward, backward, target pass) by the time it takes,
  over the rate that `torch.mm` of 2048 × 2048 matrices reaches in the same process;
* where the rest goes: share of the operators that are not matrix products, by torch's profiler.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from hear_jepa.model.front_end import FrontEndConfig, LogMel
from hear_jepa.train.config import PRESETS, OptimConfig, TrainConfig
from hear_jepa.train.jepa import JEPA
from hear_jepa.train.masking import draw_masks
from hear_jepa.train.optimisation import Optimiser

PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::linear")


class Step:
    """One optimiser step of a preset, without data loading."""

    def __init__(self, config: TrainConfig, batch: int):
        front_end = FrontEndConfig()
        self.vit = config.encoder.vit(front_end.n_mels)
        self.log_mel = LogMel(front_end)
        self.jepa = JEPA(self.vit, config.predictor, config.target, config.loss)
        compute = replace(config.compute, precision="fp32")
        self.optimiser = Optimiser(
            self.jepa.trained_parameters(), OptimConfig(batch_size=batch), compute, torch.device("cpu")
        )
        self.config = config
        self.audio = 0.1 * torch.randn(batch, front_end.n_samples(config.encoder.frames))
        self.generator = torch.Generator().manual_seed(0)

    def mel(self) -> torch.Tensor:
        """The log-mel of the batch."""
        return self.log_mel.valid(self.audio)

    def model(self, log_mel: torch.Tensor) -> None:
        """Everything after the log-mel."""
        grid = self.vit.n_freq_patches, self.vit.n_time_patches
        mask = draw_masks(self.config.mask, len(log_mel), *grid, self.generator)
        self.optimiser.backward(self.jepa(log_mel, mask).loss)
        self.optimiser.step(1e-4)
        self.jepa.update_target(0.999)


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def mm_rate(size: int = 2048) -> float:
    """Operations per second of a square matrix product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    return 2 * size**3 / seconds(lambda: torch.mm(a, b), 5)


def report(name: str, batch: int, repeats: int) -> None:
    """Measure one preset and print its lines."""
    step = Step(PRESETS[name][1], batch)
    log_mel = step.mel()
    step.model(log_mel)
    with FlopCounterMode(display=False) as counter:
        step.model(log_mel)
    rounds = [(mm_rate(), seconds(step.mel, 3), seconds(lambda: step.model(log_mel), 3)) for _ in range(repeats)]
    rate, mel, model = (statistics.median(column) for column in zip(*rounds, strict=True))
    shares = [counter.get_total_flops() / one_model / one_rate for one_rate, _, one_model in rounds]
    share = statistics.median(shares)
    print(f"{name}, batch {batch}: {batch / (mel + model):.1f} crops/s; model at {share:.1%} of the torch.mm rate")
    print(f"       mel {mel / (mel + model):.1%} of the step")
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        step.model(log_mel)
    operators = sorted(trace.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in operators)
    products = sum(event.self_cpu_time_total for event in operators if event.key in PRODUCTS)
    rest = ", ".join(
        f"{event.key.removeprefix('aten::')} {event.self_cpu_time_total / total:.1%}"
        for event in operators[:10]
        if event.key not in PRODUCTS
    )
    print(f"       of the model: matrix products {products / total:.1%} of the time; then {rest}")


def main() -> None:
    """Print the ratios of the presets asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "paper"], choices=sorted(PRESETS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.presets:
        report(name, arguments.batch, arguments.repeats)


if __name__ == "__main__":
    main()
