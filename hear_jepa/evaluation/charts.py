"""The chart of an evaluation: one panel a protocol, bars grouped by domain."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hear_jepa.evaluation.table import Column, Row, domain_means, domains_of, short_names
from hear_jepa.figures import new_figure, save_figure

COLOURS = ("#2a6f97", "#e07a1f", "#4f9d69", "#b5446e", "#7b5ea7", "#8a7340", "#3aa6b9", "#d1495b")
GROUP_WIDTH = 0.9  # of the distance between two domains


def draw(path: Path, rows: list[Row], columns: Sequence[Column], split: str) -> None:
    """Write a PNG. A bar is a model's mean over a domain's tasks, the dots on it these tasks."""
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    figure = new_figure(11, 0.6 + 3.4 * len(protocols))
    panels = figure.subplots(len(protocols), 1, squeeze=False)[:, 0]
    for axes, protocol in zip(panels, protocols, strict=True):
        _panel(axes, [row for row in rows if row.protocol == protocol], columns)
        titles = {"hear": "hear-eval-kit, test splits", "retrieval": f"retrieval, mAP, {split} splits"}
        axes.set_title(titles.get(protocol, f"{protocol} probe, {split} splits"))
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure, path)


def _panel(axes: Any, rows: list[Row], columns: Sequence[Column]) -> None:
    domains, short = domains_of(columns), short_names(columns)
    width = GROUP_WIDTH / max(1, len(rows))
    tasks = {domain: [column.name for column in columns if column.domain == domain] for domain in domains}
    for index, row in enumerate(rows):
        means = domain_means(row.means, columns)
        positions = np.arange(len(domains)) + (index + 0.5) * width - GROUP_WIDTH / 2
        heights = [means.get(domain, np.nan) for domain in domains]
        axes.bar(positions, heights, 0.92 * width, label=row.label, color=COLOURS[index % len(COLOURS)])
        for position, domain in zip(positions, domains, strict=True):
            if domain in means:
                text = f"{means[domain]:.0f}"
                axes.text(position, 1.5, text, ha="center", va="bottom", fontsize=7, color="white")
                scores = [row.means[name] for name in tasks[domain]]
                axes.plot([position] * len(scores), scores, ".", color="black", markersize=4)
    names = {d: "\n".join(short[name] for name in tasks[d]) if len(tasks[d]) < 4 else "" for d in domains}
    axes.set_xticks(range(len(domains)), [f"{d}\n{names[d] or f'{len(tasks[d])} tasks'}" for d in domains], fontsize=9)
    axes.set_ylim(0, 100)
    axes.set_ylabel("score, %")
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
