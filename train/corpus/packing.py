"""Staged files -> shards and their manifest, the same bytes whenever the sounds and settings are the same."""

import itertools
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from hear_jepa.disk import atomic_path, file_sha256
from hear_jepa.errors import CorpusError
from hear_jepa.train.corpus.clips import Skipped
from hear_jepa.train.corpus.staging import SourceFile, StagedClip, staged_clips, staged_flacs
from hear_jepa.train.data.manifest import Manifest, Shard
from hear_jepa.train.data.shards import add_member

Packed = tuple[SourceFile, list[StagedClip]]  # a file, and its clips that no earlier file has


def pack(files: list[SourceFile], left_out: list[Skipped], out: Path, manifest: Manifest, shard_bytes: int) -> None:
    """Write the shards of all `files`, in their order, to `out`, complete `manifest`, and write it last.

    Raises CorpusError where no file has a usable clip.
    """
    packed = _without_duplicates(files, manifest.skipped)
    if not packed:
        reasons = sorted({item["reason"] for item in manifest.skipped})
        raise CorpusError(f"no usable audio: all {len(files)} files were skipped ({'; '.join(reasons[:3])})")
    for stale in out.glob("*-??????.tar"):
        stale.unlink()
    of_domain: dict[str, list[Packed]] = defaultdict(list)
    licences: dict[str, dict[str, None]] = defaultdict(dict)  # of each source, in the order met
    for file, clips in packed:
        of_domain[file.origin.domain].append((file, clips))
        licences[file.origin.source].setdefault(file.origin.licence)
        _count(file, clips, manifest)
    for source, found in licences.items():
        manifest.sources[source]["licence"] = " | ".join(found)
    for domain, its_files in sorted(of_domain.items()):
        manifest.shards += _write_shards(out, domain, its_files, manifest.sample_rate, shard_bytes)
    manifest.skipped += [{"path": item.path, "reason": item.reason} for item in left_out]
    manifest.domains = dict(sorted(manifest.domains.items()))
    manifest.sources = dict(sorted(manifest.sources.items()))
    manifest.write(out)


def _without_duplicates(files: list[SourceFile], skipped: list[dict]) -> list[Packed]:
    """The files with clips of their own; duplicates, and what was skipped before, are added to `skipped`."""
    first: dict[str, str] = {}  # key of a clip: the file that has it first
    packed = []
    for file in files:
        clips, skipped_before = staged_clips(file)
        skipped += skipped_before
        own = []
        for clip in clips:
            if clip.key in first:
                path, reason = f"{file.name} from {clip.start_s:g} s", f"duplicate of {first[clip.key]}"
                skipped.append({"path": path, "reason": reason})
            else:
                first[clip.key] = file.name
                own.append(clip)
        if own:
            packed.append((file, own))
    return packed


def _count(file: SourceFile, clips: list[StagedClip], manifest: Manifest) -> None:
    """Add a file's clips and hours to those of its domain and its source."""
    origin = file.origin
    source = manifest.sources.setdefault(origin.source, {"licence": "", "domains": {}})
    hours = sum(clip.samples for clip in clips) / manifest.sample_rate / 3600
    for domains in (manifest.domains, source["domains"]):
        count = domains.setdefault(origin.domain, {"clips": 0, "hours": 0.0})
        count["clips"] += len(clips)
        count["hours"] += hours


def _write_shards(out: Path, domain: str, files: list[Packed], sample_rate: int, shard_bytes: int) -> list[Shard]:
    """`<domain>-000000.tar`, … in `out`; a shard ends when it exceeds `shard_bytes`."""
    shards = []
    clips = _members(files, sample_rate)
    for first in clips:
        path = out / f"{domain}-{len(shards):06d}.tar"
        count, samples = 0, 0
        with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for clip, flac, description in itertools.chain([first], clips):
                add_member(tar, f"{clip.key}.flac", flac)
                add_member(tar, f"{clip.key}.json", description)
                count, samples = count + 1, samples + clip.samples
                if tar.offset > shard_bytes:
                    break
        shards.append(Shard(path.name, domain, count, samples / sample_rate / 3600, file_sha256(path)))
    return shards


def _members(files: list[Packed], sample_rate: int) -> Iterator[tuple[StagedClip, bytes, bytes]]:
    """Yield (clip, FLAC, JSON that describes it) of all clips."""
    for file, clips in files:
        own = {clip.key: clip for clip in clips}
        for key, flac in staged_flacs(file):
            if clip := own.get(key):
                description = {
                    "domain": file.origin.domain,
                    "source": file.origin.source,
                    "licence": file.origin.licence,
                    "path": file.name,
                    "start_s": clip.start_s,
                    "duration_s": clip.samples / sample_rate,
                }
                yield clip, flac, json.dumps(description, ensure_ascii=False, sort_keys=True).encode()
