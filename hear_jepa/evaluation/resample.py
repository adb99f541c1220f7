"""A task's audio at another rate, for models that do not take the rate that the task comes in.

    python -m hear_jepa.evaluation.resample TASKS_DIR OUT_DIR --from 48000 --to 16000

turns the 48 kHz archives of the official HEAR tasks into 16 kHz ones.
"""

import argparse
import shutil
import sys
from pathlib import Path

import soundfile
import torch

from hear_jepa.cli import exit_code
from hear_jepa.disk import atomic_path
from hear_jepa.errors import OptionError
from hear_jepa.evaluation.tasks import Task, find_tasks, read_task
from hear_jepa.files.resample import resample
from hear_jepa.progress import progress_bar

MARK = "resampled.txt"  # in a copy: what it is a copy of


def resampled_copy(task: Task, sample_rate: int, tasks_dir: Path) -> Path:
    """Write `tasks_dir/TASK` with its audio at `sample_rate`, whole or not at all; the same copy is kept, another one
    replaced. Returns the folder. Raises OptionError where the folder is no copy of this function's.

    The audio is 16-bit FLAC under the names of the task's clips, whatever these end in: readers look at the content.
    """
    folder = tasks_dir / task.name
    wanted = f"{task.fingerprint} at {sample_rate} Hz\n"
    is_copy = (folder / MARK).is_file() and folder.resolve() != task.folder.resolve()
    if folder.exists() and not is_copy:
        raise OptionError(f"{folder} exists, and is no copy that this command has made: name another folder for copies")
    if is_copy and (folder / MARK).read_text() == wanted:
        return folder
    with atomic_path(folder) as new:
        new.mkdir()
        (new / MARK).write_text(wanted)
        for name in ("task_metadata.json", "labelvocabulary.csv", *(f"{split}.json" for split in task.clips)):
            shutil.copy(task.folder / name, new)
        for split, clips in task.clips.items():
            for clip in clips:
                audio, rate = soundfile.read(clip.path, dtype="float32")
                changed = resample(torch.from_numpy(audio)[None], rate, sample_rate)[0].clamp(-1, 1).numpy()
                name = clip.path.relative_to(task.folder / str(rate) / split)
                target = new / str(sample_rate) / split / name
                target.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(target, changed, sample_rate, format="FLAC", subtype="PCM_16")
    return folder


def main(argv: list[str] | None = None) -> int:
    """Resample every task of a folder, or the named ones; exit code 2 for a folder that cannot be used."""
    parser = argparse.ArgumentParser(description="HEAR tasks at another rate.")
    parser.add_argument("tasks_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--from", dest="source", type=int, default=48000, metavar="HZ")
    parser.add_argument("--to", dest="target", type=int, default=16000, metavar="HZ")
    parser.add_argument("--tasks", nargs="+", metavar="NAME")
    arguments = parser.parse_args(argv)

    def run() -> int:
        for folder in progress_bar(find_tasks(arguments.tasks_dir, arguments.tasks), "resample", unit="task"):
            resampled_copy(read_task(folder, arguments.source), arguments.target, arguments.out_dir)
        return 0

    return exit_code(run, "hear_jepa.evaluation.resample")


if __name__ == "__main__":
    sys.exit(main())
