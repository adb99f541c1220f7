"""Speed of serving a checkpoint, as ratios taken in turns in one process, so that they compare across machines.

    python benchmarks/serving.py                              # the shipped model, one thread, processor time
    python benchmarks/serving.py --model other.safetensors --threads 2 --elapsed
    python benchmarks/serving.py FOLDER… --limit 500          # and files, beside a plain loop over them

The plain loop decodes, resamples and calls `get_scene_embeddings` one file at a time.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from hear_jepa import Embedder, get_scene_embeddings, get_timestamp_embeddings, load_model
from hear_jepa.errors import AudioError
from hear_jepa.files.audio import read_audio, read_blocks
from hear_jepa.files.find import find_sources
from hear_jepa.files.live import WindowStream

CLIPS, CLIP_S = 4, 10
PRODUCTS = 10  # of two matrices of MATRIX × MATRIX in a turn
MATRIX = 2048
Clock = Callable[[], float]


def in_turns(rounds: int, now: Clock, *functions: Callable[[], object]) -> list[float]:
    """Median seconds of each, run in turns, after one turn that warms all up."""
    times: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, taken in zip(functions, times, strict=True):
            start = now()
            function()
            if number:
                taken.append(now() - start)
    return [statistics.median(taken) for taken in times]


def scene_operations(model: Embedder, n_samples: int) -> float:
    """Floating-point operations of matrix products for the tokens of one clip's columns; two a multiply-add."""
    config, operations = model.encoder.config, 0
    columns = model.grid.n_timestamps(n_samples, model.scene_hop_ms)
    for start in range(0, columns, model.grid.columns):  # the columns that the last window repeats are not counted
        tokens = config.n_freq_patches * min(model.grid.columns, columns - start)
        linear, attention = config.width**2 * (4 + 2 * config.mlp_ratio), 2 * config.width * tokens
        operations += 2 * tokens * (model.grid.patch_size * config.width + config.depth * (linear + attention))
    return operations


def report_clips(model: Embedder, rounds: int, now: Clock) -> None:
    """Scenes and timestamps of clips in memory, beside plain matrix products."""
    clips = torch.randn(CLIPS, CLIP_S * model.sample_rate) / 10  # noise: what is in a clip does not change the work
    left, right = torch.randn(2, MATRIX, MATRIX)
    scenes, timestamps, products = in_turns(
        rounds,
        now,
        lambda: get_scene_embeddings(clips, model),
        lambda: get_timestamp_embeddings(clips, model),
        lambda: [torch.mm(left, right) for _ in range(PRODUCTS)],
    )
    rate, mm_rate = CLIPS * scene_operations(model, clips.shape[1]) / scenes, PRODUCTS * 2 * MATRIX**3 / products
    print(f"scenes: {CLIPS * CLIP_S / scenes:.0f} × real time; {rate / mm_rate:.0%} of the torch.mm rate")
    print(f"timestamps every {model.hop_ms} ms: {timestamps / scenes:.1f} times the cost of scenes")


def report_files(model: Embedder, paths: list[Path], rounds: int, now: Clock) -> None:
    """`embed_files` beside the plain loop: speed, the largest difference of the embeddings, and where the time goes."""
    ours: dict[Path, Tensor] = {}
    theirs: dict[Path, Tensor] = {}
    duration_s = {}

    def embedded() -> None:
        for file in model.embed_files(paths):
            if file.error is None:
                ours[file.path], duration_s[file.path] = torch.from_numpy(file.embeddings[0]), file.duration_s

    def plain() -> None:
        for path in paths:
            with suppress(AudioError):
                theirs[path] = get_scene_embeddings(read_audio(path, model.sample_rate, mono=True)[0], model)[0]

    def read(rate: int | None, cut: bool = False) -> None:
        for path in paths:
            stream = WindowStream(model, model.scene_hop_ms)
            with suppress(AudioError):
                for block in read_blocks(path, sample_rate=rate, mono=True):
                    if cut:
                        stream.feed(block[0])
                stream.finish()

    rate, stages = model.sample_rate, ("decoding", "resampling", "log-mel", "encoding and the rest")
    loop, *times = in_turns(
        rounds, now, plain, lambda: read(None), lambda: read(rate), lambda: read(rate, True), embedded
    )
    sound_s, files = sum(duration_s.values()), times[-1]
    worst = max(float((ours[path] - theirs[path]).abs().max()) for path in ours)
    print(f"{len(paths)} files, {len(paths) - len(ours)} failed, {sound_s / 3600:.2f} h of sound")
    print(
        f"files: {sound_s / files:.0f} × real time, {loop / files:.2f} × a plain loop, largest difference {worst:.1e}"
    )
    shares = (
        f"{name} {(after - before) / files:.0%}"
        for name, before, after in zip(stages, [0, *times[:-1]], times, strict=True)
    )
    print(f"of that: {', '.join(shares)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="files and folders of sound")
    parser.add_argument("--model", default="")
    parser.add_argument("--limit", type=int, help="take so many of the files, evenly spread")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--elapsed", action="store_true", help="elapsed time in place of processor time")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    now = time.perf_counter if arguments.elapsed else time.process_time
    model = load_model(arguments.model)
    report_clips(model, arguments.rounds, now)
    if arguments.paths:
        paths = find_sources(arguments.paths).files
        paths = paths[:: max(1, len(paths) // (arguments.limit or len(paths)))][: arguments.limit]
        report_files(model, paths, arguments.rounds, now)


if __name__ == "__main__":
    main()
