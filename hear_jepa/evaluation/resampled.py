"""A task's audio at another rate, for models that do not take the rate that the task comes in."""

import shutil
from pathlib import Path

import soundfile
import torch
from torchaudio.functional import resample
from tqdm import tqdm

from hear_jepa.evaluation.tasks import Task


def resampled_copy(task: Task, sample_rate: int, tasks_dir: Path) -> Path:
    """Write `tasks_dir/TASK` with its audio at `sample_rate`; a finished copy is kept. Returns the folder.

    The audio is 16-bit FLAC under the names of the task's clips, whatever these end in: readers look at the content.
    """
    folder = tasks_dir / task.name
    done = tasks_dir / f".{task.name}-{task.fingerprint[:12]}.done"  # beside it: heareval walks the task's folder
    if done.is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("task_metadata.json", "labelvocabulary.csv", *(f"{split}.json" for split in task.clips)):
        shutil.copy(task.folder / name, folder)
    for split, clips in task.clips.items():
        audio_dir = folder / str(sample_rate) / split
        for clip in tqdm(clips, desc=f"{task.name} {split} to {sample_rate} Hz", unit="clip", leave=False):
            audio, rate = soundfile.read(clip.path, dtype="float32")
            changed = resample(torch.from_numpy(audio), rate, sample_rate).clamp(-1, 1).numpy()
            target = audio_dir / clip.path.relative_to(task.folder / str(rate) / split)
            target.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(target, changed, sample_rate, format="FLAC", subtype="PCM_16")
    done.touch()
    return folder
