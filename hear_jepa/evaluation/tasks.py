"""A HEAR-format task folder, read and checked before any model runs.

`TASK/task_metadata.json`, `TASK/labelvocabulary.csv` (`idx,label`), one `TASK/<split>.json` a split and mono audio in
`TASK/<rate>/<split>/`. Scene labels: `{"a.flac": ["label"]}`; events: `{"a.flac": [{"label", "start", "end"}]}` in ms.
"""

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from hear_jepa.errors import TaskError

DOMAINS = ("environment", "speech", "music", "event")
TRAIN_VALID_TEST = ("train", "valid", "test")
KNOWN_DOMAINS = {  # by how the task's name begins, for tasks whose metadata names no domain
    "environment": ("esc", "fsd50k", "gunshot", "beehive", "urbansound", "nature", "game_effects"),
    "speech": ("speech", "ravdess", "tfds_crema_d", "crema", "libricount", "vox_lingua", "vocal_imitation", "language"),
    "music": ("mridangam", "beijing_opera", "gtzan", "tfds_gtzan", "nsynth", "philharmonia")
    + ("percussion", "drum", "instrument"),
}


@dataclass(frozen=True)
class Event:
    """One labelled stretch of an event task's clip; times in milliseconds."""

    label: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Clip:
    """One audio file: its length in samples at the task's rate, and its labels or events."""

    path: Path
    samples: int
    labels: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Fold:
    """Which splits train, which one selects the probe, which one is reported."""

    train: tuple[str, ...]
    valid: str
    test: str

    def splits(self, with_test: bool) -> tuple[str, ...]:
        """Those that are used, with or without the test split."""
        return (*self.train, self.valid, self.test) if with_test else (*self.train, self.valid)


@dataclass(frozen=True)
class Task:
    """A checked task: `clips[split]` in the split file's order, `scores[0]` the one that selects."""

    folder: Path
    name: str
    kind: str  # "scene" or "event"
    multilabel: bool
    domain: str
    scores: tuple[str, ...]
    vocabulary: tuple[str, ...]
    sample_rate: int
    clips: dict[str, tuple[Clip, ...]]
    fingerprint: str

    @property
    def folds(self) -> tuple[Fold, ...]:
        """One fold of train/valid/test, or one a split: test = fold i, valid = the next, train = the rest."""
        splits = tuple(sorted(self.clips))  # in the order of their names, as heareval
        if set(splits) == set(TRAIN_VALID_TEST):
            return (Fold(("train",), "valid", "test"),)
        folds = []
        for index, test in enumerate(splits):
            valid = splits[(index + 1) % len(splits)]
            folds.append(Fold(tuple(s for s in splits if s not in (test, valid)), valid, test))
        return tuple(folds)


def find_tasks(tasks_dir: str | Path, names: list[str] | None = None) -> list[Path]:
    """The task folders of `tasks_dir` (those that hold task_metadata.json), or the named ones (`esc50` for any
    `esc50-…`); TaskError if none."""
    tasks_dir = Path(tasks_dir)
    if not tasks_dir.is_dir():
        raise TaskError(f"{tasks_dir}: no such folder; --tasks-dir names the folder that holds the task folders")
    found = sorted(path.parent for path in tasks_dir.glob("*/task_metadata.json"))
    if not found:
        raise TaskError(f"{tasks_dir}: no */task_metadata.json in it; name the folder that holds the task folders")
    if not names:
        return found
    chosen = []
    for name in names:
        matching = [folder for folder in found if folder.name == name or folder.name.startswith(f"{name}-")]
        if not matching:
            raise TaskError(f"no task {name!r} in {tasks_dir}; there are: {', '.join(f.name for f in found)}")
        chosen += [folder for folder in matching if folder not in chosen]
    return chosen


def read_task(folder: str | Path, sample_rate: int = 16000) -> Task:
    """Read and check a task folder; TaskError names the file that is wrong and the remedy."""
    folder = Path(folder)
    metadata = _read_json(folder / "task_metadata.json")
    kind = _one_of(metadata, "embedding_type", ("scene", "event"), folder)
    prediction = _one_of(metadata, "prediction_type", ("multiclass", "multilabel"), folder)
    vocabulary = _read_vocabulary(folder / "labelvocabulary.csv")
    digest = hashlib.sha256(json.dumps([metadata, vocabulary, sample_rate], sort_keys=True).encode())
    clips = {}
    for split in _splits(metadata, folder):
        clips[split] = _read_split(folder, split, kind, prediction, vocabulary, sample_rate)
        for clip in clips[split]:
            digest.update(f"{split} {clip} {clip.path.stat().st_size}".replace(str(folder), "").encode())
    task_name = str(metadata.get("task_name", folder.name))
    scores = metadata.get("evaluation") or (["event_onset_200ms_fms"] if kind == "event" else ["top1_acc"])
    return Task(
        folder=folder,
        name=folder.name,
        kind=kind,
        multilabel=prediction == "multilabel",
        domain=metadata.get("domain") or _domain(task_name, kind),
        scores=tuple(scores),
        vocabulary=vocabulary,
        sample_rate=sample_rate,
        clips=clips,
        fingerprint=digest.hexdigest(),
    )


def _domain(task_name: str, kind: str) -> str:
    if kind == "event":
        return "event"
    for domain, prefixes in KNOWN_DOMAINS.items():
        if task_name.startswith(prefixes):
            return domain
    return "other"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise TaskError(f"{path}: missing; a HEAR task needs it, copy it again from the task's archive") from None
    except (OSError, ValueError) as error:
        raise TaskError(f"{path}: not readable JSON ({error}); copy it again from the task's archive") from None
    if not isinstance(content, dict):
        raise TaskError(f"{path}: holds a {type(content).__name__}, expected an object {{...}}; correct the file")
    return content


def _one_of(metadata: dict[str, Any], key: str, allowed: tuple[str, ...], folder: Path) -> str:
    value = metadata.get(key)
    if value not in allowed:
        path = folder / "task_metadata.json"
        raise TaskError(f"{path}: {key} is {value!r}; set it to one of {', '.join(allowed)}")
    return value


def _splits(metadata: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """The names of the splits, each with its file; train/valid/test, or three folds or more."""
    path = folder / "task_metadata.json"
    mode = _one_of(metadata, "split_mode", ("trainvaltest", "new_split_kfold", "presplit_kfold"), folder)
    splits = tuple(metadata.get("splits") or ())
    if mode == "trainvaltest":
        missing = [split for split in TRAIN_VALID_TEST if split not in splits]
        if missing:
            raise TaskError(f"{path}: splits lacks {', '.join(missing)}; list train, valid and test")
        splits = TRAIN_VALID_TEST
    elif len(splits) < 3:
        raise TaskError(f"{path}: {len(splits)} folds in splits; k-fold needs at least 3 (train, valid, test)")
    for split in splits:
        if not (folder / f"{split}.json").is_file():
            raise TaskError(f"{folder / split}.json: missing split; copy it from the archive or correct {path.name}")
    return splits


def _read_vocabulary(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise TaskError(f"{path}: missing; write it as CSV with the columns idx,label")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise TaskError(f"{path}: empty vocabulary; write one line idx,label a class below the heading")
    try:
        labels = {int(row["idx"]): str(row["label"]) for row in rows}
    except (KeyError, TypeError, ValueError):
        raise TaskError(f"{path}: not a table of idx,label with whole-number idx; correct the file") from None
    if sorted(labels) != list(range(len(rows))) or len(set(labels.values())) != len(rows):
        raise TaskError(f"{path}: idx must count 0..{len(rows) - 1} and labels must differ; correct the file")
    return tuple(labels[index] for index in range(len(rows)))


def _read_split(
    folder: Path, split: str, kind: str, prediction: str, vocabulary: tuple[str, ...], sample_rate: int
) -> tuple[Clip, ...]:
    path = folder / f"{split}.json"
    entries = _read_json(path)
    if not entries:
        raise TaskError(f"{path}: an empty split; copy it again from the task's archive")
    audio_dir = folder / str(sample_rate) / split
    if not audio_dir.is_dir():
        raise TaskError(f"{audio_dir}: missing; unpack the {sample_rate} Hz archive, or resample the audio")
    known = set(vocabulary)
    clips = []
    for name, annotation in entries.items():
        labels, events = _annotation(annotation, kind, f"{path}: {name}")
        for label in [*labels, *(event.label for event in events)]:
            if label not in known:
                raise TaskError(f"{path}: {name} has the unknown label {label!r}; add it to labelvocabulary.csv")
        if kind == "scene" and prediction == "multiclass" and len(labels) != 1:
            raise TaskError(f"{path}: {name} has {len(labels)} labels in a multiclass task; leave exactly one")
        clips.append(Clip(audio_dir / name, _samples(audio_dir / name, sample_rate, path), labels, events))
    return tuple(clips)


def _annotation(annotation: Any, kind: str, where: str) -> tuple[tuple[str, ...], tuple[Event, ...]]:
    try:
        if kind == "scene":
            if not isinstance(annotation, list):
                raise TypeError
            return tuple(str(label) for label in annotation), ()
        return (), tuple(Event(str(e["label"]), float(e["start"]), float(e["end"])) for e in annotation)
    except (KeyError, TypeError, ValueError):
        expected = '["label", ...]' if kind == "scene" else '[{"label": ..., "start": ms, "end": ms}, ...]'
        raise TaskError(f"{where}: expected {expected}, got {str(annotation)[:60]!r}; correct the file") from None


def _samples(path: Path, sample_rate: int, split_file: Path) -> int:
    """The clip's length in samples, from its header alone."""
    if not path.is_file():
        raise TaskError(f"{path}: missing file, listed in {split_file}; unpack the archive again or drop the line")
    try:
        header = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise TaskError(f"{path}: unreadable audio ({error}); unpack the archive again") from None
    if header.samplerate != sample_rate:
        raise TaskError(f"{path}: is at {header.samplerate} Hz, its folder says {sample_rate}; resample the clip")
    if header.channels != 1:
        raise TaskError(f"{path}: has {header.channels} channels; HEAR tasks are mono, mix the clip down")
    if header.frames == 0:
        raise TaskError(f"{path}: holds no audio; unpack the archive again or drop the line of {split_file}")
    return header.frames
