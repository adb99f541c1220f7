"""A task folder is read and checked before any model runs.

* Splits, folds (test = fold i, valid = the next, train = the rest), labels and events are those of the files.
* Every damage raises TaskError with the file's name.
* The fingerprint changes with the labels and with the audio, and not with where the folder lies.
"""

import json
import shutil
from importlib.resources import files

import numpy as np
import pytest
import soundfile
from evaluation_fixtures import TONES_HZ, write_event_task, write_scene_task

from hear_jepa.errors import TaskError
from hear_jepa.evaluation.tasks import Fold, _domain, find_tasks, read_task


@pytest.fixture
def scene(tmp_path):
    return write_scene_task(tmp_path / "tones-v1")


def test_scene_task_is_read(scene):
    task = read_task(scene)
    assert (task.name, task.kind, task.multilabel, task.vocabulary) == ("tones-v1", "scene", False, tuple(TONES_HZ))
    assert task.folds == (Fold(("train",), "valid", "test"),)
    assert {split: len(clips) for split, clips in task.clips.items()} == {"train": 12, "valid": 12, "test": 12}
    for clip in task.clips["valid"]:
        assert clip.path.name.startswith(clip.labels[0])
        assert clip.samples == len(soundfile.read(clip.path)[0])


def test_event_task_is_read_in_milliseconds(tmp_path):
    folder = write_event_task(tmp_path / "tones-v1")
    stored = json.loads((folder / "test.json").read_text())["clip0.flac"]
    clip = read_task(folder).clips["test"][0]
    found = [{"label": event.label, "start": event.start_ms, "end": event.end_ms} for event in clip.events]
    assert found == stored


def test_folds_rotate(tmp_path):
    folds = read_task(write_scene_task(tmp_path / "t-v1", ("fold01", "fold00", "fold02"), clips=1)).folds
    assert folds == (
        Fold(("fold02",), "fold01", "fold00"),
        Fold(("fold00",), "fold02", "fold01"),
        Fold(("fold01",), "fold00", "fold02"),
    )


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def of_another_rate(folder):
    path = folder / "16000" / "test" / "low0.flac"
    soundfile.write(path, np.zeros(100), 22050)


def stereo(folder):
    soundfile.write(folder / "16000" / "test" / "low0.flac", np.zeros((100, 2)), 16000)


DAMAGES = {
    "missing split": (lambda f: (f / "valid.json").unlink(), "valid.json"),
    "unlisted split": (lambda f: rewrite(f / "task_metadata.json", lambda m: m["splits"].remove("test")), "lacks test"),
    "unknown label": (lambda f: rewrite(f / "test.json", lambda s: s.update({"low0.flac": ["hum"]})), "'hum'"),
    "two labels": (lambda f: rewrite(f / "test.json", lambda s: s["low0.flac"].append("high")), "low0.flac has 2"),
    "another rate": (of_another_rate, "low0.flac: is at 22050 Hz"),
    "stereo": (stereo, "low0.flac: has 2 channels"),
    "missing file": (lambda f: (f / "16000" / "test" / "low0.flac").unlink(), "low0.flac: missing"),
    "damaged file": (lambda f: (f / "16000" / "test" / "low0.flac").write_bytes(b"fLaC"), "low0.flac: unreadable"),
    "missing audio": (lambda f: shutil.rmtree(f / "16000"), "16000"),
    "empty vocabulary": (lambda f: (f / "labelvocabulary.csv").write_text("idx,label\n"), "empty vocabulary"),
    "vocabulary with a gap": (lambda f: (f / "labelvocabulary.csv").write_text("idx,label\n0,a\n2,b\n"), "0..1"),
    "empty split": (lambda f: (f / "train.json").write_text("{}"), "train.json"),
    "broken metadata": (lambda f: (f / "task_metadata.json").write_text("{"), "task_metadata.json"),
    "unknown kind": (lambda f: rewrite(f / "task_metadata.json", lambda m: m.update(embedding_type="x")), "'x'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(scene, damage):
    spoil, expected = DAMAGES[damage]
    spoil(scene)
    with pytest.raises(TaskError) as raised:
        read_task(scene)
    assert expected in str(raised.value) and str(scene) in str(raised.value)


def test_fingerprint_follows_the_content(scene, tmp_path):
    before = read_task(scene).fingerprint
    assert read_task(shutil.copytree(scene, tmp_path / "elsewhere" / scene.name)).fingerprint == before
    rewrite(scene / "train.json", lambda s: s.update({"low0.flac": ["high"]}))
    relabelled = read_task(scene).fingerprint
    soundfile.write(scene / "16000" / "test" / "low0.flac", np.zeros(999), 16000)
    assert len({before, relabelled, read_task(scene).fingerprint}) == 3


def test_tasks_are_found_by_name(scene):
    assert find_tasks(scene.parent) == find_tasks(scene.parent, ["tones"]) == find_tasks(scene.parent, ["tones-v1"])
    long = write_scene_task(scene.parent / "tones_long-v2.0.0-5h", clips=1)
    assert find_tasks(scene.parent, ["tones_long"]) == [long] != find_tasks(scene.parent, ["tones"])
    with pytest.raises(TaskError, match="there are: tones-v1"):
        find_tasks(scene.parent, ["esc50"])
    with pytest.raises(TaskError, match="task_metadata.json"):
        find_tasks(scene)


def test_official_tasks_have_a_domain():
    published = json.loads((files("hear_jepa.evaluation") / "published.json").read_text())["rows"]
    scenes = {name.split("-")[0] for row in published for name in row["scores"]} - {"dcase2016_task2", "maestro"}
    assert len(scenes) > 3
    assert {name for name in scenes | {"tfds_gtzan_music_speech"} if _domain(name, "scene") == "other"} == set()
