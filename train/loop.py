"""The run: crops -> log-mel -> masks -> loss -> step -> moving average, with everything written down on the way."""

import json
import logging
import math
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hear_jepa import __version__
from hear_jepa.disk import atomic_path
from hear_jepa.errors import CheckpointError, HearJepaError, OptionError
from hear_jepa.model.checkpoint import Checkpoint, ServedConfig, load_checkpoint, save_checkpoint
from hear_jepa.model.front_end import LogMel
from hear_jepa.train import collapse as monitor
from hear_jepa.train.config import TrainConfig, to_json
from hear_jepa.train.data.normalisation import normalised
from hear_jepa.train.data.sampler import CropStream, crop_stream
from hear_jepa.train.jepa import JEPA
from hear_jepa.train.masking import Mask, draw_masks
from hear_jepa.train.metrics_log import Record
from hear_jepa.train.optimisation import AUTOCAST, Optimiser
from hear_jepa.train.plots import draw_masks_picture, draw_report
from hear_jepa.train.ranks import Ranks, start_ranks, stop_ranks
from hear_jepa.train.run_state import BEST, LATEST, StopRequest, load_state, save_state, stop_on_signals
from hear_jepa.train.schedules import interpolate

log = logging.getLogger(__name__)

ENCODER_FILE = "encoder.safetensors"
MONITOR_CROPS = 128  # crops that the collapse statistics look at


class DivergedError(HearJepaError):
    """Too many steps in a row had a non-finite gradient."""


class Run:
    """One pretraining run. `train()` takes it from where it is to its end; everything it needs is in its config."""

    def __init__(self, config: TrainConfig):
        self.config = config
        check_counts(config)
        self.ranks: Ranks = start_ranks(config.compute)
        per_step = self.ranks.world_size * config.optim.accumulation
        if config.optim.batch_size % per_step:
            raise OptionError(
                f"--optim.batch-size is {config.optim.batch_size}: it must be a multiple of {per_step} "
                f"({self.ranks.world_size} ranks × {config.optim.accumulation} micro-batches)"
            )
        self.front_end = normalised(
            config.front_end.front_end(0.0, 1.0), config.data, config.encoder.frames, config.seed
        )
        self.vit_config = config.encoder.vit(self.front_end.n_mels)
        self.log_mel = LogMel(self.front_end).to(self.ranks.device)
        torch.manual_seed(config.seed)
        self.jepa = JEPA(self.vit_config, config.predictor, config.target, config.loss)
        if config.init_from:
            self._warm_start(config.init_from)
        self.jepa.to(self.ranks.device)
        self.jepa.context_encoder.gradient_checkpointing = config.compute.gradient_checkpointing
        self.optimiser = Optimiser(self.jepa.trained_parameters(), config.optim, config.compute, self.ranks.device)
        self.step, extra = 0, {}
        if config.resume:
            self.step, extra = load_state(config.out / LATEST, config, self.jepa, self.optimiser)
        elif self.ranks.is_main and (config.out / LATEST).exists():
            raise OptionError(f"{config.out} holds a run already: go on with it (--resume), or name another --out")
        self.best_probe: float = extra.get("best_probe", -math.inf)
        self.best_scores: dict[str, dict[str, float]] = extra.get("best_scores", {})
        self.hours_before: float = extra.get("hours", 0.0)
        self.started = time.monotonic()
        self.forward = self._wrap(self.jepa)

    # ---------------------------------------------------------------- the run

    def train(self) -> Path:
        """Run to the end, or to a signal. Returns the serving checkpoint, or the saved state where it was stopped."""
        config = self.config
        self._write_config()
        crops = self._crops()
        bad_steps = 0
        with self._recording() as record, stop_on_signals() as stop:
            crops.stop_on(lambda: bool(stop))
            while self.step < config.optim.steps:
                waiting = time.monotonic()
                audio = next(crops, None)
                if audio is None:  # asked to stop while it waited for crops
                    return self._save(LATEST, last=True)
                waited = time.monotonic() - waiting
                values, finite, log_mel = self._take_step(audio)
                self.step += 1
                bad_steps = 0 if finite else bad_steps + 1
                if bad_steps:
                    log.warning("step %d: the gradient is not finite; skipped (%d in a row)", self.step, bad_steps)
                if record:
                    values["skipped"] = sum(crops.skipped.values())  # clips and files that could not be read
                    record.take(self.step, values, waited, len(audio) * self.ranks.world_size, finite)
                if bad_steps >= config.optim.max_bad_steps:
                    self._save(LATEST, last=True)
                    raise DivergedError(
                        f"{bad_steps} steps in a row had a non-finite gradient; the state is saved in "
                        f"{config.out}: lower --optim.base-lr, or raise the precision"
                    )
                if self._stopping(stop):
                    return self._save(LATEST, last=True)
                if record:
                    self._look(record, log_mel)
            self._save(LATEST, last=True)
            return self._finish(record) if record else config.out / ENCODER_FILE

    def _take_step(self, audio: Tensor) -> tuple[dict[str, Tensor | float], bool, Tensor]:
        """One optimiser step on this rank's crops [B, samples]."""
        config, total = self.config, self.config.optim.steps
        log_mel = self.log_mel.valid(audio.to(self.ranks.device, non_blocking=True))  # [B, mels, frames]
        mask = self._masks(len(audio))
        micro = config.optim.accumulation
        loss_sum = 0.0
        for index in range(micro):
            last = index == micro - 1
            output = self._forward_backward(log_mel[index::micro], self._micro_mask(mask, index, len(audio)), last)
            loss_sum = loss_sum + output.loss.detach() / micro
        lr = config.optim.lr(self.step)
        norm, finite = self.optimiser.step(lr)
        ramp = config.ema.ramp_steps or total
        momentum = interpolate(self.step, ramp, config.ema.start, config.ema.end, config.ema.shape)
        if finite:
            self.jepa.update_target(momentum)
        else:
            self.jepa.skip_update()
        values = {"loss": loss_sum, "lr": lr, "tau": momentum, "grad_norm": norm}
        if (self.step + 1) % config.monitor.log_every == 0:
            values["loss"] = self.ranks.mean(loss_sum)
            values["cosine"] = monitor.cosine(output.predicted, output.target)
        return values, finite, log_mel

    def _forward_backward(self, log_mel: Tensor, mask: Mask, last: bool):
        precision = AUTOCAST[self.config.compute.precision]
        # gradients of the ranks are averaged once, in the last micro-batch
        distributed = isinstance(self.forward, DistributedDataParallel)
        quiet = self.forward.no_sync() if distributed and not last else nullcontext()
        with quiet:
            with torch.autocast(self.ranks.device.type, precision, enabled=precision is not None):
                output = self.forward(log_mel, mask)
            self.optimiser.backward(output.loss / self.config.optim.accumulation)
        return output

    def _masks(self, n_crops: int) -> Mask:
        """This rank's masks [M·B, K]: a function of seed and step, drawn for all ranks at once and shared out."""
        config = self.config
        generator = torch.Generator().manual_seed(hash_seed(config.seed, self.step))
        batch, times = n_crops * self.ranks.world_size, config.mask.masks_per_crop
        n_freq, n_time = self.vit_config.n_freq_patches, self.vit_config.n_time_patches
        mask = draw_masks(config.mask, batch * times, n_freq, n_time, generator)
        rows = self.ranks.rows(batch)
        return Mask(*(part.unflatten(0, (times, batch))[:, rows].flatten(0, 1).to(self.ranks.device) for part in mask))

    def _micro_mask(self, mask: Mask, index: int, n_crops: int) -> Mask:
        step = self.config.optim.accumulation
        return Mask(*(part.unflatten(0, (-1, n_crops))[:, index::step].flatten(0, 1) for part in mask))

    def _stopping(self, stop: StopRequest) -> bool:
        """Whether any rank was asked to stop; all ranks agree."""
        return self.ranks.any(bool(stop))

    # ---------------------------------------------------------------- what is written down

    def _recording(self):
        """The run's record on the main rank, nothing on the others."""
        if not self.ranks.is_main:
            return nullcontext()
        return closing(Record(self.config.out, self.step, self.config.optim.steps))

    def _look(self, record: Record, log_mel: Tensor) -> None:
        every = self.config.monitor
        if self.step % every.collapse_every == 0:
            self._look_for_collapse(record, log_mel[:MONITOR_CROPS])
        if every.probe_every and self.step % every.probe_every == 0 and self.step < self.config.optim.steps:
            self._probe(record)
        if self.step % every.save_every == 0:
            self._save(LATEST)

    def _look_for_collapse(self, record: Record, log_mel: Tensor) -> None:
        for name, encoder in self._encoders().items():
            statistics = monitor.collapse_statistics(encoder, log_mel)
            record.write(self.step, {f"{name}/{key}": value for key, value in statistics.items()})
            if monitor.is_collapsed(statistics, self.vit_config.width):
                record.write(self.step, {f"{name}/collapsed": 1.0})
                log.warning("step %d: the %s encoder has collapsed: %s", self.step, name, statistics)

    def _probe(self, record: Record) -> dict[str, dict[str, float]]:
        """Probe both encoders; keep the state with the best validation score."""
        scores = {}
        if not self.config.monitor.probe_tasks:
            return scores
        for name in self._encoders():
            # the layers that will be served; columns 160 ms apart are a quarter of the work
            checkpoint = self._snapshot(
                ServedConfig(name, self.config.serve_layers, pooling=self.config.serve_pooling), {}
            )
            tasks, clips = self.config.monitor.probe_tasks, self.config.monitor.probe_clips
            try:
                scores[name] = monitor.probe(checkpoint, tasks, clips, self.ranks.device)
            except Exception:  # hours of training are worth more than one look
                log.exception("step %d: the probe failed; the run goes on", self.step)
                return {}
            record.write(self.step, {f"{name}/probe/{task}": score for task, score in scores[name].items()})
            log.info("step %d: %s encoder, probe %s", self.step, name, scores[name])
        best = max(score["mean"] for score in scores.values())
        if best > self.best_probe:
            self.best_probe, self.best_scores = best, scores
            self._save(BEST)
        return scores

    def _take_best(self, scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """Where an earlier state probed better than the last by more than `best_margin`, serve that one. Returns the
        scores of what is served."""
        best, margin = self.config.out / BEST, self.config.monitor.best_margin
        last_probe = max((score["mean"] for score in scores.values()), default=math.inf)
        if self.best_probe - last_probe <= margin or not best.is_file():
            return scores
        state = torch.load(best, map_location="cpu", weights_only=True)
        self.jepa.load_state_dict(state["jepa"])
        self.step = state["step"]
        log.info("serving step %d, whose probe was the best", self.step)
        return state["extra"]["best_scores"]

    def _finish(self, record: Record) -> Path:
        """Last look, serving checkpoint, pictures."""
        scores = self._take_best(self._probe(record))
        which = self.config.serve
        if which == "auto":
            which = max(scores, key=lambda name: scores[name]["mean"]) if scores else "context"
        path = self.config.out / ENCODER_FILE
        served = ServedConfig(
            which, self.config.serve_layers, self.config.serve_scene_hop_ms, self.config.serve_pooling
        )
        save_checkpoint(path, self._snapshot(served, self._provenance(scores)), torch.float16)
        draw_report(self.config.out)
        self._draw_masks()
        return path

    def _provenance(self, scores: dict) -> dict:
        return {
            "made_by": f"hear_jepa {__version__}",
            "steps": self.step,
            "crops": self.step * self.config.optim.batch_size,
            "hours_of_training": round(self._hours(), 2),
            "ranks": self.ranks.world_size,
            "device": self.ranks.device.type,
            "data": str(self.config.data.source),
            "probe_validation": scores,
            "config": to_json(self.config),
        }

    def _snapshot(self, served: ServedConfig, provenance: dict) -> Checkpoint:
        return monitor.snapshot(self._encoders()[served.encoder], self.front_end, served, provenance)

    def _draw_masks(self) -> None:
        audio = next(self._crops())[:4]
        log_mel = self.log_mel.valid(audio.to(self.ranks.device)).cpu()
        generator = torch.Generator().manual_seed(self.config.seed)
        grid = self.vit_config.n_freq_patches, self.vit_config.n_time_patches
        mask = draw_masks(self.config.mask, len(audio), *grid, generator)
        draw_masks_picture(self.config.out, log_mel, mask, *grid, self.config.mask.strategy)

    def _write_config(self) -> None:
        if self.ranks.is_main:
            with atomic_path(self.config.out / "config.json") as temporary:
                temporary.write_text(json.dumps(to_json(self.config), indent=2) + "\n")

    def _save(self, name: str, last: bool = False) -> Path:
        path = self.config.out / name
        if self.ranks.is_main:
            extra = {"best_probe": self.best_probe, "best_scores": self.best_scores, "hours": self._hours()}
            written = save_state(path, self.config, self.step, self.jepa, self.optimiser, extra)
            if last and not written:
                raise CheckpointError(f"the run ends without its last state: {path} could not be written")
        return path

    def _hours(self) -> float:
        return self.hours_before + (time.monotonic() - self.started) / 3600

    # ---------------------------------------------------------------- parts

    def _crops(self) -> CropStream:
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

    def _encoders(self) -> dict:
        return {"context": self.jepa.context_encoder, "target": self.jepa.target_encoder}

    def _wrap(self, jepa: JEPA):
        model = torch.compile(jepa) if self.config.compute.compile else jepa
        if self.ranks.world_size == 1:
            return model
        ids = [self.ranks.device] if self.ranks.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)

    def _warm_start(self, path: Path) -> None:
        checkpoint = load_checkpoint(path)
        if checkpoint.encoder != self.vit_config:
            raise OptionError(f"{path} holds another encoder ({checkpoint.encoder}) than the run's {self.vit_config}")
        for encoder in self._encoders().values():
            encoder.load_state_dict(checkpoint.weights)


def check_counts(config: TrainConfig) -> None:
    """Raise `OptionError` for a count below 1, and for a probe's task that cannot be read: now, not hours later."""
    counts = {
        "--optim.steps": config.optim.steps,
        "--optim.batch-size": config.optim.batch_size,
        "--optim.accumulation": config.optim.accumulation,
        "--optim.max-bad-steps": config.optim.max_bad_steps,
        "--mask.masks-per-crop": config.mask.masks_per_crop,
        "--monitor.log-every": config.monitor.log_every,
        "--monitor.collapse-every": config.monitor.collapse_every,
        "--monitor.save-every": config.monitor.save_every,
    }
    for name, value in counts.items():
        if value < 1:
            raise OptionError(f"{name} is {value}: it must be at least 1")
    if config.monitor.probe_tasks:
        monitor.check_probe_tasks(config.monitor.probe_tasks)


def hash_seed(seed: int, step: int) -> int:
    """One 63-bit seed for a pair of numbers, well mixed (splitmix64)."""
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
