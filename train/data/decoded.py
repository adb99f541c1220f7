"""All audio decoded once into a memory-mapped file: crops are then a pure function of seed, step and row."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hear_jepa.disk import atomic_path, locked, read_json, write_json
from hear_jepa.errors import CorpusError
from hear_jepa.files.folders import find_audio
from hear_jepa.progress import progress_bar
from hear_jepa.train.corpus.clips import Skipped, excerpts
from hear_jepa.train.corpus.domains import FolderNames
from hear_jepa.train.data.crops import CropRule
from hear_jepa.train.data.manifest import Manifest, Shard
from hear_jepa.train.data.shards import DamagedFlac, DamagedShard, decode_flac, shard_flacs

log = logging.getLogger(__name__)

LAYOUT = 2  # to be raised when the cache's files change


@dataclass(frozen=True)
class Decoded:
    """The cache: a file of int16, all clips end to end; where each lies and of which domain it is."""

    file: Path
    domains: list[str]
    domain_of: np.ndarray  # [clips], index into `domains`
    lengths: np.ndarray  # [clips], in samples
    skipped: list[dict]  # {path, reason}

    def rule(self, domain: str, crop_samples: int) -> CropRule:
        """The rule for drawing crops of a domain."""
        clips = np.flatnonzero(self.domain_of == self.domains.index(domain))
        starts = (np.cumsum(self.lengths) - self.lengths)[clips]
        samples = np.memmap(self.file, dtype="<i2", mode="r")

        def read(clip: int, start: int, count: int) -> np.ndarray:
            first = starts[clip] + start
            return samples[first : first + count]

        return CropRule(self.lengths[clips], read, crop_samples)

    def hours(self, sample_rate: int) -> dict[str, float]:
        totals = np.bincount(self.domain_of, weights=self.lengths)
        return {domain: total / sample_rate / 3600 for domain, total in zip(self.domains, totals, strict=True)}


def decode_shards(folder: Path, manifest: Manifest, cache_dir: Path | None) -> Decoded:
    """Decode all shards of a local folder, or open what an earlier call decoded.

    What cannot be read is left out, logged and listed in `skipped`. Raises CorpusError when nothing can be read.
    """
    content = [[shard.file, shard.sha256, *_stamp(folder / shard.file)] for shard in manifest.shards]
    return _cached(cache_dir or folder / ".cache", content, folder, lambda: _shard_clips(folder, manifest))


def decode_folder(folder: Path, sample_rate: int, cache_dir: Path | None) -> Decoded:
    """Decode all sounds below a folder, or open what an earlier call decoded; `prepare` says what is left out."""
    files = find_audio(folder)
    if not files:
        raise CorpusError(f"{folder}: neither manifest.json nor any audio in it; name a folder of shards or of sounds")
    stamps = [[str(path.relative_to(folder)), *_stamp(path)] for path in files]
    content = [sample_rate, stamps]
    return _cached(cache_dir or folder / ".cache", content, folder, lambda: _folder_clips(folder, files, sample_rate))


Item = tuple[str, np.ndarray]  # domain, int16 samples


def _shard_clips(folder: Path, manifest: Manifest) -> Iterator[Item | Skipped]:
    with progress_bar(desc="decode shards", total=sum(shard.clips for shard in manifest.shards), unit="clip") as bar:
        for shard in manifest.shards:
            try:
                flacs = shard_flacs((folder / shard.file).read_bytes(), shard)
            except (DamagedShard, OSError) as error:
                reason = f"damaged or missing shard ({error}): {shard.clips} clips lost; prepare it again"
                yield Skipped(str(folder / shard.file), reason)
                continue
            yield from _decoded(shard, flacs)
            bar.update(shard.clips)


def _decoded(shard: Shard, flacs: dict[str, bytes]) -> Iterator[Item | Skipped]:
    for name, flac in flacs.items():
        try:
            yield shard.domain, decode_flac(flac)
        except DamagedFlac as error:
            yield Skipped(f"{shard.file}/{name}", str(error))


def _folder_clips(folder: Path, files: list[Path], sample_rate: int) -> Iterator[Item | Skipped]:
    origin_of = FolderNames()
    for path in progress_bar(files, "decode", unit="file"):
        domain = origin_of(folder, path.relative_to(folder).as_posix()).domain
        for item in excerpts(path, str(path), sample_rate=sample_rate):
            yield item if isinstance(item, Skipped) else (domain, item.samples)


def _stamp(path: Path) -> tuple[int, int] | tuple[()]:
    """Size and time of the last change; nothing of a file that is not there."""
    return (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else ()


def _cached(cache_dir: Path, content: list, folder: Path, items: Callable[[], Iterator[Item | Skipped]]) -> Decoded:
    name = hashlib.sha256(json.dumps([LAYOUT, content]).encode()).hexdigest()[:16]
    data, index = cache_dir / f"{name}.int16", cache_dir / f"{name}.json"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with locked(cache_dir / f"{name}.lock", timeout_s=-1):  # of several ranks one decodes, the others wait
            if not (index.exists() and data.exists()):
                _build(data, index, folder, items())
        found = read_json(index)
    except OSError as error:
        raise CorpusError(f"{cache_dir}: cannot keep the decoded audio ({error}); set --data.cache-dir") from error
    return Decoded(data, found["domains"], np.array(found["domain_of"]), np.array(found["lengths"]), found["skipped"])


def _build(data: Path, index: Path, folder: Path, items: Iterator[Item | Skipped]) -> None:
    """Write the samples, then the index: an index is there only when everything is."""
    domains, domain_of, lengths, skipped = {}, [], [], []
    with atomic_path(data) as temporary, open(temporary, "wb") as file:
        for item in items:
            if isinstance(item, Skipped):
                log.warning("skipped %s: %s", item.path, item.reason)
                skipped.append(asdict(item))
                continue
            domain, samples = item
            domain_of.append(domains.setdefault(domain, len(domains)))
            lengths.append(len(samples))
            file.write(samples.astype("<i2").tobytes())
        if not lengths:
            first = f"; first: {skipped[0]['path']}: {skipped[0]['reason']}" if skipped else ""
            raise CorpusError(f"{folder}: no usable audio, {len(skipped)} files or shards skipped{first}")
    write_json(index, {"domains": list(domains), "domain_of": domain_of, "lengths": lengths, "skipped": skipped})
