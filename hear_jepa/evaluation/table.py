"""Results of pairs -> results.json, results.md and results.png; published scores stand apart from measured ones."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from hear_jepa.disk import atomic_path
from hear_jepa.evaluation.runs import RunResult
from hear_jepa.evaluation.tasks import DOMAINS, Task

MISSING = "–"


@dataclass(frozen=True)
class Row:
    """One line of the table: a model under a protocol, its mean and deviation in per cent by task (NaN: of one run)."""

    label: str
    protocol: str
    size: str
    cells: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class PublishedRow:
    """Scores that others published for official HEAR tasks, in per cent by task, and where."""

    label: str
    source: str
    cells: dict[str, float]


def write_report(out: Path, results: list[RunResult], tasks: list[Task], split: str, figure: bool = True) -> None:
    """Write the three files; called after every pair, without the figure, so that a long run can be followed."""
    rows = measured_rows(results, split)
    published = published_rows(tasks)
    content = {
        "split": split,
        "measured": [asdict(result) for result in results],
        "published": [asdict(row) for row in published],
    }
    with atomic_path(out / "results.json") as path:
        path.write_text(json.dumps(content, indent=1))
    with atomic_path(out / "results.md") as path:
        path.write_text(markdown(rows, published, tasks, split, results))
    if figure and any(row.cells for row in rows):
        with atomic_path(out / "results.png") as path:
            from hear_jepa.evaluation.charts import draw

            draw(path, rows, published, tasks, split)


def measured_rows(results: Iterable[RunResult], split: str) -> list[Row]:
    """One row a model and protocol, in the order of the results; failed pairs are missing cells."""
    rows: dict[tuple[str, str], Row] = {}
    sizes: dict[tuple[str, str], set[int]] = {}
    for result in results:
        key = (result.model, result.protocol)
        row = rows.setdefault(key, Row(result.model, result.protocol, "", {}))
        if not result.error:
            score: dict[str, Any] = result.scores[result.score][split]
            deviation = score["std"] if len(score["runs"]) > 1 else np.nan
            row.cells[result.task] = (100 * score["mean"], 100 * deviation)
            sizes.setdefault(key, set()).add(result.embedding_size)
    return [
        Row(row.label, row.protocol, "/".join(map(str, sorted(sizes.get(key, ())))) or MISSING, row.cells)
        for key, row in rows.items()
    ]


def published_rows(tasks: list[Task]) -> list[PublishedRow]:
    """The published scores of those tasks that are official HEAR tasks, told by their full folder name."""
    stored = json.loads((files("hear_jepa.evaluation") / "published.json").read_text())
    names = {task.name for task in tasks}
    rows = []
    for row in stored["rows"]:
        cells = {name: score for name, score in row["scores"].items() if name in names}
        if cells:
            rows.append(PublishedRow(row["model"], row["source"], cells))
    return rows


def domain_means(cells: dict[str, float], tasks: list[Task]) -> dict[str, float]:
    """Mean over the tasks of each domain; a domain of which a task is missing has none."""
    means = {}
    for domain in domains_of(tasks):
        names = [task.name for task in tasks if task.domain == domain]
        if all(name in cells for name in names):
            means[domain] = float(np.mean([cells[name] for name in names]))
    return means


def domains_of(tasks: list[Task]) -> list[str]:
    """The domains that occur, in the usual order."""
    present = {task.domain for task in tasks}
    return [domain for domain in DOMAINS if domain in present] + sorted(present - set(DOMAINS))


def markdown(
    rows: list[Row], published: list[PublishedRow], tasks: list[Task], split: str, results: list[RunResult]
) -> str:
    """The table of measured scores with the mean per domain, and below it that of published ones."""
    domains = domains_of(tasks)
    tasks = sorted(tasks, key=lambda task: domains.index(task.domain))
    header = ["model", "protocol", "size", *(f"{task.name}<br>{task.scores[0]}" for task in tasks)]
    header += [f"**{domain}**" for domain in domains]
    lines = [f"Measured here, {split} splits, per cent: mean ± deviation over the folds, or over 3 seeds.", ""]
    lines += _table_head(header)
    for row in rows:
        means = domain_means({name: mean for name, (mean, _) in row.cells.items()}, tasks)
        cells = [_cell(*row.cells.get(task.name, ())) for task in tasks]
        cells += [_cell(means.get(domain)) for domain in domains]
        lines.append(_line([row.label, row.protocol, row.size, *cells]))
    failures = [result for result in results if result.error]
    if failures:
        lines += ["", "Failed:", ""]
        lines += [f"* {result.model}, {result.task}, {result.protocol}: {result.error}" for result in failures]
    if published:
        lines += ["", "Published by others for the same HEAR tasks, with hear-eval-kit; **not measured here**.", ""]
        lines += _table_head(["model", *(task.name for task in tasks), "source"])
        for entry in published:
            cells = [_cell(entry.cells.get(task.name)) for task in tasks]
            lines.append(_line([entry.label, *cells, entry.source]))
    return "\n".join(lines) + "\n"


def _cell(mean: float | None = None, deviation: float = np.nan) -> str:
    if mean is None:
        return MISSING
    return f"{mean:.1f}" if np.isnan(deviation) else f"{mean:.1f} ± {deviation:.1f}"


def _table_head(names: list[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
