"""Claims about whole runs, on real audio:

* on a few clips the loss falls by a factor of 5 and the run's checkpoint is one that `load_model` opens;
* a run killed between two states, and while it writes one, and resumed, ends with bit-equal weights;
* SIGTERM saves and ends cleanly;
* two ranks over gloo take the step that one rank takes with the joined batch, a compiled run that of one that is not;
* the online probe keeps the state with the best score, and chooses the encoder that is served;
* a non-finite loss stops the step, is counted, and after several in a row the run ends with its state saved;
* a full disk leaves the last good state; flipped bits in a state are seen, and the one before it is taken; what killed
  writers left goes when the run starts again;
* other options on resuming, an old run in the way and a missing state are refused with a message.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import TASKS, command_line, small_run, steps

import hear_jepa
from hear_jepa.errors import CheckpointError, HearJepaError, OptionError
from hear_jepa.model.checkpoint import load_checkpoint
from hear_jepa.train import loop, online_probe, run_state
from hear_jepa.train.config import ComputeConfig, EmaConfig, OptimConfig
from hear_jepa.train.data.sampler import CropStream
from hear_jepa.train.finish import ENCODER_FILE
from hear_jepa.train.jepa import TargetConfig
from hear_jepa.train.losses import LossConfig
from hear_jepa.train.masking import MaskConfig
from hear_jepa.train.metrics_log import read_metrics
from hear_jepa.train.ranks import Ranks
from hear_jepa.train.run_state import BEST, LATEST, PREVIOUS


@pytest.fixture
def config(sixteen_clips, tmp_path):
    """A run of seconds."""
    return small_run(sixteen_clips, tmp_path / "run")


def final_weights(folder):
    return torch.load(folder / LATEST, weights_only=True)["jepa"]


def same(first, second):
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def assert_close(found, expected):
    """Equal to 1e-5. The keys' bias is left out: it cancels in the softmax, so its gradient is rounding noise, which
    AdamW scales up to whole steps."""
    for name, tensor in expected.items():
        if name.endswith("qkv.bias"):
            third = len(tensor) // 3
            tensor[third : 2 * third] = found[name][third : 2 * third]
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0, msg=name)


def test_overfits_sixteen_clips_and_serves_them(config):
    config = replace(
        config,
        optim=OptimConfig(steps=200, batch_size=8, base_lr=0.1, warmup_share=0.05),
        ema=EmaConfig(0.98, 0.99),
        monitor=replace(config.monitor, collapse_every=100, save_every=1000, pictures=True),
    )
    path = loop.train(config)
    losses = [line["loss"] for line in read_metrics(config.out) if "loss" in line]
    assert min(losses[-20:]) < losses[0] / 5
    assert [line["step"] for line in read_metrics(config.out) if "target/content_std" in line] == [100, 200]
    assert {"report.png", "masks.png", "config.json"} <= {file.name for file in config.out.iterdir()}
    embeddings = hear_jepa.get_scene_embeddings(0.1 * torch.randn(2, 16000), hear_jepa.load_model(path))
    assert embeddings.shape == (2, 5 * 32) and embeddings.isfinite().all()
    provenance = load_checkpoint(path).provenance
    assert provenance["config"]["optim"]["steps"] == provenance["steps"] == 200
    assert not load_checkpoint(path).untrained


# Runs the command line that follows, and dies by SIGKILL: before step 5, or while it puts the state of step 9 in place.
DIES = """
import os, signal, sys
from hear_jepa.train import __main__, loop, run_state

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv.pop(1) == "step":
    step = loop.Run.take_step
    loop.Run.take_step = lambda run, audio: die() if run.step == 5 else step(run, audio)
else:
    save = run_state.torch.save
    run_state.torch.save = lambda state, path: save(state, path) if state["step"] < 9 else (path.touch(), die())
sys.exit(__main__.main())
"""


def test_killed_and_resumed_is_bit_equal(config, tmp_path):
    uninterrupted = replace(config, out=tmp_path / "whole")
    loop.train(uninterrupted)
    for moment, resume, saved, last in [("step", False, 3, 5), ("save", True, 6, 9)]:
        arguments = command_line(replace(config, resume=resume))
        killed = subprocess.run([sys.executable, "-c", DIES, moment, *arguments], capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert torch.load(config.out / LATEST, weights_only=True)["step"] == saved
        assert [line["step"] for line in read_metrics(config.out) if "loss" in line] == list(range(1, last + 1))
    loop.train(replace(config, resume=True))
    assert same(final_weights(config.out), final_weights(uninterrupted.out))
    # what the kills undid is not told twice
    assert [line["step"] for line in read_metrics(config.out) if "loss" in line] == list(range(1, 13))
    assert not list(config.out.glob("*.part"))


def test_sigterm_saves_and_ends_cleanly(config, monkeypatch):
    take_step = loop.Run.take_step

    def interrupted(run, audio):
        if run.step == 4:
            for _ in range(2):  # a scheduler's, and torchrun's
                os.kill(os.getpid(), signal.SIGTERM)
        return take_step(run, audio)

    monkeypatch.setattr(loop.Run, "take_step", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    assert loop.train(config) == config.out / LATEST and signal.getsignal(signal.SIGTERM) == before
    assert run_state.read_state(config.out / LATEST)["step"] == 5


def test_a_rank_that_must_stop_stops_all_at_the_same_step(config, monkeypatch):
    """By a signal, here or on another rank, or as it was stopped while it waited for crops: asked before each step."""
    asked = []
    for told, last in ((lambda flag: len(asked) == 3, 2), (lambda flag: flag, 4)):
        asked.clear()
        monkeypatch.setattr(Ranks, "any", lambda self, flag, told=told: asked.append(flag) or told(flag))
        run = loop.Run(replace(config, out=config.out / str(last)))
        crops = run.crops()
        waits = iter([next(crops), next(crops), next(crops), next(crops), None])
        monkeypatch.setattr(CropStream, "__next__", lambda crops, waits=waits: next(waits))
        run.train()
        monkeypatch.undo()
        crops.close()
        assert run_state.read_state(run.config.out / LATEST)["step"] == last and len(asked) == last + 1


def test_ranks_of_a_cpu_stop_at_a_signal_and_fail_in_a_line(config):
    config = replace(steps(config, 100_000), compute=replace(config.compute, cpu_ranks=2))
    command = [sys.executable, "-m", "hear_jepa.train"]
    with subprocess.Popen(
        [*command, *command_line(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        deadline = time.monotonic() + 300
        while not (config.out / LATEST).exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        run.terminate()
        said, told = run.communicate(timeout=300)
    assert run.returncode == 128 + signal.SIGTERM and said.split() == [str(config.out / LATEST)], told
    assert "saving after this step" in told and "Traceback" not in told and "Warning" not in told
    odd = replace(config, resume=True, optim=replace(config.optim, batch_size=3))
    failed = subprocess.run([*command, *command_line(odd)], capture_output=True, text=True, timeout=300)
    assert failed.returncode == 2 and "batch-size is 3" in failed.stderr and "Traceback" not in failed.stderr


def test_two_ranks_equal_one_with_the_joined_batch(config, tmp_path):
    config = replace(config, loss=LossConfig("info-nce"))  # each prediction is told from the targets of all ranks
    two = replace(config, out=tmp_path / "two")
    loop.train(config)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "hear_jepa.train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, *torchrun, *command_line(two)], capture_output=True, text=True, timeout=600, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert_close(final_weights(two.out), final_weights(config.out))
    assert load_checkpoint(two.out / ENCODER_FILE).provenance["ranks"] == 2


def test_non_finite_steps_are_skipped_then_end_the_run(config, monkeypatch):
    config = replace(config, optim=replace(config.optim, max_bad_steps=3))
    run, clean, number = loop.Run(config), CropStream.__next__, itertools.count()

    def poisoned(crops):
        step = next(number)
        return clean(crops) * (float("nan") if step == 2 or step >= 5 else 1.0)

    monkeypatch.setattr(CropStream, "__next__", poisoned)
    with pytest.raises(loop.DivergedError, match="3 steps in a row"):
        run.train()
    assert all(tensor.isfinite().all() for tensor in final_weights(config.out).values())
    bad = [line["step"] for line in read_metrics(config.out) if line.get("skipped_steps")]
    assert bad == [3, 6, 7, 8]


def test_a_full_disk_leaves_the_last_good_state(config, monkeypatch):
    loop.train(config)
    before = (config.out / LATEST).read_bytes()

    def full(state, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_state.torch, "save", full)
    run = loop.Run(replace(config, resume=True))
    run.save()
    with pytest.raises(CheckpointError, match="without its last state"):
        run.save(must=True)
    assert (config.out / LATEST).read_bytes() == before
    assert not [path for path in config.out.iterdir() if ".part" in path.name]


def test_flipped_bits_are_seen_and_the_state_before_is_taken(config, caplog):
    loop.train(steps(config, 7))
    latest, previous = config.out / LATEST, config.out / PREVIOUS
    good, damaged_at = latest.read_bytes(), random.Random(0)
    state = run_state.read_state(latest)
    for _ in range(60):
        damaged = bytearray(good)
        damaged[damaged_at.randrange(len(good))] ^= 1 << damaged_at.randrange(8)
        latest.write_bytes(damaged)
        try:
            found = run_state.read_state(latest)
        except CheckpointError:
            continue
        assert found["step"] == state["step"] and same(found["jepa"], state["jepa"])  # a bit that says nothing
    weights = good.index(state["jepa"]["context_encoder.norm.weight"].numpy().tobytes())
    latest.write_bytes(good[:weights] + bytes([good[weights] ^ 1]) + good[weights + 1 :])
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        run_state.read_state(latest)
    killed = config.out / ".latest.pt.abcd1234.part"  # the folder of a writer, who held its lock
    killed.mkdir()
    (killed / "lock").touch()
    (killed / "latest.pt").write_bytes(good)
    caplog.set_level("INFO")
    run = loop.Run(replace(steps(config, 7), resume=True))
    assert run.step == 6 and f"resuming from {previous}, step 6" in caplog.text
    run.train()
    assert same(final_weights(config.out), state["jepa"]) and not killed.exists()
    for path in (latest, previous):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="latest.pt cannot be read.*previous.pt cannot be read"):
        loop.train(replace(steps(config, 7), resume=True))


def test_refusals(config, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        loop.train(replace(config, resume=True))
    loop.train(config)
    with pytest.raises(OptionError, match="holds a run already"):
        loop.train(config)
    with pytest.raises(OptionError, match=r"optim\.weight_decay: 0\.05 -> 0\.5"):
        loop.train(replace(config, resume=True, optim=replace(config.optim, weight_decay=0.5)))
    for message, options in [
        ("nowhere.*missing", {"monitor": replace(config.monitor, probe_tasks=(Path("nowhere"),))}),
        ("heads is 5: the width 32", {"encoder": replace(config.encoder, heads=5)}),
        ("multiple of 3", {"optim": replace(config.optim, accumulation=3)}),
        ("top-layers is 3.*has 2", {"target": TargetConfig(top_layers=3)}),
        ("torch sees no GPU|device", {"compute": ComputeConfig(device="cuda:99x")}),
    ]:
        with pytest.raises(HearJepaError, match=message):
            loop.train(replace(config, out=tmp_path / "x", **options))


def test_precision_auto_is_the_machines_and_recomputed_activations_change_nothing(config, monkeypatch):
    """Under bfloat16 attention has a kernel of its own, which the recomputation in the backward pass must take too."""
    config = replace(config, mask=MaskConfig("multi-block", masks_per_crop=2))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)

    def weights(bfloat16, **compute):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16, raising=False)
        run = steps(replace(config, compute=replace(config.compute, **compute)), 3)
        run = replace(run, out=config.out / "-".join(map(str, (bfloat16, *compute.values()))))
        loop.train(run)
        losses.append(read_metrics(run.out)[0]["loss"])
        return final_weights(run.out)

    losses = []
    plain, halved = weights(True, precision="fp32"), weights(False, precision="bf16")
    assert 1e-5 < abs(losses[0] / losses[1] - 1) < 1e-2  # bfloat16 has 8 bits, float32 has 24
    assert same(weights(False, precision="auto"), plain)
    assert same(weights(True, precision="auto", gradient_checkpointing=True), halved)


def test_the_probe_keeps_the_best_state_and_chooses_the_encoder(config):
    tasks = (TASKS / "percussion_kind-v1-small",)
    config = replace(config, monitor=replace(config.monitor, probe_every=6, probe_tasks=tasks, probe_clips=100))
    path = loop.train(config)
    lines = [line for line in read_metrics(config.out) if any(name.endswith("probe/mean") for name in line)]
    assert [line["step"] for line in lines] == [6, 6, 12, 12]
    scores = load_checkpoint(path).provenance["probe_validation"]
    assert load_checkpoint(path).served.encoder == max(scores, key=lambda name: scores[name]["mean"])
    best = torch.load(config.out / BEST, weights_only=True)
    means = [(value, line["step"]) for line in lines for name, value in line.items() if name.endswith("probe/mean")]
    highest = max(value for value, _ in means)
    assert best["probe"]["best_mean"] == highest
    assert best["step"] == min(step for value, step in means if value == highest)


def test_the_best_state_is_served_and_a_failing_probe_ends_nothing(config, tmp_path, monkeypatch):
    scores = iter([70.0, 60.0, 20.0, 50.0])  # context and target, at step 6 and at the end

    def probe(*arguments):
        score = next(scores)
        if score == 20.0:
            raise RuntimeError("no memory")
        return {"mean": score}

    monkeypatch.setattr(online_probe, "probe", probe)
    tasks = (TASKS / "percussion_kind-v1-small",)
    config = replace(config, monitor=replace(config.monitor, probe_every=6, probe_tasks=tasks))
    path = loop.train(config)  # the last probe fails: the last state is served
    assert load_checkpoint(path).provenance["steps"] == 12

    scores = iter([70.0, 60.0, 30.0, 50.0])
    config = replace(config, out=config.out / "again")
    path = loop.train(config)
    served = load_checkpoint(path)
    assert served.provenance["steps"] == 6 and served.served.encoder == "context"
    name = "blocks.0.mlp.fc1.weight"
    best, last = (run_state.read_state(config.out / file)["jepa"][f"context_encoder.{name}"] for file in (BEST, LATEST))
    torch.testing.assert_close(served.weights[name], best, atol=1e-5, rtol=1e-3)  # stored in float16
    assert not torch.allclose(served.weights[name], last, atol=1e-5, rtol=1e-3)

    scores = iter([70.0, 60.0, 30.0, 69.5])  # no further apart than a probe's noise: the last state is served
    path = loop.train(replace(config, out=tmp_path / "level"))
    assert load_checkpoint(path).provenance["steps"] == 12 and load_checkpoint(path).served.encoder == "target"

    scores = iter([70.0, 60.0, 30.0, 59.5])  # level for the encoder that is to be served, whatever the other did
    serve = replace(config.serve, encoder="target")
    path = loop.train(replace(config, out=tmp_path / "target", serve=serve))
    assert load_checkpoint(path).provenance["steps"] == 12

    scores = iter([70.0, 60.0])
    changed = replace(config, out=tmp_path / "changed", optim=replace(config.optim, steps=7, schedule="constant"))
    changed = replace(
        changed, optim=replace(changed.optim, warmup_steps=1, decay_share=0.0), ema=EmaConfig(ramp_steps=9)
    )
    monkeypatch.setattr(loop, "finish", lambda run, metrics: run.save())
    loop.train(changed)
    monkeypatch.undo()
    monkeypatch.setattr(online_probe, "probe", probe)
    scores = iter([30.0, 50.0])  # of another task: the score of the first tells nothing about it
    changed = replace(changed, resume=True, optim=replace(changed.optim, steps=8))
    path = loop.train(
        replace(changed, monitor=replace(changed.monitor, probe_tasks=(TASKS / "spoken_vowel-v1-small",)))
    )
    assert load_checkpoint(path).provenance["steps"] == 8


def test_the_probe_has_columns_a_patch_apart(config, monkeypatch):
    hops = []
    monkeypatch.setattr(
        online_probe, "probe", lambda served, *_: hops.append(served.served.scene_hop_ms) or {"mean": 1}
    )
    monitor = replace(config.monitor, probe_tasks=(TASKS / "percussion_kind-v1-small",))
    encoder, serve = replace(config.encoder, patch_frames=8), replace(config.serve, hop_ms=40)
    loop.train(replace(steps(config, 1), monitor=monitor, encoder=encoder, serve=serve))
    assert hops == [80, 80]


def test_a_compiled_run_takes_the_same_steps(config, tmp_path, monkeypatch):
    config = replace(config, optim=replace(config.optim, steps=3, accumulation=2))
    loop.train(config)
    monkeypatch.setattr(loop.torch, "compile", lambda model: torch._dynamo.optimize("eager")(model))  # no C++ needed
    compiled = replace(config, out=tmp_path / "compiled", compute=replace(config.compute, compile=True))
    loop.train(compiled)
    assert_close(final_weights(compiled.out), final_weights(config.out))
