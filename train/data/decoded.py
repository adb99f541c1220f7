"""All audio decoded once into a memory-mapped file: crops are then a pure function of seed, step and row."""

import fcntl
import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hear_jepa.errors import CorpusError
from hear_jepa.files.audio import find_audio
from hear_jepa.train.corpus.clips import Skipped, clips_of, log_mel_sums
from hear_jepa.train.corpus.domains import FolderNames
from hear_jepa.train.data.crops import CropRule
from hear_jepa.train.data.manifest import LogMelSums, Manifest
from hear_jepa.train.data.shards import DamagedFlac, decode_flac, read_flacs

log = logging.getLogger(__name__)

LAYOUT = 1  # to be raised when the cache's files change


@dataclass(frozen=True)
class Decoded:
    """The cache: `samples` int16, all clips end to end; where each lies and of which domain it is."""

    samples: np.ndarray
    domains: list[str]
    domain_of: np.ndarray  # [clips], index into `domains`
    lengths: np.ndarray  # [clips], in samples
    log_mel: dict[str, LogMelSums]  # by domain; empty for shards, whose manifest has it
    skipped: list[dict]  # {path, reason}

    def rules(self, crop_samples: int) -> dict[str, CropRule]:
        """One rule a domain for drawing crops."""
        starts = np.cumsum(self.lengths) - self.lengths
        rules = {}
        for index, domain in enumerate(self.domains):
            mine = np.flatnonzero(self.domain_of == index)
            rules[domain] = CropRule(self.lengths[mine], self._reader(starts[mine]), crop_samples)
        return rules

    def hours(self) -> dict[str, float]:
        """Hours by domain."""
        totals = np.bincount(self.domain_of, weights=self.lengths)
        return {domain: total / 16000 / 3600 for domain, total in zip(self.domains, totals, strict=True)}

    def _reader(self, starts: np.ndarray):
        def read(clip: int, start: int, count: int) -> np.ndarray:
            first = starts[clip] + start
            return self.samples[first : first + count]

        return read


def decode_shards(folder: Path, manifest: Manifest, cache_dir: Path | None) -> Decoded:
    """Decode all shards of a local folder, or open what an earlier call decoded.

    What cannot be read is left out, logged and listed in `skipped`. Raises CorpusError when nothing can be read.
    """
    name = _name([[shard["file"], shard.get("sha256")] for shard in manifest.shards])
    return _cached(cache_dir or folder / ".cache", name, folder, lambda: _shard_clips(folder, manifest))


def decode_folder(folder: Path, cache_dir: Path | None) -> Decoded:
    """Decode all sounds below a folder, or open what an earlier call decoded; see `prepare` for what is left out."""
    files = find_audio(folder)
    if not files:
        raise CorpusError(f"{folder}: neither manifest.json nor any audio in it; name a folder of shards or of sounds")
    stamps = [[str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return _cached(cache_dir or folder / ".cache", _name(stamps), folder, lambda: _folder_clips(folder, files))


Item = tuple[str, np.ndarray, tuple | None]  # domain, int16 samples, sums of the log-mel


def _shard_clips(folder: Path, manifest: Manifest) -> Iterator[Item | Skipped]:
    total = sum(shard["clips"] for shard in manifest.shards)
    with tqdm(total=total, desc="decode shards", unit="clip") as bar:
        for shard in manifest.shards:
            yielded = 0
            try:
                with open(folder / shard["file"], "rb") as file:
                    for name, flac in read_flacs(file):
                        try:
                            yield shard["domain"], decode_flac(flac), None
                        except DamagedFlac as error:
                            yield Skipped(f"{shard['file']}/{name}", str(error))
                        yielded += 1
                        bar.update()
                if yielded < shard["clips"]:
                    raise tarfile.ReadError("it ends early")
            except (tarfile.TarError, OSError) as error:
                lost = shard["clips"] - yielded
                reason = f"damaged or missing shard ({error}): {lost} of {shard['clips']} clips lost; prepare it again"
                yield Skipped(str(folder / shard["file"]), reason)


def _folder_clips(folder: Path, files: list[Path]) -> Iterator[Item | Skipped]:
    origin_of = FolderNames()
    for path in tqdm(files, "decode", unit="file"):
        name = path.relative_to(folder).as_posix()
        for item in clips_of(path, str(path)):
            if isinstance(item, Skipped):
                yield item
            else:
                yield origin_of(folder, name).domain, item.samples, log_mel_sums(item.samples)


def _name(content: list) -> str:
    return hashlib.sha256(json.dumps([LAYOUT, content]).encode()).hexdigest()[:16]


def _cached(cache_dir: Path, name: str, folder: Path, items) -> Decoded:
    data, index = cache_dir / f"{name}.int16", cache_dir / f"{name}.json"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        lock = open(cache_dir / f"{name}.lock", "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise CorpusError(f"{cache_dir}: cannot write the decoded audio ({error}); set --data.cache-dir") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several ranks one decodes, the others wait
        if not index.exists():
            _build(data, index, folder, items())
    content = json.loads(index.read_text(encoding="utf-8"))
    return Decoded(
        np.memmap(data, dtype="<i2", mode="r"),
        content["domains"],
        np.array(content["domain_of"]),
        np.array(content["lengths"]),
        {domain: LogMelSums(**sums) for domain, sums in content["log_mel"].items()},
        content["skipped"],
    )


def _build(data: Path, index: Path, folder: Path, items: Iterator[Item | Skipped]) -> None:
    """Write the samples, then the index: an index is there only when everything is."""
    domains, domain_of, lengths, skipped, log_mel = [], [], [], [], {}
    with open(data, "wb") as file:
        for item in items:
            if isinstance(item, Skipped):
                log.warning("skipped %s: %s", item.path, item.reason)
                skipped.append(asdict(item))
                continue
            domain, samples, sums = item
            if domain not in domains:
                domains.append(domain)
            domain_of.append(domains.index(domain))
            lengths.append(len(samples))
            if sums:
                log_mel.setdefault(domain, LogMelSums()).add(*sums)
            file.write(samples.astype("<i2").tobytes())
    if not lengths:
        data.unlink()
        first = f"; first: {skipped[0]['path']}: {skipped[0]['reason']}" if skipped else ""
        raise CorpusError(f"{folder}: no usable audio, {len(skipped)} files or shards skipped{first}")
    content = {"domains": domains, "domain_of": domain_of, "lengths": lengths, "skipped": skipped}
    content["log_mel"] = {domain: asdict(sums) for domain, sums in log_mel.items()}
    partial = index.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, index)
