"""Claims about the small tasks that the project ships (tests/tasks) and the script that rebuilds them:

1. the folder holds tasks alone, one at least of every domain, k-fold and train/valid/test, scenes and events, in 12 MB;
2. every labelled clip exists and no other; all are 16 kHz, mono, of the task's duration, neither silent,
   clipped nor offset;
3. every label is in the vocabulary and every split holds every label;
4. no recording, and no speaker, kit or source, stands in two splits;
5. no fold's training set makes a batch of one for heareval's batch norm;
6. events lie within their clip and the sound grows where one starts;
7. a linear probe on the mean and deviation of the log-mel does better than chance and is far from perfect;
8. the building blocks of the script: a start is trimmed to its lead, a clip has its length and peak, a resource
   archive yields what was packed, and an archive of another kind is refused.
"""

import csv
import json
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from debian_audio import SAMPLE_RATE, fit, resource_files, trim_start
from tasks_from_debian import ENVIRONMENT_TABLE, EVENT_KITS, KIT_FOLDS, TASKS, segments, slug, spread

from hear_jepa.evaluation.baselines import logmel_stats

ROOT = Path(__file__).with_name("tasks")
FOLDERS = sorted(ROOT.iterdir())
SCENES = [folder for folder in FOLDERS if not folder.name.startswith("percussion_events")]
every_task = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
every_scene_task = pytest.mark.parametrize("folder", SCENES, ids=lambda folder: folder.name)


@cache
def metadata(folder: Path) -> dict:
    return json.loads((folder / "task_metadata.json").read_text())


@cache
def clips(folder: Path) -> dict[str, dict[str, list]]:
    return {split: json.loads((folder / f"{split}.json").read_text()) for split in metadata(folder)["splits"]}


@cache
def audio(folder: Path, split: str) -> np.ndarray:
    """float32 [clips, samples], in the split file's order."""
    paths = [folder / str(SAMPLE_RATE) / split / name for name in clips(folder)[split]]
    return np.stack([soundfile.read(path, dtype="float32")[0] for path in paths])


def labels(folder: Path, split: str) -> list[str]:
    entries = [item for items in clips(folder)[split].values() for item in items]
    return [item["label"] if isinstance(item, dict) else item for item in entries]


def test_the_folder_holds_the_tasks_of_the_script_and_nothing_else():
    assert [folder.name for folder in FOLDERS] == sorted(TASKS)
    expected = {"task_metadata.json", "labelvocabulary.csv", str(SAMPLE_RATE)}
    for folder in FOLDERS:
        assert {path.name for path in folder.iterdir()} == expected | {f"{split}.json" for split in clips(folder)}


def test_every_domain_split_mode_and_kind_is_there_in_12_megabytes():
    described = [metadata(folder) for folder in FOLDERS]
    assert {task["domain"] for task in described} == {"environment", "speech", "music", "event"}
    modes = {(task["embedding_type"], task["split_mode"]) for task in described}
    assert modes == {
        ("scene", "trainvaltest"),
        ("scene", "presplit_kfold"),
        ("scene", "new_split_kfold"),
        ("event", "trainvaltest"),
    }
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) <= 12_000_000


@every_task
def test_metadata_agrees_with_the_folder(folder):
    described = metadata(folder)
    assert folder.name == "-".join(described[key] for key in ("task_name", "version", "mode"))
    assert described.get("nfolds", 3) == len(clips(folder))
    assert described["evaluation_params"]["task_specific_param_grid"]["max_epochs"] == [30]


@every_task
def test_clips_are_16_khz_mono_of_the_right_length_and_sound(folder):
    for split, entries in clips(folder).items():
        on_disk = sorted((folder / str(SAMPLE_RATE) / split).iterdir())
        assert [path.name for path in on_disk] == sorted(entries)
        for path in on_disk:
            info = soundfile.info(path)
            assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16"), path
            assert info.frames == round(metadata(folder)["sample_duration"] * SAMPLE_RATE), path
        peaks, offsets = np.abs(audio(folder, split)).max(axis=1), np.abs(audio(folder, split).mean(axis=1))
        assert (offsets < 0.02).all()
        assert (peaks > 0.02).all() and (peaks < 0.97).all()


@every_task
def test_every_split_holds_every_label_of_the_vocabulary(folder):
    with (folder / "labelvocabulary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    vocabulary = [row["label"] for row in rows]
    assert [int(row["idx"]) for row in rows] == list(range(len(rows))) and vocabulary == sorted(set(vocabulary))
    for split in clips(folder):
        assert set(labels(folder, split)) == set(vocabulary)


@every_task
def test_no_recording_stands_in_two_splits(folder):
    unit = {split: audio(folder, split).astype(np.float64) for split in clips(folder)}
    unit = {split: rows / np.linalg.norm(rows, axis=1, keepdims=True) for split, rows in unit.items()}
    splits = list(unit)
    for i, split in enumerate(splits):
        for other in splits[i + 1 :]:
            assert np.abs(unit[split] @ unit[other].T).max() < 0.95, (split, other)


def origin(folder: Path, name: str) -> str:
    if folder.name.startswith("spoken_vowel"):
        return name.split("-")[0]
    with ENVIRONMENT_TABLE.open(newline="") as table:
        groups = {row["group"] for row in csv.DictReader(table)}
    known = groups if folder.name.startswith("sound_source") else set().union(*KIT_FOLDS.values())
    return max((text for text in map(slug, known) if name.startswith(f"{text}_")), key=len)


@every_scene_task
def test_no_speaker_kit_or_source_stands_in_two_splits(folder):
    """The name of a clip begins with where it comes from: a language (one speaker), a kit or a source recording."""
    origins = {split: {origin(folder, name) for name in entries} for split, entries in clips(folder).items()}
    if folder.name.startswith("percussion_kind"):
        kits = {kit for _, kits in EVENT_KITS.items() for kit in kits}
        assert len(kits) == sum(map(len, EVENT_KITS.values())), "the event task's splits share a kit"
    assert sum(map(len, origins.values())) == len(set().union(*origins.values()))


@every_scene_task
def test_no_training_set_leaves_a_batch_of_one(folder):
    sizes = {split: len(entries) for split, entries in clips(folder).items()}
    if metadata(folder)["split_mode"] == "trainvaltest":
        training = [sizes["train"]]
    else:
        names = sorted(sizes)
        held_out = [(name, names[(i + 1) % len(names)]) for i, name in enumerate(names)]
        training = [sum(size for name, size in sizes.items() if name not in pair) for pair in held_out]
    assert all(size > 1 and size % 1024 != 1 for size in training)


def test_events_lie_in_their_clip_and_the_sound_grows_where_they_start():
    (folder,) = set(FOLDERS) - set(SCENES)
    duration_ms = 1000 * metadata(folder)["sample_duration"]
    window = SAMPLE_RATE // 50  # 20 ms
    grows = []
    for split, entries in clips(folder).items():
        for samples, events in zip(audio(folder, split), entries.values(), strict=True):
            assert [event["start"] for event in events] == sorted(event["start"] for event in events)
            for event in events:
                assert 0 <= event["start"] < event["end"] <= duration_ms
                start = round(event["start"] * SAMPLE_RATE / 1000)
                before, after = samples[start - window : start], samples[start : start + window]
                grows.append(np.square(after).sum() > np.square(before).sum())
    assert np.mean(grows) > 0.9


@every_scene_task
def test_a_linear_probe_on_the_log_mel_beats_chance_and_is_not_perfect(folder):
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    model = logmel_stats.load_model(front_end="paper")
    features = {
        split: logmel_stats.get_scene_embeddings(torch.from_numpy(audio(folder, split)), model).numpy()
        for split in clips(folder)
    }
    tested = ["test"] if metadata(folder)["split_mode"] == "trainvaltest" else list(features)
    correct, count = 0, 0
    for test in tested:
        train = [split for split in features if split != test]
        scaler = preprocessing.StandardScaler().fit(np.concatenate([features[split] for split in train]))
        probe = linear_model.LogisticRegression(C=0.01, max_iter=500)
        probe.fit(
            scaler.transform(np.concatenate([features[split] for split in train])),
            sum((labels(folder, split) for split in train), []),
        )
        correct += int((probe.predict(scaler.transform(features[test])) == np.array(labels(folder, test))).sum())
        count += len(features[test])
    everything = sum((labels(folder, split) for split in tested), [])
    chance = max(everything.count(label) for label in set(everything)) / len(everything)
    assert chance + 0.1 < correct / count < 0.9


def test_every_source_of_the_table_has_a_licence_and_a_credit():
    with ENVIRONMENT_TABLE.open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert all(row["credit"] for row in rows) and len({row["source"] for row in rows}) == len(rows)
    free = {"CC0-1.0", "CC-BY-3.0", "CC-BY-SA-3.0", "Free Art 1.2", "GPL-3", "GPL-3+"}
    assert {row["licence"] for row in rows} <= free


def test_a_start_is_trimmed_and_a_clip_has_its_length_and_peak():
    sound = np.concatenate([np.zeros(8000), np.sin(np.arange(16000) * 0.1)])
    trimmed = trim_start(sound, lead_ms=10)
    assert len(sound) - len(trimmed) in range(8000 - 160, 8000 - 155)
    for duration_s in (0.5, 2.0):
        clip = fit(trimmed, duration_s)
        assert len(clip) == round(duration_s * SAMPLE_RATE) and np.abs(clip).max() == pytest.approx(0.7)
    assert not fit(trimmed, 2.0)[len(trimmed) :].any()


def test_segments_are_consecutive_and_drop_a_short_rest_and_silence():
    sound = np.concatenate([np.ones(16000), np.zeros(16000), np.ones(16000), np.ones(4000)])
    pieces = segments(sound, 1.0, most=5)
    assert [len(piece) for piece in pieces] == [16000, 16000] and all(piece.all() for piece in pieces)
    assert len(segments(np.ones(64000), 1.0, most=3)) == 3
    assert spread(list(range(10)), 4) == [0, 2, 5, 7] and spread([1, 2], 4) == [1, 2]


def resource_archive(name: str, content: bytes, flags: int) -> bytes:
    """A Qt resource archive (version 1) of one file in its root folder."""
    encoded = name.encode("utf-16-be")
    names = struct.pack(">HI", len(name), 0) + encoded
    tree = struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHHHI", 0, flags, 0, 0, 0)
    data = struct.pack(">I", len(content)) + content
    return b"qres" + struct.pack(">4I", 1, 20, 20 + len(tree), 20 + len(tree) + len(data)) + tree + data + names


@pytest.mark.parametrize("packed", [False, True])
def test_a_resource_archive_yields_what_was_packed(tmp_path, packed):
    content = b"RIFF and so on" * 20
    stored = struct.pack(">I", len(content)) + zlib.compress(content) if packed else content
    path = tmp_path / "sounds.rcc"
    path.write_bytes(resource_archive("cow.ogg", stored, flags=int(packed)))
    assert list(resource_files(path)) == [("cow.ogg", content)]


def test_another_kind_of_archive_is_refused(tmp_path):
    path = tmp_path / "sounds.rcc"
    path.write_bytes(b"PK\3\4" + bytes(40))
    with pytest.raises(ValueError, match="no Qt resource archive"):
        list(resource_files(path))
