"""What an evaluation leaves: results.json, results.md, results.png; and the table again, from results.json."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from hear_jepa.disk import read_json, write_json, write_text
from hear_jepa.errors import OptionError
from hear_jepa.evaluation.charts import draw
from hear_jepa.evaluation.runs import RunResult
from hear_jepa.evaluation.table import columns_of, markdown, measured_rows, published_rows

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"  # of the table inside another document


def write_results(out: Path, results: Sequence[RunResult], split: str, chart: bool = True) -> None:
    """Write the three files; called after every run, without the chart, so that a long evaluation can be followed."""
    columns = columns_of(results)
    content = {
        "split": split,
        "measured": [asdict(result) for result in results],
        "published": [asdict(row) for row in published_rows(columns)],
    }
    write_json(out / "results.json", content)
    write_text(out / "results.md", markdown(results, split))
    rows = measured_rows(results, split)
    if chart and any(row.cells for row in rows):
        draw(out / "results.png", rows, columns, split)


def read_results(paths: Iterable[str | Path]) -> tuple[list[RunResult], str]:
    """The measured results of results.json files and their split, which must be one. Raises `OptionError`."""
    results, splits = [], set()
    for path in paths:
        try:
            content = read_json(path)
            results += [RunResult(**result) for result in content["measured"]]
            splits.add(content["split"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionError(f"{path} is no results.json of `hear-jepa evaluate` ({error})") from error
    if len(splits) != 1:
        raise OptionError(f"the files hold scores of different splits: {', '.join(sorted(splits))}; give those of one")
    return results, splits.pop()


def replace_table(document: Path, table: str) -> None:
    """Put a table between the two marks of a document, in place of what stands there. Raises `OptionError`."""
    text = document.read_text(encoding="utf-8") if document.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise OptionError(f"{document}: the table goes between the lines {BEGIN} and {END}; write them there first")
    write_text(document, f"{before}{BEGIN}\n{table}{END}{after}")
