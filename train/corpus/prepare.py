"""Any audio -> clean shards with a manifest. Every file's clips are staged, then all are packed; a kill loses nothing.

    python -m hear_jepa.train.corpus files SRC… --out DIR

OUT/staged/ holds the clips of each source file until the manifest is written: the same command, given again after a
kill, stages only what is missing. The order of the files decides what is in which shard, so the shards are the same
bytes with any number of workers and kills.
"""

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple
from multiprocessing import get_context
from pathlib import Path

import torch

from hear_jepa.disk import locked
from hear_jepa.errors import CorpusError
from hear_jepa.files.audio import NEEDS_FFMPEG
from hear_jepa.files.folders import find_audio
from hear_jepa.files.resample import SAMPLE_RATE
from hear_jepa.options import check_least
from hear_jepa.progress import progress_bar
from hear_jepa.train.corpus.clips import Skipped
from hear_jepa.train.corpus.domains import SKIP, FolderNames, Mapping
from hear_jepa.train.corpus.exclusion import Exclusions, excluded_clips
from hear_jepa.train.corpus.packing import pack
from hear_jepa.train.corpus.staging import SourceFile, is_staged, stage
from hear_jepa.train.data.ahead import end_with_parent
from hear_jepa.train.data.manifest import FILE_NAME, Manifest, parse_manifest

log = logging.getLogger(__name__)

RECIPE = 2  # to be raised when the same input would give other shards
STAGED = "staged"
FILES_A_TASK = 4  # sent to a worker at once
_exclusions: Exclusions | None = None


class OtherShardsError(CorpusError):
    """The folder holds the shards of another input."""


def prepare(
    sources: Iterable[str | Path],
    out: str | Path,
    domains: str | Path | None = None,
    exclude: Iterable[str | Path] = (),
    workers: int | None = None,
    shard_mb: float = 64.0,
    rate: int = SAMPLE_RATE,
    progress: bool = True,
) -> Manifest:
    """Turn the sounds below the folders `sources` into shards and a manifest in `out`.

    `domains` is a mapping file (`Mapping`); `exclude` lists folders whose sounds must not be in the corpus; `workers`
    processes decode (default: one a core); a shard ends when it exceeds `shard_mb`; `rate` is the shards' in Hz.
    Raises CorpusError for a folder that is missing or holds no audio, and for an `out` that holds other shards;
    OptionError for numbers less than 1.
    """
    check_least(rate, 1, "--rate")
    check_least(workers or 1, 1, "--workers")
    out, workers = Path(out), workers or os.cpu_count() or 1
    excluded_files = [path for folder in exclude for path in _audio_below(folder)]
    settings = [RECIPE, rate, sorted((path.name, path.stat().st_size) for path in excluded_files)]
    files, left_out = list_files(sources, domains, out / STAGED, settings)
    digest = _digest([settings, shard_mb, [item.path for item in left_out]], files)
    if (finished := _finished(out, digest)) is not None:
        return finished
    if not (out / STAGED).exists() and (foreign := next(out.glob("*.tar"), None)):
        raise CorpusError(f"{foreign} is in the way: choose another --out, or delete what is in {out}")
    (out / STAGED).mkdir(parents=True, exist_ok=True)
    with locked(out / "lock"):
        missing = [file for file in files if not is_staged(file)]
        exclusions = _index(excluded_files, rate, workers, progress) if missing else None
        results = _parallel(_stage, missing, rate, workers, exclusions)
        for _ in progress_bar(
            results, "stage", len(files), initial=len(files) - len(missing), unit="file", disable=not progress
        ):
            pass
        manifest = Manifest(rate, input_sha256=digest)
        pack(files, left_out, out, manifest, int(shard_mb * 1e6))
        shutil.rmtree(out / STAGED)
    return manifest


def list_files(
    sources: Iterable[str | Path], domains: str | Path | None, staged: Path, settings: list
) -> tuple[list[SourceFile], list[Skipped]]:
    """Find the sounds below `sources` -> (those to use, shuffled in a way that is always the same; those left out).

    Their clips go to the folder `staged`, under names made of the `settings` and of what each file is.
    """
    origin_of = Mapping(domains) if domains else FolderNames()
    files, left_out, places = [], [], Counter()
    for root in map(Path, sources):
        for path in _audio_below(root):
            name = path.relative_to(root if root.is_dir() else root.parent).as_posix()
            name = os.fsencode(name).decode(errors="replace")  # not every file system writes UTF-8
            origin = origin_of(root, name)
            if origin.domain == SKIP:
                left_out.append(Skipped(name, "left out by the mapping of domains"))
            else:
                content = [settings, name, path.stat().st_size, str(origin.longest_s)]
                place = _sha256(content)
                places[place] += 1
                if places[place] > 1:  # another source has a file of this name and size
                    place = _sha256([*content, places[place]])
                files.append(SourceFile(path, name, origin, staged / f"{place[:32]}.tar"))
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


def _digest(settings: list, files: list[SourceFile]) -> str:
    """A name for everything that decides what the shards hold, without reading the audio."""
    return _sha256(
        [settings, [[file.name, file.staged.name, [str(x) for x in astuple(file.origin)]] for file in files]]
    )


def _sha256(content: list) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


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
    shutil.rmtree(out / STAGED, ignore_errors=True)  # left by a kill after the manifest was written
    log.info("%s is complete already", out)
    return manifest


def _index(files: list[Path], rate: int, workers: int, progress: bool) -> Exclusions | None:
    results = _parallel(excluded_clips, files, rate, workers, None)
    bar = progress_bar(results, "listen to what is excluded", len(files), unit="file", disable=not progress)
    clips = [clip for clips in bar for clip in clips]
    return Exclusions(clips) if clips else None


def _parallel(function: Callable, items: list, rate: int, workers: int, exclusions: Exclusions | None) -> Iterator:
    """Yield the results of `function(item, rate)` in the order of the items."""
    if workers == 1 or len(items) < 2:
        _set_exclusions(exclusions)
        yield from (function(item, rate) for item in items)
        return
    # Forking a process in which torch has started threads can hang, so the workers are fresh.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (exclusions,))
    try:
        yield from pool.map(function, items, itertools.repeat(rate), chunksize=FILES_A_TASK)
    except BrokenProcessPool as error:
        raise CorpusError("a decoding process died (out of memory?); try again with fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _stage(file: SourceFile, rate: int) -> None:
    stage(file, rate, _exclusions)


def _start_worker(exclusions: Exclusions | None) -> None:
    _set_exclusions(exclusions)
    torch.set_num_threads(1)
    end_with_parent()


def _set_exclusions(exclusions: Exclusions | None) -> None:
    global _exclusions  # set once in a worker's life: too large to send along with every file
    _exclusions = exclusions


def log_totals(manifest: Manifest, out: Path) -> None:
    """Log the hours and clips of each domain, and how much was skipped."""
    for name, domain in manifest.domains.items():
        log.info("%s: %.2f h in %d clips", name, domain["hours"], domain["clips"])
    log.info("%d files or parts of files skipped; see %s", len(manifest.skipped), out / FILE_NAME)
