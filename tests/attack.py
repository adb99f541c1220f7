"""Attack `hear-jepa embed` and the checkpoint reader with what goes wrong in practice, and count what is lost.

    python tests/attack.py                 # 800 odd files, 20 kills a format and command, 600 headers: some minutes
    python tests/attack.py --short         # the same in seconds, as the tests run it
    python tests/attack.py --only kills --seed 7 --times 5

Prints a table and exits with 1 if anything was lost. The seed decides everything but the moments of the kills.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy
import soundfile
import torch
from conftest import random_checkpoint
from safetensors.torch import load_file

from hear_jepa import Embedder, cli, disk, get_timestamp_embeddings, load_model
from hear_jepa.errors import HearJepaError
from hear_jepa.files.formats import FORMATS, Embeddings, load_embeddings
from hear_jepa.files.shards import DATASET, Shard, manifest_path
from hear_jepa.model import checkpoint as checkpoints
from hear_jepa.model.checkpoint import save_checkpoint

TASKS = Path(__file__).parent / "tasks"
N_SHARES = 3
HANG_S = 600  # a step that takes longer hangs


@dataclass
class Result:
    """How often something was tried, what became of it, and what was lost."""

    what: str
    tried: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def count(self, outcome: str) -> None:
        """One more try, and what became of it."""
        self.tried += 1
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def row(self) -> str:
        """Of a Markdown table."""
        outcomes = ", ".join(f"{number} {outcome}" for outcome, number in sorted(self.outcomes.items()))
        return f"| {self.what} | {self.tried} | {outcomes} | {len(self.lost) or 'nothing'} |"


# ---------------------------------------------------------------- odd files


def odd_files(dice: random.Random, count: int, folder: Path) -> Result:
    """Damaged, mislabelled and extreme files in one run: each is accounted for once, and none touches the good ones."""
    result = Result("files: cut, flipped, overwritten, mislabelled, random, extreme samples and headers")
    originals = sources(folder / "originals")
    rotten = folder / "rotten"
    rotten.mkdir()
    for number in range(count):
        source = dice.choice(originals)
        damage = dice.choice(DAMAGES)
        suffix = dice.choice([source.suffix] * 3 + [".wav", ".flac", ".mp3", ".m4a", ".ogg"])
        (rotten / f"{number:04d}_{damage.__name__}{suffix}").write_bytes(damage(dice, source.read_bytes()))
    extreme_samples(dice, rotten, max(10, count // 20))
    good = {path: rotten / f"good_{path.name}" for path in originals}
    for path, copy in good.items():
        shutil.copy(path, copy)

    model = Embedder(random_checkpoint(), hop_ms=160)
    alone = {copy: next(iter(model.embed_files(copy))).embeddings[0] for copy in good.values()}
    seen, started = {}, time.monotonic()
    for file in model.embed_files(sorted(rotten.iterdir())):
        if file.path in seen:
            result.lost.append(f"{file.path.name} came twice")
        seen[file.path] = file
        if time.monotonic() - started > HANG_S:
            result.lost.append(f"{file.path.name} took {time.monotonic() - started:.0f} s")
        started = time.monotonic()
        if file.error is None and not all(numpy.isfinite(rows).all() for rows in file.embeddings):
            result.lost.append(f"{file.path.name}: embeddings that are not finite, counted as a success")
        result.count("refused by name" if file.error else "embedded")
    result.lost += [f"{path.name} is not accounted for" for path in rotten.iterdir() if path not in seen]
    for path, rows in alone.items():
        if seen[path].error or not numpy.array_equal(seen[path].embeddings[0], rows):
            result.lost.append(f"{path.name}: another embedding than alone")
    return result


def sources(folder: Path) -> list[Path]:
    """Good files of many formats, of real sound."""
    folder.mkdir()
    clip = next(iter(sorted(TASKS.glob("*/16000/*/*.*"))))
    sound, rate = soundfile.read(clip, dtype="float32")
    for suffix in (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au", ".w64", ".caf"):
        soundfile.write(folder / f"sound{suffix}", sound[:24000], rate)
    soundfile.write(folder / "stereo.wav", numpy.stack([sound, sound[::-1]], 1)[:20000], 44100, subtype="PCM_24")
    soundfile.write(folder / "float.wav", sound[:20000], 8000, subtype="FLOAT")
    if shutil.which("ffmpeg"):
        for suffix in (".m4a", ".mka", ".wma", ".ac3"):
            source = folder / "sound.wav"
            subprocess.run(["ffmpeg", "-v", "error", "-i", source, folder / f"sound{suffix}"], check=True)
    return sorted(folder.iterdir())


def cut(dice: random.Random, content: bytes) -> bytes:
    """Truncated anywhere."""
    return content[: dice.randrange(len(content))]


def flipped(dice: random.Random, content: bytes) -> bytes:
    """A few bytes changed anywhere."""
    damaged = bytearray(content)
    for _ in range(dice.randint(1, 50)):
        damaged[dice.randrange(len(damaged))] = dice.randrange(256)
    return bytes(damaged)


def header_flipped(dice: random.Random, content: bytes) -> bytes:
    """A few of the first bytes changed."""
    damaged = bytearray(content)
    for _ in range(dice.randint(1, 6)):
        damaged[dice.randrange(min(60, len(damaged)))] = dice.choice([0, 1, 127, 128, 255, dice.randrange(256)])
    return bytes(damaged)


def overwritten(dice: random.Random, content: bytes) -> bytes:
    """A stretch of zeros, or of something else."""
    start, length = dice.randrange(len(content)), dice.randrange(1, 4000)
    return (content[:start] + dice.choice([bytes(length), dice.randbytes(length)]) + content[start + length :])[: 10**6]


def glued(dice: random.Random, content: bytes) -> bytes:
    """Something before or after it."""
    other = dice.choice([dice.randbytes(3000), content, b"ID3" + dice.randbytes(100), b"<html>404 not found</html>"])
    return dice.choice([other + content, content + other])


def shuffled(dice: random.Random, content: bytes) -> bytes:
    """Two parts exchanged."""
    place = dice.randrange(len(content))
    return content[place:] + content[:place]


def noise(dice: random.Random, content: bytes) -> bytes:
    """No sound at all."""
    return dice.choice(
        [b"", b"\0" * 5000, dice.randbytes(5000), b"#EXTM3U\nfile:///etc/passwd\n" * 9, content[:4] * 999]
    )


def untouched(dice: random.Random, content: bytes) -> bytes:
    """Perhaps only the suffix is wrong."""
    return content


DAMAGES = (cut, flipped, header_flipped, overwritten, glued, shuffled, noise, untouched)


def extreme_samples(dice: random.Random, folder: Path, count: int) -> None:
    """Float files whose samples are not sound."""
    values = [numpy.nan, numpy.inf, -numpy.inf, 1e30, 3e38, 1e10, 1e-38, 0.0, 1e9]
    for number in range(count):
        sound = numpy.full(dice.randint(1, 9000), dice.choice([0.0, 0.1]), "f4")
        sound[dice.randrange(len(sound)) :] = dice.choice(values)
        soundfile.write(folder / f"extreme_{number}.wav", sound, dice.choice([8000, 16000, 44100]), subtype="FLOAT")


# ---------------------------------------------------------------- kills


def kills(dice: random.Random, count: int, folder: Path) -> Iterator[Result]:
    """Each format and command, killed again and again and run again: the output is the one of a run in peace."""
    weights = folder / "small.safetensors"
    save_checkpoint(weights, random_checkpoint())
    sounds, more = folder / "sounds", folder / "more"
    for place, numbers in ((sounds, range(24)), (more, range(24, 36))):
        place.mkdir()
        for number in numbers:
            noise = numpy.random.default_rng(number).normal(0, 0.1, 9000 + 2500 * number)
            soundfile.write(place / f"{number:02d}.wav", noise, 16000)
    (sounds / "broken.wav").write_bytes(b"RIFF")
    base = ["embed", str(sounds), "--model", str(weights), "--batch-seconds", "4", "--workers", "1"]
    names = ["o.npz", "o.parquet", "o", *(["o.lance"] if find_spec("lance") else [])]
    for command in COMMANDS:
        for name in names if count > 1 else [dice.choice(names)]:
            yield kill_command(dice, count, folder / "run", name, command, base, str(more))
    for form in FORMATS if count > 1 else ["npz"]:
        if form != "lance" or find_spec("lance"):
            yield kill_shares(dice, count, folder / "run", form, [*base[:2], str(more), *base[2:]])


COMMANDS = {  # name: options of a command that is killed
    "new, scenes": ["--kind", "scene"],
    "new, timestamps, channels apart": ["--kind", "timestamps", "--channels", "separate"],
    "--overwrite, windows": ["--kind", "windows", "--window-s", "1", "--overwrite"],
    "--append, timestamps in float16": ["--kind", "timestamps", "--dtype", "float16", "--append"],
}


def kill_command(dice, count, folder, name, command, base, more) -> Result:
    """One command, killed `count` times at any moment."""
    result, options = Result(f"kills: {name[2:] or 'folder'}, {command}"), COMMANDS[command]
    peace, first = folder / "peace" / name, [o for o in options if o not in ("--append", "--overwrite")]
    shutil.rmtree(folder, ignore_errors=True)
    run_child([*base[:2], more, *base[2:], *options, "--out", str(peace)])
    expected, out = loaded(peace), folder / "killed" / name
    started = time.monotonic()
    run_child([*base, *first, "--out", str(out)])
    longest_s, before = 1.1 * (time.monotonic() - started), loaded(out)
    while result.tried < count:
        shutil.rmtree(out.parent)
        if command.startswith("--"):  # there is an output already
            run_child([*base, *first, "--out", str(out)])
        for attempt in itertools.count():
            full = [*base[:2], more, *base[2:], *options, "--out", str(out)]
            code = run_child(full, dice.uniform(0, longest_s) if attempt < 12 and result.tried < count else HANG_S)
            if code is None:
                result.count("killed")
                if command.startswith("--") and not readable(out, before, expected):
                    result.lost.append(f"{command}: after a kill neither the old nor the new output is there")
            if code in (0, 1) or (code == 2 and out.exists() and not Path(f"{out}.parts").exists()):
                break
            if code is not None and code != 0:
                result.lost.append(f"{command}: exit code {code}")
                break
        result.lost += differences(loaded(out), expected)
        left = [path.name for path in out.parent.iterdir() if path != out and not path.name.endswith(".part")]
        run_child([*base[:2], more, *base[2:], *first, "--append", "--out", str(out)])
        left += [path.name for path in out.parent.iterdir() if path != out]
        result.lost += [f"{name} is left behind" for name in left]
    return result


def kill_shares(dice: random.Random, count: int, folder: Path, form: str, base: list[str]) -> Result:
    """Every share of an output, killed at any moment until `count` kills are done."""
    result, out = Result(f"kills: {form}, --shard, scenes"), folder / "killed" / "o"
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    run_child([*base, "--out", str(folder / "peace.npz")])
    longest_s, expected = 0.5 * (time.monotonic() - started), loaded(folder / "peace.npz")
    while result.tried < count:
        shutil.rmtree(out, ignore_errors=True)
        for share in map(Shard, range(N_SHARES), [N_SHARES] * N_SHARES):
            command = [*base, "--out", str(out), "--format", form, "--shard", f"{share.index}/{share.count}"]
            for attempt in itertools.count():
                code = run_child(
                    command, dice.uniform(0, longest_s) if attempt < 6 and result.tried < count else HANG_S
                )
                if code is not None:
                    break
                result.count("killed")
            if code not in (0, 1) and not manifest_path(out / f"{share.stem}.{form}").exists():
                result.lost.append(f"{share}: exit code {code}")
        result.lost += differences(loaded(out), expected)
        disk.remove_abandoned(out)  # as the next writer does
        known = {DATASET, *(name for n in range(N_SHARES) for name in of_share(Shard(n, N_SHARES), form))}
        result.lost += [f"{path.name} is left behind" for path in out.iterdir() if path.name not in known]
    return result


def of_share(share: Shard, form: str) -> list[str]:
    """Names of its files."""
    return [f"{share.stem}.{form}", manifest_path(Path(f"{share.stem}.{form}")).name]


def kill_workers(dice: random.Random, count: int, folder: Path) -> Result:
    """A cluster of two workers, one of them killed at any moment, `count` times: what one process gives."""
    result = Result("kills: --engine ray, one of two workers")
    if not find_spec("ray"):
        return result
    import ray

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    weights, sounds, out = folder / "small.safetensors", folder / "sounds", folder / "out"
    save_checkpoint(weights, random_checkpoint())
    sounds.mkdir()
    for number in range(200):
        noise = numpy.random.default_rng(number).normal(0, 0.1, 30000 + 100 * number)
        soundfile.write(sounds / f"{number:03d}.wav", noise, 16000)
    command = ["embed", str(sounds), "--model", str(weights), "--kind", "timestamps", "--hop-ms", "20", "--out"]
    run_child([*command, str(folder / "peace.npz")])
    expected = load_embeddings(folder / "peace.npz")
    ray.init(address="local", num_cpus=2, object_store_memory=2**27, include_dashboard=False, log_to_driver=False)
    while result.tried < count:
        shutil.rmtree(out, ignore_errors=True)
        killed: list[int] = []
        killer = threading.Thread(target=kill_one, args=(out, dice.randrange(1, 60), killed))
        killer.start()
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            code = cli.main([*command, str(out), "--engine", "ray"])
        killer.join()
        result.count("killed" if killed else "finished before the kill")
        if code != 0:
            result.lost.append(f"exit code {code}")
        result.lost += differences(load_embeddings(out), expected)
    ray.shutdown()
    return result


def kill_one(out: Path, n_files: int, killed: list[int]) -> None:
    """Kill the first process that has embedded so many files of a share."""
    end = time.monotonic() + HANG_S
    while time.monotonic() < end and not list(out.glob("_part*")):
        for journal in out.glob("*.parts/journal.jsonl"):
            with suppress(OSError):
                if journal.read_bytes().count(b"\n") >= n_files:
                    for link in Path("/proc").glob("[0-9]*/fd/*"):
                        with suppress(OSError):
                            if os.readlink(link) == str(journal) and int(link.parts[2]) != os.getpid():
                                os.kill(int(link.parts[2]), signal.SIGKILL)
                                return killed.append(n_files)
        time.sleep(0.005)


def loaded(path: Path) -> Embeddings:
    """`load_embeddings` in a fork: Lance starts threads, and a process that has threads should not fork."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(load_embeddings, (path,))


def run_child(arguments: list[str], seconds: float = HANG_S) -> int | None:
    """`hear-jepa` in a fork of this process, killed after so many seconds; its exit code, None if it was killed."""
    child = os.fork()
    if child == 0:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        code = 3
        try:
            code = cli.main(arguments)
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def readable(out: Path, *outputs) -> bool:
    """Whether the output is one of these."""
    try:
        found = loaded(out)
    except HearJepaError:
        return not out.exists() and Path(f"{out}.parts").exists()  # a folder, between the two: all of it in the parts
    return any(found.paths == output.paths for output in outputs)


def differences(found, expected) -> list[str]:
    """What one output has and another has not."""
    if sorted(found.paths) != sorted(expected.paths) or found.failed != expected.failed:
        return [f"{len(found.paths)} entries and {len(found.failed)} failures, not {len(expected.paths)} and more"]
    place = {path: number for number, path in enumerate(found.paths)}
    wrong = []
    for path, rows in zip(expected.paths, expected.embeddings, strict=True):
        other = found.embeddings[place[path]]
        if not numpy.array_equal(other, rows):
            wrong.append(f"{path} differs")
    return wrong


# ---------------------------------------------------------------- outputs that are not ours


def hostile_outputs(dice: random.Random, count: int, folder: Path) -> Result:
    """Outputs that would destroy something, or cannot be: refused with 2, and not a byte of anything changes."""
    result = Result(
        "outputs: recordings, foreign folders and files, files added to ours, links, inputs and their parents"
    )
    weights = folder / "small.safetensors"
    save_checkpoint(weights, random_checkpoint())
    home = folder / "home"
    for number in range(3):
        (home / "rec" / "deep").mkdir(parents=True, exist_ok=True)
        soundfile.write(home / "rec" / "deep" / f"{number}.wav", numpy.full(4000, 0.1), 16000)
    (home / "thesis").mkdir()
    (home / "thesis" / "thesis.tex").write_text("years of work")
    (home / "notes.npz").write_text("notes")
    (home / "notes.parquet").write_bytes(b"PAR1 and more")
    (home / "link").symlink_to("thesis")
    (home / "o.parts").mkdir()
    (home / "o.parts" / "mine").write_text("mine")
    numpy.savez(home / "data.npz", paths=numpy.zeros(3))
    sound = str(home / "rec" / "deep" / "0.wav")
    for name in ("ours", "ours.npz", "ours.parquet"):
        run_child(["embed", sound, "--model", str(weights), "--out", str(home / name)])
    (home / "ours" / "diary.txt").write_text("added by hand")
    targets = [
        home / "rec",
        home,
        home / "rec" / "deep",
        home / "rec" / "new.npz",
        home / "thesis",
        home / "link",
        sound,
    ]
    targets += [
        home / "notes.npz",
        home / "notes.parquet",
        home / "data.npz",
        home / "ours",
        home / "o",
        home / "thesis" / "..",
    ]
    targets += [home / "notes.npz" / "below.npz", home / "rec" / "deep" / "1.wav", home / "rec" / ".." / "rec"]
    inputs = [
        [str(home / "rec")],
        [sound, str(home / "rec")],
        [str(home / "rec" / "deep" / "*.wav"), str(home / "rec")],
    ]
    modes = [[], ["--overwrite"], ["--append"], ["--kind", "timestamps", "--overwrite"], ["--shard", "0/2"]]
    before = snapshot(home)
    for out, source, mode in dice.sample(list(itertools.product(targets, inputs, modes)), k=min(count, 16 * 15)):
        if Path(out).name == "o" and "--shard" in mode:
            continue  # a new folder, whose parts lie in it: nothing is in the way
        code = run_child(["embed", *source, "--model", str(weights), "--out", str(out), *mode])
        if code != 2 or snapshot(home) != before:
            result.lost.append(
                f"{source} --out {out} {mode}: exit code {code}, changed: {changed(before, snapshot(home))}"
            )
            before = snapshot(home)
        result.count("refused")
    return result


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def changed(before: dict, after: dict) -> list[str]:
    """Names that differ."""
    return [name for name in before | after if before.get(name) != after.get(name)]


# ---------------------------------------------------------------- headers of checkpoints


def hostile_headers(dice: random.Random, count: int, folder: Path) -> Result:
    """Checkpoints whose numbers are wrong, but whose checksums are right: refused, or served with exact times."""
    result = Result("checkpoint headers: wrong numbers and types, missing and unknown fields; damaged files")
    folder.mkdir(exist_ok=True)
    good, bad = folder / "good.safetensors", folder / "bad.safetensors"
    save_checkpoint(good, random_checkpoint())
    audio = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    for _ in range(count):
        what = damage_checkpoint(dice, good, bad)
        started = time.process_time()
        try:
            model = load_model(bad)
            embeddings, times = get_timestamp_embeddings(audio, model)
            if not torch.isfinite(embeddings).all() or not (times[0].diff() == model.hop_ms).all():
                result.lost.append(f"{what}: embeddings that are not finite, or times that are wrong")
            result.count("served, exactly")
        except HearJepaError:
            result.count("refused by name")
        except Exception as error:
            result.lost.append(f"{what}: {type(error).__name__}: {error}")
            result.count("raw error")
        if time.process_time() - started > 10:
            result.lost.append(f"{what}: {time.process_time() - started:.0f} s")
    return result


def damage_checkpoint(dice: random.Random, good: Path, bad: Path) -> str:
    """Write a checkpoint with something wrong, and say what."""
    content = good.read_bytes()
    if dice.random() < 0.2:
        damage = dice.choice([cut, flipped, header_flipped, overwritten])
        bad.write_bytes(damage(dice, content))
        return damage.__name__
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    config = json.loads(metadata["config"])
    section = config[dice.choice(list(config))]
    names = list(section) or ["nothing"]
    name = dice.choice(names)
    value = dice.choice(
        [0, 1, -1, 2, 7, 10**9, 2**63, -(10**12), 0.5, 1e308, float("nan"), float("inf"), None, True, "x", [], [0], {}]
    )
    action = dice.choice(["set"] * 6 + ["scale", "scale", "remove", "add"])
    if action == "set":
        section[name] = value
    elif action == "scale" and isinstance(section.get(name), int | float):
        section[name] = section[name] * dice.choice([2, 3, 100, -1]) + dice.choice([0, 1])
    elif action == "remove":
        section.pop(name, None)
    else:
        section["unknown"] = value
    metadata["config"] = json.dumps(config)
    metadata["sha256"] = checkpoints._checksum(metadata, load_file(good))  # right: someone meant it
    text = json.dumps(header).encode()
    bad.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return f"{action} {name} {section.get(name)!r}"


# ---------------------------------------------------------------- all of it


ATTACKS: dict[str, tuple[Callable, int, int]] = {  # name: function, count, count of the short version
    "files": (odd_files, 800, 30),
    "kills": (kills, 20, 1),
    "outputs": (hostile_outputs, 240, 12),
    "headers": (hostile_headers, 600, 60),
    "ray": (kill_workers, 20, 0),  # the last: no fork follows it
}


def main() -> int:
    """Run the attacks; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", choices=ATTACKS)
    parser.add_argument("--times", type=int, help="in place of the usual numbers")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # forks of this process compute
    disk.SETTLED_S = 0.0  # one process writes at a time: a temporary folder without a lock is a killed one's
    print("| what was tried | times | what became of it | lost |\n|---|---|---|---|")
    results: list[Result] = []
    for name, (attack, count, short_count) in ATTACKS.items():
        if options.only in (None, name):
            number = short_count if options.short else options.times or count
            if not number:
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = attack(random.Random(options.seed), number, Path(folder))
                for result in [found] if isinstance(found, Result) else found:
                    print(result.row(), flush=True)
                    results.append(result)
    for result in results:
        for loss in result.lost[:10]:
            print(f"LOST in {result.what}: {loss}", file=sys.stderr)
    return 1 if any(result.lost for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
