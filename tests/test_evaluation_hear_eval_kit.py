"""`--protocol hear` runs the unmodified hear-eval-kit.

* Its result file is read fold by fold; a task of another rate is copied resampled, once, and is a sound task.
* A whole event task runs (the case that today's Lightning breaks), its score is heareval's own, and nothing else stays.
* When heareval fails, the error carries the end of its log; embeddings that are not finite are named before it trains.
* What a killed run has started is ended with it (SIGTERM), or waited for by the next run (SIGKILL).
"""

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_fixtures import write_event_task, write_scene_task

from hear_jepa.errors import TaskError
from hear_jepa.evaluation.hear_eval_kit import (
    PYTHONPATH_DIR,
    SCORES_FILE,
    _check_finite,
    _run,
    read_scores,
    run_heareval,
)
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


def test_resampled_copy_is_a_sound_task_also_by_hand(tmp_path, capsys):
    task = read_task(write_scene_task(tmp_path / "tasks" / "tones-v1", clips=1))
    folder = resampled_copy(task, 44100, tmp_path / "44100Hz")
    copied, clips = read_task(folder, 44100).clips["test"], task.clips["test"]
    assert [(clip.labels, clip.path.name) for clip in copied] == [(clip.labels, clip.path.name) for clip in clips]
    assert copied[0].samples == pytest.approx(clips[0].samples * 44100 / 16000, abs=1)
    before = copied[0].path.stat().st_mtime_ns
    assert resampled_copy(task, 44100, tmp_path / "44100Hz") == folder
    assert copied[0].path.stat().st_mtime_ns == before
    assert list(folder.parent.iterdir()) == [folder]  # heareval takes every entry for a task
    assert not list(folder.glob(".*"))
    tasks, out = str(tmp_path / "tasks"), str(tmp_path / "out")
    for rate in (4000, 8000):  # the copy of another rate does not stand for this one
        assert main([tasks, out, "--from", "16000", "--to", str(rate)]) == 0
        length = read_task(tmp_path / "out" / "tones-v1", rate).clips["test"][0].samples
        assert length == clips[0].samples * rate / 16000
    for command in ([tasks, tasks, "--from", "16000"], [out, out, "--from", "8000", "--to", "4000"]):
        assert main(command) == 2  # never over the task itself, nor over what is no copy
    assert "name another folder" in capsys.readouterr().err
    assert read_task(task.folder).fingerprint == task.fingerprint
    assert read_task(tmp_path / "out" / "tones-v1", 8000).clips["test"][0].samples == clips[0].samples / 2
    assert main([str(tmp_path / "tasks"), str(tmp_path / "out")]) == 2
    assert "48000" in capsys.readouterr().err


CPU = SimpleNamespace(device=torch.device("cpu"))
SLOW = """
import pathlib, time
pathlib.Path("begun").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.01)
pathlib.Path("ended").touch()
"""


@pytest.fixture
def in_place_of_heareval(tmp_path, monkeypatch):
    """Modules that `_run` finds; they tell when they begin, wait for leave, and tell when they end."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "quick.py").write_text("import pathlib\npathlib.Path('after').touch()\n")
    (tmp_path / "broken.py").write_text("print('much')\nraise AssertionError('clip at 8000 Hz')\n")
    return tmp_path


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_run_leaves_is_ended_or_waited_for(in_place_of_heareval, how):
    work_dir, fork = in_place_of_heareval, multiprocessing.get_context("fork")
    killed = fork.Process(target=_run, args=(["slow"], work_dir, CPU))
    killed.start()
    wait_for(work_dir / "begun")
    os.kill(killed.pid, how)
    killed.join()
    second = fork.Process(target=_run, args=(["quick"], work_dir, CPU))
    second.start()
    if how == signal.SIGKILL:  # what it had started is still at work: the second run waits for it
        second.join(0.5)
        assert second.is_alive() and not (work_dir / "after").exists()
        (work_dir / "go").touch()
    second.join(300)
    ended = (work_dir / "ended").exists()
    (work_dir / "go").touch()  # lets go of what is left, if the test fails
    assert (work_dir / "after").exists() and second.exitcode == 0
    assert ended == (how == signal.SIGKILL)


def wait_for(path, limit_s=300):
    deadline = time.monotonic() + limit_s
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_failure_carries_the_end_of_the_log(in_place_of_heareval):
    with pytest.raises(TaskError, match=r"^broken ended with 1: AssertionError: clip at 8000 Hz; .*heareval\.log"):
        _run(["broken"], in_place_of_heareval, CPU)


def test_embeddings_that_are_not_finite_are_named(tmp_path):
    task = read_task(write_scene_task(tmp_path / "tones-v1", clips=1))
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "high0.flac.embedding.npy", np.array([1.0, np.nan]))
    with pytest.raises(TaskError, match=r"^m on tones-v1: the embedding of high0\.flac holds NaN"):
        _check_finite(tmp_path, SimpleNamespace(spec=SimpleNamespace(text="m")), task)


def test_remedies_act_in_the_tools_alone():
    def stubbed(*arguments):
        code = "import sys; print(hasattr(sys.modules.get('tensorflow'), 'Module'))"
        environment = dict(os.environ, PYTHONPATH=str(PYTHONPATH_DIR))
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
