"""The steps of a run: crops -> log-mel -> masks -> loss -> optimiser -> moving average."""

import logging
import time
import warnings
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.parallel import DistributedDataParallel

from hear_jepa.api import named_checkpoint
from hear_jepa.device import copied
from hear_jepa.disk import remove_abandoned, write_json
from hear_jepa.errors import HearJepaError, OptionError
from hear_jepa.model.checkpoint import Checkpoint, grid_of
from hear_jepa.model.front_end import FrontEndConfig, LogMel
from hear_jepa.train.collapse import cosine, watch_collapse
from hear_jepa.train.config import TrainConfig, check, to_json
from hear_jepa.train.data.normalisation import normalised
from hear_jepa.train.data.sampler import CropStream, crop_stream
from hear_jepa.train.finish import finish
from hear_jepa.train.jepa import JEPA, Prediction
from hear_jepa.train.masking import Mask, draw_masks
from hear_jepa.train.metrics_log import MetricsLog
from hear_jepa.train.online_probe import OnlineProbe, check_probe_tasks
from hear_jepa.train.optimisation import Optimiser, attention_kernel, autocast_type
from hear_jepa.train.ranks import start_ranks, stop_ranks
from hear_jepa.train.run_state import (
    LATEST,
    RunState,
    check_out,
    saved_state,
    stop_on_signals,
)

log = logging.getLogger(__name__)

COLLAPSE_CROPS = 128  # crops of a batch that the collapse statistics look at


class DivergedError(HearJepaError):
    """Too many steps in a row had a non-finite gradient."""


class Run:
    """One pretraining run. `train()` takes it from where it is to its end; everything it needs is in its config."""

    def __init__(self, config: TrainConfig):
        self.config = config
        check(config)
        check_probe_tasks(config.monitor.probe_tasks)
        self.ranks = start_ranks(config.compute)
        self.autocast = autocast_type(config.compute.precision, self.ranks.device)
        self._check_batch_size()
        if not config.resume and self.ranks.is_main:
            check_out(config)
        saved = saved_state(config) if config.resume else None
        initial, frozen = self._other_runs()
        known = initial or frozen  # weights fit the statistics that they were trained with
        plain = config.front_end.front_end(0.0, 1.0)
        if saved:
            self.front_end = FrontEndConfig(**saved["front_end"])
        elif known:
            self.front_end = known.front_end
        else:
            self.front_end = normalised(plain, config.data, config.encoder.frames, config.seed)
        self.vit_config = config.encoder.vit(self.front_end.n_mels)
        self.grid = grid_of(self.front_end, self.vit_config)
        self.log_mel = LogMel(self.front_end).to(self.ranks.device)
        torch.manual_seed(config.seed)
        bias = config.encoder.random_patch_bias
        target_encoder = frozen.build() if frozen else None
        self.jepa = JEPA(self.vit_config, config.predictor, config.target, config.loss, bias, target_encoder)
        if initial:
            for encoder in self.jepa.encoders.values():
                encoder.load_state_dict(initial.weights)
        self.jepa.to(self.ranks.device)
        self.jepa.context_encoder.gradient_checkpointing = config.compute.gradient_checkpointing
        self.optimiser = Optimiser(self.jepa.trained_parameters(), config.optim, config.compute, self.ranks.device)
        self.step = 0
        self.state = RunState(config, self.front_end, self.jepa, self.optimiser)
        self.probe = OnlineProbe(config, self.front_end, self.ranks.device)
        if saved:
            self.step = self.state.load(saved)
            self.probe.load_state_dict(saved["probe"])
        self.forward: Any = self._wrap(self.jepa)

    # ---------------------------------------------------------------- the run

    def train(self) -> Path:
        """Run to the end, or to a signal. Returns the serving checkpoint, or the saved state where it was stopped."""
        optim = self.config.optim
        if self.ranks.is_main:
            remove_abandoned(self.config.out)
            write_json(self.config.out / "config.json", to_json(self.config))
        bad_steps = 0
        own_log = closing(MetricsLog(self.config.out, self.step, optim.steps)) if self.ranks.is_main else nullcontext()
        with own_log as metrics, closing(self.crops()) as crops, stop_on_signals() as stop:
            crops.stop_on(lambda: bool(stop))
            while self.step < optim.steps:
                waiting = time.monotonic()
                audio = next(crops, None)  # none where it was asked to stop while it waited
                stopped = self.ranks.any(audio is None or bool(stop))  # all ranks agree
                if stopped or audio is None:
                    return self.save(must=True)
                waited = time.monotonic() - waiting
                values, finite, log_mel = self.take_step(audio)
                bad_steps = 0 if finite else bad_steps + 1
                if bad_steps:
                    log.warning("step %d: the gradient is not finite; skipped (%d in a row)", self.step, bad_steps)
                if metrics:
                    values["unreadable"] = sum(crops.skipped.values())  # clips and files of the corpus
                    metrics.step(self.step, values, waited, optim.batch_size, finite)
                if bad_steps >= optim.max_bad_steps:
                    self.save(must=True)
                    raise DivergedError(
                        f"{bad_steps} steps in a row had a non-finite gradient; the state is saved in "
                        f"{self.config.out}: lower --optim.base-lr, or raise the precision"
                    )
                if metrics:
                    self._look(metrics, log_mel)
            path = self.save(must=True)
            return finish(self, metrics) if metrics else path  # pyright: ignore[reportArgumentType]

    def take_step(self, audio: Tensor) -> tuple[dict[str, Tensor | float], bool, Tensor]:
        """One optimiser step on this rank's crops [B, samples]: metrics, whether it was taken, and the log-mel."""
        config, micro = self.config, self.config.optim.accumulation
        log_mel = self.log_mel.valid(copied(audio, self.ranks.device))  # [B, mels, frames]
        mask = self.masks(len(audio))
        loss, output = torch.zeros((), device=self.ranks.device), None
        for index in range(micro):
            part = slice(index, None, micro)
            output = self._forward_backward(log_mel[part], mask.of_crops(part), last=index == micro - 1)
            loss = loss + output.loss.detach() / micro
        assert output is not None  # there is at least one micro-batch
        learning_rate = config.optim.lr(self.step)
        norm, finite = self.optimiser.step(learning_rate)
        values = {"loss": loss, "learning_rate": learning_rate, "gradient_norm": norm}
        if not self.jepa.frozen:
            values["ema_momentum"] = config.ema.momentum(self.step, config.optim.steps)
            if finite or config.ema.after_skipped_steps:
                self.jepa.update_target(values["ema_momentum"])
        self.jepa.update_position_mean(finite)
        self.step += 1
        if self.step % config.monitor.log_every == 0:
            values["loss"] = self.ranks.mean(loss)
            values["cosine"] = cosine(output.predicted, output.target)
        return values, finite, log_mel

    def _forward_backward(self, log_mel: Tensor, mask: Mask, last: bool) -> Prediction:
        dtype, device = self.autocast, self.ranks.device
        # gradients of the ranks are averaged once, in the last micro-batch
        waits = isinstance(self.forward, DistributedDataParallel) and not last
        with self.forward.no_sync() if waits else nullcontext(), attention_kernel(dtype, device):
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                output = self.forward(log_mel, mask)
            self.optimiser.backward(output.loss / self.config.optim.accumulation)
        return output

    def masks(self, n_crops: int) -> Mask:
        """This rank's masks [M, B, K]: a function of seed and step, drawn for all ranks at once and shared out."""
        generator = Generator().manual_seed(mixed_seed(self.config.seed, self.step))
        batch = n_crops * self.ranks.world_size
        mask = draw_masks(self.config.mask, batch, self.grid.rows, self.grid.columns, generator)
        return mask.of_crops(self.ranks.share(batch)).to(self.ranks.device)

    def crops(self) -> CropStream:
        """This rank's crops, from the present step on."""
        return crop_stream(
            self.config.data,
            batch_size=self.config.optim.batch_size // self.ranks.world_size,
            n_samples=self.front_end.n_samples(self.config.encoder.frames),
            sample_rate=self.front_end.sample_rate,
            seed=self.config.seed,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            start_batch=self.step,
        )

    def save(self, must: bool = False) -> Path:
        """Save the state on the main rank; one that must be there and cannot be written is an error."""
        if self.ranks.is_main:
            self.state.save(self.step, self.probe.state_dict(), must)
        return self.config.out / LATEST

    def _look(self, metrics: MetricsLog, log_mel: Tensor) -> None:
        every = self.config.monitor
        if self.step % every.collapse_every == 0:
            watch_collapse(self.jepa.encoders, log_mel[:COLLAPSE_CROPS], self.step, metrics)
        if every.probe_every and self.step % every.probe_every == 0 and self.step < self.config.optim.steps:
            self.probe(self.jepa, self.step, metrics, self.state)
        if self.step % every.save_every == 0:
            self.save()

    # ---------------------------------------------------------------- parts

    def _check_batch_size(self) -> None:
        optim, ranks = self.config.optim, self.ranks.world_size
        if optim.batch_size % (ranks * optim.accumulation):
            raise OptionError(
                f"--optim.batch-size is {optim.batch_size}: it must be a multiple of {ranks * optim.accumulation} "
                f"({ranks} ranks × {optim.accumulation} micro-batches)"
            )

    def _other_runs(self) -> tuple[Checkpoint | None, Checkpoint | None]:
        """The checkpoints to start from and to take targets from, where there are any; a resumed run has started."""
        initial = None if self.config.resume else self.config.init_from
        frozen = self.config.target.frozen_from
        encoder = self.config.encoder.vit(self.config.front_end.n_mels)
        initial, frozen = (_known(name, encoder.n_time_patches) for name in (initial, frozen))
        if initial and frozen and initial.front_end != frozen.front_end:
            raise OptionError(
                f"{self.config.init_from} hears by {initial.front_end}, {self.config.target.frozen_from} by "
                f"{frozen.front_end}: a run has one front end and one normalisation for both"
            )
        if initial and initial.encoder != encoder:
            raise OptionError(
                f"{self.config.init_from} holds another encoder ({initial.encoder}) than the run's {encoder}"
            )
        for path, checkpoint in ((self.config.init_from, initial), (self.config.target.frozen_from, frozen)):
            if path and checkpoint:
                self._check_front_end(path, checkpoint)
        return initial, frozen

    def _check_front_end(self, path: Path, checkpoint: Checkpoint) -> None:
        """Raise OptionError where the checkpoint hears or cuts sound otherwise than this run."""
        theirs, encoder = checkpoint.front_end, self.config.encoder.vit(self.config.front_end.n_mels)
        ours = self.config.front_end.front_end(theirs.mean, theirs.std)
        if theirs != ours:
            raise OptionError(f"{path} has another front end ({theirs}) than the run's {ours}: set --front-end.*")
        cut = ("n_freq_patches", "n_time_patches", "patch_mels", "patch_frames")
        for name in cut:
            if getattr(checkpoint.encoder, name) != getattr(encoder, name):
                raise OptionError(
                    f"{path} has {name} {getattr(checkpoint.encoder, name)}, this run {getattr(encoder, name)}: "
                    "set --encoder.frames and --encoder.patch-* as there"
                )

    def _wrap(self, jepa: JEPA):
        model = torch.compile(jepa) if self.config.compute.compile else jepa
        if self.ranks.world_size == 1:
            return model
        ids = [self.ranks.device] if self.ranks.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.4 has no other name for it
            return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def _known(name: Path | None, columns: int) -> Checkpoint | None:
    """The checkpoint of that name, if there is one; in windows of so many columns where its positions fit any."""
    known = named_checkpoint(name) if name else None
    if known and known.encoder.fits_any_window and known.encoder.n_time_patches != columns:
        return known.in_windows_of(columns)
    return known


def mixed_seed(seed: int, step: int) -> int:
    """One 63-bit seed for a pair of numbers, well mixed (splitmix64).

    numpy's SeedSequence would do as well, but would draw other masks than the shipped checkpoint was trained with.
    """
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1


def train(config: TrainConfig) -> Path:
    """Run a pretraining run to its end and return its serving checkpoint (or its saved state, where it was stopped)."""
    try:
        return Run(replace(config, out=Path(config.out))).train()
    finally:
        stop_ranks()
