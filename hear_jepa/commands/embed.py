"""`hear-jepa embed`: files and folders of sound -> one file of embeddings, resumable.

hear-jepa embed recordings/ --out embeddings.npz
hear-jepa embed 'field/**/*.flac' more.txt --out timestamps.parquet --kind timestamps --hop-ms 80
"""

import argparse
import dataclasses
import sys
import time

import torch
from tqdm import tqdm

from hear_jepa.api import load_model
from hear_jepa.errors import OptionError
from hear_jepa.files.embed import BATCH_S, CHANNELS, KINDS, WORKERS, FileEnd, embed_pieces
from hear_jepa.files.find import find_sources
from hear_jepa.files.store import EmbeddingStore
from hear_jepa.model.checkpoint import weights_sha256
from hear_jepa.model.embedder import PRECISIONS, Embedder

REASONS_SHOWN = 20  # in the summary; the output has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `hear-jepa embed`."""
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="a file, a folder, a quoted pattern, or a .txt list of them"
    )
    parser.add_argument(
        "--out", required=True, help="NAME.npz, NAME.parquet, or a name without suffix for a folder of .npy"
    )
    parser.add_argument("--model", default="", help="a checkpoint's path, or the name of a shipped one")
    parser.add_argument("--kind", choices=KINDS, default="scene", help="one embedding a file, or one every --hop-ms")
    parser.add_argument("--hop-ms", type=int, help="between timestamps (default: 40, or a column if shorter)")
    parser.add_argument(
        "--scene-hop-ms",
        type=int,
        help="between the columns that a scene is made of: 160 is the fastest (default: as the checkpoint says)",
    )
    parser.add_argument("--layers", type=_layers, help="such as 12 or 6,12: layers whose outputs are concatenated")
    parser.add_argument("--channels", choices=CHANNELS, default="mix", help="mix to mono, or embed each channel")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the encoder")
    parser.add_argument("--batch-seconds", type=float, default=BATCH_S, help="sound encoded at once: bounds the memory")
    parser.add_argument("--workers", type=int, default=WORKERS, help="threads that decode while the model computes")
    parser.add_argument("--overwrite", action="store_true", help="replace --out, and start an interrupted run anew")


def run(arguments: argparse.Namespace) -> int:
    """Embed; return 0, or 1 if any file failed (the output and the summary say which, and why)."""
    model = load_model(
        arguments.model,
        hop_ms=arguments.hop_ms,
        layers=arguments.layers,
        precision=arguments.precision,
        scene_hop_ms=arguments.scene_hop_ms,
    )
    model = move(model, arguments.device)
    files = find_sources(arguments.paths)
    store = EmbeddingStore(arguments.out, settings_of(model, arguments.kind, arguments.channels), arguments.overwrite)
    try:
        done = store.done
        todo = [file for file in files if file not in done]
        started, heard_s = time.monotonic(), 0.0
        with tqdm(total=len(files), initial=len(files) - len(todo), unit="file", desc="embed") as progress:
            for event in embed_pieces(
                model, todo, arguments.kind, arguments.channels, arguments.batch_seconds, arguments.workers
            ):
                if not isinstance(event, FileEnd):
                    store.add(event)
                    continue
                store.end(event)
                heard_s += event.duration_s
                speed = heard_s / (time.monotonic() - started)
                heard = f"{store.duration_s / 3600:.2f} h of sound, {speed:.0f} × real time"
                progress.set_postfix_str(heard, refresh=False)
                progress.update()
        store.finish(files)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {len(store.done)} of {len(files)} files", file=sys.stderr)
        return 130
    finally:
        store.close()
    _summarise(store, len(files))
    return 1 if store.errors else 0


def settings_of(model: Embedder, kind: str, channels: str) -> dict:
    """Everything that the embeddings of a file depend on, JSON-ready."""
    weights = {name: tensor.cpu() for name, tensor in model.encoder.state_dict().items()}
    return {
        "kind": kind,
        "hop_ms": model.hop_of(kind),
        "channels": channels,
        "layers": list(model.layers),
        "precision": model.precision,
        "pooling": model.pooling,
        "grid": dataclasses.asdict(model.grid),
        "embedding_size": model.size_of(kind),
        "weights_sha256": weights_sha256(weights),
        "front_end": dataclasses.asdict(model.log_mel.config),
    }


def move(model: Embedder, device: str) -> Embedder:
    """Move a model to a device by name. Raises OptionError for one that is not there."""
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"cannot use the device {device!r} ({reason}): try --device cpu") from error


def _layers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _summarise(store: EmbeddingStore, n_files: int) -> None:
    errors = store.errors
    print(f"{n_files - len(errors)} of {n_files} files, {store.duration_s / 3600:.2f} h of sound -> {store.out}")
    if errors:
        print(f"{len(errors)} could not be embedded:", file=sys.stderr)
        for path, reason in list(errors.items())[:REASONS_SHOWN]:
            print(f"  {path}: {reason}", file=sys.stderr)
        if len(errors) > REASONS_SHOWN:
            print(f"  … and {len(errors) - REASONS_SHOWN} more, all in {store.out}", file=sys.stderr)
