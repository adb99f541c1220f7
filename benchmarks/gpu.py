"""What a GPU does that a CPU cannot show: see gpu.sh. Without one everything runs on the CPU, smaller, and says so.

A training step's cost is given as a ratio: floating-point operations of a step (counted by torch, forward, backward,
target pass) by the time it takes, over the rate that `torch.mm` of large square matrices reaches in the same precision.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

import hear_jepa
from hear_jepa.device import choose_device
from hear_jepa.model.checkpoint import grid_of
from hear_jepa.model.front_end import LogMel, full_float32
from hear_jepa.train.config import PRESETS, TrainConfig
from hear_jepa.train.jepa import JEPA
from hear_jepa.train.masking import draw_masks
from hear_jepa.train.optimisation import AUTOCAST, Optimiser, attention_kernel

TOLERANCE = 1e-4  # between devices, relative to the largest value


class Step:
    """One optimiser step of a preset on noise, without data loading."""

    def __init__(self, config: TrainConfig, batch: int, device: torch.device, precision: str, compiled: bool = False):
        front_end = config.front_end.front_end(mean=-7.0, std=4.0)
        vit = config.encoder.vit(front_end.n_mels)
        self.config, self.device, self.grid = config, device, grid_of(front_end, vit)
        self.dtype = AUTOCAST[precision]
        torch.manual_seed(0)
        self.log_mel = LogMel(front_end).to(device)
        self.jepa = JEPA(vit, config.predictor, config.target, config.loss).to(device)
        self.forward = torch.compile(self.jepa) if compiled else self.jepa
        compute = replace(config.compute, precision=precision)
        self.optimiser = Optimiser(self.jepa.trained_parameters(), config.optim, compute, device)
        self.audio = (0.1 * torch.randn(batch, front_end.n_samples(config.encoder.frames))).to(device)
        self.generator = torch.Generator().manual_seed(0)

    def mel(self) -> torch.Tensor:
        """The log-mel of the batch."""
        return self.log_mel.valid(self.audio)

    def model(self, log_mel: torch.Tensor) -> tuple[float, float]:
        """Everything after the log-mel: loss and norm of the gradient."""
        mask = draw_masks(self.config.mask, len(log_mel), self.grid.rows, self.grid.columns, self.generator)
        with attention_kernel(self.dtype, self.device):  # as the loop of a run does
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                output = self.forward(log_mel, mask.to(self.device))
            self.optimiser.backward(output.loss)
        norm, _ = self.optimiser.step(1e-4)
        self.jepa.update_target(0.999)
        self.jepa.update_position_mean(step_taken=True)
        return float(output.loss.detach()), norm


def seconds(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median time of a call, the device's work included."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def mm_rate(device: torch.device, dtype: torch.dtype | None) -> float:
    """Operations per second of a square matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype or torch.float32) for _ in range(2))
    torch.mm(a, b)
    return 2 * size**3 / seconds(lambda: torch.mm(a, b), 5, device)


def report(step: Step, name: str, repeats: int) -> None:
    """Measure one preset and print its lines."""
    log_mel, batch, device = step.mel(), len(step.audio), step.device
    step.model(log_mel)
    with FlopCounterMode(display=False) as counter:
        step.model(log_mel)
    rounds = [
        (mm_rate(device, step.dtype), seconds(step.mel, 3, device), seconds(lambda: step.model(log_mel), 3, device))
        for _ in range(repeats)
    ]
    rate, mel, model = (statistics.median(column) for column in zip(*rounds, strict=True))
    share = counter.get_total_flops() / model / rate
    print(f"{name}, batch {batch}: {batch / (mel + model):.1f} crops/s; model at {share:.1%} of the torch.mm rate")
    print(f"       mel {mel / (mel + model):.1%} of the step", flush=True)


def report_log_mel(device: torch.device) -> None:
    """How much longer nnAudio's convolution takes than the Fourier transform that stands in for it."""
    step = Step(PRESETS["tiny"][1], 64 if device.type == "cuda" else 4, device, "fp32")
    audio, power = step.audio, step.log_mel.power
    with torch.inference_mode(), full_float32(device.type):
        fast, slow = power.by_fft(audio), power.by_convolution(audio)
        difference = float((fast - slow).abs().max() / slow.max())
        _say("mel power by FFT as nnAudio's", difference < TOLERANCE, f"difference {difference:.1e}")
        times = [seconds(lambda by=by: by(audio), 5, device) for by in (power.by_fft, power.by_convolution)]
    print(f"       nnAudio's convolution takes {times[1] / times[0]:.1f} times as long", flush=True)


def check_equality(device: torch.device) -> None:
    """Embeddings, loss and gradient of the device against the CPU's."""
    model = hear_jepa.load_model()
    audio = 0.1 * torch.randn(4, 80_000, generator=torch.Generator().manual_seed(0))
    on_cpu = model.scenes(audio)
    on_device = model.to(device).scenes(audio).cpu()
    difference = float((on_device - on_cpu).abs().max() / on_cpu.abs().max())
    _say("embeddings as on the CPU", difference < TOLERANCE, f"difference {difference:.1e}")
    config = replace(PRESETS["tiny"][1], mask=replace(PRESETS["tiny"][1].mask, masks_per_crop=2))
    results = {name: _one_step(config, torch.device(name)) for name in {"cpu", str(device)}}
    for what, ours, cpu in zip(("loss", "gradient norm"), results[str(device)], results["cpu"], strict=True):
        difference = abs(ours - cpu) / abs(cpu)
        _say(f"{what} of a step as on the CPU", difference < TOLERANCE, f"difference {difference:.1e}")


def _one_step(config, device: torch.device) -> tuple[float, float]:
    step = Step(config, 16, device, "fp32")
    return step.model(step.mel())


def check_precisions(device: torch.device) -> None:
    """Thirty steps on one batch in every precision: the loss falls, and to about the same value."""
    last = {}
    for precision in ("fp32", "bf16", "fp16"):
        step = Step(PRESETS["tiny"][1], 16, device, precision)
        log_mel = step.mel()
        losses = [step.model(log_mel)[0] for _ in range(30)]
        last[precision] = losses[-1]
        falls = losses[-1] < losses[0] and losses[-1] < 1.05 * last["fp32"]
        _say(f"30 steps in {precision}", falls, f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")


def check_compile(device: torch.device) -> None:
    """torch.compile takes the same step."""
    plain, compiled = (Step(PRESETS["tiny"][1], 16, device, "fp32", compiled) for compiled in (False, True))
    try:
        (loss, norm), (loss_too, norm_too) = (step.model(step.mel()) for step in (plain, compiled))
    except Exception as error:  # no compiler on this machine, most of the time
        _say("torch.compile", False, f"{type(error).__name__}: {str(error).splitlines()[0]}")
        return
    same = abs(loss - loss_too) < TOLERANCE * loss and abs(norm - norm_too) < 10 * TOLERANCE * norm
    mel = plain.mel()
    times = [seconds(lambda step=step: step.model(mel), 5, device) for step in (plain, compiled)]
    _say("torch.compile takes the same step", same, f"loss {loss:.5f} and {loss_too:.5f}")
    print(f"       and {times[0] / times[1]:.2f} times as many of them in a second", flush=True)


def embedding_speed(device: torch.device, seconds_of_sound: int) -> None:
    """Hours of sound embedded a second."""
    for precision in ("float32", "bfloat16"):
        model = hear_jepa.load_model(precision=precision, batch_windows=256 if device.type == "cuda" else 16).to(device)
        clips = 0.1 * torch.randn(seconds_of_sound // 10, 160_000, device=device)
        model.scenes(clips[:2])
        started = time.perf_counter()
        model.scenes(clips).cpu()
        hours = clips.numel() / 16_000 / 3600 / (time.perf_counter() - started)
        print(f"scenes in {precision}: {hours:.3f} hours of sound a second, {3600 * hours:.0f} × real time", flush=True)


def _say(what: str, good: bool, detail: str) -> None:
    print(f"{'ok  ' if good else 'FAIL'} {what}: {detail}", flush=True)


def main() -> None:
    """Everything, the cheapest first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    device = choose_device(parser.parse_args().device)
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else "this is a CPU: the numbers say nothing of a GPU"
    print(f"{device}: {name}; torch {torch.__version__}", flush=True)
    check_equality(device)
    report_log_mel(device)
    check_precisions(device)
    sizes = [("tiny", 256), ("tiny", 1024), ("small", 256), ("small", 1024), ("paper", 128)] if gpu else [("tiny", 16)]
    for preset, batch in sizes:
        report(Step(PRESETS[preset][1], batch, device, "bf16" if gpu else "fp32"), preset, 3 if gpu else 1)
    embedding_speed(device, 3600 if gpu else 60)
    check_compile(device)  # last: it may take a minute


if __name__ == "__main__":
    main()
