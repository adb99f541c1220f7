"""Crops from shards that are read as they are needed: local or remote corpora of any size.

Every loading process of every rank has its own shards: each epoch they are dealt out anew, by domain. It holds a
group of them in memory, undecoded, draws `crops_per_clip` crops for each of their clips, and goes on to the next group.
As the manifest says how many clips a shard has, a resumed run finds its group without reading the earlier ones.
"""

import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hear_jepa.errors import CorpusError
from hear_jepa.train.data.crops import SHARDS, BatchPlan, CropRule, generator
from hear_jepa.train.data.manifest import FILE_NAME, Manifest, Shard, parse_manifest
from hear_jepa.train.data.shards import DamagedFlac, DamagedShard, flac_length, read_flac, shard_flacs
from hear_jepa.train.data.synthetic import SyntheticSound

log = logging.getLogger(__name__)

ATTEMPTS = 100

Item = tuple[Tensor, dict[str, int]]  # a batch; what was skipped, by kind


def is_url(source: str) -> bool:
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
        return parse_manifest(_read(url), url)
    except OSError as error:
        raise CorpusError(f"{url}: cannot be opened ({error}); --data.source names the folder of the shards") from error


def _read(url: str) -> bytes:
    with _open(url) as stream:
        return stream.read()


def _open(url: str) -> Any:
    if not is_url(url):
        return open(url, "rb")
    try:
        from webdataset.gopen import gopen
    except ImportError as error:
        raise CorpusError("reading shards from a URL needs webdataset: pip install webdataset") from error
    try:
        return gopen(url)
    except ValueError as error:  # a scheme that it does not know
        raise CorpusError(f"{url}: cannot be opened ({error}); there are http:, https: and pipe:") from error


@dataclass(frozen=True)
class StreamedBatches:
    """The batches of one rank, made by processes that take turns."""

    shards: tuple[tuple[Shard, ...], ...]  # of each domain; none of the synthetic one
    plan: BatchPlan
    samples: int
    sample_rate: int
    start: int

    def __call__(self, turn: int, turns: int) -> Iterator[Item]:
        """Yield (batch, {skipped what: how many}) for ever: batches turn, turn + turns, … from `start` on.

        Process number w of W makes batches w, w + W, … whatever batch the run starts with.
        """
        first = self.start + turn
        unit, units = self.plan.rank * turns + first % turns, self.plan.world_size * turns
        skipped = {"shards": 0, "clips": 0}
        synthetic = SyntheticSound(self.samples, self.sample_rate)
        sources = [DomainStream(self, shards, unit, units, skipped) if shards else synthetic for shards in self.shards]
        for index in range(first % turns, first, turns):
            for source, count in zip(sources, self.plan.counts(index), strict=True):
                if isinstance(source, DomainStream):
                    source.drawn += int(count)
        for index in itertools.count(first, turns):
            yield self.plan.batch(index, [source.draw for source in sources], synthetic.noise), dict(skipped)
            skipped.update(shards=0, clips=0)


class DomainStream:
    """The crops of one domain for process `unit` of `units`; `drawn` counts them and may be raised to skip some.

    Shards come in groups of `open_shards`, numbered through all epochs; an epoch deals out the shards anew.
    """

    def __init__(self, batches: StreamedBatches, shards: tuple[Shard, ...], unit: int, units: int, skipped: dict):
        self._batches, self._shards, self._unit, self._units, self._skipped = batches, shards, unit, units, skipped
        self._config = batches.plan.config
        # Too few shards to go round: all processes read all of them and share out the clips.
        self._split_clips = len(shards) < units
        own = len(shards) if self._split_clips else len(range(unit, len(shards), units))
        self._groups_per_epoch = math.ceil(own / batches.plan.config.open_shards)
        self._group, self._end = -1, 0
        self._rule: CropRule  # of the group that is being read
        self._verified: set[str] = set()
        self.drawn = 0

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The next crop, int16 [samples]."""
        if self.drawn >= self._end:
            while self.drawn >= self._end:
                self._group += 1
                self._end += self._crops_in(self._shards_of(self._group))
            self._rule = self._load(self._group)
        self.drawn += 1
        for _ in range(ATTEMPTS):
            try:
                return self._rule.draw(rng)
            except DamagedFlac as error:
                self._skipped["clips"] += 1
                log.warning("%s: %s; drawing another clip", self._config.source, error)
        raise CorpusError(f"{self._config.source}: {ATTEMPTS} clips in a row are damaged; prepare the shards again")

    def _shards_of(self, group: int) -> list[Shard]:
        epoch, within = divmod(group, self._groups_per_epoch)
        order = generator(self._batches.plan.seed, SHARDS, epoch).permutation(len(self._shards))
        own = order if self._split_clips else order[self._unit :: self._units]
        first = within * self._config.open_shards
        return [self._shards[i] for i in own[first : first + self._config.open_shards]]

    def _crops_in(self, shards: list[Shard]) -> int:
        clips = sum(shard.clips for shard in shards)
        return math.ceil(clips / (self._units if self._split_clips else 1)) * self._config.crops_per_clip

    def _load(self, group: int) -> CropRule:
        """Hold a group in memory; where nothing of it can be read, the next that can be takes its place."""
        for candidate in range(group, group + 2 * self._groups_per_epoch):
            flacs = [flac for shard in self._shards_of(candidate) for flac in self._read(shard)]
            if self._split_clips:
                flacs = flacs[self._unit :: self._units] or flacs
            if flacs:
                lengths = np.array([flac_length(flac) for flac in flacs])  # only what a crop needs is decoded
                return CropRule(
                    lengths, lambda clip, *part, flacs=flacs: read_flac(flacs[clip], *part), self._batches.samples
                )
        files = ", ".join(sorted({shard.file for shard in self._shards})[:3])
        raise CorpusError(f"{self._config.source}: cannot read {files}, …; damaged or missing: prepare them again")

    def _read(self, shard: Shard) -> list[bytes]:
        """The FLAC files of a shard; none where it cannot be read or is not the one that the manifest describes."""
        url = locate(self._config.source, shard.file)
        try:
            flacs = list(shard_flacs(_read(url), shard, verify=shard.file not in self._verified).values())
        except (DamagedShard, OSError) as error:
            log.warning("%s is damaged or missing (%s); training goes on without it", url, error)
            self._skipped["shards"] += 1
            return []
        self._verified.add(shard.file)
        usable = [flac for flac in flacs if flac_length(flac)]
        self._skipped["clips"] += len(flacs) - len(usable)
        return usable
