"""The paper's experiments.

    python -m hear_jepa.train.study run --scale tiny --data shards --tasks tasks --out study --dry-run   # what it takes
    python -m hear_jepa.train.study run --scale tiny --data shards --tasks tasks --out study   # again after a kill
    python -m hear_jepa.train.study run … --shard 0/2 & python -m hear_jepa.train.study run … --shard 1/2
    python -m hear_jepa.train.study status study       # what is missing, for sbatch --array
    python -m hear_jepa.train.study report study       # study/report.md and report.png

Every row with every seed is one pretraining run and one linear probe of its frozen features. A row is a TOML file with
what differs from the scale; --rows-dir adds rows of your own. A scale may be a TOML file of yours, too.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from hear_jepa.cli import exit_code
from hear_jepa.device import choose_device
from hear_jepa.errors import HearJepaError, OptionError
from hear_jepa.evaluation.tasks import Task
from hear_jepa.files.shards import array_expression
from hear_jepa.options import check_least, choose
from hear_jepa.progress import progress_bar
from hear_jepa.train.config import TrainConfig, to_json
from hear_jepa.train.ranks import is_main_rank
from hear_jepa.train.study.plan import (
    Study,
    join_study,
    missing_runs,
    read_study,
    result_path,
    run_folder,
    share,
)
from hear_jepa.train.study.rows import find_rows, find_scale, resolve, seconds_of_sound
from hear_jepa.train.study.runs import Stopped, do_run, read_tasks
from hear_jepa.train.study.sound import check_hours, survey

log = logging.getLogger("hear_jepa.train.study")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("hear_jepa.train.study", None, __doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    run_command = commands.add_parser("run", help="train and probe what is missing")
    run_command.add_argument("--scale", required=True, metavar="tiny|small|paper|FILE.toml", help="size of every run")
    run_command.add_argument("--data", required=True, help="folder or URL of shards, or a folder of sounds")
    run_command.add_argument("--tasks", required=True, type=Path, help="folder of HEAR-format tasks")
    run_command.add_argument("--out", required=True, type=Path, help="folder of the study")
    run_command.add_argument("--seeds", type=int, default=3, help="runs a row, seeds from 0 on (default: 3)")
    run_command.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows (default: all)")
    run_command.add_argument("--rows-dir", type=Path, help="a folder of further rows, one TOML file each")
    run_command.add_argument("--crops", type=int, help="crops of the main row; the other rows hear as many seconds")
    run_command.add_argument("--shard", metavar="I/N", help="every N-th run from the I-th on (default: SLURM's)")
    run_command.add_argument("--dry-run", action="store_true", help="measure a few steps of every row; start nothing")
    run_command.set_defaults(function=run)
    for name, function, text in (
        ("status", status, "print the missing runs as SLURM's --array takes them"),
        ("report", report, "write report.md and report.png"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("out", type=Path, metavar="DIR", help="the --out of `run`")
        if name == "report":
            command.add_argument("--split", choices=("test", "valid"), default="test", help="valid: to choose a recipe")
        command.set_defaults(function=function)
    return top


def run(arguments: argparse.Namespace) -> int:
    """Do this process's share of the study; exit code 1 where a run failed or was stopped."""
    study, configs, tasks = plan(arguments)
    if arguments.dry_run:
        return _dry_run(study, configs, tasks, arguments.data)
    if is_main_rank():
        study = join_study(arguments.out, study)
    names = [number for number, one in enumerate(study.runs) if one.row in configs and one.seed < arguments.seeds]
    mine = share(names, arguments.shard)
    todo = [study.runs[number] for number in mine if not result_path(arguments.out, study.runs[number]).is_file()]
    log.info("%d runs are this process's, %d of them are still to do", len(mine), len(todo))
    if "RANK" in os.environ and len(todo) > 1:
        raise OptionError(f"under torchrun one run at a time, here {len(todo)}: name one row, and one seed by --shard")
    failed = 0
    with tqdm(total=len(todo), desc="study", unit="run", disable=not sys.stderr.isatty(), position=1) as bar:
        for number, one in enumerate(todo, 1):
            bar.set_postfix_str(one.name)
            try:
                outcome = do_run(configs[one.row], one, arguments.out, arguments.data, tasks)
            except Stopped as error:
                log.warning("%s", error)
                return 1
            except HearJepaError as error:  # the other rows still count
                failed, outcome = failed + 1, f"FAILED: {error}"
            bar.update()
            log.info("%d of %d: %s: %s", number, len(todo), one.name, outcome)
    return 1 if failed else 0


def plan(arguments: argparse.Namespace) -> tuple[Study, dict[str, TrainConfig], list[Task]]:
    """The study, the options of its rows and the tasks. Everything that can be refused is refused here."""
    check_least(arguments.seeds, 1, "--seeds")
    if arguments.crops is not None:
        check_least(arguments.crops, 1, "--crops")
    known = find_rows(arguments.rows_dir)
    rows = {name: choose(known, name, "--rows") for name in arguments.rows or known}
    scale = find_scale(arguments.scale)
    configs = {name: resolve(scale, name, changes, arguments.crops) for name, changes in rows.items()}
    tasks = read_tasks(arguments.tasks)
    sound = survey(arguments.data)
    for name, config in configs.items():
        check_hours(sound, seconds_of_sound(config), f"row {name}")
    study = Study(
        scale=arguments.scale,
        options=to_json(scale),
        crops=arguments.crops or scale.optim.steps * scale.optim.batch_size,
        data=sound.fingerprint,
        hours=round(sound.hours, 3),
        tasks={task.name: task.fingerprint for task in tasks},
        seeds=arguments.seeds,
        rows=rows,
    )
    return study, configs, tasks


def _dry_run(study: Study, configs: dict[str, TrainConfig], tasks: list[Task], data: str) -> int:
    from hear_jepa.train.study.estimate import estimate, markdown

    estimates = {}
    for name, config in progress_bar(configs.items(), "measure", len(configs), unit="row"):
        estimates[name] = estimate(config, data, tasks)
    first = next(iter(configs.values()))
    print(markdown(estimates, study.seeds, first.optim.batch_size, choose_device(first.compute.device).type))
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Print the missing runs on stdout, as an array expression, and how far the study is on stderr."""
    study = read_study(arguments.out)
    missing = missing_runs(arguments.out, study)
    for number in missing:
        one = study.runs[number]
        begun = "begun" if run_folder(arguments.out, one).is_dir() else "not begun"
        print(f"{number:4d}  {one.name}: {begun}", file=sys.stderr)
    print(f"{len(study.runs) - len(missing)} of {len(study.runs)} runs are finished", file=sys.stderr)
    print(array_expression(missing))
    return 0


def report(arguments: argparse.Namespace) -> int:
    from hear_jepa.train.study.report import write_report

    for path in write_report(arguments.out, arguments.split):
        print(path)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; exit codes as those of `hear-jepa`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    parsed = parser().parse_args(arguments)
    with logging_redirect_tqdm():
        return exit_code(lambda: parsed.function(parsed), "hear_jepa.train.study")


if __name__ == "__main__":
    sys.exit(main())
