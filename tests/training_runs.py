"""A pretraining run of seconds, on real audio, that the tests of training share."""

from pathlib import Path

from hear_jepa.train.config import EmaConfig, EncoderConfig, MonitorConfig, OptimConfig, TrainConfig
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
    )
