"""HEAR-format tasks and HEAR modules made up for a test: tones that a few bands of a spectrum tell apart."""

import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
TONES_HZ = {"low": 300, "middle": 1100, "high": 3500}

FAKE_MODULE = '''
"""A HEAR module that counts the clips it embeds; its weights file scales the embedding, as real weights would."""
import pathlib
import torch

LOG = pathlib.Path(__file__).with_suffix(".log")

class Model(torch.nn.Module):
    sample_rate = 16000
    scene_embedding_size = timestamp_embedding_size = 16

    def __init__(self, gain, hop_ms):
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain))
        self.hop_ms = hop_ms

def load_model(model_file_path="", hop_ms=50):
    return Model(float(open(model_file_path).read()) if model_file_path else 1.0, hop_ms)

def bands(audio, model):
    power = torch.fft.rfft(audio, n=1600).abs()[..., :800] ** 2
    return model.gain * torch.log(power.unflatten(-1, (16, 50)).mean(-1) + 1e-3)

def get_scene_embeddings(audio, model):
    with LOG.open("a") as log:
        log.write(f"{len(audio)}\\n")
    usable = audio.shape[1] // 1600 * 1600
    return bands(audio[:, :usable].unflatten(1, (-1, 1600)), model).mean(1)

def get_timestamp_embeddings(audio, model):
    hop = model.hop_ms * 16
    frames = torch.nn.functional.pad(audio, (800, 800)).unfold(1, 1600, hop)
    centres = torch.arange(frames.shape[1]) * float(model.hop_ms)
    return bands(frames, model), centres.expand(len(audio), -1)
'''


def tone(label: str, seconds: float, random: np.random.Generator) -> np.ndarray:
    """A tone near the label's frequency in noise."""
    times = np.arange(round(seconds * RATE)) / RATE
    frequency = TONES_HZ[label] * random.uniform(0.9, 1.1)
    return 0.3 * np.sin(2 * np.pi * frequency * times) + 0.05 * random.standard_normal(len(times))


def write_scene_task(
    folder: Path, splits: tuple[str, ...] = ("train", "valid", "test"), clips: int = 4, **metadata: object
) -> Path:
    """`clips` clips a class and split, of three lengths."""
    random = np.random.default_rng(len(splits))
    for split in splits:
        labels = {}
        for index in range(clips):
            for label in TONES_HZ:
                name = f"{label}{index}.flac"
                write_audio(folder, split, name, tone(label, 0.3 + 0.1 * (index % 3), random))
                labels[name] = [label]
        (folder / f"{split}.json").write_text(json.dumps(labels))
    mode = "trainvaltest" if "train" in splits else "presplit_kfold"
    return write_metadata(folder, splits, embedding_type="scene", split_mode=mode, **metadata)


def write_event_task(folder: Path, clips: int = 3) -> Path:
    """Clips of 2 s with one tone after another, 400 ms each, with silence between."""
    random = np.random.default_rng(0)
    splits = ("train", "valid", "test")
    for split in splits:
        labels = {}
        for index in range(clips):
            audio = 0.01 * random.standard_normal(2 * RATE)
            events = []
            for slot, label in enumerate(random.permutation(list(TONES_HZ))):
                start = 100 + 600 * slot
                audio[16 * start : 16 * (start + 400)] += tone(label, 0.4, random)
                events.append({"label": label, "start": float(start), "end": float(start + 400)})
            write_audio(folder, split, f"clip{index}.flac", audio)
            labels[f"clip{index}.flac"] = events
        (folder / f"{split}.json").write_text(json.dumps(labels))
    return write_metadata(
        folder,
        splits,
        embedding_type="event",
        prediction_type="multilabel",
        split_mode="trainvaltest",
        evaluation=["event_onset_200ms_fms"],
        sample_duration=2.0,
    )


def write_audio(folder: Path, split: str, name: str, audio: np.ndarray, rate: int = RATE) -> Path:
    """One clip of a task."""
    path = folder / str(RATE) / split / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate)
    return path


def write_metadata(folder: Path, splits: tuple[str, ...], **metadata: object) -> Path:
    """task_metadata.json and labelvocabulary.csv; returns the task's folder."""
    content = {
        "task_name": folder.name.split("-")[0],
        "version": "v1",
        "prediction_type": "multiclass",
        "sample_duration": None,
        "evaluation": ["top1_acc"],
        "splits": splits,
    }
    (folder / "task_metadata.json").write_text(json.dumps(content | metadata))
    (folder / "labelvocabulary.csv").write_text("idx,label\n" + "".join(f"{i},{n}\n" for i, n in enumerate(TONES_HZ)))
    return folder
