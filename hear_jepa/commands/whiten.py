"""`hear-jepa whiten MODEL SOUNDS… --out X.safetensors`: scenes whose numbers are uncorrelated, by sounds of one's own.

The sounds are embedded as windows; mean and principal components of these scenes are kept in the new checkpoint, which
is otherwise the old one. Its scenes are smaller where fewer components are kept, and cosine similarity and nearest
neighbours work better on them.
"""

import argparse
import random
from dataclasses import replace
from pathlib import Path

import torch

from hear_jepa.api import named_checkpoint
from hear_jepa.device import DEVICES, choose_device
from hear_jepa.errors import OptionError
from hear_jepa.files.embed import embed_files
from hear_jepa.files.find import find_sources
from hear_jepa.model.checkpoint import save_checkpoint
from hear_jepa.model.embedder import Embedder
from hear_jepa.model.pooling import POOLINGS, ScenesMeasured
from hear_jepa.progress import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a checkpoint's path, or the name of a shipped one")
    parser.add_argument("paths", nargs="+", metavar="SOUNDS", help="files, folders, lists, tables, tar archives")
    parser.add_argument("--out", type=Path, required=True, help="file to write, NAME.safetensors")
    parser.add_argument("--components", type=int, help="kept of the mean, and as many of the deviation (default: all)")
    parser.add_argument("--hours", type=float, default=10.0, help="of sound at most, drawn at random (default: 10)")
    parser.add_argument("--window-s", type=float, help="seconds of a scene (default: those of a window of the model)")
    parser.add_argument("--device", default="cpu", help=f"{DEVICES} (default: cpu)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.out.suffix != ".safetensors":
        raise OptionError(f"--out is {arguments.out}: its name must end with .safetensors")
    sounds = find_sources(arguments.paths).sounds
    random.Random(0).shuffle(sounds)
    checkpoint = named_checkpoint(arguments.model)
    model = Embedder(checkpoint).to(choose_device(arguments.device))
    window_s = arguments.window_s or model.grid.columns * model.grid.column_ms / 1000
    scenes = ScenesMeasured(POOLINGS[model.pooling], model.timestamp_embedding_size)
    seconds, failed = 0.0, 0
    files = embed_files(model, sounds, "windows", window_s=window_s, workers=1)  # one: the same files every time
    with progress_bar(desc="whiten", total=round(3600 * arguments.hours), unit="second") as bar:
        for file in files:
            failed += file.error is not None
            for embeddings in file.embeddings:
                scenes.add(torch.from_numpy(embeddings))
            seconds += file.duration_s
            bar.update(min(round(file.duration_s), bar.total - bar.n))
            if seconds >= 3600 * arguments.hours:
                break
    whitening = scenes.whitening(arguments.components)
    measured = {"scenes": scenes.count, "hours": round(seconds / 3600, 2), "window_s": window_s}
    provenance = checkpoint.provenance | {"whitened_on": measured}
    whitened = replace(checkpoint, whitening=whitening, provenance=provenance)
    exact = all(torch.equal(tensor.half().float(), tensor) for tensor in checkpoint.weights.values())
    sha256 = save_checkpoint(arguments.out, whitened, torch.float16 if exact else torch.float32)
    print(f"{scenes.count} scenes of {seconds / 3600:.2f} h, {failed} files left out as they could not be read")
    print(f"{arguments.out}: scenes of {model.scene_embedding_size} -> {whitening.size} numbers; SHA-256 {sha256}")
    return 0
