"""Throughput, exactness and memory of embedding folders, against a plain loop.

    python benchmarks/embed_folder.py FOLDER…                        # exactness and throughput
    python benchmarks/embed_folder.py FOLDER… --limit 600 --threads 2
    python benchmarks/embed_folder.py --hours 3                      # memory of one long recording

The plain loop decodes, resamples and calls `get_scene_embeddings` one file at a time. Both run in this process, one
after the other; the ratio is what to compare between machines.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import soundfile
import torch

import hear_jepa
from hear_jepa.errors import AudioError
from hear_jepa.files.audio import read_audio
from hear_jepa.files.embed import FileEnd, embed_pieces
from hear_jepa.files.find import find_sources

MIB = 2**20


def compare(model: hear_jepa.Embedder, paths: list[Path], workers: int, batch_s: float, rounds: int) -> dict:
    """Throughput of both ways, and the largest difference of their embeddings."""
    loop_s, files_s, worst, failed, seconds = [], [], 0.0, 0, 0.0
    for path in paths[:20]:  # filters of the resampler, caches
        plain(model, path)
    for _ in range(rounds):
        start = time.perf_counter()
        expected = {path: plain(model, path) for path in paths}
        loop_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        found = {file.path: file for file in model.embed_files(paths, workers=workers, batch_s=batch_s)}
        files_s.append(time.perf_counter() - start)
    assert found.keys() == expected.keys()
    for path, file in found.items():
        if file.error is not None:
            failed += 1
            continue
        seconds += file.duration_s
        worst = max(worst, numpy.abs(file.embeddings[0] - expected[path]).max())
    return {
        "files": len(paths),
        "failed": failed,
        "suffixes": sorted({path.suffix.lower() for path in paths}),
        "hours": round(seconds / 3600, 3),
        "largest difference": float(worst),
        "plain loop, files/s": round(len(paths) / min(loop_s), 1),
        "embed_files, files/s": round(len(paths) / min(files_s), 1),
        "embed_files, × real time": round(seconds / min(files_s)),
        "ratio": round(min(loop_s) / min(files_s), 2),
    }


def plain(model: hear_jepa.Embedder, path: Path) -> numpy.ndarray | None:
    """One file, the simple way."""
    try:
        return hear_jepa.get_scene_embeddings(read_audio(path, mono=True)[0], model)[0].numpy()
    except AudioError:
        return None


def long_recording(model: hear_jepa.Embedder, hours: float, kind: str) -> dict:
    """Peak memory, above that of the imported and warmed-up model, of one stereo FLAC file at 44.1 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.flac"
        # Written by another process: its memory is not ours.
        subprocess.run([sys.executable, __file__, "--write", str(path), "--hours", str(hours)], check=True)
        model.scenes(torch.randn(1, 16000) / 10)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        start, rows = time.perf_counter(), 0
        for event in embed_pieces(model, [path], kind):
            if isinstance(event, FileEnd):
                assert event.error is None and abs(event.duration_s - hours * 3600) < 1, event
            else:
                rows += len(event.embeddings)
        elapsed_s = time.perf_counter() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "hours": hours,
        "kind": kind,
        "embeddings": rows,
        "MiB above the model": round(grown / MIB),
        "× real time": round(hours * 3600 / elapsed_s),
    }


def write_noise(path: Path, hours: float) -> None:
    """Stereo noise of slowly changing level at 44.1 kHz, a minute at a time."""
    generator = numpy.random.default_rng(0)
    with soundfile.SoundFile(path, "w", 44100, 2) as file:
        for minute in range(round(hours * 60)):
            file.write(generator.normal(size=(44100 * 60, 2), scale=0.02 + 0.01 * (minute % 7)).astype("f4"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--model", default="")
    parser.add_argument("--limit", type=int, help="take so many of the files, evenly spread")
    parser.add_argument("--longest", type=float, help="leave out files longer than so many seconds")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-seconds", type=float, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--hours", type=float, help="measure one recording of so many hours")
    parser.add_argument("--kind", choices=("scene", "timestamps"), default="timestamps", help="of the long recording")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        return write_noise(options.write, options.hours)
    torch.set_num_threads(options.threads)
    model = hear_jepa.load_model(options.model)
    if options.hours:
        print(json.dumps(long_recording(model, options.hours, options.kind), indent=2))
    if options.paths:
        paths = find_sources(options.paths).files
        if options.longest:
            paths = [path for path in paths if soundfile.info(path).duration <= options.longest]
        if options.limit:
            paths = paths[:: max(1, len(paths) // options.limit)][: options.limit]
        print(json.dumps(compare(model, paths, options.workers, options.batch_seconds, options.rounds), indent=2))


if __name__ == "__main__":
    main()
