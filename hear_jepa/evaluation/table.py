"""Results of runs -> a Markdown table; published scores stand apart from measured ones."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from hear_jepa.evaluation.runs import RunResult
from hear_jepa.evaluation.tasks import DOMAINS

MISSING = "–"
SCORE_NAMES = {
    "top1_acc": "accuracy",
    "pitch_acc": "pitch accuracy",
    "chroma_acc": "chroma accuracy",
    "event_onset_200ms_fms": "onset F, 200 ms",
    "event_onset_50ms_fms": "onset F, 50 ms",
}


@dataclass(frozen=True)
class Column:
    """A task of the table."""

    name: str
    domain: str
    kind: str
    score: str


@dataclass(frozen=True)
class Row:
    """A model under a protocol: mean and standard deviation in per cent by task (NaN: of one run alone)."""

    label: str
    protocol: str
    size: str
    cells: dict[str, tuple[float, float]]

    @property
    def means(self) -> dict[str, float]:
        return {name: mean for name, (mean, _) in self.cells.items()}


@dataclass(frozen=True)
class PublishedRow:
    """Scores that others published for official HEAR tasks, in per cent by task, and where."""

    label: str
    source: str
    cells: dict[str, float]


def columns_of(results: Sequence[RunResult]) -> list[Column]:
    """The tasks, domain by domain, with the score that the probes show (retrieval shows another)."""
    columns: dict[str, Column] = {}
    for result in sorted(results, key=lambda result: result.protocol == "retrieval"):
        columns.setdefault(result.task, Column(result.task, result.domain, result.kind, result.score))
    order = domains_of(list(columns.values()))
    return sorted(columns.values(), key=lambda column: order.index(column.domain))


def measured_rows(results: Iterable[RunResult], split: str) -> list[Row]:
    """One row a model and protocol, in the order of the results; failed runs are missing cells."""
    rows: dict[tuple[str, str], Row] = {}
    sizes: dict[tuple[str, str], set[int]] = {}
    for result in results:
        key = (result.model, result.protocol)
        row = rows.setdefault(key, Row(result.model, result.protocol, "", {}))
        score = result.shown(split)
        if score:
            std = score["std"] if len(score["runs"]) > 1 else np.nan
            row.cells[result.task] = (100 * score["mean"], 100 * std)
            sizes.setdefault(key, set()).add(result.embedding_size)
    return [
        Row(row.label, row.protocol, "/".join(map(str, sorted(sizes.get(key, ())))) or MISSING, row.cells)
        for key, row in rows.items()
    ]


def published_rows(columns: Sequence[Column]) -> list[PublishedRow]:
    """The published scores of those tasks that are official HEAR tasks, known by their full folder name."""
    stored = json.loads((files("hear_jepa.evaluation") / "published.json").read_text())
    names = {column.name for column in columns}
    rows = []
    for row in stored["rows"]:
        cells = {name: score for name, score in row["scores"].items() if name in names}
        if cells:
            rows.append(PublishedRow(row["model"], row["source"], cells))
    return rows


def domain_means(cells: Mapping[str, float], columns: Sequence[Column]) -> dict[str, float]:
    """Mean over the tasks of each domain; a domain of which a task is missing has none."""
    means = {}
    for domain in domains_of(columns):
        mean = _mean(cells, [column.name for column in columns if column.domain == domain])
        if mean is not None:
            means[domain] = mean
    return means


def _mean(cells: Mapping[str, float], names: Sequence[str]) -> float | None:
    return float(np.mean([cells[name] for name in names])) if all(name in cells for name in names) else None


def domains_of(columns: Sequence[Column]) -> list[str]:
    """The domains that occur, in the usual order."""
    present = {column.domain for column in columns}
    return [domain for domain in DOMAINS if domain in present] + sorted(present - set(DOMAINS))


def short_names(columns: Sequence[Column]) -> dict[str, str]:
    """The tasks' names without their versions, as long as these tell no two apart."""
    short = {column.name: column.name.split("-")[0] for column in columns}
    return {name: text if list(short.values()).count(text) == 1 else name for name, text in short.items()}


def markdown(results: Sequence[RunResult], split: str) -> str:
    """The table of measured scores, and below it what failed and what others have published for the same tasks."""
    columns = columns_of(results)
    lines = [f"Per cent on the {split} splits: mean ± standard deviation over the folds, or over 3 seeds.", ""]
    lines += _measured_table(measured_rows(results, split), columns)
    failures = [f"* {run.model}, {run.task}, {run.protocol}: {run.error}" for run in results if run.error]
    if failures:
        lines += ["", "Failed:", "", *failures]
    published = published_rows(columns)
    if published:
        lines += ["", "Published by others for the same HEAR tasks, with hear-eval-kit; **not measured here**.", ""]
        lines += _published_table(published, columns)
    return "\n".join(lines) + "\n"


def _measured_table(rows: list[Row], columns: list[Column]) -> list[str]:
    """With the means of the domains, where these are not the tasks over again, and of the scene tasks."""
    names = short_names(columns)
    groups: dict[str, list[str]] = {}
    if len(domains_of(columns)) < len(columns):
        groups = {domain: [c.name for c in columns if c.domain == domain] for domain in domains_of(columns)}
    scenes = [column.name for column in columns if column.kind == "scene"]
    if len(scenes) > 1:
        groups["scenes"] = scenes
    header = [f"{names[column.name]}<br>{SCORE_NAMES.get(column.score, column.score)}" for column in columns]
    lines = table_head("model", "protocol", "size", *header, *(f"**{group}**" for group in groups))
    for row in rows:
        protocol = f"{row.protocol}, mAP" if row.protocol == "retrieval" else row.protocol
        cells = [_cell(*row.cells.get(column.name, ())) for column in columns]
        cells += [_cell(_mean(row.means, members)) for members in groups.values()]
        lines.append(table_line(row.label, protocol, row.size, *cells))
    return lines


def _published_table(rows: list[PublishedRow], columns: list[Column]) -> list[str]:
    names = short_names(columns)
    lines = table_head("model", *(names[column.name] for column in columns), "source")
    for row in rows:
        lines.append(table_line(row.label, *(_cell(row.cells.get(column.name)) for column in columns), row.source))
    return lines


def _cell(mean: float | None = None, std: float = np.nan) -> str:
    if mean is None:
        return MISSING
    return f"{mean:.1f}" if np.isnan(std) else f"{mean:.1f} ± {std:.1f}"


def table_head(*names: str) -> list[str]:
    """The first two lines of a Markdown table."""
    return [table_line(*names), "|" + "---|" * len(names)]


def table_line(*cells: str) -> str:
    """Another line of it."""
    return "| " + " | ".join(cells) + " |"
