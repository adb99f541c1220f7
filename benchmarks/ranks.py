"""Crops per second of `tiny` on a CPU: two ranks of one thread beside one process of two threads, in turns.

python benchmarks/ranks.py SHARDS
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from hear_jepa.train.metrics_log import read_metrics

WAYS = {"one process, 2 threads": ("1", "2"), "2 ranks of one thread": ("2", "1")}


def crops_per_s(source: str, ranks: str, threads: str, steps: int) -> float:
    """Speed of the second half of a short run."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "data.source": source,
            "out": folder,
            "optim.steps": steps,
            "monitor.log-every": steps // 2,
            "monitor.probe-every": 0,
            "compute.cpu-ranks": ranks,
            "compute.threads": threads,
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "hear_jepa.train", "tiny", *arguments]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return [line["crops_per_s"] for line in read_metrics(Path(folder)) if "crops_per_s" in line][-1]


def main() -> None:
    """Print the speeds of every run, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    speeds = {name: [] for name in WAYS}
    for _ in range(arguments.rounds):
        for name, (ranks, threads) in WAYS.items():
            speeds[name].append(crops_per_s(arguments.source, ranks, threads, arguments.steps))
            print(f"{name}: {speeds[name][-1]:.0f} crops/s", flush=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    one, two = medians.values()
    print(f"medians {one:.0f} and {two:.0f} crops/s, ratio {two / one:.2f}")


if __name__ == "__main__":
    main()
