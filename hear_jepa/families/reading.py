"""Reading foreign files: tensors and names, never the code of a pickle."""

import argparse
import pathlib
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from hear_jepa.errors import CheckpointError

WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
NESTED = ("state_dict", "model")
INERT = [argparse.Namespace, pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath]
STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE")

Value = TypeVar("Value")


def named_after(path: Path) -> str:
    """Folder and file name: some families say what a checkpoint is in the folder's name."""
    return f"{path.absolute().parent.name}/{path.name}"


def read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, at its root or under `state_dict` or `model`."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    contents = _read(path)
    for key in NESTED:
        if isinstance(contents, dict) and isinstance(contents.get(key), dict):
            contents = contents[key]
    if not isinstance(contents, dict) or not contents or not all(isinstance(v, Tensor) for v in contents.values()):
        raise CheckpointError(f"{path} holds no state_dict of tensors, at its root or under `state_dict` or `model`")
    return dict(contents)


def read_names(path: Path) -> set[str]:
    """The strings of a file among which the names of its tensors are; reads no tensor, and runs nothing."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return set(file.keys())
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            return {str(value) for op, value, _ in pickletools.genops(archive.read(name)) if op.name in STRINGS}
    except (OSError, SafetensorError, StopIteration, ValueError, zipfile.BadZipFile):
        return set()


def without_prefix(named: dict[str, Value]) -> dict[str, Value]:
    """Names without what DistributedDataParallel and torch.compile put before all of them, or somewhere inside."""
    cleaned = {}
    for name, value in named.items():
        for wrapper in WRAPPERS:
            name = name.replace(f".{wrapper}", ".").removeprefix(wrapper)
        cleaned[name] = value
    return cleaned


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(INERT):  # the options of a training: values without behaviour
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors, which would need the code of its pickle to run: refused. "
            "Where you trust the file, load it with its own code and save its state_dict() alone"
        ) from error
    except (RuntimeError, EOFError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read, it is truncated or damaged: {error}") from error
