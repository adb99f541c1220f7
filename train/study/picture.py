"""The study as one picture: above, masking × target domain by category of sound; below, curves over the duration."""

from pathlib import Path
from typing import Any

from hear_jepa.figures import new_figure, save_figure
from hear_jepa.train.study.claims import DOMAINS, DURATION_ROWS, STRATEGIES, nearest_published, published_gain
from hear_jepa.train.study.statistics import MEAN, Scores

COLOURS = {"unstructured": "#2a6f97", "multi-block": "#e07a1f", "time": "#4f9d69"}
MARKERS = {"input": "o", "latent": "s"}
PUBLISHED = "#8a8a8a"
PANELS_A_ROW = 4


def draw(scores: Scores, path: Path) -> Path:
    n_rows = -(-len(scores.tasks) // PANELS_A_ROW)
    figure = new_figure(12, 4.6 + 2.7 * n_rows)
    above, below = figure.subfigures(2, 1, height_ratios=[4.6, 2.7 * n_rows + 0.6])
    _masking(above.subplots(), scores)
    below.suptitle("Crops of other durations, points over 2.08 s (mean and 95 % interval, paired by seed)")
    panels = list(below.subplots(n_rows, PANELS_A_ROW, squeeze=False).flat)
    for axes, task in zip(panels, scores.tasks, strict=False):
        _duration(axes, scores, task)
    for axes in panels[len(scores.tasks) :]:
        axes.set_axis_off()
    return save_figure(figure, path)


def _masking(axes: Any, scores: Scores) -> None:
    """Six marks a category: three strategies, each with filled (input) and open (latent) targets."""
    groups = [*scores.categories, MEAN]
    for index, (strategy, domain) in enumerate((s, d) for s in STRATEGIES for d in DOMAINS):
        found = {place: scores.of(f"{strategy}-{domain}", group) for place, group in enumerate(groups)}
        found = {place: score for place, score in found.items() if score}
        axes.errorbar(
            [place + 0.12 * (index - 2.5) for place in found],
            [score.mean for score in found.values()],
            yerr=[score.half_width for score in found.values()],
            label=f"{strategy}, {domain} domain",
            linestyle="",
            marker=MARKERS[domain],
            color=COLOURS[strategy],
            markerfacecolor=COLOURS[strategy] if domain == "input" else "white",
            capsize=3,
        )
    counts = list(scores.tasks.values())
    names = [f"{group}\n{_tasks(counts.count(group))}" for group in groups[:-1]]
    axes.set_xticks(range(len(groups)), [*names, f"all\n{_tasks(len(counts))}"])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylabel("linear probe, %")
    axes.set_title("Masking × target domain (mean and 95 % interval over seeds)")
    axes.legend(fontsize=8, ncols=3, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    _plain_frame(axes)


def _duration(axes: Any, scores: Scores, task: str) -> None:
    seconds = [float(text) for text in DURATION_ROWS]
    found = {text: scores.difference(row, DURATION_ROWS["2.08"], task) for text, row in DURATION_ROWS.items()}
    found = {text: gain for text, gain in found.items() if gain}
    axes.axhline(0, color="#bbbbbb", linewidth=0.8)
    axes.errorbar(
        [float(text) for text in found],
        [gain.mean for gain in found.values()],
        yerr=[0 if text == "2.08" else gain.half_width for text, gain in found.items()],
        marker="o",
        color=COLOURS["unstructured"],
        capsize=3,
        label="here",
    )
    name = nearest_published(task)
    if name:
        gains = [published_gain(name, text) for text in DURATION_ROWS]
        axes.plot(seconds, gains, "--", marker="x", color=PUBLISHED, label=f"published: {name}")
    axes.legend(fontsize=7, frameon=False)
    axes.set_title(task, fontsize=9)
    axes.set_xticks(seconds, list(DURATION_ROWS))
    axes.set_xlim(1.6, 6.9)
    axes.set_xlabel("crop, s", fontsize=8)
    axes.set_ylabel("points", fontsize=8)
    axes.tick_params(labelsize=8)
    _plain_frame(axes)


def _plain_frame(axes: Any) -> None:
    axes.grid(axis="y", color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _tasks(count: int) -> str:
    return f"{count} task" + ("s" if count > 1 else "")
