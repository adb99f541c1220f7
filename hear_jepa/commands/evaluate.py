"""`hear-jepa evaluate`: models × tasks under one protocol or several, resumable, one table and one chart.

hear-jepa evaluate --tasks-dir tests/tasks --out results
hear-jepa evaluate --tasks-dir tasks --tasks esc50 --protocol hear --grid-points 1 --models hear_jepa --out results
hear-jepa evaluate --table results/results.json [--into README.md]
"""

import argparse
import importlib.util
import logging
import sys
from pathlib import Path

from hear_jepa.device import DEVICES
from hear_jepa.errors import OptionError
from hear_jepa.evaluation.baselines import DEFAULT_MODELS
from hear_jepa.evaluation.model_spec import parse_spec
from hear_jepa.evaluation.results import read_results, replace_table, write_results
from hear_jepa.evaluation.runs import Runner, RunOptions, RunResult
from hear_jepa.evaluation.scoring import PROTOCOLS, can_score, check_protocol
from hear_jepa.evaluation.table import markdown
from hear_jepa.evaluation.tasks import Task, find_tasks, read_task
from hear_jepa.progress import progress_bar

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks-dir", type=Path, help="folder of HEAR-format task folders")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="only these tasks (default: all of --tasks-dir)")
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="SPEC",
        default=list(DEFAULT_MODELS),
        help="MODULE[:WEIGHTS][,OPTION=VALUE…] of HEAR modules, e.g. hear_jepa hear_jepa:path.safetensors "
        f"hear_jepa:tiny,hop_ms=80 hearbaseline (default: {' '.join(DEFAULT_MODELS)})",
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=(*PROTOCOLS, "hear"),
        default=["linear"],
        help="linear: the paper's linear probe; knn: nearest neighbours; retrieval: mAP of clips ranked by cosine; "
        "hear: hear-eval-kit, unmodified",
    )
    parser.add_argument("--out", type=Path, help="folder of the results; run again to continue")
    parser.add_argument(
        "--splits",
        choices=("test", "valid"),
        default="test",
        help="valid: never look at the test splits (not for hear)",
    )
    parser.add_argument("--grid-points", type=int, default=8, help="hear: grid points of the model selection")
    parser.add_argument("--grid", choices=("default", "fast", "faster"), default="default", help="hear: which grid")
    parser.add_argument("--device", default="auto", help=f"of models and probes: {DEVICES} (default: auto)")
    parser.add_argument(
        "--table", nargs="+", type=Path, metavar="FILE", help="evaluate nothing: print the table of these results.json"
    )
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help="with --table: put it between the marks of a document"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.table:
        return _table(arguments.table, arguments.into)
    tasks = _checked_tasks(arguments)
    specs = [parse_spec(text) for text in arguments.models]
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("hear_jepa").setLevel(logging.INFO)
    options = RunOptions(arguments.splits, arguments.grid_points, arguments.grid, arguments.device)
    runner = Runner(arguments.out, options)
    todo = [(s, p, t) for s in specs for p in arguments.protocol for t in tasks if can_score(t, p)]
    results: list[RunResult] = []
    with progress_bar(desc="evaluate", total=len(todo), unit="run", miniters=0) as bar:
        for number, (spec, protocol, task) in enumerate(todo, start=1):
            name = f"{spec.text} {task.name} {protocol}"

            def report(text: str, name: str = name) -> None:
                bar.set_postfix_str(f"{name}: {text}", refresh=False)
                bar.update(0)

            result = runner.run(spec, task, protocol, report)
            results.append(result)
            bar.update()
            if not sys.stderr.isatty():
                logger.info("%d/%d %s: %s", number, len(todo), name, _outcome(result, arguments.splits))
            write_results(arguments.out, results, arguments.splits, chart=False)
    write_results(arguments.out, results, arguments.splits)
    failed = [result for result in results if result.error]
    for result in failed:
        logger.error("failed: %s on %s (%s): %s", result.model, result.task, result.protocol, result.error)
    return 1 if failed else 0


def _checked_tasks(arguments: argparse.Namespace) -> list[Task]:
    """Everything that can be refused before a model runs."""
    if arguments.tasks_dir is None or arguments.out is None:
        raise OptionError("give --tasks-dir and --out; or --table with the results.json of an earlier evaluation")
    if arguments.splits == "valid" and "hear" in arguments.protocol:
        raise OptionError("--splits valid: hear-eval-kit always scores the test split; use another --protocol")
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError("the chart needs matplotlib: pip install matplotlib")
    if "hear" in arguments.protocol and importlib.util.find_spec("heareval") is None:
        raise OptionError("--protocol hear needs hear-eval-kit: `make demo` installs it, docs/hear.md says how by hand")
    tasks = [read_task(folder) for folder in find_tasks(arguments.tasks_dir, arguments.tasks)]
    probes = [protocol for protocol in arguments.protocol if protocol != "hear"]
    for task in tasks:
        for protocol in probes:
            if can_score(task, protocol):
                check_protocol(task, protocol)
    if not any(can_score(task, protocol) for task in tasks for protocol in arguments.protocol):
        raise OptionError("--protocol retrieval compares whole clips, and these are all event tasks; use linear or knn")
    return tasks


def _outcome(result: RunResult, split: str) -> str:
    if result.error:
        return f"FAILED: {result.error}"
    return f"{100 * result.shown(split)['mean']:.1f} % ({result.seconds:.0f} s)"


def _table(paths: list[Path], into: Path | None) -> int:
    table = markdown(*read_results(paths))
    if into is None:
        sys.stdout.write(table)
    else:
        replace_table(into, table)
    return 0
