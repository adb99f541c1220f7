"""How many crops a loader makes for every crop that a training step of `tiny` consumes.

    python benchmarks/loader.py                    # on audio made up for it
    python benchmarks/loader.py --source shards    # on shards of your own

Both are timed in seconds of one core's work, in turns, so that what else the machine does hardly counts. The ratio is
to a step that keeps all the cores named busy without loss; the median of the turns is printed. At 4 or more a loader
costs a run a quarter of a core at most.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from hear_jepa.train.config import PRESETS
from hear_jepa.train.corpus.prepare import prepare
from hear_jepa.train.data.sampler import CropStream, DataConfig, crop_stream
from hear_jepa.train.loop import Run

AHEAD = 2  # batches that a loader has ready: one waits, one is being made
LOADERS = {
    "decoded": DataConfig(backend="decoded"),
    "stream": DataConfig(backend="stream", workers=0),  # what a worker does, done where its work can be timed
    "synthetic": DataConfig(domain_weights={"synthetic": 1.0}),
}


def make_shards(folder: Path) -> str:
    """Ten minutes of modulated noise over notes, in clips of 30, 5 and 1 s, as shards."""
    rng = np.random.default_rng(0)
    for seconds, count in ((30, 10), (5, 40), (1, 100)):
        for i in range(count):
            at = np.arange(seconds * 16000) / 16000
            notes = np.sin(2 * np.pi * np.cumsum(rng.uniform(80, 2000, seconds * 4)[(at * 4).astype(int)]) / 16000)
            samples = 0.3 * notes + rng.normal(0, 0.05, len(at)) * (1 + np.sin(at))
            (folder / "audio" / f"{seconds}s").mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / "audio" / f"{seconds}s" / f"{i}.wav", samples, 16000)
    prepare([folder / "audio"], folder / "shards", workers=1, progress=False)
    return str(folder / "shards")


def loader_rate(crops: CropStream, batches: int) -> float:
    """Crops a loader makes in a second of one core's work."""
    for _ in range(AHEAD):  # made while others were timed
        next(crops)
    started = time.process_time()
    count = sum(len(next(crops)) for _ in range(batches))
    return count / (time.process_time() - started)


def step_rate(run: Run, audio: torch.Tensor, steps: int) -> float:
    """Crops that training steps consume in a second of one core's work."""
    started = time.process_time()
    for _ in range(steps):
        run.take_step(audio)
    return steps * len(audio) / (time.process_time() - started)


def main() -> None:
    """Print the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="folder of shards (default: made up)")
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--cores", type=int, default=2, help="cores that the training step has (default 2)")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = arguments.source or make_shards(Path(folder))
        preset = PRESETS[arguments.preset][1]
        cache_dir = None if arguments.source else Path(folder)  # a corpus keeps its own
        data = DataConfig(source=source, backend="decoded", cache_dir=cache_dir)
        run = Run(replace(preset, out=Path(folder) / "run", data=data))
        n_samples = run.front_end.n_samples(preset.encoder.frames)
        options = {"batch_size": preset.optim.batch_size, "n_samples": n_samples, "seed": 0}
        audio = next(crop_stream(data, **options))
        torch.set_num_threads(1)  # a thread that waits for another would count as work
        step_rate(run, audio, 1)
        print(f"{'loader':10}{'crops/s a core':>16}{f'step crops/s, {arguments.cores} cores':>26}{'ratio':>8}")
        for name, config in LOADERS.items():
            crops = crop_stream(replace(config, source=source, cache_dir=cache_dir, prefetch=1), **options)
            loader_rate(crops, 5)
            turns = []
            for _ in range(arguments.turns):
                turns.append((loader_rate(crops, 20), arguments.cores * step_rate(run, audio, 1)))
            ratio = statistics.median(made / used for made, used in turns)
            made, used = (statistics.median(rates) for rates in zip(*turns, strict=True))
            print(f"{name:10}{made:16.0f}{used:26.1f}{ratio:8.1f}", flush=True)


if __name__ == "__main__":
    main()
