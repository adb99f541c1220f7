"""What a run leaves: the serving checkpoint, its curves, and a picture of its masks."""

import logging
import math
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator

from hear_jepa import __version__
from hear_jepa.model.checkpoint import ServedConfig, save_checkpoint
from hear_jepa.train.config import to_json
from hear_jepa.train.masking import draw_masks
from hear_jepa.train.online_probe import Scores, snapshot
from hear_jepa.train.plots import draw_masks_picture, draw_report
from hear_jepa.train.run_state import BEST, read_state

if TYPE_CHECKING:
    from hear_jepa.train.loop import Run
    from hear_jepa.train.metrics_log import MetricsLog

log = logging.getLogger(__name__)

ENCODER_FILE = "encoder.safetensors"


def finish(run: "Run", metrics: "MetricsLog") -> Path:
    """Last probe, serving checkpoint, pictures."""
    scores = run.probe(run.jepa, run.step, metrics, run.state)
    step, scores = choose_state(run, scores)
    serve = run.config.serve
    name = run.probe.better(scores)
    served = ServedConfig(name, serve.layers, serve.hop_ms, serve.pooling)
    path = run.config.out / ENCODER_FILE
    told = provenance(run, step, scores)
    checkpoint = snapshot(run.jepa.encoders[name], run.front_end, served, told, serve.columns)
    save_checkpoint(path, checkpoint, torch.float16)
    if run.config.monitor.pictures:
        draw_report(run.config.out)
        draw_example_masks(run)
    return path


def choose_state(run: "Run", last: Scores) -> tuple[int, Scores]:
    """Where an earlier state probed better than the last by more than `best_margin`, load that one. Returns the step
    and the scores of what is served."""
    path = run.config.out / BEST
    last_mean = last[run.probe.better(last)]["mean"] if last else math.inf
    if run.probe.best_mean - last_mean <= run.config.monitor.best_margin or not path.is_file():
        return run.step, last
    state = read_state(path)
    run.jepa.load_state_dict(state["jepa"])
    log.info("serving step %d, whose probe was the best", state["step"])
    return state["step"], state["probe"]["best_scores"]


def provenance(run: "Run", step: int, scores: Scores) -> dict:
    """How the checkpoint came about, for its header."""
    return {
        "made_by": f"hear_jepa {__version__}",
        "steps": step,
        "crops": step * run.config.optim.batch_size,
        "hours_of_training": round(run.state.hours(), 2),
        "ranks": run.ranks.world_size,
        "device": run.ranks.device.type,
        "data": str(run.config.data.source),
        "probe_validation": scores,
        "config": to_json(run.config),
    }


def draw_example_masks(run: "Run") -> None:
    """masks.png: masks of the first seed on crops of the corpus."""
    with closing(run.crops()) as crops:
        log_mel = run.log_mel.valid(next(crops)[:4].to(run.ranks.device)).cpu()
    generator = Generator().manual_seed(run.config.seed)
    mask = draw_masks(run.config.mask, len(log_mel), run.grid.rows, run.grid.columns, generator)
    draw_masks_picture(run.config.out, log_mel, mask, run.grid, run.config.mask.strategy)
