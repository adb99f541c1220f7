"""What shares, Ray, and --append to a large output cost over a plain run; memory from 100 to 10,000 files.

    python benchmarks/embed_scale.py                  # all of it: some minutes of one core
    python benchmarks/embed_scale.py --only append

CPU seconds, of this process and its children: the ratios hold on a machine that others use too. Shares and Ray embed
with the shipped model, whose work they are compared with; --append and memory with a small one, whose work is little.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import soundfile
import torch

import hear_jepa
from hear_jepa import cli
from hear_jepa.files.embed import FileEnd, Piece
from hear_jepa.files.find import find_sources
from hear_jepa.files.formats import open_output
from hear_jepa.files.store import EmbeddingStore
from hear_jepa.model.checkpoint import Checkpoint, save_checkpoint
from hear_jepa.model.vit import ViT, ViTConfig

TICKS = os.sysconf("SC_CLK_TCK")
MIB = 2**20


def write_sounds(folder: Path, count: int, seconds: float, first: int = 0) -> Path:
    """Noise, one file beside the other."""
    folder.mkdir(exist_ok=True)
    noise = numpy.random.default_rng(first).normal(0, 0.1, 16000 * 60).astype("f4")
    length = int(16000 * seconds)
    for number in range(first, first + count):
        start = 977 * number % (len(noise) - length)
        if not (path := folder / f"{number:06d}.wav").exists():
            soundfile.write(path, noise[start : start + length], 16000)
    return folder


def write_small_model(path: Path) -> str:
    """A checkpoint with little to compute."""
    config = ViTConfig(width=96, depth=2, heads=3)
    save_checkpoint(path, Checkpoint(config, ViT(config).state_dict()))
    return str(path)


def embed(*arguments: str | Path) -> None:
    """`hear-jepa embed` in this process."""
    assert cli.main(["embed", *map(str, arguments)]) == 0, arguments


def cpu_of_child(command: Callable[..., None], *arguments) -> float:
    """CPU seconds of a fork of this process that does it: libraries are loaded, as in a process that goes on."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        silence()
        code = 1
        try:
            command(*arguments)
            code = 0
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime


def silence() -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)


def measure_shards(folder: Path, n_files: int, rounds: int) -> dict:
    """8 shares, each in a process of its own, against one run; what a process needs to start is told apart."""
    sounds, single = write_sounds(folder / "sounds", n_files, 4.0), write_sounds(folder / "single", 1, 4.0)
    embed(single, "--out", folder / "warm.parquet")
    one, eight = [], []
    for number in range(rounds):
        out = folder / f"shards{number}"
        one.append(cpu_of_child(embed, sounds, "--out", folder / f"one{number}.parquet"))
        eight.append(sum(cpu_of_child(embed, sounds, "--out", out, "--shard", f"{n}/8") for n in range(8)))
    command = [sys.executable, "-m", "hear_jepa.cli", "embed", str(single), "--out", str(folder / "cold.parquet")]
    start = cpu_of_child(os.execv, sys.executable, command)
    return {
        "files of 4 s": n_files,
        "one run, CPU s": round(min(one), 2),
        "8 shares, CPU s": round(min(eight), 2),
        "ratio": round(min(eight) / min(one), 3),
        "a new process with one file, CPU s": round(start, 2),
    }


def measure_ray(folder: Path, n_files: int, rounds: int) -> dict:
    """A local cluster of two workers against one process."""
    import ray

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    sounds = write_sounds(folder / "sounds", n_files, 4.0)
    command = [sys.executable, "-m", "hear_jepa.cli", "embed", str(sounds), "--out", str(folder / "started.parquet")]
    process = cpu_of_child(os.execv, sys.executable, command)
    embed(write_sounds(folder / "single", 1, 4.0), "--out", folder / "warm.parquet")
    plain = [cpu_of_child(embed, sounds, "--out", folder / f"plain{n}.parquet") for n in range(rounds)]
    started = cpu_of_tree()
    environment = {"PYTHONPATH": str(Path(hear_jepa.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=80 * MIB,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": environment},
    )
    embed(sounds, "--out", folder / "first", "--engine", "ray")
    first, warm = cpu_of_tree() - started, []
    for number in range(rounds):
        before = cpu_of_tree()
        embed(sounds, "--out", folder / f"ray{number}", "--engine", "ray")
        warm.append(cpu_of_tree() - before)
    ray.shutdown()
    return {
        "files of 4 s": n_files,
        "one process, CPU s": round(process, 2),
        "one process, without its start": round(min(plain), 2),
        "Ray, with the start of the cluster and its workers": round(first, 2),
        "Ray, without their start": round(min(warm), 2),
        "ratio without starts": round(min(warm) / min(plain), 3),
    }


def cpu_of_tree() -> float:
    """CPU seconds so far of this process and all that descend from it, those that ended too."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        stats[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    family = {os.getpid()}
    while found := {pid for pid, (parent, _) in stats.items() if parent in family} - family:
        family |= found
    return sum(stats[pid][1] for pid in family if pid in stats) / TICKS


def measure_append(folder: Path, n_files: int, name: str) -> dict:
    """10 files added to a finished output, against the 10 alone and reading the index once."""
    sounds, model = write_sounds(folder / "many", n_files, 0.1), write_small_model(folder / "small.safetensors")
    options = ["--model", model]
    embed(sounds / "000000.wav", "--out", folder / f"settings_{name}", *options)
    out = folder / name
    with EmbeddingStore(out, [str(sounds)]) as store:  # as if it had been embedded
        store.start(open_output(folder / f"settings_{name}").settings)
        found = find_sources([sounds]).sounds
        rows = numpy.random.default_rng(0).normal(size=(len(found), store.settings["embedding_size"])).astype("f4")
        for number, sound in enumerate(found):
            store.add(Piece(sound, 0, rows[number : number + 1]))
            store.end(FileEnd(sound, None, 1, 0.1, 1600, stamp=sound.stamp()))
        store.finish(found)
    ten = write_sounds(folder / "ten", 10, 0.1, first=n_files)
    added = {"alone": [], "appended": [], "read": [], "found": []}
    copy = out
    for number in range(3):
        copy = folder / f"copy{number}_{name}"
        shutil.copytree(out, copy) if out.is_dir() else shutil.copy(out, copy)
        added["alone"].append(cpu(embed, ten, "--out", folder / f"ten{number}_{name}", *options))
        added["appended"].append(cpu(embed, ten, "--out", copy, "--append", *options))
        added["read"].append(cpu(open_output, copy))
    assert len(open_output(copy).records) == n_files + 10
    alone, appended, read = (min(added[key]) for key in ("alone", "appended", "read"))
    return {
        "output": f"{n_files} files, {name}",
        "10 files alone, CPU s": round(alone, 3),
        "one read of the index": round(read, 3),
        "10 files appended": round(appended, 3),
        "ratio": round(appended / (alone + read), 2),
    }


def cpu(command: Callable[..., object], *arguments) -> float:
    """CPU seconds of a call."""
    started = time.process_time()
    command(*arguments)
    return time.process_time() - started


def measure_memory(folder: Path, n_files: int) -> dict:
    """Peak memory of a run over 100, and over many files."""
    sounds, model = write_sounds(folder / "many", n_files, 0.1), write_small_model(folder / "small.safetensors")
    report = folder / "peak"

    def run(count: int) -> None:
        names = folder / f"{count}.txt"
        names.write_text("\n".join(str(sounds / f"{number:06d}.wav") for number in range(count)))
        out = folder / f"memory{count}.npz"
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
        embed(names, "--out", out, "--model", model)
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        report.write_text(peak.split()[1])

    peaks = {}
    for count in (100, 1000, n_files):
        cpu_of_child(run, count)
        peaks[f"{count} files, peak MiB"] = round(int(report.read_text()) / 1024)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("shards", "ray", "append", "memory"))
    parser.add_argument("--files", type=int, default=500, help="of 4 s, for shards and Ray")
    parser.add_argument("--index", type=int, default=10_000, help="files of the large output")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measures = {
        "shards": lambda folder: [measure_shards(folder, options.files, options.rounds)],
        "ray": lambda folder: [measure_ray(folder, options.files, options.rounds)],
        "append": lambda folder: (measure_append(folder, options.index, f"o{end}") for end in (".npz", ".parquet", "")),
        "memory": lambda folder: [measure_memory(folder, options.index)],
    }
    for name, measure in measures.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                for result in measure(Path(folder)):
                    print(json.dumps({name: result}), flush=True)


if __name__ == "__main__":
    main()
