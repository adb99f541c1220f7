"""Clips -> embeddings by any HEAR module, once: kept on disk by weights, options and task."""

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from hear_jepa.disk import atomic_path
from hear_jepa.errors import TaskError
from hear_jepa.evaluation.model_spec import LoadedModel
from hear_jepa.evaluation.tasks import Clip, Task

logger = logging.getLogger(__name__)

BATCH_S = 32.0  # seconds of audio in a batch of clips of one length


@dataclass(frozen=True)
class SplitFeatures:
    """Embeddings of one split, in the order of its clips.

    `values` is [clips, D] for a scene task. For an event task it is [frames, D], the clips one after another: clip i
    has `counts[i]` frames, centred on `times_ms`.
    """

    values: np.ndarray
    counts: np.ndarray
    times_ms: np.ndarray


def embed_split(task: Task, split: str, model: LoadedModel, cache_dir: Path | None = None) -> SplitFeatures:
    """Embed one split, or read it back from `cache_dir`."""
    path = None
    if cache_dir is not None:
        path = cache_dir / model.key / f"{task.name}-{task.fingerprint[:12]}" / f"{split}.npz"
        if path.is_file():
            with np.load(path) as stored:
                return SplitFeatures(stored["values"], stored["counts"], stored["times_ms"])
    label = f"{model.spec.text} {task.name} {split}"
    features = embed_clips(task.clips[split], task.kind, task.sample_rate, model, label)
    if path is not None:
        with atomic_path(path) as temporary:
            np.savez(temporary, values=features.values, counts=features.counts, times_ms=features.times_ms)
    return features


def embed_clips(
    clips: tuple[Clip, ...], kind: str, sample_rate: int, model: LoadedModel, label: str = ""
) -> SplitFeatures:
    """Embed clips of any lengths, those of one length together; TaskError for embeddings that are not finite."""
    values: list[np.ndarray] = [np.empty(0)] * len(clips)
    times: list[np.ndarray] = [np.zeros(1, np.float32)] * len(clips)
    with tqdm(total=len(clips), desc=label, unit="clip", leave=False, disable=not label) as progress:
        for indices in batches(clips, sample_rate):
            audio = _to_rate(torch.from_numpy(np.stack([_read(clips[i].path) for i in indices])), sample_rate, model)
            if kind == "scene":
                embedded = model.scene(audio).unsqueeze(1)
            else:
                embedded, centres = model.timestamps(audio)
            if not torch.isfinite(embedded).all():
                raise TaskError(f"{clips[indices[0]].path} or a clip beside it: {model.spec.text} gave NaN or infinity")
            for row, index in enumerate(indices):
                values[index] = embedded[row].numpy()
                if kind == "event":
                    times[index] = centres[row].numpy()
            progress.update(len(indices))
    counts = np.array([len(rows) for rows in values])
    return SplitFeatures(np.concatenate(values), counts, np.concatenate(times))


def batches(clips: tuple[Clip, ...], sample_rate: int) -> Iterator[list[int]]:
    """Indices of clips of equal length, at most `BATCH_S` seconds together."""
    by_length = defaultdict(list)
    for index, clip in enumerate(clips):
        by_length[clip.samples].append(index)
    for samples, indices in sorted(by_length.items()):
        size = max(1, int(BATCH_S * sample_rate / samples))
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def _read(path: Path) -> np.ndarray:
    audio, _ = soundfile.read(path, dtype="float32")
    return audio


def _to_rate(audio: Tensor, sample_rate: int, model: LoadedModel) -> Tensor:
    """A model of another rate hears the task's audio resampled."""
    if model.sample_rate == sample_rate:
        return audio
    from torchaudio.functional import resample

    return resample(audio, sample_rate, model.sample_rate)
