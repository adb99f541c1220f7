"""Which runs a study has, where their results lie, and which of them this process does.

    DIR/study.json                 what all runs share: scale, crops, data, tasks; the rows and the number of seeds
    DIR/runs/ROW/seed-N/           a training run
    DIR/results/ROW.seed-N.json    its scores, small; it is there when the run is finished

A run's number counts the rows of the first seed, then those of the second, so a study that is stopped has whole seeds.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hear_jepa.disk import locked, read_json, write_json
from hear_jepa.errors import OptionError
from hear_jepa.files.shards import parse_shard
from hear_jepa.train.config import differences

STUDY_FILE = "study.json"


@dataclass(frozen=True)
class StudyRun:
    row: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row}.seed-{self.seed}"


@dataclass(frozen=True)
class Study:
    """What study.json holds."""

    scale: str
    options: dict[str, Any]  # of the scale
    crops: int  # of the main row
    data: str  # tells one corpus from another, wherever it lies
    hours: float  # of sound in the data
    tasks: dict[str, str]  # fingerprints by name
    seeds: int
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)  # what differs, by the row's name

    @property
    def runs(self) -> list[StudyRun]:
        return [StudyRun(row, seed) for seed in range(self.seeds) for row in self.rows]


def run_folder(out: Path, run: StudyRun) -> Path:
    return out / "runs" / run.row / f"seed-{run.seed}"


def result_path(out: Path, run: StudyRun) -> Path:
    return out / "results" / f"{run.name}.json"


def read_study(out: Path) -> Study:
    """The study in a folder; raises OptionError where there is none."""
    path = out / STUDY_FILE
    try:
        return Study(**read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise OptionError(f"{out} holds no study ({error}): name the --out of `study run`") from error


def join_study(out: Path, study: Study) -> Study:
    """Begin the study in a folder, or add rows and seeds to the one that is there.

    Raises OptionError where anything else differs: its runs could not be compared.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / f".{STUDY_FILE}.lock", timeout_s=-1):  # the processes of a SLURM array begin together
        if (out / STUDY_FILE).exists():
            study = _joined(out, read_study(out), study)
        write_json(out / STUDY_FILE, asdict(study))
    return study


def _joined(out: Path, before: Study, now: Study) -> Study:
    old, new = asdict(before), asdict(now)
    for rows in (old["rows"], new["rows"]):  # of those that both name, what differs in them
        for name in before.rows.keys() ^ now.rows.keys():
            rows.pop(name, None)
    old["seeds"] = new["seeds"]
    differing = differences(old, new)
    if differing:
        raise OptionError(f"{out} holds a study with other settings ({'; '.join(differing)}): name another --out")
    return replace(now, rows=before.rows | now.rows, seeds=max(before.seeds, now.seeds))


def missing_runs(out: Path, study: Study) -> list[int]:
    """The numbers of the runs without a result."""
    return [number for number, run in enumerate(study.runs) if not result_path(out, run).is_file()]


def read_results(out: Path, study: Study) -> list[dict[str, Any]]:
    """The results that there are, in the order of their runs."""
    paths = [result_path(out, run) for run in study.runs]
    return [read_json(path) for path in paths if path.is_file()]


def share(runs: Sequence[int], shard: str | None, environment: Mapping[str, str] = os.environ) -> list[int]:
    """The runs, of these numbers, that this process does.

    "I/N": every N-th from the I-th (from 0) on. Without it, in a SLURM array 0-(N-1) likewise; in any other array, such
    as the one that `status` prints, the run whose number is the array task's.
    """
    if shard is None and (task := environment.get("SLURM_ARRAY_TASK_ID")) is not None:
        count, last = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", -1)) for name in ("COUNT", "MAX"))
        if last != count - 1:
            return [number for number in runs if number == int(task)]
        shard = f"{task}/{count}"
    if shard is None:
        return list(runs)
    part = parse_shard(shard)
    return list(runs[part.index :: part.count])
