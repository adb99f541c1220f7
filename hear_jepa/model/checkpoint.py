"""The weights file: one safetensors file with an encoder's weights, its configuration and where it comes from.

The header holds `format`, `version`, `config` (JSON: encoder, front end, what is served), `provenance` (JSON, free
form; `untrained` is true in a placeholder), `config_sha256` and `weights_sha256`, which tell an altered file from a
sound one.
Loading is strict and runs no pickle.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hear_jepa.disk import atomic_path
from hear_jepa.errors import CheckpointError
from hear_jepa.model.front_end import FrontEndConfig
from hear_jepa.model.vit import ViT, ViTConfig

FORMAT = "hear_jepa"
VERSION = "1"
HEADER_KEYS = ("format", "version", "config", "provenance", "config_sha256", "weights_sha256")


@dataclass(frozen=True)
class ServedConfig:
    """What an embedding is made of: which encoder's output, of which layers, and for a scene of which columns."""

    encoder: str = "context"  # or "target"
    layers: tuple[int, ...] = ()  # 1 … depth; empty: the last
    scene_hop_ms: int = 160  # a scene is made of columns so far apart
    pooling: str = "mean"  # what a scene is of them: "mean", or "mean+std" (mean and standard deviation)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded weights file; `weights` are float32, named as in `ViT.state_dict()`."""

    encoder: ViTConfig
    weights: dict[str, Tensor]
    front_end: FrontEndConfig = FrontEndConfig()
    served: ServedConfig = ServedConfig()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def untrained(self) -> bool:
        """Whether the weights are still those of the initialisation."""
        return bool(self.provenance.get("untrained"))

    @property
    def layers(self) -> tuple[int, ...]:
        """The served layers, the last where the file names none."""
        return self.served.layers or (self.encoder.depth,)

    def build(self) -> ViT:
        """The encoder with these weights (shared, not copied), in evaluation mode."""
        with torch.device("meta"):  # nothing is drawn that the weights would replace
            encoder = ViT(self.encoder)
        encoder.load_state_dict(self.weights, strict=True, assign=True)
        return encoder.eval().requires_grad_(False)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> str:
    """Write the file atomically (temporary file, fsync, rename), the weights stored as `dtype`; return its SHA-256."""
    path = Path(path)
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in checkpoint.weights.items()}
    config = {part: asdict(getattr(checkpoint, part)) for part in ("encoder", "front_end", "served")}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(config),
        "provenance": json.dumps(checkpoint.provenance),
        "weights_sha256": weights_sha256(weights),
    }
    header["config_sha256"] = _config_sha256(header)
    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata=header)
    return file_sha256(path)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify a weights file. Raises `CheckpointError` with what is wrong and what to do."""
    path = Path(path)
    header, weights = _read(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file but not one of hear_jepa (format {header.get('format')!r}): "
            "`hear-jepa convert` reads foreign layouts"
        )
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has format version {header.get('version')!r}, this package reads {VERSION!r}: "
            "upgrade hear-jepa, or take a checkpoint made for this release"
        )
    missing = [key for key in HEADER_KEYS if key not in header]
    if missing:
        raise CheckpointError(f"{path}: its header lacks {', '.join(missing)}: fetch or export the file again")
    if weights_sha256(weights) != header["weights_sha256"]:
        raise CheckpointError(f"{path} was altered: its weights do not match their checksum; fetch the file again")
    if _config_sha256(header) != header["config_sha256"]:
        raise CheckpointError(f"{path} was altered: its configuration does not match its checksum; fetch it again")
    try:
        config = json.loads(header["config"])
        served = dict(config["served"])
        served["layers"] = tuple(served.get("layers", ()))
        checkpoint = Checkpoint(
            encoder=_strict(ViTConfig, config["encoder"]),
            front_end=_strict(FrontEndConfig, config["front_end"]),
            served=_strict(ServedConfig, served),
            provenance=json.loads(header["provenance"]),
            weights={name: tensor.float() for name, tensor in weights.items()},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its configuration cannot be read ({error}); export the file again") from error
    check_shapes(path, checkpoint)
    return checkpoint


def describe(path: str | Path) -> dict[str, Any]:
    """Everything there is to know of a weights file but the weights, as JSON-ready values."""
    checkpoint = load_checkpoint(path)
    return {
        "path": str(path),
        "sha256": file_sha256(path),
        "bytes": Path(path).stat().st_size,
        "parameters": sum(tensor.numel() for name, tensor in checkpoint.weights.items() if name != "pos_embed"),
        "encoder": asdict(checkpoint.encoder),
        "front_end": asdict(checkpoint.front_end),
        "served": asdict(replace(checkpoint.served, layers=checkpoint.layers)),
        "provenance": checkpoint.provenance,
    }


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _config_sha256(header: dict[str, str]) -> str:
    return hashlib.sha256(f"{header['config']}\n{header['provenance']}".encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}: give a path, or the name of a shipped one")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if _first_bytes(path) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise CheckpointError(
                f"{path} is a pickle (.pt, .pth or .ckpt), which is never loaded here: "
                "turn it into safetensors with `hear-jepa convert`"
            ) from error
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}): it is truncated or damaged; fetch it again"
        ) from error


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(2)
    except OSError:
        return b""


def _strict(kind: type, values: dict[str, Any]) -> Any:
    unknown = set(values) - {f.name for f in fields(kind)}
    if unknown:
        raise ValueError(f"unknown {', '.join(sorted(unknown))} in {kind.__name__}")
    return kind(**values)


def check_shapes(path: Path, checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` unless the weights are, tensor by tensor, those that the configuration describes."""
    try:
        with torch.device("meta"):
            expected = {name: tuple(t.shape) for name, t in ViT(checkpoint.encoder).state_dict().items()}
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path}: its configuration describes no encoder ({error}); export it again") from error
    found = {name: tuple(t.shape) for name, t in checkpoint.weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{path} does not hold the encoder that its configuration describes: {name} is "
            f"{found.get(name, 'absent')}, not {expected.get(name, 'part of it')} ({len(wrong)} such tensors)"
        )
