"""The figure of an evaluation: one panel a protocol, bars grouped by domain, published scores drawn apart."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hear_jepa.errors import OptionError
from hear_jepa.evaluation.tasks import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hear_jepa.evaluation.report import PublishedRow, Row

COLOURS = ("#2a6f97", "#e07a1f", "#4f9d69", "#b5446e", "#7b5ea7", "#8a7340", "#3aa6b9", "#d1495b")
GREY = "#9a9a9a"
GROUP_WIDTH = 0.84  # of the distance between two domains


def draw(path: Path, rows: "list[Row]", published: "list[PublishedRow]", tasks: list[Task], split: str) -> None:
    """Write a PNG. A bar is a model's mean over a domain's tasks, the dots on it these tasks."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError("the figure needs matplotlib: pip install hear-jepa[eval]") from error
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    figure = Figure(figsize=(10, 0.6 + 4.2 * len(protocols)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(protocols), 1, squeeze=False)[:, 0]
    for axes, protocol in zip(panels, protocols, strict=True):
        _panel(axes, [row for row in rows if row.protocol == protocol], published, tasks)
        axes.set_title(f"{protocol} probe, {split} splits" if protocol != "hear" else "hear-eval-kit, test splits")
    figure.savefig(path, format="png")


def _panel(axes: "Axes", rows: "list[Row]", published: "list[PublishedRow]", tasks: list[Task]) -> None:
    from hear_jepa.evaluation.report import domains_of

    domains = domains_of(tasks)
    series = [(row.label, {name: mean for name, (mean, _) in row.cells.items()}, False) for row in rows]
    series += [(f"{row.label} (published)", row.cells, True) for row in published]
    width = GROUP_WIDTH / max(1, len(series))
    for index, (label, cells, foreign) in enumerate(series):
        offset = (index - (len(series) - 1) / 2) * width
        _bars(axes, np.arange(len(domains)) + offset, width, label, cells, tasks, index, foreign)
    axes.set_xticks(range(len(domains)), [_domain_label(domain, tasks) for domain in domains])
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
    index: int,
    foreign: bool,
) -> None:
    from hear_jepa.evaluation.report import domain_means, domains_of

    means = domain_means(cells, tasks)
    heights = [means.get(domain, np.nan) for domain in domains_of(tasks)]
    style = {"color": "white", "edgecolor": GREY, "hatch": "////"} if foreign else {"color": COLOURS[index % 8]}
    axes.bar(positions, heights, width * 0.92, label=label, **style)
    for position, height, domain in zip(positions, heights, domains_of(tasks), strict=True):
        if np.isnan(height):
            continue
        colour = "black" if foreign else "white"
        axes.text(position, 1.5, f"{height:.0f}", ha="center", va="bottom", fontsize=7, color=colour)
        dots = [cells[task.name] for task in tasks if task.domain == domain and task.name in cells]
        if len(dots) > 1:
            axes.plot([position] * len(dots), dots, ".", color="black", markersize=4)


def _domain_label(domain: str, tasks: list[Task]) -> str:
    names = [task.name.rsplit("-", 1)[0] for task in tasks if task.domain == domain]
    return domain + "\n" + ("\n".join(names) if len(names) < 4 else f"mean of {len(names)} tasks")
