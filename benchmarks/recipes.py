"""A ladder of pretraining recipes: each is the preset `tiny` with a few options changed, all see equally many crops.

    python benchmarks/recipes.py SHARDS --tasks TASK_FOLDER ... --out runs/recipes --crops 80000          # first cut
    python benchmarks/recipes.py SHARDS --tasks TASK_FOLDER ... --out runs/recipes --crops 150000 \\
        --only base "time offset" --seeds 0 1 2                                                           # survivors
    python benchmarks/recipes.py SHARDS --tasks TASK_FOLDER ... --out runs/recipes --crops 80000 --only   # the table

Scores are linear probes on validation splits, with the layers and the pooling that will be served. A recipe is compared
with `base` seed by seed (same crops, same seed), so the last column is a mean of paired differences and its standard
error over the seeds. Fewer than 80,000 crops decide nothing. Several processes may share the work: each takes a run
that no other has; what is finished is kept.
"""

import argparse
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch

from hear_jepa.disk import atomic_path, locked
from hear_jepa.errors import LockError
from hear_jepa.evaluation.baselines.untrained import untrained
from hear_jepa.evaluation.scoring import probe_model
from hear_jepa.evaluation.tasks import read_task
from hear_jepa.model.checkpoint import load_checkpoint
from hear_jepa.model.embedder import Embedder
from hear_jepa.train.__main__ import parse
from hear_jepa.train.config import TrainConfig
from hear_jepa.train.finish import ENCODER_FILE
from hear_jepa.train.loop import train
from hear_jepa.train.run_state import LATEST

BASE = "base"
RANDOM = "random weights"  # of the base, served alike
RECIPES = {
    BASE: "",
    "absolute positions": "--encoder.positions sine-cosine",
    "no reconstruction": "--loss.regularisers",
    "clip term": "--loss.regularisers reconstruction 0.3 clip 0.1",
    "loss on all patches": "--target.loss-on all",
    "input domain, last layer": "--target.domain input --target.top-layers 1 --target.no-centre",
    "FFT 400": "--front-end.n-fft 400",
    "FFT 2048": "--front-end.n-fft 2048",
    "128 bands, patches of 16 by 8": "--front-end.n-mels 128 --encoder.patch-frames 8",
    "patches of 8 by 16": "--encoder.patch-mels 8",
    "4 masks a crop": "--mask.masks-per-crop 4",
    "multi-block masks": "--mask.strategy multi-block",
    "learning rate halved": "--optim.base-lr 2e-3",
    "learning rate doubled": "--optim.base-lr 8e-3",
    "EMA 0.99 to 0.999": "--ema.start 0.99 --ema.end 0.999",
    "12 blocks": "--encoder.depth 12",
}


def configured(recipe: str, seed: int, arguments: argparse.Namespace) -> TrainConfig:
    """The preset with the recipe's options, on one thread."""
    out = arguments.out / f"{re.sub(r'[^a-z0-9]+', '-', recipe.lower())}-{arguments.crops}-{seed}"
    options = ["--data.source", arguments.source, "--out", str(out), "--seed", str(seed), *RECIPES[recipe].split()]
    options += ["--serve.layers", *map(str, arguments.layers), "--monitor.probe-every", "0", "--monitor.no-pictures"]
    options += ["--compute.cpu-ranks", "1", "--compute.threads", "1", *arguments.options.split()]
    batch_size = parse(["tiny", *options]).optim.batch_size
    return parse(["tiny", *options, "--optim.steps", str(arguments.crops // batch_size)])


def run(recipe: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train and score one recipe, unless that is done or another process does it; goes on with what was killed."""
    config = configured(BASE if recipe == RANDOM else recipe, seed, arguments)
    done = config.out / ("random.json" if recipe == RANDOM else "scores.json")
    config.out.mkdir(parents=True, exist_ok=True)
    with suppress(LockError), locked(config.out / "recipe.lock"):
        if done.exists():
            return
        if not (config.out / ENCODER_FILE).exists():
            last = train(replace(config, resume=(config.out / LATEST).exists()))
            if last.name != ENCODER_FILE:
                raise SystemExit("stopped by a signal; what is finished is kept: run again to go on")
        checkpoint = load_checkpoint(config.out / ENCODER_FILE)
        model = Embedder(untrained(checkpoint, seed) if recipe == RANDOM else checkpoint)
        scores = probe_model(model, arguments.tasks, protocols=("linear",), max_clips=arguments.clips)["linear"]
        with atomic_path(done) as temporary:
            temporary.write_text(json.dumps({"recipe": recipe, "seed": seed, "crops": arguments.crops} | scores))


def results(arguments: argparse.Namespace) -> Iterator[tuple[str, int, dict[str, float]]]:
    """(recipe, seed, score of every task) of what is finished with this number of crops."""
    for path in sorted(arguments.out.glob(f"*-{arguments.crops}-*/*.json")):
        if path.name in ("scores.json", "random.json"):
            line = json.loads(path.read_text())
            yield line.pop("recipe"), line.pop("seed"), {k: 100 * v for k, v in line.items() if k != "crops"}


def table(arguments: argparse.Namespace) -> str:
    """Markdown: mean over the seeds for every task, mean of all, and the paired difference from the base."""
    scores: dict[str, dict[int, dict[str, float]]] = {}
    for recipe, seed, by_task in results(arguments):
        scores.setdefault(recipe, {})[seed] = by_task
    means = {recipe: {seed: mean(tasks.values()) for seed, tasks in runs.items()} for recipe, runs in scores.items()}
    tasks = sorted({task for runs in scores.values() for by_task in runs.values() for task in by_task})
    lines = [["recipe", "seeds", *tasks, "mean", "less base"], ["---"] * (len(tasks) + 4)]
    for recipe, runs in sorted(scores.items(), key=lambda item: -mean(means[item[0]].values())):
        cells = [f"{mean(run[task] for run in runs.values()):.1f}" for task in tasks]
        common = means.get(BASE, {}).keys() & runs.keys()
        difference = [means[recipe][seed] - means[BASE][seed] for seed in common]
        lines.append(
            [recipe, str(len(runs)), *cells, with_error(list(means[recipe].values())), with_error(difference, "+")]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_error(values: list[float], sign: str = "") -> str:
    """Mean and its standard error; without the latter for a single value."""
    if not values:
        return ""
    error = f" ± {stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.1f}{error}"


def main() -> None:
    """Run what is not there yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of shards")
    parser.add_argument("--tasks", nargs="+", type=Path, required=True, help="folders of HEAR-format tasks")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=80_000, help="of every recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--layers", nargs="+", type=int, default=[1, 3, 5], help="that will be served")
    parser.add_argument("--clips", type=int, default=1000, help="of a task, for training and as many for validation")
    parser.add_argument("--options", default="", help="of training, for all recipes alike")
    parser.add_argument("--only", nargs="*", default=[*RECIPES, RANDOM], choices=[*RECIPES, RANDOM], metavar="RECIPE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for folder in arguments.tasks:
        read_task(folder)  # before hours of training
    for seed in arguments.seeds:
        for recipe in arguments.only:
            run(recipe, seed, arguments)
    print(table(arguments))


if __name__ == "__main__":
    main()
