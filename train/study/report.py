"""report.md and report.png: what the study says, beside what the paper says."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hear_jepa.disk import write_text
from hear_jepa.errors import OptionError
from hear_jepa.evaluation.table import MISSING, table_head, table_line
from hear_jepa.train.study.claims import (
    DOMAINS,
    DURATION_ROWS,
    STRATEGIES,
    claims,
    nearest_published,
    published,
    published_gain,
)
from hear_jepa.train.study.picture import draw
from hear_jepa.train.study.plan import Study, read_results, read_study
from hear_jepa.train.study.rows import MAIN_ROW
from hear_jepa.train.study.statistics import MEAN, Interval, Scores

CELLS = [f"{strategy}-{domain}" for strategy in STRATEGIES for domain in DOMAINS]  # rows of the paper's first table


def write_report(out: Path, split: str = "test") -> list[Path]:
    """Write the report of the results that there are; returns what it wrote: the text, and a picture where there is a
    row of the paper beside the main one. Raises OptionError."""
    study = read_study(out)
    results = read_results(out, study)
    if not results:
        raise OptionError(f"{out} has no finished run yet: {len(study.runs)} are planned")
    text, picture = out / "report.md", out / "report.png"
    write_text(text, markdown(study, results, split))
    if not _is_of_the_paper(Scores(results, split)):
        return [text]
    draw(Scores(results, split), picture)
    return [text, picture]


def markdown(study: Study, results: Sequence[dict[str, Any]], split: str = "test") -> str:
    """The report as text; nothing in it but the results' scores and collapse figures depends on when they were made."""
    scores = Scores(results, split)
    paper = _is_of_the_paper(scores)
    parts = [  # title, lines, whether they say something of this study
        ("", _setting(study, results, split), True),
        ("", ["![scores and intervals](report.png)"], paper),
        ("The paper's claims", _claims(scores), paper),
        ("Masking × target domain", _cells(scores, CELLS), paper),
        ("Other rows", _cells(scores, [row for row in scores.rows if row not in CELLS]), paper),
        ("Rows", _cells(scores, list(scores.rows)), not paper),  # recipes, say
        ("Less the main row, paired by seed", _paired(scores), True),
        ("Duration of a crop", _durations(scores), paper),
        ("Collapse", _collapse(results), True),
        ("Published, not measured here", _published(), paper),
        ("Cost", _cost(results), True),
    ]
    told = [([f"## {title}", ""] if title else []) + [*lines, ""] for title, lines, is_told in parts if is_told]
    return "\n".join(line for lines in told for line in lines)


def _setting(study: Study, results: Sequence[dict[str, Any]], split: str) -> Iterator[str]:
    options = study.options
    yield f"# Study at scale {Path(study.scale).stem}"
    yield ""
    yield (
        f"{len(results)} of {len(study.runs)} runs: {len(study.rows)} rows, {study.seeds} seeds. Encoder "
        f"{options['encoder']['width']} × {options['encoder']['depth']}; {study.crops:,} crops of the main row, as "
        f"many seconds of sound in every other, from {study.hours:.2f} hours. Scores in per cent, {split} splits, of "
        "the linear probe of frozen features: mean ± half the 95 % interval over seeds (Student's t)."
    )


def _is_of_the_paper(scores: Scores) -> bool:
    """Whether there is a row of the paper to compare with the main one."""
    return any(row in (*CELLS, *DURATION_ROWS.values()) and row != MAIN_ROW for row in scores.rows)


def _claims(scores: Scores) -> Iterator[str]:
    yield "*agrees* or *disagrees*: the whole 95 % interval of the paired difference is on one side of 0; otherwise"
    yield "*undecided* at this scale. No correction for their number: of twenty true zeros one is decided by chance."
    yield ""
    yield from table_head("claim", "verdict", "points for it", "difference", "seeds", "published points for it")
    for claim in claims(scores):
        seeds = str(claim.difference.seeds) if claim.difference else MISSING
        number = _number(claim.difference, "+")
        yield table_line(claim.text, f"**{claim.verdict}**", number, claim.measured, seeds, claim.published or MISSING)
    yield ""
    yield "Published points are those of the claims on duration; the paper's on masking and domain are not here."
    yield "A claim on one task of the paper is tried on the nearest task here, which is not the same data."


def _cells(scores: Scores, rows: Sequence[str]) -> Iterator[str]:
    columns = _columns(scores)
    yield from table_head("row", *columns)
    for row in rows:
        yield table_line(row, *(_number(scores.of(row, _key(column))) for column in columns))


def _paired(scores: Scores) -> Iterator[str]:
    columns = _columns(scores)
    yield from table_head(f"row − {MAIN_ROW}", *columns)
    for row in scores.rows:
        if row != MAIN_ROW:
            yield table_line(row, *(_number(scores.difference(row, MAIN_ROW, _key(column)), "+") for column in columns))


def _durations(scores: Scores) -> Iterator[str]:
    yield "Points over crops of 2.08 s, paired by seed; every run hears equal seconds of sound and is evaluated with"
    yield "windows of its own length. *Published*: the paper's encoder on its task that asks the same kind of"
    yield "question."
    yield ""
    longer = [seconds for seconds in DURATION_ROWS if seconds != "2.08"]
    headings = [f"{seconds} s" for seconds in longer]
    yield from table_head("task", *headings, "nearest of the paper", *(f"published, {heading}" for heading in headings))
    for task in scores.tasks:
        name = nearest_published(task)
        pairs = [(DURATION_ROWS[seconds], DURATION_ROWS["2.08"]) for seconds in longer]
        ours = [_number(scores.difference(*pair, task), "+") for pair in pairs]
        theirs = [f"{published_gain(name, seconds):+.1f}" if name else MISSING for seconds in longer]
        yield table_line(task, *ours, name or MISSING, *theirs)


def _collapse(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "Of the context encoder at the last look: RankMe and deviation of embeddings less each position's mean, and"
    yield "the share of the variance that the position explains. Means over seeds, lowest and highest in brackets."
    yield ""
    yield from table_head("row", "RankMe", "of a width of", "content deviation", "position's share, %")
    for row in dict.fromkeys(result["row"] for result in results):
        own = [result for result in results if result["row"] == row]
        collapse = [result["collapse"] for result in own]
        cells = [_range(collapse, "rank_me", 1, 1), str(own[0]["width"])]
        yield table_line(row, *cells, _range(collapse, "content_std", 1, 2), _range(collapse, "position_share", 100, 0))


def _published() -> Iterator[str]:
    content = published()
    yield f"{content['source']}. Its data, its size and its tasks are others: compare the direction, not the level."
    yield ""
    tasks = list(content["durations"]["2.08"])
    yield from table_head("crop", *tasks)
    for seconds, figures in content["durations"].items():
        yield table_line(f"{seconds} s", *(f"{figures[task]:.1f}" for task in tasks))


def _cost(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    hours = sum(result["hours_of_training"] for result in results)
    machines = ", ".join(sorted({result["machine"] for result in results}))
    versions = ", ".join(sorted({result["version"] for result in results}))
    yield f"{hours:.1f} hours of training on {machines}; hear_jepa {versions}."


def _columns(scores: Scores) -> list[str]:
    """Tasks, categories of sound with more than one of them, and the mean of all."""
    categories = [name for name in scores.categories if list(scores.tasks.values()).count(name) > 1]
    return [*scores.tasks, *(f"*{name}*" for name in categories), f"**{MEAN}**"]


def _key(column: str) -> str:
    return column.strip("*")


def _number(score: Interval | None, sign: str = "") -> str:
    if score is None or math.isnan(score.mean):
        return MISSING
    return f"{score.mean:{sign}.1f}" + ("" if math.isnan(score.half_width) else f" ± {score.half_width:.1f}")


def _range(collapse: Sequence[dict[str, float]], name: str, times: float, digits: int) -> str:
    values = [times * figures[name] for figures in collapse if name in figures]
    if not values:
        return MISSING
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"
