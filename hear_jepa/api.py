"""The three functions of the HEAR 2021 API (https://hearbenchmark.com/hear-api.html)."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from torch import Tensor

from hear_jepa import hub
from hear_jepa.checks import check_audio
from hear_jepa.errors import OptionError
from hear_jepa.model.checkpoint import Checkpoint, load_checkpoint
from hear_jepa.model.embedder import Embedder

DEFAULT_MODEL = "tiny"
SUFFIX = ".safetensors"
OPTIONS = tuple(inspect.signature(Embedder).parameters)[1:]


def load_model(model_file_path: str | Path = "", **options: Any) -> Embedder:
    """Load an encoder for `get_scene_embeddings` and `get_timestamp_embeddings`.

    model_file_path: nothing for the default, the name of a shipped checkpoint ("tiny", "wide", "small"), a path, or
        hf:owner/name[@revision][/file] of the Hugging Face Hub;
    options: `hop_ms`, `layers`, `precision`, `batch_windows`, `scene_hop_ms`, `pooling`, `whiten`, as `Embedder`
        describes them.
    Raises `OptionError` for an unknown name or option, `CheckpointError` for a file that cannot be served.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise OptionError(f"unknown option {', '.join(unknown)}: the options are {', '.join(OPTIONS)}")
    checkpoint = named_checkpoint(model_file_path)
    if checkpoint.untrained:
        name = model_file_path or DEFAULT_MODEL
        warnings.warn(f"the weights of {name} are untrained: its embeddings are those of chance", stacklevel=2)
    return Embedder(checkpoint, **options)


def get_scene_embeddings(audio: Tensor, model: Embedder) -> Tensor:
    """One embedding a clip: its columns, `model.scene_hop_ms` apart, pooled as `model.pooling` says; whitened where the
    model was loaded with `whiten`.

    audio: float [n_sounds, n_samples] at `model.sample_rate`, on any device (moved to the model's).
    Returns float32 [n_sounds, model.scene_embedding_size] on the model's device. Raises `AudioError`.
    """
    return model.scenes(check_audio(audio))


def get_timestamp_embeddings(audio: Tensor, model: Embedder) -> tuple[Tensor, Tensor]:
    """Embeddings every `model.hop_ms` milliseconds.

    audio: float [n_sounds, n_samples] at `model.sample_rate`, on any device (moved to the model's).
    Returns float32 embeddings [n_sounds, n_timestamps, model.timestamp_embedding_size] and timestamps
    [n_sounds, n_timestamps], each the centre in ms of its column, on the model's device. Raises `AudioError`.
    """
    return model.timestamps(check_audio(audio))


def shipped_models() -> list[str]:
    """Names that `load_model` knows."""
    found = (entry.name for entry in files("hear_jepa.weights").iterdir())
    return sorted(name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX))


@contextmanager
def checkpoint_file(model_file_path: str | Path = "") -> Iterator[Path]:
    """The file that a name, a path, or nothing (the default) stands for; inside a zipped package, a copy of it."""
    name = str(model_file_path) or DEFAULT_MODEL
    if name.startswith(hub.PREFIX):
        name = str(hub.hub_file(name))
    path = Path(name)
    if name in shipped_models():
        with as_file(files("hear_jepa.weights") / f"{name}{SUFFIX}") as shipped:
            yield shipped
    elif path.exists() or path.suffix or path.name != name:
        yield path
    else:
        raise OptionError(f"there is no model {name!r}: give a path, or one of {', '.join(shipped_models())}")


def named_checkpoint(model_file_path: str | Path = "") -> Checkpoint:
    """The checkpoint that a name, a path, or nothing (the default) stands for. Raises as `load_model`."""
    with checkpoint_file(model_file_path) as path:
        return load_checkpoint(path)
