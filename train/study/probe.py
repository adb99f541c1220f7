"""The evaluation room's linear probe of a run's frozen features: validation splits choose, test splits are reported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hear_jepa.evaluation.model_spec import ModelSpec, load_spec
from hear_jepa.evaluation.runs import summarise
from hear_jepa.evaluation.scoring import check_protocol, main_score, score_task
from hear_jepa.evaluation.tasks import Task, find_tasks, read_task

PROTOCOL = "linear"


def read_tasks(folder: Path) -> list[Task]:
    """The tasks of a folder, checked: raises TaskError for one without a validation split, or that cannot be probed."""
    tasks = [read_task(path) for path in find_tasks(folder)]
    for task in tasks:
        check_protocol(task, PROTOCOL)
    return tasks


def probe_tasks(checkpoint: Path, tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """By task: its category of sound and its validation and test scores in per cent, means over folds or probe seeds.

    Windows are as long as the crops that the encoder was trained on: the checkpoint says so itself.
    """
    model = load_spec(ModelSpec(str(checkpoint), "hear_jepa", str(checkpoint)))
    found = {}
    for task in tasks:
        scores = summarise(score_task(task, model, protocol=PROTOCOL, device=str(model.device)))
        splits = scores[main_score(task, PROTOCOL)]
        found[task.name] = {"category": task.domain} | {split: 100 * splits[split]["mean"] for split in splits}
    return found
