"""Clips -> embeddings by any HEAR module, once: kept on disk by weights, options and task."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from hear_jepa.disk import atomic_path
from hear_jepa.errors import AudioError, TaskError
from hear_jepa.evaluation.model_spec import LoadedModel
from hear_jepa.evaluation.tasks import Clip, Task

BATCH_S = 32.0  # seconds of audio in a batch of clips of one length

Report = Callable[[str], None]  # is called, again and again, with what is being done


@dataclass(frozen=True)
class SplitFeatures:
    """Embeddings of one split, in the order of its clips.

    `values` is [clips, D] for a scene task. For an event task it is [frames, D], the clips one after another: clip i
    has `counts[i]` frames, centred on `times_ms`.
    """

    values: np.ndarray
    counts: np.ndarray
    times_ms: np.ndarray


def embed_split(
    task: Task, split: str, model: LoadedModel, cache_dir: Path | None = None, report: Report | None = None
) -> SplitFeatures:
    """Embed one split, or read it back from `cache_dir`. Raises `TaskError` for clips or embeddings with NaN."""
    path = None
    if cache_dir is not None:
        path = cache_dir / model.key / f"{task.name}-{task.fingerprint[:12]}" / f"{split}.npz"
        if path.is_file():
            with np.load(path) as stored:
                return SplitFeatures(stored["values"], stored["counts"], stored["times_ms"])
    features = _embed(task, split, model, report or (lambda text: None))
    if path is not None:
        with atomic_path(path) as temporary:
            np.savez(temporary, values=features.values, counts=features.counts, times_ms=features.times_ms)
    return features


def _embed(task: Task, split: str, model: LoadedModel, report: Report) -> SplitFeatures:
    """Clips of one length are embedded together."""
    clips = task.clips[split]
    values: list[np.ndarray] = [np.empty(0)] * len(clips)
    times: list[np.ndarray] = [np.zeros(1, np.float32)] * len(clips)
    done = 0
    for indices in batches(clips, task.sample_rate):
        audio = torch.from_numpy(np.stack([_read(clips[i].path) for i in indices]))
        if model.sample_rate != task.sample_rate:
            from hear_jepa.files.resample import resample

            audio = resample(audio, task.sample_rate, model.sample_rate)
        embedded, centres = _embed_batch(audio, [clips[i].path for i in indices], model, task)
        for row, index in enumerate(indices):
            values[index] = embedded[row].numpy()
            if centres is not None:
                times[index] = centres[row].numpy()
        done += len(indices)
        report(f"{split}: {done} of {len(clips)} clips embedded")
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
    if not np.isfinite(audio).all():
        raise TaskError(f"{path}: holds NaN or infinite samples; replace the clip, or drop its line")
    return audio


def _embed_batch(audio: Tensor, paths: list[Path], model: LoadedModel, task: Task) -> tuple[Tensor, Tensor | None]:
    """[B, samples] -> embeddings [B, T, D] (a scene: T = 1) and their times. `TaskError` names the clip at fault."""
    what = f"{model.spec.text} on {task.name}: the embedding of"
    try:
        embedded, centres = (model.scene(audio)[:, None], None) if task.kind == "scene" else model.timestamps(audio)
    except AudioError as error:
        if len(paths) == 1:
            raise TaskError(f"{what} {paths[0]} failed: {error}") from error
        for row, path in enumerate(paths):  # the one at fault raises, with its name
            _embed_batch(audio[row : row + 1], [path], model, task)
        raise
    finite = torch.isfinite(embedded).flatten(1).all(1)
    if not finite.all():
        raise TaskError(
            f"{what} {paths[int((~finite).nonzero()[0])]} holds NaN or infinity: the weights or the precision are at "
            "fault, or the clip is far too loud"
        )
    return embedded, centres
