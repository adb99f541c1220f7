"""Pictures of a run: its curves, and its masks on real spectrograms."""

from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from hear_jepa.figures import new_figure, save_figure
from hear_jepa.model.grid import Grid
from hear_jepa.train.masking import Mask
from hear_jepa.train.metrics_log import read_metrics

PANELS = {  # title: metrics drawn in it
    "loss": ("loss",),
    "cosine of prediction and target": ("cosine",),
    "learning rate": ("learning_rate",),
    "EMA momentum": ("ema_momentum",),
    "gradient norm": ("gradient_norm",),
    "content deviation": ("context/content_std", "target/content_std"),
    "RankMe": ("context/rank_me", "target/rank_me"),
    "linear probe, validation mean (%)": ("context/probe/mean", "target/probe/mean"),
    "crops per second": ("crops_per_s",),
}


def draw_report(folder: Path) -> Path:
    """Write report.png: the run's curves over its steps."""
    figure = new_figure(15, 10)
    axes = figure.subplots(3, 3)
    series = defaultdict(list)
    for line in read_metrics(folder):
        for name, value in line.items():
            if name != "step":
                series[name].append((line["step"], value))
    for axis, (title, names) in zip(axes.flat, PANELS.items(), strict=True):
        for name in names:
            if series[name]:
                steps, values = zip(*series[name], strict=True)
                marker = "o" if len(steps) < 30 else ""
                axis.plot(steps, values, marker=marker, markersize=3, linewidth=1, label=name.split("/")[0])
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(names) > 1 and axis.lines:
            axis.legend()
        if not axis.lines:
            axis.text(0.5, 0.5, "not measured in this run", ha="center", va="center", transform=axis.transAxes)
    return save_figure(figure, folder / "report.png", dpi=90)


def draw_masks_picture(folder: Path, log_mel: Tensor, mask: Mask, grid: Grid, strategy: str) -> Path:
    """Write masks.png: each crop's spectrogram whole, its context patches, and its target patches.

    log_mel [N, mels, frames]; mask [M, N, K], of which the first of each crop is drawn.
    """
    figure = new_figure(15, 2.6 * len(log_mel))
    axes = figure.subplots(len(log_mel), 3, squeeze=False)
    seconds = grid.frame_ms / 1000
    look = {
        "extent": (0, log_mel.shape[2] * seconds, 0, grid.n_mels),
        "vmin": float(log_mel.min()),
        "vmax": float(log_mel.max()),
    }
    for row, crop in enumerate(log_mel):
        shown = {"crop": None, "context": mask.context[0, row], "targets": mask.target[0, row]}
        for axis, (name, tokens) in zip(axes[row], shown.items(), strict=True):
            picture = crop if tokens is None else crop.masked_fill(~patch_area(tokens, grid), float("nan"))
            axis.imshow(picture.numpy(), origin="lower", aspect="auto", **look)
            axis.set_facecolor("0.85")
            axis.set_xticks([column * grid.patch_frames * seconds for column in range(grid.columns + 1)], minor=True)
            axis.set_yticks([row * grid.patch_mels for row in range(grid.rows + 1)])
            axis.grid(which="both", color="white", alpha=0.25)
            if row == 0:
                count = "" if tokens is None else f", {len(tokens)} of {grid.rows * grid.columns} patches"
                axis.set_title(f"{name}{count}" if tokens is not None else f"log-mel, {strategy} masking")
            if row == len(log_mel) - 1:
                axis.set_xlabel("time (s)")
        axes[row][0].set_ylabel("mel band")
    return save_figure(figure, folder / "masks.png", dpi=90)


def patch_area(tokens: Tensor, grid: Grid) -> Tensor:
    """Which bins of [mels, frames] the patches of the tokens cover."""
    area = torch.zeros(grid.columns * grid.rows, dtype=torch.bool)
    area[tokens] = True
    area = area.view(grid.columns, grid.rows).T  # [rows, columns]
    return area.repeat_interleave(grid.patch_mels, 0).repeat_interleave(grid.patch_frames, 1)
