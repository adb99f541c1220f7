"""Plants one-line faults in a copy of the package, one at a time, and reports which of them the tests see.

    python tests/mutants.py                 # all of them: about ten minutes of one core, on Linux or macOS
    python tests/mutants.py --only ema      # those whose file or line holds the word
    python tests/mutants.py --list

A fault is a line of the package, what it becomes, and the tests that ought to see it. The exit code is the number of
faults that none of them saw.
"""

# ruff: noqa: E501  (a fault a line reads best)

import argparse
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HAND = "test_loop_by_hand.py"
RUN = "test_train_run.py"
LIBRARIES = ("torch", "nnAudio.features.mel", "soundfile", "tyro", "docstring_parser", "torch.utils.tensorboard")


@dataclass(frozen=True)
class Fault:
    """`line` of `file` becomes `fault`; pytest's arguments choose the tests that ought to see it."""

    file: str
    line: str
    fault: str
    tests: str


FAULTS = [
    # the log-mel
    Fault("hear_jepa/model/front_end.py", "before = config.n_fft // 2 - config.n_fft_short // 2", "before = 0", "test_frontend.py -k two_windows"),
    Fault("hear_jepa/model/front_end.py", "torch.stack([short, bands], dim=2)", "torch.stack([short, bands], dim=1)", "test_frontend.py -k two_windows"),
    Fault("hear_jepa/model/front_end.py", 'config.spectrum == "magnitude" else 2)', 'config.spectrum == "magnitude" else 1)', "test_frontend.py -k two_windows"),
    Fault("hear_jepa/model/front_end.py", "some * self.window", "some", "test_frontend.py -k nnaudio"),
    Fault("hear_jepa/model/front_end.py", "for clip in frames for part in clip.split(FRAMES_AT_ONCE)", "for clip in frames for part in clip[:FRAMES_AT_ONCE].split(FRAMES_AT_ONCE)", "test_frontend.py -k nnaudio"),
    Fault("hear_jepa/model/front_end.py", "some.flatten(0, 1).split(most)", "some.transpose(0, 1).flatten(0, 1).split(most)", "test_frontend.py -k few"),
    # files
    Fault("hear_jepa/disk.py", "        elif entry.name != LOCK:", "        else:", "test_disk.py -k removes_its_folder"),
    # the loop
    Fault("train/loop.py", "config.optim.lr(self.step)", "config.optim.peak_lr", f"{HAND} -k schedules"),
    Fault("train/loop.py", "config.ema.momentum(self.step, config.optim.steps)", "config.ema.start", f"{HAND} -k schedules"),
    Fault("train/loop.py", "mixed_seed(self.config.seed, self.step)", "mixed_seed(self.config.seed, 0)", f"{HAND} -k masks"),
    Fault("train/loop.py", "mixed_seed(self.config.seed, self.step)", "mixed_seed(0, self.step)", f"{HAND} -k hand"),
    Fault("train/loop.py", "encoder.load_state_dict(initial.weights)", "pass", f"{HAND} -k warm"),
    Fault("train/loop.py", "self.front_end = known.front_end", "self.front_end = plain", f"{HAND} -k warm"),
    Fault("train/loop.py", "if finite or config.ema.after_skipped_steps:", "if True:", f"{HAND} -k overflows"),
    Fault("train/loop.py", "if finite or config.ema.after_skipped_steps:", "if finite:", f"{HAND} -k overflows"),
    Fault("train/loop.py", "self.jepa.update_position_mean(finite)", "pass", f"{HAND} -k hand"),
    Fault("train/loop.py", "start_batch=self.step,", "start_batch=0,", f"{RUN} -k resumed"),
    Fault("train/loop.py", "mask.of_crops(self.ranks.share(batch))", "mask.of_crops(slice(0, n_crops))", f"{RUN} -k ranks"),
    Fault("train/loop.py", "output.loss / self.config.optim.accumulation", "output.loss", f"{HAND} -k hand"),
    Fault("train/loop.py", "mask.of_crops(part), last", "mask.of_crops(slice(0, len(log_mel[part]))), last", f"{HAND} -k hand"),
    Fault("train/loop.py", "bad_steps = 0 if finite else bad_steps + 1", "bad_steps = 0", f"{RUN} -k finite"),
    Fault("train/loop.py", "torch.manual_seed(config.seed)", "torch.manual_seed(0)", f"{HAND} -k hand"),
    # what a run leaves
    Fault("train/finish.py", "ServedConfig(name, serve.layers, serve.hop_ms, serve.pooling)", "ServedConfig(name)", f"{HAND} -k served"),
    Fault("train/finish.py", "run.jepa.encoders[name]", "run.jepa.context_encoder", f"{HAND} -k served"),
    Fault("train/finish.py", "run.jepa.load_state_dict(state[\"jepa\"])", "pass", f"{RUN} -k best"),
    Fault("train/finish.py", "told, serve.columns)", "told)", f"{HAND} -k windows"),
    Fault("train/finish.py", "name = run.probe.better(scores)", "name = 'context'", f"{RUN} -k best"),
    Fault("train/online_probe.py", "if columns > encoder.config.n_time_patches", "if columns", f"{HAND} -k windows"),
    Fault("train/online_probe.py", "max(scores, key", "min(scores, key", f"{RUN} -k best"),
    Fault("train/online_probe.py", "if self.serve.encoder != \"auto\":", "if False:", f"{RUN} -k best"),
    Fault("train/online_probe.py", "if state[\"of\"] == self._what():", "if True:", f"{RUN} -k best"),
    Fault("train/online_probe.py", "self.serve.layers, column_ms,", "self.serve.layers, 160,", f"{RUN} -k columns"),
    Fault("train/online_probe.py", "if best > self.best_mean:", "if True:", f"{RUN} -k best"),
    # the optimiser
    Fault("train/optimisation.py", "self.clip or float(\"inf\")", "float(\"inf\")", f"{HAND} -k hand"),
    Fault("train/optimisation.py", "\"weight_decay\": 0.0}", "\"weight_decay\": weight_decay}", f"{HAND} -k hand"),
    Fault("train/optimisation.py", "if config.decay == \"all\":", "if False:", "test_optimisation.py"),
    Fault("train/optimisation.py", "betas=config.betas,", "", f"{HAND} -k hand"),
    Fault("train/optimisation.py", "        if finite:", "        if True:", f"{RUN} -k finite"),
    Fault("train/optimisation.py", "self.adamw.zero_grad(set_to_none=True)", "pass", f"{HAND} -k hand"),
    Fault("train/optimisation.py", "self.scaler.load_state_dict(state[\"scaler\"])", "pass", f"{HAND} -k resumes"),
    Fault("train/optimisation.py", "return any(getattr(torch.cpu", "return all(getattr(torch.cpu", "test_optimisation.py -k auto"),
    Fault("train/optimisation.py", "sdpa_kernel(SDPBackend.MATH) if", "nullcontext() if", "test_optimisation.py -k plain"),
    Fault("train/optimisation.py", "device.type == \"cpu\" and dtype is not None", "device.type == \"cpu\"", "test_optimisation.py -k plain"),
    Fault("train/loop.py", "enabled=dtype is not None", "enabled=False", f"{RUN} -k precision"),
    Fault("train/ranks.py", "except SignalException as stopped:", "except ZeroDivisionError as stopped:", f"{RUN} -k signal"),
    Fault("train/ranks.py", "except ChildFailedError as failed:", "except ZeroDivisionError as failed:", f"{RUN} -k signal"),
    Fault("train/__main__.py", "if is_main_rank():", "if True:", f"{RUN} -k signal"),
    Fault("train/loop.py", "initial = None if self.config.resume else self.config.init_from", "initial = self.config.init_from", f"{HAND} -k warm"),
    Fault("train/loop.py", "if not self.jepa.frozen:", "if True:", f"{HAND} -k frozen"),
    Fault("train/loop.py", "named_checkpoint(name) if name", "named_checkpoint() if name", f"{HAND} -k warm"),
    Fault("train/ranks.py", "if tuned or not", "if not", "test_optimisation.py -k memory"),
    # schedules
    Fault("train/schedules.py", "peak * (step + 1) / steps", "peak * step / steps", "test_schedules.py"),
    Fault("train/schedules.py", "peak * step / max(1, steps - 1)", "peak * step / steps", "test_schedules.py"),
    Fault("train/schedules.py", "min(1.0, step / max(1, steps))", "min(1.0, step / max(1, steps - 1))", "test_schedules.py"),
    Fault("train/schedules.py", "(left + 1) / (decay + 1)", "left / (decay + 1)", "test_schedules.py"),
    Fault("train/schedules.py", "ramp(min(1.0, progress))", "ramp(progress)", "test_schedules.py"),
    Fault("train/config.py", "(self.ramp_steps or steps) - self.reaches_end", "steps - self.reaches_end", "test_schedules.py"),
    Fault("train/config.py", "(self.ramp_steps or steps) - self.reaches_end", "(self.ramp_steps or steps)", "test_schedules.py"),
    # masks
    Fault("train/masking.py", "order[:, n_context : n_context + n_target]", "order[:, :n_target]", "test_masking.py"),
    Fault("train/masking.py", "(rows - height + 1)).long()", "(rows - height)).long()", "test_masking.py"),
    Fault("train/masking.py", "(columns - width + 1)).long()", "(columns - width)).long()", "test_masking.py"),
    Fault("train/masking.py", "(n_masks, 1), rows, columns, generator) & ~target\n    return", "(n_masks, 1), rows, columns, generator)\n    return", "test_masking.py"),
    Fault("train/masking.py", "part[..., None] * rows + whole", "part[..., None] + whole", "test_masking.py"),
    Fault("train/masking.py", "unflatten(0, (config.masks_per_crop, n_crops))", "unflatten(0, (n_crops, config.masks_per_crop)).transpose(0, 1)", "test_masking.py test_loop_by_hand.py"),
    Fault("train/masking.py", "order[:, :count].sort(dim=1).values", "order[:, :count]", "test_masking.py"),
    # the model that is trained
    Fault("train/jepa.py", "target, context, 1 - ema_momentum", "target, context, ema_momentum", "test_jepa.py"),
    Fault("train/jepa.py", "[*module.parameters(), *module.buffers()]", "[*module.parameters()]", "test_jepa.py"),
    Fault("train/jepa.py", "if not self.frozen:", "if True:", "test_jepa.py"),
    Fault("train/jepa.py", "take(self.pos_embed, target_indices)", "take(self.pos_embed, target_indices.flip(1))", "test_jepa.py"),
    Fault("train/jepa.py", "tokens[:, -scored.shape[1] :]", "tokens[:, : scored.shape[1]]", "test_jepa.py"),
    Fault("train/jepa.py", "range(depth - top + 1, depth + 1)", "range(1, top + 1)", "test_jepa.py"),
    Fault("train/jepa.py", "self._scores_context else mask.target", "False else mask.target", "test_jepa.py"),
    Fault("train/jepa.py", "embeddings - self.mean[indices]", "embeddings", "test_jepa.py"),
    Fault("train/jepa.py", "loss + weight * regulariser(step)", "loss + regulariser(step)", "test_jepa.py"),
    Fault("train/losses.py", "var(dim=-1, keepdim=True) + 1e-6", "var(dim=-1, keepdim=True, correction=0) + 1e-6", "test_jepa.py"),
    Fault("train/losses.py", "beta=1.0", "beta=0.5", "test_jepa.py"),
    Fault("train/losses.py", "predicted @ targets.T / 0.1", "predicted @ targets.T", "test_jepa.py -k nce"),
    Fault("train/losses.py", "own + dist.get_rank() * len(targets)", "own", f"{RUN} -k two_ranks"),
    Fault("train/losses.py", "if dist.is_initialized():", "if False:", f"{RUN} -k two_ranks"),
    Fault("train/jepa.py", "log_mel.device.type, enabled=False", "log_mel.device.type, enabled=True", "test_jepa.py -k float32"),
    Fault("train/losses.py", "(F.normalize(x.float().flatten(0, -2), dim=-1) for", "(x.float().flatten(0, -2) for", "test_jepa.py -k nce"),
    # windows and pooling
    Fault("hear_jepa/model/grid.py", "first_new=new - start,", "first_new=0,", "test_grid.py test_embedder.py"),
    Fault("hear_jepa/model/grid.py", "max(stop - self.columns, 0), stop, new", "new, stop, new", "test_grid.py"),
    Fault("hear_jepa/model/grid.py", "at_zero = self.patch_frames - 1", "at_zero = self.patch_frames", "test_grid.py"),
    Fault("hear_jepa/model/grid.py", "phase + new * phases,", "phase + start * phases,", "test_grid.py"),
    Fault("hear_jepa/model/grid.py", "if 1000 * self.hop_length % self.sample_rate:", "if False:", "test_grid.py test_checkpoint.py"),
    Fault("hear_jepa/model/embedder.py", "embedded[window.first_new :]", "embedded", "test_embedder.py"),
    Fault("hear_jepa/model/embedder.py", "self.log_mel.frames(audio, first_frame + start, count)", "self.log_mel.frames(audio, first_frame, count)", "test_embedder.py"),
    Fault("hear_jepa/model/pooling.py", "scene.square()", "scene", "test_pooling.py"),
    Fault("hear_jepa/model/pooling.py", "self._count += len(columns)", "self._count += 1", "test_pooling.py"),
    Fault("hear_jepa/model/pooling.py", " - mean[:, :, None] * mean[:, None]", "", "test_whitening.py -k uncorrelated"),
    Fault("hear_jepa/model/pooling.py", ".flip(2)[:, :, :kept]", "[:, :, :kept]", "test_whitening.py -k uncorrelated"),
    Fault("hear_jepa/model/embedder.py", "if self.layers != checkpoint.layers or", "if", "test_whitening.py -k fit"),
    Fault("hear_jepa/explore/same_model.py", 'settings.get("whitened", False)', "False", "test_whitening.py -k search"),
    # checkpoints, states and resuming
    Fault("hear_jepa/model/checkpoint.py", "    if not sound:", "    if False:", "test_checkpoint.py"),
    Fault("hear_jepa/model/checkpoint.py", "if not torch.isfinite(tensor).all():", "if False:", "test_checkpoint.py"),
    Fault("hear_jepa/options.py", "if not (math.isfinite(value) and least <= value <= greatest):", "if False:", "test_checkpoint.py"),
    Fault("train/run_state.py", "if damaged := archive.testzip():", "if damaged := None:", f"{RUN} -k flipped"),
    Fault("train/run_state.py", "os.replace(path, path.with_name(PREVIOUS))", "pass", f"{RUN} -k flipped"),
    Fault("train/run_state.py", "if changed:", "if False:", f"{RUN} -k refusals"),
    Fault("train/run_state.py", "self.optimiser.load_state_dict(state[\"optimiser\"])", "pass", f"{HAND} -k resumes"),
    Fault("train/run_state.py", "self.jepa.load_state_dict(state[\"jepa\"], strict=True)", "pass", f"{HAND} -k resumes"),
    Fault("train/run_state.py", "return state[\"step\"]", "return 0", f"{HAND} -k resumes"),
    Fault("train/run_state.py", "if config.optim.warmup_steps and (config.ema.ramp_steps", "if (config.ema.ramp_steps", f"{HAND} -k constant"),
    Fault("train/run_state.py", "and (config.ema.ramp_steps or", "and (True or", f"{HAND} -k constant"),
    Fault("train/loop.py", "FrontEndConfig(**saved[\"front_end\"])", "normalised(plain, config.data, 96, 0)", f"{HAND} -k normalisation"),
    Fault("train/loop.py", "if stopped or audio is None:", "if bool(stop) or audio is None:", f"{RUN} -k must_stop"),
    Fault("train/loop.py", "initial.front_end != frozen.front_end", "False", f"{HAND} -k frozen"),
    Fault("train/corpus/prepare.py", "if places[place] > 1:", "if False:", "test_prepare.py -k several_sources"),
    Fault("hear_jepa/families/__init__.py", "asked.sample_rate not in (None, rate)", "False", "test_families.py"),
    Fault("train/data/decoded.py", "(path.stat().st_size, path.stat().st_mtime_ns)", "(path.stat().st_size,)", "test_data.py -k damage"),
    Fault("train/data/sampler.py", "workers = config.workers if config.workers > 1 else 0", "workers = 0", "test_data.py -k thread"),
    Fault("train/data/sampler.py", "itertools.count(self.start + turn, turns)", "itertools.count(self.start + turn)", "test_data.py -k thread"),
    Fault("hear_jepa/evaluation/resample.py", "folder.resolve() != task.folder.resolve()", "True", "test_evaluation_hear_eval_kit.py -k resampled"),
    Fault("hear_jepa/evaluation/resample.py", "at {sample_rate} Hz", "", "test_evaluation_hear_eval_kit.py -k resampled"),
    Fault("hear_jepa/publish.py", "if whitening else ())", "if False else ())", "test_hub.py -k whitening"),
    Fault("hear_jepa/model/vit.py", "range(max(wanted) + 1)", "range(depth + 1)", "test_vit.py -k layers"),
    Fault("train/metrics_log.py", "if line[\"step\"] <= step]", "]", f"{RUN} -k resumed"),
    Fault("train/collapse.py", "embeddings - embeddings.mean(dim=0, keepdim=True)", "embeddings", "test_collapse.py"),
]  # fmt: skip


def copy_package(folder: Path) -> Path:
    """What the tests need, in `folder`; links stay links."""
    skipped = shutil.ignore_patterns("__pycache__", ".cache", "tasks", "tasks_licences")
    for name in ("hear_jepa", "train", "weights", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=skipped)
    (folder / "tests" / "tasks").symlink_to(ROOT / "tests" / "tasks")
    shutil.copy(ROOT / "setup.cfg", folder)
    return folder


def passes(folder: Path, tests: str) -> bool:
    """Whether these tests pass in the copy. They run in a fork of this process, which has imported the libraries."""
    words = [f"tests/{word}" if word.endswith(".py") else word for word in tests.split()]
    code, output = multiprocessing.get_context("fork").Value("i", -1), folder / "pytest.log"
    process = multiprocessing.get_context("fork").Process(target=_pytest, args=(folder, words, code, output))
    process.start()
    process.join()
    if code.value not in (0, 1):  # 1: a test failed
        raise SystemExit(f"{tests} cannot be run ({code.value}):\n{output.read_text()[-3000:]}")
    return code.value == 0


def _pytest(folder: Path, words: list[str], code, output: Path) -> None:
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    with open(output, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        code.value = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *words])


def seen(folder: Path, fault: Fault) -> bool:
    """Whether the tests see the fault, which is planted and taken out again."""
    path = folder / fault.file
    text = path.read_text()
    if fault.line not in text:
        raise SystemExit(f"{fault.file} no longer holds {fault.line!r}: mend tests/mutants.py")
    path.write_text(text.replace(fault.line, fault.fault, 1))
    try:
        return not passes(folder, fault.tests)
    finally:
        path.write_text(text)


def main() -> int:
    """Plant the chosen faults one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults whose file or line holds this text")
    parser.add_argument("--list", action="store_true", help="list them and end")
    arguments = parser.parse_args()
    chosen = [fault for fault in FAULTS if arguments.only in f"{fault.file} {fault.line}"]
    if arguments.list:
        for fault in chosen:
            print(f"{fault.file}: {fault.line!r} -> {fault.fault!r} ({fault.tests})")
        return 0
    for library in LIBRARIES:
        importlib.import_module(library)
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_package(Path(folder))
        for number, fault in enumerate(chosen, start=1):
            started = time.monotonic()
            caught = seen(copy, fault)
            if not caught:
                survivors.append(fault)
            verdict = "caught" if caught else "NOT SEEN"
            seconds = time.monotonic() - started
            print(
                f"{number}/{len(chosen)} {verdict} ({seconds:.0f} s) {fault.file}: {fault.line!r} -> {fault.fault!r}",
                flush=True,
            )
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} faults are caught")
    return len(survivors)


if __name__ == "__main__":
    sys.exit(main())
