"""Every option of a pretraining run, typed and documented, and the presets `tiny`, `wide`, `small` and `paper`."""

import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hear_jepa.errors import OptionError
from hear_jepa.model.checkpoint import grid_of
from hear_jepa.model.front_end import FrontEndOptions
from hear_jepa.model.vit import ViTConfig
from hear_jepa.options import check_fields, check_name, within
from hear_jepa.train.data.sampler import DataConfig
from hear_jepa.train.jepa import PredictorConfig, TargetConfig
from hear_jepa.train.losses import LossConfig
from hear_jepa.train.masking import MaskConfig
from hear_jepa.train.schedules import RAMPS, SCHEDULES, interpolate, warm_up


@dataclass(frozen=True)
class EncoderConfig:
    """The encoders, and the crop that they are trained on."""

    width: int = 768
    """Width of a token: tiny 192, small 384, base 768."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 12
    """Attention heads: tiny 3, small 6, base 12."""
    frames: int = 208
    """Frames of a crop, one a hop; a multiple of patch_frames (the paper: 208, 320 and 640)."""
    patch_mels: int = 16
    """Mel bands of a patch."""
    patch_frames: int = 16
    """Frames of a patch."""
    positions: Literal["sine-cosine", "rotary-time"] = "sine-cosine"
    """sine-cosine: fixed positions of both axes (the paper); rotary-time: absolute in frequency, relative in time, so
    that an embedding does not tell where in the crop its sound lay."""
    random_patch_bias: bool = False
    """Draw the bias of the patch projection as torch's convolution does (the authors); otherwise it starts at zero."""

    def vit(self, n_mels: int) -> ViTConfig:
        for name, size, patch in (
            ("--encoder.frames", self.frames, self.patch_frames),
            ("--front-end.n-mels", n_mels, self.patch_mels),
        ):
            if patch < 1 or size < patch or size % patch:
                raise OptionError(f"{name} is {size}: it must be a multiple of the patch's {patch}")
        return ViTConfig(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            n_freq_patches=n_mels // self.patch_mels,
            n_time_patches=self.frames // self.patch_frames,
            patch_mels=self.patch_mels,
            patch_frames=self.patch_frames,
            positions=self.positions,
        )


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation."""

    steps: int = within(286_000, 1)
    """Optimiser steps of the whole run (the paper: 300 epochs of AudioSet)."""
    batch_size: int = within(2048, 1)
    """Crops of a step, over all ranks and accumulated micro-batches."""
    accumulation: int = within(1, 1)
    """Micro-batches of a step on every rank: more of them need less memory."""
    base_lr: float = 3e-4
    """Peak learning rate for a batch of 256; it scales with the batch: lr = base_lr · batch_size / 256."""
    warmup_share: float = 20 / 300
    """Share of the steps in which the learning rate rises linearly."""
    warmup_steps: int = 0
    """The same in steps; 0: by the share."""
    warmup_from_zero: bool = False
    """Step k of a warm-up of W steps takes k / (W - 1) of the peak (the authors: step 0 changes nothing); otherwise
    (k + 1) / W."""
    schedule: str = "cosine"
    """After the warm-up. cosine: half a cosine to the end (the paper); constant: constant until the decay. A run with a
    constant rate can be resumed with other steps: the decay is what cuts a checkpoint from it."""
    decay_share: float = 0.1
    """Constant: share of the steps, at the end, in which the learning rate falls linearly."""
    final_lr_share: float = 0.0
    """Learning rate at the end, as a share of the peak."""
    weight_decay: float = 0.05
    """AdamW's decay."""
    decay: Literal["matrices", "all"] = "matrices"
    """What decays. matrices: not biases, norms and the mask token; all: every parameter (the authors)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    clip: float = 3.0
    """Largest norm of the gradient; 0 leaves it as it is."""
    max_bad_steps: int = within(20, 1)
    """Steps in a row with a non-finite loss or gradient after which the run ends, its state saved."""

    def __post_init__(self):
        check_name(self.schedule, SCHEDULES, "--optim.schedule")

    @property
    def peak_lr(self) -> float:
        return self.base_lr * self.batch_size / 256

    @property
    def warmup(self) -> int:
        return self.warmup_steps or max(1, round(self.warmup_share * self.steps))

    def lr(self, step: int) -> float:
        if step < self.warmup:
            return warm_up(step, self.warmup, self.peak_lr, self.warmup_from_zero)
        decay, final = round(self.decay_share * self.steps), self.peak_lr * self.final_lr_share
        return SCHEDULES[self.schedule](step - self.warmup, self.steps - self.warmup, decay, self.peak_lr, final)


@dataclass(frozen=True)
class EmaConfig:
    """Momentum of the target encoder."""

    start: float = 0.99995
    """At the first step. The time constant is 1 / (1 - momentum) steps: choose it by the length of the run."""
    end: float = 0.99999
    """At the last step."""
    shape: str = "linear"
    """How it goes from start to end: linear (the paper) or cosine."""
    ramp_steps: int = 0
    """Steps in which it goes there, and stays there; 0: those of the whole run (the paper)."""
    reaches_end: bool = True
    """Step k of M is k / (M - 1) of the way, so that the last has the end's value; otherwise k / M (the authors)."""
    after_skipped_steps: bool = False
    """Move the target encoder also in a step that a non-finite gradient skipped (the authors, in fp16)."""

    def __post_init__(self):
        check_name(self.shape, RAMPS, "--ema.shape")

    def momentum(self, step: int, steps: int) -> float:
        """The momentum of a step of a run of so many steps."""
        length = (self.ramp_steps or steps) - self.reaches_end
        return interpolate(self.start, self.end, step / max(1, length), RAMPS[self.shape])


@dataclass(frozen=True)
class ComputeConfig:
    """Where and how the numbers are computed."""

    device: str = "auto"
    """auto: cuda where there is one, mps, else cpu; or a torch device. Every rank takes its own GPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """fp32, or autocast; fp16 (the paper) with loss scaling; auto: bf16 on a GPU or processor that multiplies bfloat16
    itself (AVX-512 BF16, AMX), fp32 elsewhere. The log-mel and the loss are always float32."""
    compile: bool = False
    """Compile the model with torch.compile."""
    gradient_checkpointing: bool = False
    """Compute activations of the context encoder twice to keep fewer of them."""
    threads: int = 0
    """CPU threads of every rank; 0: torch's choice."""
    cpu_ranks: int = 1
    """On a CPU, started without torchrun: processes to spread over, at most one a core."""


@dataclass(frozen=True)
class MonitorConfig:
    """What is written down while the run goes on."""

    log_every: int = within(50, 1)
    """Steps between lines of metrics.jsonl and TensorBoard."""
    collapse_every: int = within(500, 1)
    """Steps between looks at deviation and rank of the embeddings."""
    probe_every: int = 5000
    """Steps between online probes; 0: only at the end."""
    probe_tasks: tuple[Path, ...] = ()
    """Folders of HEAR-format tasks; only their training and validation splits are used."""
    probe_clips: int = 500
    """Clips of a task that an online probe uses at most."""
    best_margin: float = 1.0
    """Points by which an earlier state's probe must beat the last one's to be served: less is noise."""
    save_every: int = within(1000, 1)
    """Steps between saved states."""
    pictures: bool = True
    """Draw report.png and masks.png at the end."""


@dataclass(frozen=True)
class ServeConfig:
    """What the final checkpoint serves."""

    encoder: Literal["auto", "context", "target"] = "auto"
    """auto: the one with the better probe, context where there is no probe."""
    layers: tuple[int, ...] = ()
    """Layers, 0 (the embedded patches) to the depth, side by side in every embedding; none: the last."""
    pooling: Literal["mean", "mean+std"] = "mean"
    """What a scene is of its columns: mean (the paper), or mean and standard deviation."""
    hop_ms: int = 160
    """Distance of the columns that a scene is made of (the paper: 160, a column); finer ones cost as many times the
    work."""
    columns: int = within(0, 0)
    """Columns of a window that is served, if more than those of a crop. In longer windows fewer columns lie at an edge,
    where an embedding tells its place. Of rotary positions only."""


@dataclass(frozen=True)
class TrainConfig:
    """One pretraining run: it is a function of these options and the data."""

    out: Path = Path("runs/jepa")
    """Folder of the run: config, states, metrics, and at the end the checkpoint, report.png and masks.png."""
    resume: bool = False
    """Go on from the last saved state in `out`; every other option must be as it was."""
    init_from: Path | None = None
    """Start from the weights of this serving checkpoint, a file or a shipped model's name, instead of at random."""
    seed: int = 0
    """Seed of weights, crops and masks."""
    serve: ServeConfig = field(default_factory=ServeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    front_end: FrontEndOptions = field(default_factory=FrontEndOptions)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)


_TINY = TrainConfig(
    out=Path("runs/tiny"),
    serve=ServeConfig(layers=(0, 6), pooling="mean+std", hop_ms=80, columns=26),
    front_end=FrontEndOptions(n_fft=2048, n_fft_short=512, n_mels=160),
    encoder=EncoderConfig(width=192, depth=6, heads=3, patch_mels=32, positions="rotary-time"),
    predictor=PredictorConfig(width=128, depth=3, heads=4),
    mask=MaskConfig(context_share=0.3),
    target=TargetConfig("latent", top_layers=4, centre=True),
    loss=LossConfig("info-nce", regularisers=(("reconstruction", 1.0), ("clip", 1.0))),
    optim=OptimConfig(
        steps=20_000, batch_size=64, base_lr=2.8e-3, warmup_steps=500, schedule="constant", decay_share=0.2
    ),
    ema=EmaConfig(0.998, 0.9999, ramp_steps=10_000),
    compute=ComputeConfig(precision="auto", cpu_ranks=2),  # or two threads: benchmarks/ranks.py compares
)

PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "tiny": ("A shallow tiny encoder for two CPU cores and a few hours: the shipped checkpoint's.", _TINY),
    "wide": (
        "Twice as wide as tiny, and taught by the shipped tiny: the shipped checkpoint wide's.",
        replace(
            _TINY,
            out=Path("runs/wide"),
            serve=replace(_TINY.serve, layers=(6,), columns=39),
            encoder=replace(_TINY.encoder, width=384, heads=6),
            target=replace(_TINY.target, frozen_from=Path("tiny")),
            optim=replace(_TINY.optim, base_lr=2e-3),
        ),
    ),
    "small": (
        "Twice as wide and deep as tiny, and taught by the shipped wide, on one GPU: the shipped checkpoint small's.",
        replace(
            _TINY,
            out=Path("runs/small"),
            serve=replace(_TINY.serve, layers=(12,), columns=39),
            data=DataConfig(workers=4),  # a GPU takes more crops than a thread makes
            encoder=replace(_TINY.encoder, width=384, depth=12, heads=6),
            predictor=PredictorConfig(width=256, depth=3, heads=8),
            target=replace(_TINY.target, frozen_from=Path("wide")),
            optim=replace(_TINY.optim, steps=2000, batch_size=512, base_lr=5e-4),
            ema=EmaConfig(0.995, 0.9998, ramp_steps=10_000),
            compute=ComputeConfig(precision="bf16"),
        ),
    ),
    "paper": (
        "The paper's settings, and those of the authors' code where the paper is silent: ViT-Base, AudioSet, 8 GPUs.",
        TrainConfig(
            out=Path("runs/paper"),
            encoder=EncoderConfig(random_patch_bias=True),
            target=TargetConfig(loss_on="all"),
            optim=OptimConfig(warmup_from_zero=True, decay="all"),
            ema=EmaConfig(reaches_end=False, after_skipped_steps=True),
            compute=ComputeConfig(precision="fp16"),
        ),
    ),
}


def to_json(config: Any) -> dict[str, Any]:
    """Options as JSON-ready values, one dictionary a section."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def differences(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Options whose values differ, as `section.option: saved -> now`."""
    lines = []
    for name in sorted(saved.keys() | now.keys()):
        before, after = saved.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {before} -> {after}")
    return lines


def check(config: TrainConfig) -> None:
    """Raise `OptionError` for what a run would otherwise stumble over, perhaps hours later."""
    check_fields(config, "--")
    wrong = [layer for layer in config.serve.layers if not 0 <= layer <= config.encoder.depth]
    if wrong:
        raise OptionError(f"--serve.layers has {wrong[0]}: the encoder has the layers 0 to {config.encoder.depth}")
    front_end = config.front_end.front_end(mean=0.0, std=1.0)
    encoder = config.encoder.vit(front_end.n_mels)
    grid_of(front_end, encoder).check_hop(config.serve.hop_ms, "--serve.hop-ms")
    if config.serve.columns > encoder.n_time_patches and not encoder.fits_any_window:
        raise OptionError(
            f"--serve.columns is {config.serve.columns}, and only rotary positions fit other windows than those of "
            "training: set --serve.columns 0, or --encoder.positions rotary-time"
        )
    if config.loss.kind == "info-nce" and config.mask.masks_per_crop > 1:
        raise OptionError(
            "--loss.kind info-nce tells targets apart, and --mask.masks-per-crop gives the same one several times: "
            "take one mask of a crop"
        )
    if config.target.frozen_from and config.serve.encoder == "target":
        raise OptionError("--serve.encoder is target, but --target.frozen-from is another run's: serve the context")
