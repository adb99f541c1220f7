"""Shards, or a folder of sounds -> batches of random crops, the same ones whenever a run is repeated or resumed."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hear_jepa.errors import CorpusError
from hear_jepa.files.resample import SAMPLE_RATE
from hear_jepa.options import check_fields
from hear_jepa.train.data.ahead import Ahead
from hear_jepa.train.data.crops import BatchPlan, DataConfig
from hear_jepa.train.data.decoded import Decoded, decode_folder, decode_shards
from hear_jepa.train.data.manifest import FILE_NAME, Manifest, parse_manifest
from hear_jepa.train.data.stream import StreamedBatches, is_url, read_manifest
from hear_jepa.train.data.synthetic import SyntheticSound

SYNTHETIC = "synthetic"  # the domain that is made on the fly


class CropStream(Iterator[Tensor]):
    """An endless iterator over batches, float32 [batch_size, samples]; `skipped` counts what could not be read."""

    def __init__(self, batches: Ahead, skipped: dict[str, int]):
        self._batches, self.skipped = batches, skipped

    def __next__(self) -> Tensor:
        batch, skipped = next(self._batches)
        for kind, count in skipped.items():
            self.skipped[kind] += count
        return batch

    def stop_on(self, stop_requested: Callable[[], bool]) -> None:
        """End a wait in StopIteration once this function returns True."""
        self._batches.stop_requested = stop_requested

    def close(self) -> None:
        """End the thread or the processes that make the batches."""
        self._batches.close()


def crop_stream(
    config: DataConfig,
    *,
    batch_size: int,
    n_samples: int,
    seed: int,
    sample_rate: int = SAMPLE_RATE,
    rank: int = 0,
    world_size: int = 1,
    start_batch: int = 0,
) -> CropStream:
    """Yield for ever float32 [batch_size, n_samples] at `sample_rate` Hz.

    `CropRule` says how crops are drawn. Batch k is a function of the audio, the seed, the rank and k: started at
    `start_batch` the stream goes on as one that never stopped. Decoded, the batches k of W ranks joined are batch
    k of one rank with W times the batch size. Raises CorpusError for audio or shards that cannot be used.
    """
    manifest, backend = check_source(config, sample_rate)

    def plan_of(shares: dict[str, float]) -> BatchPlan:
        return BatchPlan(tuple(shares.values()), batch_size, seed, rank, world_size, config)

    def ahead(batches: DecodedBatches | StreamedBatches, workers: int) -> Ahead:
        return Ahead(batches, workers, max(1, config.prefetch // max(1, workers)), config.timeout_s)

    if manifest is not None and backend == "stream":
        shares = domain_shares(config, manifest.hours)
        shards = tuple(tuple(shard for shard in manifest.shards if shard.domain == domain) for domain in shares)
        batches = StreamedBatches(shards, plan_of(shares), n_samples, sample_rate, start_batch)
        return CropStream(ahead(batches, config.workers), {"shards": 0, "clips": 0})
    decoded = _decode(config, manifest, sample_rate)
    shares = domain_shares(config, decoded.hours(sample_rate))
    batches = DecodedBatches(decoded, plan_of(shares), tuple(shares), n_samples, sample_rate, start_batch)
    workers = config.workers if config.workers > 1 else 0  # a thread does for one
    return CropStream(ahead(batches, workers), {"items": len(decoded.skipped)})


@dataclass(frozen=True)
class DecodedBatches:
    """The batches of one rank from decoded audio, made by a thread or by processes that take turns."""

    decoded: Decoded
    plan: BatchPlan
    domains: tuple[str, ...]  # in the order of the plan's shares
    samples: int
    sample_rate: int
    start: int

    def __call__(self, turn: int, turns: int) -> Iterator[tuple[Tensor, dict[str, int]]]:
        """Yield (batch, {}) for ever: batches turn, turn + turns, … from `start` on, the same whatever `turns`."""
        decoded, synthetic = self.decoded, SyntheticSound(self.samples, self.sample_rate)
        sources = [decoded.rule(name, self.samples) if name in decoded.domains else synthetic for name in self.domains]
        draws = [source.draw for source in sources]
        return ((self.plan.batch(k, draws, synthetic.noise), {}) for k in itertools.count(self.start + turn, turns))


def check_source(config: DataConfig, sample_rate: int) -> tuple[Manifest | None, str]:
    """The source's manifest, None for a folder of sounds, and the backend that reads it.

    Raises OptionError for options, CorpusError for sources that cannot be used, before any audio is read.
    """
    check_fields(config, "--data.")
    manifest = find_manifest(config.source)
    if manifest is not None and manifest.sample_rate != sample_rate:
        raise CorpusError(
            f"{config.source} is at {manifest.sample_rate} Hz, the front end at {sample_rate} Hz: "
            f"prepare the shards with --rate {sample_rate}, or change --front-end.sample-rate"
        )
    return manifest, _backend(config, manifest)


def domain_shares(config: DataConfig, hours: dict[str, float]) -> dict[str, float]:
    """The probability of each domain, from the weights asked for and the hours there are; raises CorpusError."""
    weights = config.domain_weights or hours
    if unknown := sorted(weights.keys() - hours.keys() - {SYNTHETIC}):
        known = ", ".join(hours)
        raise CorpusError(
            f"--data.domain-weights names {', '.join(unknown)}; {config.source} has {known}; there is {SYNTHETIC} too"
        )
    total = sum(weights.values())
    if min(weights.values()) < 0 or not 0 < total < math.inf:
        raise CorpusError(f"--data.domain-weights {weights}: weights must be positive numbers or 0, and not all 0")
    return {domain: weights[domain] / total for domain in sorted(weights) if weights[domain] > 0}


def find_manifest(source: str) -> Manifest | None:
    """The manifest of shards, local or remote; None for a plain folder of sounds. Raises CorpusError."""
    if is_url(source):
        return read_manifest(source)
    folder = Path(source)
    if not folder.is_dir():
        raise CorpusError(f"{folder}: no such folder; the data are a folder of shards or of sounds")
    path = folder / FILE_NAME
    if path.exists():
        return parse_manifest(path.read_bytes(), str(path))
    if next(folder.glob("*.tar*"), None):
        raise CorpusError(f"{folder} holds shards without {FILE_NAME}: prepare was interrupted; run it again to finish")
    return None


def _backend(config: DataConfig, manifest: Manifest | None) -> str:
    if manifest is None or is_url(config.source):
        needed = "decoded" if manifest is None else "stream"
        if config.backend not in ("auto", needed):
            raise CorpusError(f"{config.source} can only be read with --data.backend {needed}")
        return needed
    fits = sum(manifest.hours.values()) <= config.decoded_hours
    return config.backend if config.backend != "auto" else ("decoded" if fits else "stream")


def _decode(config: DataConfig, manifest: Manifest | None, sample_rate: int) -> Decoded:
    folder = Path(config.source)
    if manifest is None:
        return decode_folder(folder, sample_rate, config.cache_dir)
    return decode_shards(folder, manifest, config.cache_dir)
