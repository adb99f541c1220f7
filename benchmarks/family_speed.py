"""Scenes of a converted checkpoint over a folder, against the family's own runtime: one core, in turns, processor time.

    python benchmarks/family_speed.py m2d m2d --kind 80x608     # families, checkouts and kinds as in parity.py
    python benchmarks/family_speed.py matpac matpac --kind 6s --rounds 5

The folder holds real sound in files of one length. The family's runtime reads a file, embeds it, and takes the mean
over time, one file after the other, as its users do; `embed_files` reads and embeds the same files. Printed are the
medians of a file's milliseconds, and how many times as long the family's runtime takes.
"""

import sys
import tempfile
import time
from pathlib import Path

import soundfile
import torch

from hear_jepa import Embedder
from hear_jepa.families import convert

sys.path.insert(0, str(Path(__file__).parent))

from parity import BASE, Kind, chosen, options, real_sound  # noqa: E402
from serving import in_turns  # noqa: E402

FILES = {1: 16, 2: 12, 5: 6, 30: 2}  # of so many seconds


def write_files(folder: Path, seconds: int, sample_rate: int) -> list[Path]:
    """Files of one length, one after another of the same sound."""
    folder.mkdir()
    sound = real_sound(FILES[seconds] * seconds * sample_rate).view(FILES[seconds], -1)
    paths = [folder / f"{number}.wav" for number in range(len(sound))]
    for path, clip in zip(paths, sound, strict=True):
        soundfile.write(path, clip.numpy(), sample_rate)
    return paths


def by_their_runtime(kind: Kind, paths: list[Path]) -> list[torch.Tensor]:
    """Scenes of files, one after the other."""
    return [kind.encode(torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]).mean(1) for path in paths]


@torch.inference_mode()
def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, nargs="+", default=list(FILES), choices=FILES)
    parser.add_argument("--precision", default="float32", help="of ours: bfloat16 for a CPU that has it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for kind in chosen(arguments, folder, BASE):
            model = Embedder(convert(kind.path, asked=kind.asked)[0], precision=arguments.precision)
            for seconds in arguments.seconds:
                paths = write_files(Path(folder) / f"{kind.name} {seconds}", seconds, model.sample_rate)
                theirs, ours = in_turns(
                    arguments.rounds,
                    time.process_time,
                    lambda kind=kind, paths=paths: by_their_runtime(kind, paths),
                    lambda model=model, paths=paths: list(model.embed_files(paths)),
                )
                times = [1000 * taken / len(paths) for taken in (theirs, ours)]
                print(
                    f"| {kind.name} | {seconds} s | {times[0]:.0f} | {times[1]:.0f} | {theirs / ours:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
