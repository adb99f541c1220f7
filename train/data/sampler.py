"""Shards, or a folder of sounds -> batches of random crops, the same ones whenever a run is repeated or resumed."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from hear_jepa.errors import CorpusError
from hear_jepa.train.data.crops import CropRule, to_float
from hear_jepa.train.data.decoded import Decoded, decode_folder, decode_shards
from hear_jepa.train.data.manifest import FILE_NAME, Manifest, parse_manifest
from hear_jepa.train.data.stream import ShardBatches, is_url, read_manifest


@dataclass(frozen=True)
class DataConfig:
    """Where crops come from and how they are drawn."""

    source: str = "shards"
    """Folder that `prepare` wrote, local or any URL that WebDataset opens (a command: "pipe:aws s3 cp s3://x/{shard} -"
    with {shard} for the file's name); or a plain folder of sounds, whose top folders name the domains."""
    backend: Literal["auto", "memory", "stream"] = "auto"
    """memory: decode everything once into a memory-mapped file; stream: read shards as they are needed; auto: memory
    for local audio of up to `memory_hours`."""
    memory_hours: float = 100.0
    """Hours (115 MB each) up to which `auto` takes memory."""
    cache_dir: Path | None = None
    """Folder for the memory-mapped file; none: .cache inside the source."""
    domain_weights: dict[str, float] = field(default_factory=dict)
    """Share of crops from each domain (any scale; a domain not named gets none); empty: in proportion to hours."""
    crops_per_clip: int = 4
    """Stream: crops taken for every clip read, long clips giving more of them than short ones."""
    open_shards: int = 2
    """Stream: shards of a domain held in memory at once, undecoded; crops are drawn from all of them at random."""
    workers: int = 1
    """Stream: decoding processes of every rank. Other numbers give other crops."""
    prefetch: int = 4
    """Batches made ahead."""
    gain_db: float = 0.0
    """Random gain of every crop, drawn evenly from ± this many dB; 0: none."""


class CropStream(Iterator[Tensor]):
    """An endless iterator over batches, float32 [batch_size, samples]; `skipped` counts what could not be read."""

    def __init__(self, batches: Iterator[Tensor], skipped: dict[str, int]):
        self._batches, self.skipped = batches, skipped

    def __next__(self) -> Tensor:
        return next(self._batches)


def crop_stream(
    config: DataConfig,
    *,
    batch_size: int,
    n_samples: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start_batch: int = 0,
) -> CropStream:
    """Yield for ever float32 [batch_size, n_samples].

    `CropRule` says how crops are drawn. Batch k is a function of the audio, the seed, the rank and k: started at
    `start_batch` the stream goes on as one that never stopped. From memory, the batches k of W ranks joined are batch
    k of one rank with W times the batch size. Raises CorpusError for audio or shards that cannot be used.
    """
    samples = n_samples
    manifest = _manifest(config)
    if _backend(config, manifest) == "stream":
        shares = domain_shares(config, _hours(manifest))
        shards = ShardBatches(config, manifest, shares, batch_size, samples, seed, rank, world_size, start_batch)
        return CropStream(shards.batches(), shards.skipped)
    decoded = _decode(config, manifest)
    shares = domain_shares(config, decoded.hours())
    batch = _memory_batches(decoded.rules(samples), shares, batch_size, seed, rank, config.gain_db)
    return CropStream(_ahead(batch, start_batch, config.prefetch), {"items": len(decoded.skipped)})


def corpus_statistics(config: DataConfig) -> tuple[float, float]:
    """Mean and standard deviation of the unstandardised log-mel, domains weighted as in training."""
    manifest = _manifest(config)
    if manifest is None:
        decoded = _decode(config, None)
        hours = decoded.hours()
        statistics = {domain: sums.mean_std() for domain, sums in decoded.log_mel.items()}
    else:
        hours = _hours(manifest)
        statistics = {domain: content["log_mel"] for domain, content in manifest.domains.items()}
    shares = domain_shares(config, hours)
    mean = sum(share * statistics[domain]["mean"] for domain, share in shares.items())
    variance = sum(
        share * (statistics[domain]["std"] ** 2 + (statistics[domain]["mean"] - mean) ** 2)
        for domain, share in shares.items()
    )
    return mean, math.sqrt(variance)


def domain_shares(config: DataConfig, hours: dict[str, float]) -> dict[str, float]:
    """The probability of each domain, from the weights asked for and the hours there are; raises CorpusError."""
    weights = config.domain_weights or hours
    if unknown := sorted(weights.keys() - hours.keys()):
        raise CorpusError(f"--data.domain-weights names {', '.join(unknown)}; {config.source} has {', '.join(hours)}")
    total = sum(weights.values())
    if min(weights.values()) < 0 or not 0 < total < math.inf:
        raise CorpusError(f"--data.domain-weights {weights}: weights must be positive numbers or 0, and not all 0")
    return {domain: weights[domain] / total for domain in sorted(weights) if weights[domain] > 0}


def _manifest(config: DataConfig) -> Manifest | None:
    """The manifest of the source; None for a plain folder of sounds."""
    if is_url(config.source):
        return read_manifest(config.source)
    folder = Path(config.source)
    if not folder.is_dir():
        raise CorpusError(f"{folder}: no such folder; --data.source names a folder of shards or of sounds")
    path = folder / FILE_NAME
    if path.exists():
        return parse_manifest(path.read_bytes(), str(path))
    if next(folder.glob("*.tar*"), None):
        raise CorpusError(f"{folder} holds shards without {FILE_NAME}: prepare was interrupted; run it again to finish")
    return None


def _backend(config: DataConfig, manifest: Manifest | None) -> str:
    if manifest is None or is_url(config.source):
        needed = "memory" if manifest is None else "stream"
        if config.backend not in ("auto", needed):
            raise CorpusError(f"{config.source} can only be read with --data.backend {needed}")
        return needed
    fits = manifest.hours <= config.memory_hours
    return config.backend if config.backend != "auto" else ("memory" if fits else "stream")


def _hours(manifest: Manifest) -> dict[str, float]:
    return {domain: content["hours"] for domain, content in manifest.domains.items()}


def _decode(config: DataConfig, manifest: Manifest | None) -> Decoded:
    folder = Path(config.source)
    if manifest is None:
        return decode_folder(folder, config.cache_dir)
    return decode_shards(folder, manifest, config.cache_dir)


def _memory_batches(
    rules: dict[str, CropRule], shares: dict[str, float], batch_size: int, seed: int, rank: int, gain_db: float
) -> Callable[[int], Tensor]:
    domains, limits = list(shares), np.cumsum(list(shares.values()))

    def batch(index: int) -> Tensor:
        rows = range(rank * batch_size, (rank + 1) * batch_size)  # of the batch of all ranks
        rngs = [np.random.default_rng([seed, index, row]) for row in rows]
        chosen = [min(int(np.searchsorted(limits, rng.random(), side="right")), len(domains) - 1) for rng in rngs]
        return to_float([rules[domains[i]].draw(rng) for i, rng in zip(chosen, rngs, strict=True)], gain_db, rngs)

    return batch


def _ahead(batch: Callable[[int], Tensor], start: int, count: int) -> Iterator[Tensor]:
    """Yield batch(start), batch(start + 1), …, made `count` ahead by a thread."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(batch, index) for index in range(start, start + count))
        for index in itertools.count(start + count):
            waiting.append(pool.submit(batch, index))
            yield waiting.popleft().result()
