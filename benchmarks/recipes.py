"""Pretraining recipes at equal compute: each differs from the preset `tiny` in one thing and runs for as many minutes
of one core; then linear probes of every layer, on validation splits alone, compare them:

    python benchmarks/recipes.py SHARDS --tasks TASK_FOLDER ... --out runs/recipes [--minutes 10] [--only NAME ...]

`--crops` gives them a number of crops in place of minutes, where other work on the machine makes a minute uncertain.

`--only` runs some of the recipes, so that several processes can share the work; `--only` alone runs none. What is
finished is kept; the table at the end shows all there is, the best mean first.
"""

import argparse
import json
import re
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hear_jepa.disk import atomic_path
from hear_jepa.evaluation.baselines import BASELINES
from hear_jepa.evaluation.features import SplitFeatures, embed_split
from hear_jepa.evaluation.model_spec import load_spec
from hear_jepa.evaluation.scoring import fitter, score_fold, subsample
from hear_jepa.evaluation.tasks import Task, read_task
from hear_jepa.train.__main__ import parse
from hear_jepa.train.config import TrainConfig
from hear_jepa.train.finish import ENCODER_FILE
from hear_jepa.train.loop import train

DATA = "--data.domain-weights environment 0.3 speech 0.35 music 0.35"  # of the corpus recipe `debian`
INPUT = "--target.domain input --target.top-layers 1 --target.no-centre"
FIRST_RUN = "runs/tiny/encoder.safetensors"  # of the checkpoint `tiny`, by the first command of its card
RECIPES = {  # the names are file names too
    "tiny": "",
    "learning rate doubled": "--optim.base-lr 8e-3",
    "4 masks a crop, batch 16": "--mask.masks-per-crop 4 --optim.batch-size 16 --optim.base-lr 8e-3",
    "input domain, last layer": INPUT,
    "input domain, third of the patches as targets": f"{INPUT} --mask.target-share 0.34",
    "input domain, predictor of 1 block": f"{INPUT} --predictor.depth 1",
    "batch 16": "--optim.batch-size 16 --optim.base-lr 8e-3",
    "EMA 0.99 to 0.999": "--ema.start 0.99 --ema.end 0.999",
    "12 blocks": "--encoder.depth 12",
    "predictor of width 64": "--predictor.width 64",
    "warm start": f"--init-from {FIRST_RUN}",
    "input domain, warm start": f"{INPUT} --init-from {FIRST_RUN}",
}
TRIAL_STEPS = (10, 60)
FOLDS = 2  # of a task with more


def configured(options: str, source: str, out: Path, steps: int) -> TrainConfig:
    """The preset with these options, on one thread, looked at seldom."""
    fixed = {
        "data.source": source,
        "out": out,
        "optim.steps": steps,
        "monitor.log-every": max(1, steps // 20),
        "monitor.collapse-every": max(1, steps // 4),
        "monitor.probe-every": 0,
        "compute.cpu-ranks": 1,
        "compute.threads": 1,
        "serve.hop-ms": 160,  # a quarter of the work, and the paper's scenes
    }
    arguments = [text for name, value in fixed.items() for text in (f"--{name}", str(value))]
    return parse(["tiny", *DATA.split(), *options.split(), *arguments])


def train_whole(config: TrainConfig) -> None:
    """A run that a signal stopped saves its state and returns: here that ends the comparison."""
    if train(config).name != ENCODER_FILE:
        raise SystemExit("stopped by a signal; what is finished is kept: run again to go on")


def seconds_a_step(options: str, source: str) -> float:
    """CPU time, not that of the clock, which other work on the machine lengthens; that of setting up cancels out, once
    the first of all runs has decoded the audio."""
    spent = []
    for steps in (TRIAL_STEPS[0], *TRIAL_STEPS):
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            train_whole(configured(options, source, Path(folder) / "trial", steps))
            spent.append(time.process_time() - started)
    return (spent[-1] - spent[-2]) / (TRIAL_STEPS[1] - TRIAL_STEPS[0])


def run(options: str, source: str, minutes: float, crops: int, out: Path) -> dict:
    """Train on as many crops, or, without, for `minutes` of one core by a trial; crops seen and layers."""
    config = configured(options, source, out, 1)
    steps = crops // config.optim.batch_size if crops else round(60 * minutes / seconds_a_step(options, source))
    config = configured(options, source, out, steps)
    shutil.rmtree(out, ignore_errors=True)  # what a killed run left
    train_whole(config)
    return {"crops": config.optim.steps * config.optim.batch_size, "layers": config.encoder.depth}


def probe_layers(spec: str, layers: int, task: Task, max_clips: int) -> list[float]:
    """Validation score (%) of each of the layers whose features lie side by side in the model's."""
    folds = task.folds[:FOLDS]
    splits = sorted({split for fold in folds for split in (*fold.train, fold.valid)})
    task = replace(task, clips=subsample(task, tuple(splits), max_clips, seed=0))
    model = load_spec(spec, "cpu")
    embedded = {split: embed_split(task, split, model) for split in splits}
    scores = []
    for layer in range(layers):
        part = {split: _layer(features, layer, layers) for split, features in embedded.items()}
        runs = [score_fold(task, part, fold, fitter(task, "linear", 0, quick=True), with_test=False) for fold in folds]
        scores.append(100 * float(np.mean([valid[task.scores[0]] for valid, _ in runs])))
    return scores


def _layer(features: SplitFeatures, layer: int, layers: int) -> SplitFeatures:
    width = features.values.shape[1] // layers
    return replace(features, values=features.values[:, layer * width : (layer + 1) * width])


def table(out: Path) -> str:
    """Markdown: every model in the folder by its best layer, the best mean first."""
    results = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    tasks = sorted({task for result in results.values() for task in result["scores"]})
    rows = []
    for name, result in results.items():
        scores = np.array([result["scores"][task] for task in tasks])  # [tasks, layers]
        best = int(scores.mean(0).argmax())
        layer = f"{best + 1} of {scores.shape[1]}" if result["crops"] else ""
        cells = [name, f"{result['crops'] / 1000:.0f} k" if result["crops"] else "", layer]
        mean = scores[:, best].mean()
        rows.append((mean, cells + [f"{score:.1f}" for score in (*scores[:, best], mean)]))
    lines = [["recipe", "crops", "layer", *tasks, "mean"], ["---"] * (len(tasks) + 4)]
    lines += [cells for _, cells in sorted(rows, key=lambda row: -row[0])]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Run what is not there yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--tasks", nargs="+", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--crops", type=int, default=0, help="of a recipe, in place of --minutes")
    parser.add_argument(
        "--only", nargs="*", default=[*RECIPES, *BASELINES], choices=[*RECIPES, *BASELINES], metavar="NAME"
    )
    parser.add_argument("--clips", type=int, default=1000, help="of a task, training and validation together")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [read_task(folder) for folder in arguments.tasks]  # before hours of training
    for name in arguments.only:
        done = arguments.out / f"{name}.json"
        if done.is_file():
            continue
        spec, result = name, {"crops": 0, "layers": 1}
        if name in RECIPES:
            folder = arguments.out / re.sub(r"\W+", "-", name)
            result = run(RECIPES[name], arguments.source, arguments.minutes, arguments.crops, folder)
            layers = ",".join(str(layer + 1) for layer in range(result["layers"]))
            spec = f"hear_jepa:{folder / ENCODER_FILE},layers=[{layers}]"
        result["scores"] = {task.name: probe_layers(spec, result["layers"], task, arguments.clips) for task in tasks}
        with atomic_path(done) as temporary:
            temporary.write_text(json.dumps(result))
    print(table(arguments.out))


if __name__ == "__main__":
    main()
