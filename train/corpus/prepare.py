"""Any audio -> clean 16 kHz shards with a manifest.

    python -m hear_jepa.train.corpus.prepare SRC… --out DIR
    python -m hear_jepa.train.corpus.prepare SRC… --out DIR --domains domains.tsv --exclude TASKS --workers 8

Finds every sound below the SRC folders; decodes it to 16 kHz mono; splits it at 30 s; leaves out what is silent,
clipped to nothing, shorter than 0.25 s, or an exact duplicate, and, with --exclude, whatever also sounds in those
folders; writes WebDataset tars of FLAC by domain, and manifest.json: hours by domain and source, licences, and every
skipped file with the reason.

Interrupted, it goes on where it stopped when the same command is given again, and the shards are byte for byte those of
one go, with any number of workers. Without --domains the first folder below SRC names the domain. A mapping file is
tab-separated, one rule a line below a line of column names:

    pattern	domain	source	licence
    kitchen/*	environment	my recordings	CC0
    kitchen/radio/*	skip
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path

import torch
from tqdm import tqdm

from hear_jepa.errors import CorpusError, HearJepaError
from hear_jepa.files.audio import NEEDS_FFMPEG, find_audio
from hear_jepa.train.corpus.clips import Clip, Skipped, clips_of
from hear_jepa.train.corpus.domains import SKIP, FolderNames, Mapping, Origin
from hear_jepa.train.corpus.exclusion import Exclusions, excluded_clips
from hear_jepa.train.corpus.journal import Corpus
from hear_jepa.train.data.manifest import FILE_NAME, Manifest, parse_manifest
from hear_jepa.train.data.shards import encode_flac

log = logging.getLogger(__name__)

RECIPE = 1  # to be raised when the same input would give other shards
TASKS_PER_WORKER = 4  # files under way: enough to keep workers busy, few enough to keep their results in memory
_exclusions: Exclusions | None = None


class OtherShardsError(CorpusError):
    """The folder holds the shards of another input."""


@dataclass(frozen=True)
class SourceFile:
    """A file to prepare: where it lies, its path below the source folder, what it is."""

    path: Path
    name: str
    origin: Origin


@dataclass(frozen=True)
class EncodedClip:
    """What a worker makes of a clip."""

    key: str
    flac: bytes
    start_s: float
    samples: int


def prepare(
    sources: Iterable[str | Path],
    out: str | Path,
    domains: str | Path | None = None,
    exclude: Iterable[str | Path] = (),
    workers: int | None = None,
    shard_mb: float = 64.0,
    progress: bool = True,
) -> Manifest:
    """Turn the sounds below the folders `sources` into shards and a manifest in `out`; see the module's description.

    `domains` is a mapping file (`Mapping`); `exclude` lists folders whose sounds must not be in the corpus; `workers`
    processes decode (default: one a core); a shard ends when it exceeds `shard_mb`. Raises CorpusError for a folder
    that is missing or holds no audio, and for an `out` that holds other shards.
    """
    out = Path(out)
    files, left_out = list_files(sources, domains)
    excluded_files = [path for folder in exclude for path in _audio_below(folder)]
    digest = _digest(files, left_out, excluded_files, shard_mb)
    if (finished := _finished(out, digest)) is not None:
        return finished
    out.mkdir(parents=True, exist_ok=True)
    workers = workers or os.cpu_count() or 1
    corpus = Corpus(out, digest, int(shard_mb * 1e6))
    try:
        exclusions = _index(excluded_files, workers, progress)
        todo = files[corpus.files_done :]
        results = _in_order(encode_file, todo, workers, exclusions)
        bar = tqdm(zip(todo, results, strict=True), "prepare", len(files), unit="file", disable=not progress)
        bar.update(corpus.files_done)
        for file, clips in bar:
            corpus.add_file(file, clips)
            bar.set_postfix_str(f"{corpus.hours:.2f} h kept, {corpus.skipped_count} skipped", refresh=False)
        return corpus.finish(left_out)
    finally:
        corpus.close()


def list_files(
    sources: Iterable[str | Path], domains: str | Path | None = None
) -> tuple[list[SourceFile], list[Skipped]]:
    """Find the sounds below `sources` -> (those to use, shuffled in a way that is always the same; those left out)."""
    origin_of = Mapping(domains) if domains else FolderNames()
    files, left_out = [], []
    for root in map(Path, sources):
        for path in _audio_below(root):
            name = path.relative_to(root if root.is_dir() else root.parent).as_posix()
            name = os.fsencode(name).decode(errors="replace")  # not every file system writes UTF-8
            origin = origin_of(root, name)
            if origin.domain == SKIP:
                left_out.append(Skipped(name, "left out by the mapping of domains"))
            else:
                files.append(SourceFile(path, name, origin))
    if not files:
        raise CorpusError(f"{domains}: the mapping leaves out all {len(left_out)} files; check its patterns")
    # Neighbours in a folder sound alike; a shard should not be all of one kind.
    files.sort(key=lambda file: hashlib.sha256(file.name.encode()).digest())
    return files, left_out


def _audio_below(folder: str | Path) -> list[Path]:
    folder = Path(folder)
    if not folder.exists():
        raise CorpusError(f"{folder}: no such folder")
    found = [folder] if folder.is_file() else find_audio(folder)
    if not found:
        raise CorpusError(f"{folder}: no audio in it (no wav, flac, ogg, opus, mp3, m4a, g722, … file, at any depth)")
    return found


def _digest(files: list[SourceFile], left_out: list[Skipped], exclude: list[Path], shard_mb: float) -> str:
    """A name for everything that decides what the shards hold, without reading the audio."""
    digest = hashlib.sha256(json.dumps([RECIPE, shard_mb]).encode())
    for file in files:
        digest.update(repr((file.name, astuple(file.origin), file.path.stat().st_size)).encode())
    digest.update(repr([item.path for item in left_out]).encode())
    digest.update(repr(sorted((path.name, path.stat().st_size) for path in exclude)).encode())
    return digest.hexdigest()


def _finished(out: Path, digest: str) -> Manifest | None:
    """Return the manifest in `out` if it is of this very input; refuse a folder that holds other shards, or shards
    without the files that ffmpeg, which has been installed since, can decode."""
    if not (out / FILE_NAME).exists():
        return None
    manifest = parse_manifest((out / FILE_NAME).read_bytes(), str(out / FILE_NAME))
    if manifest.input_sha256 != digest or not all((out / shard.file).exists() for shard in manifest.shards):
        raise OtherShardsError(
            f"{out} already holds shards of other audio or other settings; choose another --out or delete it"
        )
    if shutil.which("ffmpeg") and any(NEEDS_FFMPEG in item["reason"] for item in manifest.skipped):
        raise OtherShardsError(f"{out} was made without ffmpeg, which is here now; choose another --out or delete it")
    log.info("%s is complete already", out)
    return manifest


def _index(files: list[Path], workers: int, progress: bool) -> Exclusions | None:
    if not files:
        return None
    results = _in_order(excluded_clips, files, workers, None)
    bar = tqdm(results, "listen to what is excluded", len(files), unit="file", disable=not progress)
    clips = [clip for clips in bar for clip in clips]
    return Exclusions(clips) if clips else None


def _in_order(function, items: list, workers: int, exclusions: Exclusions | None) -> Iterator[list]:
    """Yield `function(item)` for all items in their order, computed in parallel."""
    if workers == 1 or len(items) < 2:
        _set_exclusions(exclusions)
        yield from map(function, items)
        return
    # Forking a process in which torch has started threads can hang, so the workers are fresh.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (exclusions,))
    try:
        under_way = deque()
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) >= workers * TASKS_PER_WORKER:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise CorpusError("a decoding process died (out of memory?); try again with fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(exclusions: Exclusions | None) -> None:
    _set_exclusions(exclusions)
    torch.set_num_threads(1)
    # A parent that is killed cannot end its workers, and they would wait for ever.
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def _set_exclusions(exclusions: Exclusions | None) -> None:
    global _exclusions  # set once in a worker's life: too large to send along with every file
    _exclusions = exclusions


def encode_file(file: SourceFile) -> list[EncodedClip | Skipped]:
    """Decode, split, check and encode one file: the work of a worker."""
    return [
        item if isinstance(item, Skipped) else _encode(item, file)
        for item in clips_of(file.path, file.name, file.origin.longest_s)
    ]


def _encode(clip: Clip, file: SourceFile) -> EncodedClip | Skipped:
    if _exclusions is not None and (match := _exclusions.match(clip)):
        return Skipped(f"{file.name} from {clip.start_s:g} s", f"excluded: the same sound as {match}")
    return EncodedClip(clip.key, encode_flac(clip.samples), clip.start_s, len(clip.samples))


def log_totals(manifest: Manifest, out: Path) -> None:
    """Log the hours and clips of each domain, and how much was skipped."""
    for name, domain in manifest.domains.items():
        log.info("%s: %.2f h in %d clips", name, domain["hours"], domain["clips"])
    log.info("%d files or parts of files skipped; see %s", len(manifest.skipped), out / FILE_NAME)


def main(argv: list[str] | None = None) -> int:
    """The command line; a mistake of the user's becomes one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m hear_jepa.train.corpus.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", nargs="+", metavar="SRC", help="folder of sounds, searched at any depth")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the shards and manifest.json")
    parser.add_argument("--domains", metavar="FILE", help="tab-separated mapping: pattern, domain, source, licence")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="DIR", help="leave out what also sounds in here")
    parser.add_argument("--workers", type=int, metavar="N", help="decoding processes (default: one a core)")
    parser.add_argument("--shard-mb", type=float, default=64.0, metavar="MB", help="size at which a shard ends (64)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        manifest = prepare(**vars(arguments))
    except HearJepaError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    log_totals(manifest, Path(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
