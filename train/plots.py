"""Pictures of a run: its curves, and its masks on real spectrograms."""

from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from hear_jepa.disk import atomic_path
from hear_jepa.train.masking import Mask
from hear_jepa.train.metrics_log import read_metrics

PANELS = {  # title: metrics drawn in it
    "loss": ("loss",),
    "cosine of prediction and target": ("cosine",),
    "learning rate": ("lr",),
    "EMA momentum τ": ("tau",),
    "gradient norm": ("grad_norm",),
    "content deviation": ("context/content_std", "target/content_std"),
    "RankMe": ("context/rank_me", "target/rank_me"),
    "linear probe, validation mean (%)": ("context/probe/mean", "target/probe/mean"),
    "crops per second": ("crops_per_s",),
}


def draw_report(folder: Path) -> Path:
    """Write report.png: the run's curves over its steps."""
    figure, axes = _subplots(3, 3, (15, 10))
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
    return _write(figure, folder / "report.png")


def draw_masks_picture(folder: Path, log_mel: Tensor, mask: Mask, n_freq: int, n_time: int, strategy: str) -> Path:
    """Write masks.png: each crop's spectrogram whole, its context patches, and its target patches.

    log_mel [N, mels, frames]; mask of N rows.
    """
    figure, axes = _subplots(len(log_mel), 3, (15, 2.6 * len(log_mel)))
    patch = log_mel.shape[1] // n_freq, log_mel.shape[2] // n_time  # bands, frames
    extent = (0, log_mel.shape[2] / 100, 0, log_mel.shape[1])
    limits = {"vmin": float(log_mel.min()), "vmax": float(log_mel.max())}
    for row, crop in enumerate(log_mel):
        shown = {"crop": None, "context": mask.context[row], "targets": mask.target[row]}
        for axis, (name, tokens) in zip(axes[row], shown.items(), strict=True):
            picture = (
                crop if tokens is None else crop.masked_fill(~patch_area(tokens, n_freq, n_time, patch), float("nan"))
            )
            axis.imshow(picture.numpy(), origin="lower", aspect="auto", extent=extent, **limits)
            axis.set_facecolor("0.85")
            axis.set_xticks([column * patch[1] / 100 for column in range(n_time + 1)], minor=True)
            axis.set_yticks([band * patch[0] for band in range(n_freq + 1)])
            axis.grid(which="both", color="white", alpha=0.25)
            if row == 0:
                count = "" if tokens is None else f", {len(tokens)} of {n_freq * n_time} patches"
                axis.set_title(f"{name}{count}" if tokens is not None else f"log-mel, {strategy} masking")
            if row == len(log_mel) - 1:
                axis.set_xlabel("time (s)")
        axes[row][0].set_ylabel("mel band")
    return _write(figure, folder / "masks.png")


def patch_area(tokens: Tensor, n_freq: int, n_time: int, patch: tuple[int, int]) -> Tensor:
    """Which bins of [mels, frames] the patches of the tokens cover."""
    grid = torch.zeros(n_time * n_freq, dtype=torch.bool)
    grid[tokens] = True
    return grid.view(n_time, n_freq).T.repeat_interleave(patch[0], 0).repeat_interleave(patch[1], 1)


def _subplots(rows: int, columns: int, size: tuple[float, float]):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # no window system
    return figure, figure.subplots(rows, columns, squeeze=False)


def _write(figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)
    return path
