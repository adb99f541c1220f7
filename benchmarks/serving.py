"""Speed and memory of serving, as ratios, so that they compare across machines.

    python benchmarks/serving.py                      # two threads, random weights of size base, float32
    python benchmarks/serving.py --size tiny --threads 1
    python benchmarks/serving.py --profile            # where the time of scene embeddings goes
    python benchmarks/serving.py --threads 1 --cpu-time     # on a machine that is busy with something else

Each ratio compares two things timed alternately in this process; the median over the rounds is told.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hear_jepa import Embedder, get_scene_embeddings, get_timestamp_embeddings
from hear_jepa.model.checkpoint import Checkpoint
from hear_jepa.model.vit import ViT, ViTConfig

SIZES = {"tiny": (192, 6, 3), "small": (384, 12, 6), "base": (768, 12, 12)}  # width, depth, heads

SECOND = 16000
WINDOW = 33280  # samples of the trained duration, 2.08 s
MM_TIMES = 10
Alternate = Callable[[Callable[[], object], Callable[[], object]], tuple[float, float]]
UNWANTED = ("tensorflow", "sklearn", "matplotlib", "pandas")


def main() -> None:
    """Print one line a figure, with what is aimed at."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="tell where the time of scene embeddings goes")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time instead of elapsed time")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = "process_time" if arguments.cpu_time else "perf_counter"
    settings = f"{arguments.size}, float32, {arguments.threads} threads, torch {torch.__version__}"
    print(f"{settings}, median of {arguments.rounds} rounds")
    report_import(arguments.rounds, clock)
    width, depth, heads = SIZES[arguments.size]
    config = ViTConfig(width=width, depth=depth, heads=heads)
    model = Embedder(Checkpoint(config, ViT(config).state_dict()))
    with torch.no_grad():
        alternate = partial(time_in_turns, arguments.rounds, getattr(time, clock))
        report_matmul_rate(model, alternate)
        report_short_clips(model, alternate)
        report_timestamps(model, alternate)
        if arguments.profile:
            report_profile(model)
    report_memory(arguments.size, arguments.threads)


def report_matmul_rate(model: Embedder, alternate: Alternate) -> None:
    """Operations of scene embedding per second, log-mel included in the time but not in the count, over torch.mm's."""
    clips = sound(4, 10 * SECOND)
    operations = scene_operations(model, clips.shape[1]) * len(clips)
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    scene_time, mm_time = alternate(
        lambda: get_scene_embeddings(clips, model), lambda: [torch.mm(left, right) for _ in range(MM_TIMES)]
    )
    rate, mm_rate = operations / scene_time, MM_TIMES * 2 * len(left) ** 3 / mm_time
    show("scene embedding, share of the torch.mm rate", rate / mm_rate, "at least 0.60")
    print(f"    {rate / 1e9:.0f} of {mm_rate / 1e9:.0f} GFLOP/s")


def scene_operations(model: Embedder, n_samples: int) -> float:
    """Floating-point operations of matrix multiplications for the tokens of one clip's columns; two a multiply-add."""
    config = model.encoder.config
    columns = model.grid.n_timestamps(n_samples, 160)
    operations = 0
    for start in range(0, columns, model.grid.columns):  # the columns that the last window repeats are not counted
        tokens = config.n_freq_patches * min(model.grid.columns, columns - start)
        linear = config.width**2 * (4 + 2 * config.mlp_ratio)
        attention = 2 * config.width * tokens
        operations += 2 * tokens * (model.grid.patch_size * config.width + config.depth * (linear + attention))
    return operations


def report_short_clips(model: Embedder, alternate: Alternate) -> None:
    """64 clips of one second against the same padded with silence to the trained duration."""
    clips = sound(64, SECOND)
    padded = torch.nn.functional.pad(clips, (0, WINDOW - SECOND))
    short, long = alternate(lambda: get_scene_embeddings(clips, model), lambda: get_scene_embeddings(padded, model))
    show("64 one-second clips, times as fast as padded to 2.08 s", long / short, "at least 1.7")


def report_timestamps(model: Embedder, alternate: Alternate) -> None:
    """Timestamps every 40 ms against one scene embedding of the same audio."""
    clips = sound(2, 10 * SECOND)
    scene, timestamps = alternate(
        lambda: get_scene_embeddings(clips, model), lambda: get_timestamp_embeddings(clips, model)
    )
    show("timestamps every 40 ms, times the cost of a scene", timestamps / scene, "at most 4.2")


def report_import(rounds: int, clock: str) -> None:
    """Seconds that `import hear_jepa` adds to `import torch`, each in a new process."""

    def run(extra: str) -> float:
        timed = f"from time import {clock} as now; t = now(); import torch{extra}; print(now() - t)"
        return float(subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True).stdout)

    added = statistics.median(run(", hear_jepa") - run("") for _ in range(rounds))
    show("import hear_jepa, seconds more than torch", added, "at most 1")
    code = f"import sys, hear_jepa; print(*(name for name in {UNWANTED} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    installed = [name for name in UNWANTED if importlib.util.find_spec(name)]
    print(f"    it imports, of {', '.join(installed) or 'none'} installed here: {', '.join(found) or 'none'}")


def report_memory(size: str, threads: int) -> None:
    """Peak memory of a process that embeds a ten-minute clip in one call."""
    code = f"""
import resource, torch, warnings
from hear_jepa import Embedder, get_scene_embeddings
from hear_jepa.model.checkpoint import Checkpoint
from hear_jepa.model.vit import ViT, ViTConfig
torch.set_num_threads({threads})
width, depth, heads = {SIZES[size]}
config = ViTConfig(width=width, depth=depth, heads=heads)
model = Embedder(Checkpoint(config, ViT(config).state_dict()))
loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
get_scene_embeddings(torch.randn(1, 600 * 16000) / 10, model)
print(loaded / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded, peak = map(float, result.split())
    show("a ten-minute clip in one call, peak GB of the process", peak, "below 1.5")
    print(f"    {loaded:.2f} GB of it before the call: libraries and weights")


def report_profile(model: Embedder) -> None:
    """The ten operations that scene embedding spends most on."""
    clips = sound(4, 10 * SECOND)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        get_scene_embeddings(clips, model)
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    for event in events[:10]:
        print(f"    {event.self_cpu_time_total / total:6.1%}  {event.key}")


def time_in_turns(
    rounds: int, now: Callable[[], float], one: Callable[[], object], other: Callable[[], object]
) -> tuple[float, float]:
    """Median seconds of each, run in turns, after one turn that warms both up."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for function, taken in zip((one, other), times, strict=True):
            start = now()
            function()
            if number:
                taken.append(now() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def sound(n_clips: int, n_samples: int) -> Tensor:
    """Noise: what is in a clip does not change the work."""
    return torch.randn(n_clips, n_samples) / 10


def show(name: str, value: float, aim: str) -> None:
    """One line of the report."""
    print(f"{name:58s} {value:6.2f}   ({aim})", flush=True)


if __name__ == "__main__":
    main()
