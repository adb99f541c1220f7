"""`hear-jepa evaluate`: models × tasks under one protocol or several, resumable, one table and one figure.

hear-jepa evaluate --tasks-dir tests/tasks --models hear_jepa logmel-stats untrained --out results
hear-jepa evaluate --tasks-dir tasks --tasks esc50 --protocol hear --grid-points 1 --models hear_jepa --out results
"""

import argparse
import importlib.util
import logging
from pathlib import Path

from tqdm import tqdm

from hear_jepa.errors import OptionError
from hear_jepa.evaluation.baselines import BASELINES
from hear_jepa.evaluation.model_spec import parse_spec
from hear_jepa.evaluation.runs import Runner, Settings
from hear_jepa.evaluation.scoring import check_scores
from hear_jepa.evaluation.table import write_report
from hear_jepa.evaluation.tasks import find_tasks, read_task

logger = logging.getLogger(__name__)

PROTOCOLS = ("linear", "knn", "hear")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `hear-jepa evaluate`."""
    parser.add_argument("--tasks-dir", required=True, type=Path, help="folder of HEAR-format task folders")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="only these tasks (default: all of --tasks-dir)")
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="SPEC",
        default=["hear_jepa", *BASELINES],
        help="MODULE[:WEIGHTS][,OPTION=VALUE…] of HEAR modules, e.g. hear_jepa hear_jepa:path.safetensors "
        "hear_jepa:tiny,hop_ms=80 hearbaseline; built in: logmel-stats, untrained (default: hear_jepa and both)",
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=PROTOCOLS,
        default=["linear"],
        help="linear: the paper's linear probe; knn: nearest neighbours; hear: hear-eval-kit, unmodified",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the results; run again to continue")
    parser.add_argument(
        "--splits", choices=("test", "valid"), default="test", help="valid: never look at the test splits (linear, knn)"
    )
    parser.add_argument("--grid-points", type=int, default=8, help="hear: grid points of the model selection")
    parser.add_argument("--grid", choices=("default", "fast", "faster"), default="default", help="hear: which grid")
    parser.add_argument("--device", default="", help="of models and probes: cpu, cuda (default: cuda if present)")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate every pair; exit code 1 if one failed, TaskError or OptionError before any model runs."""
    if arguments.splits == "valid" and "hear" in arguments.protocol:
        raise OptionError("--splits valid: hear-eval-kit always scores the test split; use --protocol linear or knn")
    _check_libraries(arguments.protocol)
    specs = [parse_spec(text) for text in arguments.models]
    folders = find_tasks(arguments.tasks_dir, arguments.tasks)
    tasks = [read_task(folder) for folder in tqdm(folders, desc="checking tasks", leave=False)]
    if set(arguments.protocol) - {"hear"}:
        for task in tasks:
            check_scores(task)
    settings = Settings(arguments.splits, arguments.grid_points, arguments.grid, arguments.device)
    runner = Runner(arguments.out, settings)
    results = []
    total = len(specs) * len(tasks) * len(arguments.protocol)
    with tqdm(total=total, desc="evaluating", unit="pair") as progress:
        for spec in specs:
            for protocol in arguments.protocol:
                for task in tasks:
                    progress.set_postfix_str(f"{spec.text} {task.name} {protocol}")
                    results.append(runner.run(spec, task, protocol))
                    progress.update()
                    write_report(arguments.out, results, tasks, arguments.splits, figure=False)
    write_report(arguments.out, results, tasks, arguments.splits)
    failed = [result for result in results if result.error]
    for result in failed:
        logger.error("failed: %s on %s (%s): %s", result.model, result.task, result.protocol, result.error)
    return 1 if failed else 0


def _check_libraries(protocols: list[str]) -> None:
    """Raise `OptionError` for a library that only the end of a long evaluation would miss."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError("the figure needs matplotlib: pip install hear-jepa[eval]")
    if "hear" in protocols and importlib.util.find_spec("heareval") is None:
        raise OptionError("--protocol hear needs hear-eval-kit: `make demo` installs it, docs/hear.md says how by hand")
