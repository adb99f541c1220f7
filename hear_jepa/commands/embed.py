"""`hear-jepa embed`: files and folders of sound -> one file of embeddings, resumable.

hear-jepa embed recordings/ --out embeddings.npz
hear-jepa embed 'field/**/*.flac' more.txt --out timestamps.parquet --kind timestamps --hop-ms 80
hear-jepa embed labels.csv --out windows.parquet --kind windows --window-s 5 --dtype float16
hear-jepa embed archive/ --out archive_embeddings --shard 3/64; hear-jepa embed --status archive_embeddings
hear-jepa embed archive/ --out archive_embeddings --engine ray --address auto
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hear_jepa.api import load_model
from hear_jepa.device import DEVICES, choose_device
from hear_jepa.errors import OptionError, printable
from hear_jepa.files.collect import check_windows
from hear_jepa.files.embed import BATCH_S, CHANNELS, FILE_KINDS, TRUNCATED, WORKERS, FileEnd, embed_pieces
from hear_jepa.files.find import check_out, find_sources
from hear_jepa.files.formats import FORMATS, named_output
from hear_jepa.files.records import FileRecord, as_text
from hear_jepa.files.shards import (
    DATASET,
    Shard,
    array_expression,
    check_folder,
    columns_of,
    join,
    manifest_path,
    missing,
    parse_shard,
    share_of,
    write_manifest,
)
from hear_jepa.files.sounds import Sound
from hear_jepa.files.store import EmbeddingStore
from hear_jepa.model.embedder import PRECISIONS, Embedder
from hear_jepa.progress import progress_bar

ENGINES = ("here", "ray")
REASONS_SHOWN = 20  # in the summary; the output has all that failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `hear-jepa embed`."""
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="a file, folder, quoted pattern, .tar, URL, .txt list, or table",
    )
    parser.add_argument("--out", help="NAME.npz, NAME.parquet, or a name without suffix for a folder of .npy")
    parser.add_argument("--model", default="", help="a checkpoint's path, or the name of a shipped one")
    parser.add_argument(
        "--kind", choices=FILE_KINDS, default="scene", help="one embedding a file, one every --hop-ms, or one a window"
    )
    parser.add_argument("--window-s", type=float, help="seconds of a window, for --kind windows")
    parser.add_argument("--hop-s", type=float, help="from the start of a window to that of the next (default: as long)")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the stored embeddings")
    parser.add_argument("--format", choices=FORMATS, help="of an --out without suffix, in place of a folder of .npy")
    parser.add_argument("--hop-ms", type=int, help="between timestamps (default: 40, or a column if shorter)")
    parser.add_argument(
        "--scene-hop-ms",
        type=int,
        help="between the columns that a scene is made of: 160 is the fastest (default: as the checkpoint says)",
    )
    parser.add_argument("--layers", type=_layers, help="such as 12 or 6,12: layers whose outputs are concatenated")
    parser.add_argument(
        "--whiten", action="store_true", help="by the checkpoint's whitening: for search and neighbours"
    )
    parser.add_argument("--channels", choices=CHANNELS, default="mix", help="mix to mono, or embed each channel")
    parser.add_argument("--device", default="cpu", help=f"{DEVICES} (default: cpu)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the encoder")
    parser.add_argument("--batch-seconds", type=float, default=BATCH_S, help="sound encoded at once: bounds the memory")
    parser.add_argument("--workers", type=int, default=WORKERS, help="threads that decode while the model computes")
    parser.add_argument("--truncated", choices=TRUNCATED, default="warn", help="files shorter than their header says")
    parser.add_argument("--headerless", action="store_true", help="take .g722, .gsm … from folders and patterns too")
    parser.add_argument("--shard", metavar="I/N", help="embed share I, from 0, of N into a part of --out; auto: SLURM")
    parser.add_argument("--engine", choices=ENGINES, default="here", help="this process, or a Ray cluster")
    parser.add_argument("--address", help="of the Ray cluster, such as auto (default: one of this machine)")
    parser.add_argument("--status", metavar="OUT", help="only say which shares of an output are missing")
    parser.add_argument("--append", action="store_true", help="add the files that --out does not hold yet to it")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace --out, and drop what another interrupted command left"
    )


def run(arguments: argparse.Namespace) -> int:
    """Embed; return 0, or 1 if any file failed (the output and the summary say which, and why)."""
    if arguments.status:
        return _print_status(Path(arguments.status))
    if not arguments.paths or not arguments.out:
        raise OptionError("give what to embed, and --out for the embeddings")
    shard = parse_shard(arguments.shard) if arguments.shard else None
    if shard and arguments.engine == "ray":
        raise OptionError("--engine ray embeds all shares: give it without --shard")
    if arguments.whiten and arguments.kind == "timestamps":
        raise OptionError("--whiten is of scenes and windows: timestamps have no whitening, leave it out")
    if (arguments.kind == "windows") != (arguments.window_s is not None):
        raise OptionError("--kind windows needs --window-s, and --window-s needs --kind windows")
    if arguments.hop_s is not None and arguments.kind != "windows":
        raise OptionError("--hop-s is of --kind windows: leave it out, or give --hop-ms for timestamps")
    if arguments.address is not None and arguments.engine != "ray":
        raise OptionError("--address is of a Ray cluster: give --engine ray too, or leave it out")
    in_parts = shard is not None or arguments.engine == "ray"
    if in_parts:
        arguments.format = arguments.format or "parquet"
    out = Path(arguments.out if in_parts else named_output(arguments.out, arguments.format))
    found = find_sources(arguments.paths, arguments.headerless)
    check_out(out, found.roots)
    if not in_parts:
        result = _embed_into(out, arguments, found.sounds)
    else:
        check_folder(out)
        columns = columns_of(found.sounds)
        if shard:
            sounds = [sound for sound in found.sounds if share_of(sound, shard.count) == shard]
            result = _embed_share(arguments, columns, shard, sounds)
        else:
            result = _embed_on_ray(arguments, columns, found.sounds)
    _summarise(str(result.out), result.records, result.n_there if arguments.append else 0, found.left_out)
    return 1 if any(record.error is not None for record in result.records) else 0


@dataclass
class Result:
    """What an output holds now, and how many of its files were there already."""

    out: Path
    records: list[FileRecord]
    n_there: int


def _embed_share(arguments: argparse.Namespace, columns: list[str], shard: Shard, sounds: list[Sound]) -> Result:
    """Embed one share into its part; columns: that all parts have."""
    folder = Path(arguments.out)
    part = folder / f"{shard.stem}.{arguments.format}"
    if part.exists() and not manifest_path(part).exists():  # killed between the two
        arguments = argparse.Namespace(**{**vars(arguments), "append": not arguments.overwrite})

    def declare(settings: dict[str, Any]) -> None:
        settings["columns"] = columns
        join(folder, shard, arguments.format, arguments.paths, settings)

    result = _embed_into(part, arguments, sounds, declare)
    write_manifest(part, result.records)
    return result


def _embed_on_ray(arguments: argparse.Namespace, columns: list[str], sounds: list[Sound]) -> Result:
    """Embed the shares that are not finished (all of them with --append) as tasks of a cluster."""
    from hear_jepa.files.ray import run_tasks, shares_of

    out = Path(arguments.out)
    shares, result = shares_of(out, sounds), Result(out, [], 0)
    if (out / DATASET).exists() and not (arguments.append or arguments.overwrite):
        unfinished = missing(out)[0]
        shares = {shard: share for shard, share in shares.items() if shard.index in unfinished}
        if not shares:
            raise OptionError(f"{out} is finished: add new files to it with --append, or replace it with --overwrite")
    n_gpus = 1 if arguments.device.startswith("cuda") else 0
    task = partial(_embed_share, arguments, columns)
    n_sounds = sum(map(len, shares.values()))
    with progress_bar(desc="embed", total=len(sounds), initial=len(sounds) - n_sounds, unit="file") as bar:
        for shard, share in run_tasks(task, shares, arguments.address, n_gpus):
            result.records += share.records
            result.n_there += share.n_there
            bar.update(len(shares[shard]))
    return result


def _embed_into(
    out: Path,
    arguments: argparse.Namespace,
    sounds: list[Sound],
    declare: Callable[[dict[str, Any]], None] = lambda settings: None,
) -> Result:
    """Embed sounds into one output; declare: is given the settings before anything is embedded."""
    with EmbeddingStore(out, arguments.paths, arguments.append, arguments.overwrite) as store:
        model = load_model(
            arguments.model,
            hop_ms=arguments.hop_ms,
            layers=arguments.layers,
            precision=arguments.precision,
            scene_hop_ms=arguments.scene_hop_ms,
            whiten=arguments.whiten,
        )
        if arguments.kind == "windows":
            check_windows(model, arguments.window_s, arguments.hop_s)
        settings = settings_of(model.to(choose_device(arguments.device)), arguments)
        declare(settings)
        store.start(settings)
        done = {sound for sound in sounds if store.is_done(sound)}
        try:
            _embed(model, store, sounds, done, arguments)
            return Result(out, store.finish(sounds), len(done))
        except KeyboardInterrupt:
            n_done, n_all = sum(map(store.is_done, sounds)), len(sounds)
            print(f"stopped; the same command resumes after {n_done} of {n_all} files", file=sys.stderr)
            raise


def _embed(
    model: Embedder, store: EmbeddingStore, sounds: list[Sound], done: set[Sound], arguments: argparse.Namespace
) -> None:
    """Embed what is not done, into the store, with a progress bar."""
    events = embed_pieces(
        model,
        [sound for sound in sounds if sound not in done],
        arguments.kind,
        arguments.channels,
        arguments.batch_seconds,
        arguments.workers,
        arguments.truncated,
        arguments.headerless,
        arguments.window_s,
        arguments.hop_s,
    )
    started, embedded_s = time.monotonic(), 0.0
    with progress_bar(desc="embed", total=len(sounds), initial=len(done), unit="file") as bar:
        for event in events:
            if not isinstance(event, FileEnd):
                store.add(event)
                continue
            store.end(event)
            embedded_s += event.duration_s
            speed = embedded_s / (time.monotonic() - started)
            bar.set_postfix_str(f"{embedded_s / 3600:.2f} h of sound, {speed:.0f} × real time", refresh=False)
            bar.update()


def settings_of(model: Embedder, arguments: argparse.Namespace) -> dict:
    """Everything that the embeddings of a file depend on, JSON-ready."""
    kind, window = arguments.kind, {}
    if kind == "windows":
        window = {"window_s": arguments.window_s, "hop_s": arguments.hop_s or arguments.window_s}
    return {
        "kind": kind,
        "hop_ms": model.hop_of(kind),
        "channels": arguments.channels,
        "truncated": arguments.truncated,
        "dtype": arguments.dtype,
        **window,
        "layers": list(model.layers),
        "precision": model.precision,
        "pooling": model.pooling,
        "whitened": model.whitening is not None,
        "grid": dataclasses.asdict(model.grid),
        "embedding_size": model.size_of(kind),
        "weights_sha256": model.weights_sha256(kind),
        "front_end": dataclasses.asdict(model.log_mel.config),
    }


def _layers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _summarise(out: str, records: list[FileRecord], n_there: int, left_out: list[Path]) -> None:
    failed = {record.name: record.error for record in records if record.error is not None}
    odd = {record.name: record.warning for record in records if record.warning}
    duration_s = sum(record.duration_s for record in records)
    there = f", {n_there} of them were there already" if n_there else ""
    done = f"{len(records) - len(failed)} of {len(records)} files{there}"
    print(f"{done}, {duration_s / 3600:.2f} h of sound -> {printable(out)}")
    _list("could not be embedded", failed, out)
    _list("embedded as far as they go (--truncated fail leaves them out)", odd, out)
    reasons = {as_text(path): "no header says what it is; --headerless takes it" for path in left_out}
    _list("left out", reasons, out)


def _print_status(out: Path) -> int:
    numbers, count = missing(out)
    print(f"{count - len(numbers)} of {count} parts are finished")
    if numbers:
        print(f"missing: --array={array_expression(numbers)}")
    return 1 if numbers else 0


def _list(title: str, reasons: dict[str, str], out: str) -> None:
    """Reasons by file, on stderr."""
    if not reasons:
        return
    print(f"{len(reasons)} {title}:", file=sys.stderr)
    for name, reason in list(reasons.items())[:REASONS_SHOWN]:
        print(f"  {printable(name)}: {printable(reason)}", file=sys.stderr)
    if len(reasons) > REASONS_SHOWN:
        print(f"  … and {len(reasons) - REASONS_SHOWN} more", file=sys.stderr)
