"""Crops from shards that are read as they are needed: local or remote corpora of any size.

Every loading process of every rank has its own shards: each epoch they are dealt out anew, by domain. It holds a
group of them in memory, undecoded, draws `crops_per_clip` crops for each of their clips, and goes on to the next group.
As the manifest says how many clips a shard has, a resumed run finds its group without reading the earlier ones.
"""

import itertools
import logging
import math
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hear_jepa.errors import CorpusError
from hear_jepa.train.data.crops import CropRule, to_float
from hear_jepa.train.data.manifest import FILE_NAME, Manifest, parse_manifest
from hear_jepa.train.data.shards import DamagedFlac, flac_length, read_flac, read_flacs

if TYPE_CHECKING:
    from hear_jepa.train.data.sampler import DataConfig

log = logging.getLogger(__name__)

ATTEMPTS = 100


def is_url(source: str) -> bool:
    """Whether the source is not a local folder."""
    return "://" in source or source.startswith("pipe:")


def locate(source: str, file: str) -> str:
    """The URL or path of a file of the corpus."""
    if "{shard}" in source:
        return source.replace("{shard}", file)
    return f"{source.rstrip('/')}/{file}" if is_url(source) else str(Path(source) / file)


def read_manifest(source: str) -> Manifest:
    """Read the manifest of a remote corpus; raises CorpusError."""
    url = locate(source, FILE_NAME)
    try:
        with _open(url) as stream:
            return parse_manifest(stream.read(), url)
    except OSError as error:
        raise CorpusError(f"{url}: cannot be opened ({error}); --data.source names the folder of the shards") from error


def _open(url: str):
    try:
        from webdataset import gopen
    except ImportError as error:
        raise CorpusError("streaming shards needs webdataset: pip install hear-jepa[train]") from error
    return gopen(url)


class ShardBatches(IterableDataset):
    """Batches of crops for one rank, made by `config.workers` processes that take turns."""

    def __init__(
        self,
        config: "DataConfig",
        manifest: Manifest,
        shares: dict[str, float],
        batch_size: int,
        samples: int,
        seed: int,
        rank: int,
        world_size: int,
        start_batch: int,
    ):
        super().__init__()
        self._config, self._manifest, self._shares = config, manifest, shares
        self._batch_size, self._samples, self._seed = batch_size, samples, seed
        self._rank, self._world_size, self._start = rank, world_size, start_batch
        self.skipped = {"shards": 0, "clips": 0}

    def batches(self) -> Iterator[Tensor]:
        """Yield float32 [batch_size, samples] for ever, and keep `skipped` up to date."""
        workers = self._config.workers
        prefetch = max(2, self._config.prefetch // max(1, workers)) if workers else None
        loader = DataLoader(
            self,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=prefetch,
            worker_init_fn=_leave_signals_to_the_run,
        )
        for batch, skipped in loader:
            for kind, count in skipped.items():
                self.skipped[kind] += count
            yield batch

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, int]]]:
        """The batches of this process: number w of W makes batches w, w + W, … whatever batch it starts with."""
        worker = get_worker_info()
        turn, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        first = self._start + turn
        unit, units = self._rank * workers + first % workers, self._world_size * workers
        skipped = {"shards": 0, "clips": 0}
        streams = [
            DomainStream(self._config, self._shards(domain), self._samples, self._seed, unit, units, skipped)
            for domain in self._shares
        ]
        drawn = np.zeros(len(streams), dtype=np.int64)
        for index in range(first % workers, first, workers):
            drawn += np.bincount(self._choose(index), minlength=len(streams))
        for index in itertools.count(first, workers):
            crops, rngs = [], []
            for domain in self._choose(index):
                rng = np.random.default_rng([self._seed, unit, units, int(domain), int(drawn[domain])])
                crops.append(streams[domain].draw(int(drawn[domain]), rng))
                rngs.append(rng)
                drawn[domain] += 1
            yield to_float(crops, self._config.gain_db, rngs), dict(skipped)
            skipped.update(shards=0, clips=0)

    def _choose(self, index: int) -> np.ndarray:
        """The domains of the crops of a batch, [batch_size]."""
        rng = np.random.default_rng([self._seed, self._rank, index])
        return rng.choice(len(self._shares), self._batch_size, p=list(self._shares.values()))

    def _shards(self, domain: str) -> list[dict]:
        return [shard for shard in self._manifest.shards if shard["domain"] == domain]


class DomainStream:
    """The crops of one domain for one of `units` processes, numbered from 0; only ever asked for later ones.

    Shards come in groups of `open_shards`, numbered through all epochs; an epoch deals out the shards anew.
    """

    def __init__(
        self, config: "DataConfig", shards: list[dict], samples: int, seed: int, unit: int, units: int, skipped: dict
    ):
        self._config, self._shards, self._samples, self._seed = config, shards, samples, seed
        self._unit, self._units, self._skipped = unit, units, skipped
        # Too few shards to go round: all processes read all of them and share out the clips.
        self._split_clips = len(shards) < units
        mine = len(shards) if self._split_clips else len(range(unit, len(shards), units))
        self._groups_per_epoch = math.ceil(mine / config.open_shards)
        self._group, self._end = -1, 0
        self._rule: CropRule | None = None

    def draw(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Crop number `index`, int16 [samples]."""
        if index >= self._end:
            while index >= self._end:
                self._group += 1
                self._end += self._crops_in(self._shards_of(self._group))
            self._rule = self._load(self._group)
        for _ in range(ATTEMPTS):
            try:
                return self._rule.draw(rng)
            except DamagedFlac as error:
                self._skipped["clips"] += 1
                log.warning("%s: %s; drawing another clip", self._config.source, error)
        raise CorpusError(f"{self._config.source}: {ATTEMPTS} clips in a row are damaged; prepare the shards again")

    def _shards_of(self, group: int) -> list[dict]:
        epoch, within = divmod(group, self._groups_per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._shards))
        mine = order if self._split_clips else order[self._unit :: self._units]
        first = within * self._config.open_shards
        return [self._shards[i] for i in mine[first : first + self._config.open_shards]]

    def _crops_in(self, shards: list[dict]) -> int:
        clips = sum(shard["clips"] for shard in shards)
        return math.ceil(clips / (self._units if self._split_clips else 1)) * self._config.crops_per_clip

    def _load(self, group: int) -> CropRule:
        """Hold a group in memory; where nothing of it can be read, the next that can be takes its place."""
        for candidate in range(group, group + 2 * self._groups_per_epoch):
            flacs = [flac for shard in self._shards_of(candidate) for flac in self._read(shard)]
            if self._split_clips:
                flacs = flacs[self._unit :: self._units] or flacs
            if flacs:
                return flac_rule(flacs, self._samples)
        files = sorted({shard["file"] for shard in self._shards})
        raise CorpusError(f"{self._config.source}: cannot read {', '.join(files[:3])}, …; prepare the shards again")

    def _read(self, shard: dict) -> list[bytes]:
        """The FLAC files of a shard, as far as it can be read."""
        url, flacs = locate(self._config.source, shard["file"]), []
        try:
            with _open(url) as stream:
                flacs.extend(flac for _, flac in read_flacs(stream))
        except (tarfile.TarError, OSError) as error:
            log.warning("%s is damaged or missing (%s); training goes on without the rest of it", url, error)
        if len(flacs) < shard["clips"]:
            self._skipped["shards"] += 1
        usable = [flac for flac in flacs if flac_length(flac)]
        self._skipped["clips"] += shard["clips"] - len(usable)
        return usable


def flac_rule(flacs: list[bytes], samples: int) -> CropRule:
    """Crops from FLAC files held in memory; only what a crop needs is decoded."""
    lengths = np.array([flac_length(flac) for flac in flacs])
    return CropRule(lengths, lambda clip, start, count: read_flac(flacs[clip], start, count), samples)


def _leave_signals_to_the_run(worker: int) -> None:
    """A stop is for the run to act on; its workers end with it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
