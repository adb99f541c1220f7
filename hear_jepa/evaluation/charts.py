"""The chart of an evaluation: one panel a protocol, bars grouped by domain, published scores as grey dashes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hear_jepa.evaluation.table import Column, PublishedRow, Row, domain_means, domains_of, short_names
from hear_jepa.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2a6f97", "#e07a1f", "#4f9d69", "#b5446e", "#7b5ea7", "#8a7340", "#3aa6b9", "#d1495b")
GREY = "#9a9a9a"
GROUP_WIDTH = 0.9  # of the distance between two domains
STRIP_WIDTH = 0.34  # of it, for published scores
NAME_HEIGHT = 3.2  # per cent that a name needs


def draw(path: Path, rows: list[Row], published: list[PublishedRow], columns: Sequence[Column], split: str) -> None:
    """Write a PNG. A bar is a model's mean over a domain's tasks, the dots on it these tasks; where the domain is one
    task, a line shows the standard deviation over its folds or seeds."""
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    figure = new_figure(11, 0.6 + 3.4 * len(protocols))
    panels = figure.subplots(len(protocols), 1, squeeze=False)[:, 0]
    for axes, protocol in zip(panels, protocols, strict=True):
        official = [] if protocol == "retrieval" else published  # they are other scores
        _panel(axes, [row for row in rows if row.protocol == protocol], official, columns)
        titles = {"hear": "hear-eval-kit, test splits", "retrieval": f"retrieval, mAP, {split} splits"}
        axes.set_title(titles.get(protocol, f"{protocol} probe, {split} splits"))
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure, path)


def _panel(axes: "Axes", rows: list[Row], published: list[PublishedRow], columns: Sequence[Column]) -> None:
    domains = domains_of(columns)
    strip = STRIP_WIDTH if published else 0.0  # at the right of each group, for the published scores
    width = (GROUP_WIDTH - strip) / max(1, len(rows))
    for index, row in enumerate(rows):
        offset = (index + 0.5) * width - GROUP_WIDTH / 2
        _bars(axes, np.arange(len(domains)) + offset, width, row, columns, COLOURS[index % len(COLOURS)])
    for position, domain in enumerate(domains):
        means = [(domain_means(row.cells, columns).get(domain, np.nan), row.label) for row in published]
        _published(axes, position + GROUP_WIDTH / 2 - strip, sorted(m for m in means if not np.isnan(m[0])))
    if published:
        axes.plot([], [], color=GREY, linewidth=2, label="published by others,\nnot measured here")
    axes.set_xticks(range(len(domains)), [_domain_label(domain, columns) for domain in domains], fontsize=9)
    axes.set_xlim(-0.55, len(domains) - 0.45)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("score, %")
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: "Axes", positions: np.ndarray, width: float, row: Row, columns: Sequence[Column], colour: str) -> None:
    """A model's bar in every domain, its height in white at the foot, and its tasks or the spread of its one task."""
    means = domain_means(row.means, columns)
    heights = [means.get(domain, np.nan) for domain in domains_of(columns)]
    axes.bar(positions, heights, width * 0.92, label=row.label, color=colour)
    for position, height, domain in zip(positions, heights, domains_of(columns), strict=True):
        if np.isnan(height):
            continue
        axes.text(position, 1.5, f"{height:.0f}", ha="center", va="bottom", fontsize=7, color="white")
        tasks = [row.cells[column.name] for column in columns if column.domain == domain]
        if len(tasks) > 1:
            axes.plot([position] * len(tasks), [mean for mean, _ in tasks], ".", color="black", markersize=4)
        elif not np.isnan(tasks[0][1]):
            axes.errorbar(position, height, yerr=tasks[0][1], color="black", linewidth=0.8, capsize=2)


def _published(axes: "Axes", left: float, means: list[tuple[float, str]]) -> None:
    """Dashes at the heights of the published scores (sorted), with their names moved apart to be read."""
    heights: list[float] = []
    for mean, _ in means:
        heights.append(max(mean, heights[-1] + NAME_HEIGHT) if heights else mean)
    surplus = max(0.0, heights[-1] - 105) if heights else 0.0
    for (mean, label), height in zip(means, heights, strict=True):
        axes.plot([left + 0.01, left + 0.05], [mean, mean], color=GREY, linewidth=2)
        axes.text(left + 0.06, height - surplus, f"{label} {mean:.0f}", va="center", fontsize=5.5, color="#555555")


def _domain_label(domain: str, columns: Sequence[Column]) -> str:
    short = short_names(columns)
    names = [short[column.name] for column in columns if column.domain == domain]
    return domain + "\n" + ("\n".join(names) if len(names) < 4 else f"mean of {len(names)} tasks")
