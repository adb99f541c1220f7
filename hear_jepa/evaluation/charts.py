"""The figure of an evaluation: one panel a protocol, bars grouped by domain, published scores as grey dashes."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hear_jepa.evaluation.tasks import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hear_jepa.evaluation.table import PublishedRow, Row

COLOURS = ("#2a6f97", "#e07a1f", "#4f9d69", "#b5446e", "#7b5ea7", "#8a7340", "#3aa6b9", "#d1495b")
GREY = "#9a9a9a"
GROUP_WIDTH = 0.9  # of the distance between two domains
STRIP_WIDTH = 0.34  # of it, for published scores
NAME_HEIGHT = 3.2  # per cent that a name needs


def draw(path: Path, rows: "list[Row]", published: "list[PublishedRow]", tasks: list[Task], split: str) -> None:
    """Write a PNG. A bar is a model's mean over a domain's tasks, the dots on it these tasks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    protocols = list(dict.fromkeys(row.protocol for row in rows))
    figure = Figure(figsize=(11, 0.6 + 4.2 * len(protocols)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(protocols), 1, squeeze=False)[:, 0]
    for axes, protocol in zip(panels, protocols, strict=True):
        _panel(axes, [row for row in rows if row.protocol == protocol], published, tasks)
        axes.set_title(f"{protocol} probe, {split} splits" if protocol != "hear" else "hear-eval-kit, test splits")
    figure.savefig(path, format="png")


def _panel(axes: "Axes", rows: "list[Row]", published: "list[PublishedRow]", tasks: list[Task]) -> None:
    from hear_jepa.evaluation.table import domain_means, domains_of

    domains = domains_of(tasks)
    strip = STRIP_WIDTH if published else 0.0  # at the right of each group, for the published scores
    width = (GROUP_WIDTH - strip) / max(1, len(rows))
    for index, row in enumerate(rows):
        offset = (index + 0.5) * width - GROUP_WIDTH / 2
        cells = {name: mean for name, (mean, _) in row.cells.items()}
        _bars(axes, np.arange(len(domains)) + offset, width, row.label, cells, tasks, COLOURS[index % len(COLOURS)])
    for position, domain in enumerate(domains):
        means = [(domain_means(row.cells, tasks).get(domain, np.nan), row.label) for row in published]
        _published(axes, position + GROUP_WIDTH / 2 - strip, sorted(m for m in means if not np.isnan(m[0])))
    if published:
        axes.plot([], [], color=GREY, linewidth=2, label="published by others,\nnot measured here")
    axes.set_xticks(range(len(domains)), [_domain_label(domain, tasks) for domain in domains], fontsize=9)
    axes.set_xlim(-0.55, len(domains) - 0.45)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("score, %")
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)


def _bars(
    axes: "Axes",
    positions: np.ndarray,
    width: float,
    label: str,
    cells: dict[str, float],
    tasks: list[Task],
    colour: str,
) -> None:
    """A model's bar in every domain, its height in white at the foot, a dot for each task."""
    from hear_jepa.evaluation.table import domain_means, domains_of

    means = domain_means(cells, tasks)
    heights = [means.get(domain, np.nan) for domain in domains_of(tasks)]
    axes.bar(positions, heights, width * 0.92, label=label, color=colour)
    for position, height, domain in zip(positions, heights, domains_of(tasks), strict=True):
        if np.isnan(height):
            continue
        axes.text(position, 1.5, f"{height:.0f}", ha="center", va="bottom", fontsize=7, color="white")
        dots = [cells[task.name] for task in tasks if task.domain == domain and task.name in cells]
        if len(dots) > 1:
            axes.plot([position] * len(dots), dots, ".", color="black", markersize=4)


def _published(axes: "Axes", left: float, means: list[tuple[float, str]]) -> None:
    """Dashes at the heights of the published scores (sorted), with their names moved apart to be read."""
    heights: list[float] = []
    for mean, _ in means:
        heights.append(max(mean, heights[-1] + NAME_HEIGHT) if heights else mean)
    surplus = max(0.0, heights[-1] - 105) if heights else 0.0
    for (mean, label), height in zip(means, heights, strict=True):
        axes.plot([left + 0.01, left + 0.05], [mean, mean], color=GREY, linewidth=2)
        axes.text(left + 0.06, height - surplus, f"{label} {mean:.0f}", va="center", fontsize=5.5, color="#555555")


def _domain_label(domain: str, tasks: list[Task]) -> str:
    names = [task.name.rsplit("-", 1)[0] for task in tasks if task.domain == domain]
    return domain + "\n" + ("\n".join(names) if len(names) < 4 else f"mean of {len(names)} tasks")
