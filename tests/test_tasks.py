"""Claims about the small tasks that the project ships (tests/tasks), which tests/tasks_from_debian.py rebuilds:

* they are what `read_task` takes, of every domain, split mode and kind, in 12 MB; all clips are of the task's duration,
  neither silent, clipped nor offset; every split holds every label;
* no recording, speaker, kit or source stands in two splits; no fold trains heareval's batch norm on a batch of one;
* the sound grows where an event starts; a linear probe on the log-mel beats chance and is far from perfect.
"""

import csv
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from debian_audio import SAMPLE_RATE
from tasks_from_debian import ENVIRONMENT_TABLE, EVENT_KITS, KIT_FOLDS, TASKS, slug

from hear_jepa.evaluation.baselines import logmel_stats
from hear_jepa.evaluation.tasks import DOMAINS, Task, read_task

ROOT = Path(__file__).with_name("tasks")
FOLDERS = sorted(ROOT.iterdir())
every_task = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
every_scene_task = pytest.mark.parametrize(
    "folder", [folder for folder in FOLDERS if not folder.name.startswith("percussion_events")], ids=lambda f: f.name
)
task_of = cache(read_task)


@cache
def metadata(folder: Path) -> dict:
    return json.loads((folder / "task_metadata.json").read_text())


@cache
def audio(folder: Path, split: str) -> np.ndarray:
    """float32 [clips, samples], in the split file's order."""
    return np.stack([soundfile.read(clip.path, dtype="float32")[0] for clip in task_of(folder).clips[split]])


def labels(task: Task, split: str) -> list[str]:
    found = [[*clip.labels, *(event.label for event in clip.events)] for clip in task.clips[split]]
    return sum(found, [])


def environment_rows() -> list[dict[str, str]]:
    with ENVIRONMENT_TABLE.open(newline="") as table:
        return list(csv.DictReader(table))


def test_the_folder_holds_the_tasks_of_the_script_of_every_domain_and_kind_in_12_megabytes():
    assert [folder.name for folder in FOLDERS] == sorted(TASKS)
    described = [metadata(folder) for folder in FOLDERS]
    assert {task["domain"] for task in described} == {task_of(folder).domain for folder in FOLDERS} == set(DOMAINS)
    kinds = {("scene", mode) for mode in ("trainvaltest", "presplit_kfold", "new_split_kfold")}
    assert {(task["embedding_type"], task["split_mode"]) for task in described} == kinds | {("event", "trainvaltest")}
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) <= 12_000_000
    rows = environment_rows()
    assert all(row["credit"] for row in rows) and len({row["source"] for row in rows}) == len(rows)
    free = {"CC0-1.0", "CC-BY-3.0", "CC-BY-SA-3.0", "Free Art 1.2", "GPL-3", "GPL-3+"}
    assert {row["licence"] for row in rows} <= free


@every_task
def test_clips_are_of_the_right_length_and_sound_and_every_split_holds_every_label(folder):
    task, described = task_of(folder), metadata(folder)
    assert folder.name == "-".join(described[key] for key in ("task_name", "version", "mode"))
    assert described.get("nfolds", 3) == len(task.clips)
    assert described["evaluation_params"]["task_specific_param_grid"]["max_epochs"] == [30]
    for split, clips in task.clips.items():
        on_disk = sorted(path.name for path in (folder / str(SAMPLE_RATE) / split).iterdir())
        assert on_disk == sorted(clip.path.name for clip in clips)
        assert {clip.samples for clip in clips} == {round(described["sample_duration"] * SAMPLE_RATE)}
        peaks, offsets = np.abs(audio(folder, split)).max(axis=1), np.abs(audio(folder, split).mean(axis=1))
        assert (offsets < 0.02).all() and (peaks > 0.02).all() and (peaks < 0.97).all()
        assert set(labels(task, split)) == set(task.vocabulary) and list(task.vocabulary) == sorted(task.vocabulary)


@every_task
def test_no_recording_stands_in_two_splits(folder):
    unit = [audio(folder, split).astype(np.float64) for split in task_of(folder).clips]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in unit]
    for i, rows in enumerate(unit):
        assert all(np.abs(rows @ others.T).max() < 0.95 for others in unit[i + 1 :])


def origin(folder: Path, name: str) -> str:
    """What the name of a clip begins with: a language (one speaker), a kit or a source recording."""
    if folder.name.startswith("spoken_vowel"):
        return name.split("-")[0]
    groups = {row["group"] for row in environment_rows()}
    known = groups if folder.name.startswith("sound_source") else set().union(*KIT_FOLDS.values())
    return max((text for text in map(slug, known) if name.startswith(f"{text}_")), key=len)


@every_scene_task
def test_splits_share_no_origin_and_no_fold_leaves_a_batch_of_one(folder):
    task = task_of(folder)
    origins = [{origin(folder, clip.path.name) for clip in clips} for clips in task.clips.values()]
    assert sum(map(len, origins)) == len(set().union(*origins))
    for fold in task.folds:
        assert sum(len(task.clips[split]) for split in fold.train) % 1024 != 1


def test_events_share_no_kit_and_the_sound_grows_where_they_start():
    kits = [kit for kits in EVENT_KITS.values() for kit in kits]
    assert len(set(kits)) == len(kits)
    (folder,) = (folder for folder in FOLDERS if folder.name.startswith("percussion_events"))
    window, grows = SAMPLE_RATE // 50, []  # 20 ms
    for split, clips in task_of(folder).clips.items():
        for samples, clip in zip(audio(folder, split), clips, strict=True):
            for event in clip.events:
                assert 0 <= event.start_ms < event.end_ms <= 1000 * metadata(folder)["sample_duration"]
                start = round(event.start_ms * SAMPLE_RATE / 1000)
                before, after = samples[start - window : start], samples[start : start + window]
                grows.append(np.square(after).sum() > np.square(before).sum())
    assert np.mean(grows) > 0.9


@every_scene_task
def test_a_linear_probe_on_the_log_mel_beats_chance_and_is_not_perfect(folder):
    linear_model = pytest.importorskip("sklearn.linear_model")
    from sklearn.preprocessing import StandardScaler

    task, model = task_of(folder), logmel_stats.load_model(front_end="paper")
    features = {split: model.scene(torch.from_numpy(audio(folder, split))).numpy() for split in task.clips}
    correct, everything = 0, []
    for fold in task.folds:
        train = [split for split in features if split != fold.test]
        inputs, targets = np.concatenate([features[s] for s in train]), sum((labels(task, s) for s in train), [])
        scaler = StandardScaler().fit(inputs)
        probe = linear_model.LogisticRegression(C=0.01, max_iter=500).fit(scaler.transform(inputs), targets)
        tested = labels(task, fold.test)
        correct += int((probe.predict(scaler.transform(features[fold.test])) == np.array(tested)).sum())
        everything += tested
    chance = max(map(everything.count, task.vocabulary)) / len(everything)
    assert chance + 0.1 < correct / len(everything) < 0.9
