"""A pretraining run of seconds, on real audio, that the tests of training share, here and by its command line."""

from dataclasses import replace
from pathlib import Path

from hear_jepa.train.config import (
    PRESETS,
    ComputeConfig,
    EmaConfig,
    EncoderConfig,
    MonitorConfig,
    OptimConfig,
    TrainConfig,
    differences,
    to_json,
)
from hear_jepa.train.data.sampler import DataConfig
from hear_jepa.train.jepa import PredictorConfig, TargetConfig
from hear_jepa.train.masking import MaskConfig

TASKS = Path(__file__).parent / "tasks"


def small_run(source: Path, out: Path) -> TrainConfig:
    """Twelve steps of a small model, written down at every one."""
    return TrainConfig(
        out=out,
        data=DataConfig(source=str(source)),
        encoder=EncoderConfig(width=32, depth=2, heads=2, frames=96),
        predictor=PredictorConfig(width=32, depth=1, heads=2),
        mask=MaskConfig(context_share=0.3),
        target=TargetConfig("latent", top_layers=2, centre=True),
        optim=OptimConfig(steps=12, batch_size=8, base_lr=0.03),
        ema=EmaConfig(0.9, 0.99),
        monitor=MonitorConfig(log_every=1, collapse_every=5, save_every=3, probe_every=0, pictures=False),
        compute=ComputeConfig(device="cpu", threads=1),
    )


def command_line(config: TrainConfig) -> list[str]:
    """Arguments of `python -m hear_jepa.train` that give this run: a preset, and what it changes."""
    arguments = ["small"]
    for line in differences(to_json(PRESETS["small"][1]), to_json(config)):
        name, _, values = line.replace(": ", " -> ").split(" -> ")
        section, _, option = name.replace("_", "-").rpartition(".")
        if values in ("True", "False"):
            option, values = option if values == "True" else f"no-{option}", ""
        arguments += [f"--{section}.{option}".replace("--.", "--"), *values.strip("[]").split(", ")]
    return [argument for argument in arguments if argument]


def steps(config: TrainConfig, count: int) -> TrainConfig:
    """The same run of another length."""
    return replace(config, optim=replace(config.optim, steps=count))
