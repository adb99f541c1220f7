"""What a GPU does that a CPU cannot show: see gpu.sh. Without one everything runs on the CPU, smaller, and says so."""

import argparse
import time
from dataclasses import replace

import torch
from training import Step, report

import hear_jepa
from hear_jepa.train.config import PRESETS
from hear_jepa.train.ranks import choose_device

TOLERANCE = 1e-4  # between devices, relative to the largest value


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
    _say("torch.compile takes the same step", same, f"loss {loss:.5f} and {loss_too:.5f}")


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
    check_precisions(device)
    check_compile(device)
    batches = {"tiny": 256, "small": 256, "paper": 128} if gpu else {"tiny": 16}
    for preset, batch in batches.items():
        for precision in ("bf16", "fp16") if gpu else ("fp32",):
            report(Step(PRESETS[preset][1], batch, device, precision), f"{preset}, {precision}", 3 if gpu else 1)
    embedding_speed(device, 3600 if gpu else 60)


if __name__ == "__main__":
    main()
