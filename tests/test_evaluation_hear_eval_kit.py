"""`--protocol hear` runs the unmodified hear-eval-kit.

* Its result file is read fold by fold, the aggregate and the settings aside.
* A task of another rate is copied resampled, once, under the same names, and is a sound task; also by hand.
* The remedies act in the processes of heareval and hear-validator, and in no other.
* A whole event task runs (the case that today's Lightning breaks), its score is heareval's own, and neither embeddings
  nor ./logs stay. The plain `python -m heareval…` commands are what is run.
* When heareval fails, the error carries the end of its log. (The last two where heareval is installed.)
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import soundfile
from evaluation_fixtures import write_event_task, write_scene_task

from hear_jepa.errors import TaskError
from hear_jepa.evaluation.hear_eval_kit import SCORES_FILE, read_scores, run_heareval
from hear_jepa.evaluation.model_spec import load_spec
from hear_jepa.evaluation.resample import main, resampled_copy
from hear_jepa.evaluation.tasks import read_task

needs_heareval = pytest.mark.skipif(importlib.util.find_spec("heareval") is None, reason="hear-eval-kit is not here")


def fold(test, valid):
    return {"test_top1_acc": test, "test_loss": 1.0, "test_score": test, "validation_score": valid, "epoch": 3}


def test_result_file_is_read_fold_by_fold(tmp_path):
    task = read_task(write_scene_task(tmp_path / "tones-v1", ("fold00", "fold01", "fold02"), clips=1))
    content = {
        "fold01": fold(0.5, 0.6),
        "fold00": fold(0.4, 0.3),
        "aggregated_scores": {"test_top1_acc_mean": 0.45, "validation_score_mean": 0.45},
        "hparams": {"lr": 0.001},
        "postprocessing": [],
        "score_mode": "max",
        "embedding_path": "embeddings/validation_score",
    }
    (tmp_path / SCORES_FILE).write_text(json.dumps(content))
    scores = read_scores(tmp_path / SCORES_FILE, task)
    assert scores.test == [{"top1_acc": 0.4}, {"top1_acc": 0.5}]
    assert scores.valid == [{"top1_acc": 0.3}, {"top1_acc": 0.6}]


def test_resampled_copy_is_a_sound_task(tmp_path):
    task = read_task(write_scene_task(tmp_path / "tones-v1", clips=1))
    folder = resampled_copy(task, 44100, tmp_path / "44100Hz")
    copy = read_task(folder, 44100)
    assert [clip.labels for clip in copy.clips["test"]] == [clip.labels for clip in task.clips["test"]]
    assert [clip.path.name for clip in copy.clips["test"]] == [clip.path.name for clip in task.clips["test"]]
    assert copy.clips["test"][0].samples == pytest.approx(task.clips["test"][0].samples * 44100 / 16000, abs=1)
    clip = copy.clips["test"][0].path
    before = clip.stat().st_mtime_ns
    assert resampled_copy(task, 44100, tmp_path / "44100Hz") == folder and clip.stat().st_mtime_ns == before
    assert list(folder.parent.iterdir()) == [folder]  # heareval takes every entry for a task
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_resampling_from_the_command_line(tmp_path, capsys):
    task = read_task(write_scene_task(tmp_path / "tasks" / "tones-v1", clips=1))
    assert main([str(tmp_path / "tasks"), str(tmp_path / "out"), "--from", "16000", "--to", "8000"]) == 0
    halved = read_task(tmp_path / "out" / "tones-v1", 8000).clips["train"][0]
    assert halved.samples == task.clips["train"][0].samples / 2
    assert main([str(tmp_path / "tasks"), str(tmp_path / "out")]) == 2
    assert "48000" in capsys.readouterr().err


HELD = """
import sys
from types import SimpleNamespace
import torch
from pathlib import Path
from hear_jepa.evaluation.hear_eval_kit import _run
if __name__ == "__main__":
    _run(sys.argv[2:], Path(sys.argv[1]), SimpleNamespace(device=torch.device("cpu")))
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_run_leaves_is_ended_or_waited_for(tmp_path, how):
    """In place of heareval a module that tells when it begins and when it ends."""
    (tmp_path / "held.py").write_text(HELD)
    (tmp_path / "slow.py").write_text(
        "import time\nopen('begun', 'w').close()\ntime.sleep(5)\nopen('ended', 'w').close()\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, str(tmp_path / "held.py"), str(tmp_path)]
    killed = subprocess.Popen([*command, "slow"], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(how)
    killed.wait()
    subprocess.run([*command, "this"], env=environment, check=True)  # works in the same folder
    assert (tmp_path / "ended").exists() == (how == signal.SIGKILL)


def test_remedies_act_in_the_tools_alone():
    printed = subprocess.run(
        [sys.executable, "-m", "hear_jepa.evaluation.hear_eval_kit"], capture_output=True, text=True, check=True
    )
    path = [printed.stdout.strip(), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path))

    def stubbed(*arguments):
        code = "import sys; print(hasattr(sys.modules.get('tensorflow'), 'Module'))"
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert stubbed() == "False"
    if importlib.util.find_spec("tensorflow") is None:
        assert stubbed("hear-validator") == "True"


@needs_heareval
def test_event_task_runs_and_leaves_no_litter(tmp_path):
    folder = write_event_task(tmp_path / "tasks" / "tones-v1")
    metadata = json.loads((folder / "task_metadata.json").read_text())
    quick = {"max_epochs": [20], "check_val_every_n_epoch": [20], "hidden_layers": [1], "lr": [1e-2]}
    metadata["evaluation_params"] = {"task_specific_param_grid": quick}
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    work_dir = tmp_path / "work"
    scores = run_heareval(load_spec("logmel-stats:hop_ms=80", "cpu"), read_task(folder), work_dir, grid_points=1)
    content = json.loads((work_dir / SCORES_FILE).read_text())
    assert scores.test == [{"event_onset_200ms_fms": content["test"]["test_event_onset_200ms_fms"]}]
    assert scores.test[0]["event_onset_200ms_fms"] > 0.2
    assert {path.name for path in work_dir.iterdir()} == {"heareval.log", SCORES_FILE}
    assert "predict - tones - " in (work_dir / "heareval.log").read_text()


@needs_heareval
def test_failure_carries_the_end_of_the_log(tmp_path):
    task = read_task(write_scene_task(tmp_path / "tasks" / "tones-v1", clips=1))
    model = load_spec("logmel-stats", "cpu")
    clip = task.clips["train"][0].path
    soundfile.write(clip, soundfile.read(clip)[0], 8000)  # damaged after it was checked
    with pytest.raises(TaskError, match=r"heareval.embeddings.runner ended with 1: AssertionError.*heareval\.log"):
        run_heareval(model, task, tmp_path / "work")
