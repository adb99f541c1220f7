"""The weights file: one safetensors file with an encoder's weights, its configuration and where it comes from.

The header holds `format`, `version`, `config` (JSON: encoder, front end, what is served), `licence` of the weights,
`provenance` (JSON, free form; `untrained` is true in a placeholder) and `sha256`, a checksum of it all, which tells an
altered file from a sound one. Two tensors more, `whitening.mean` and `whitening.maps`, may be there to whiten scenes.
Loading is strict, runs no pickle, and checks every number before it allocates anything.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hear_jepa.disk import atomic_path, file_sha256
from hear_jepa.errors import CheckpointError, OptionError
from hear_jepa.model.front_end import FrontEndConfig
from hear_jepa.model.grid import Grid
from hear_jepa.model.pooling import POOLINGS, Whitening
from hear_jepa.model.vit import POSITIONS, ViT, ViTConfig
from hear_jepa.options import changed, check_fields, one_of

FORMAT = "hear_jepa"
VERSION = "3"
# Version 1 had no patch, positions, pooling or licence: their defaults; version 2 no whitening.
READABLE = ("1", "2", "3")
HEADER_KEYS = {
    "1": ("format", "version", "config", "provenance", "weights_sha256"),
    "2": ("format", "version", "config", "licence", "provenance", "sha256"),
    "3": ("format", "version", "config", "licence", "provenance", "sha256"),
}
WHITENING = "whitening."  # begins the names of its tensors
DTYPES = ("F64", "F32", "F16", "BF16")
ENCODERS = ("context", "target")


@dataclass(frozen=True)
class ServedConfig:
    """What an embedding is made of: which encoder's output, of which layers, and for a scene of which columns."""

    encoder: str = one_of("context", ENCODERS)
    layers: tuple[int, ...] = ()  # 0 … depth, 0 the embedded patches; empty: the last
    scene_hop_ms: int = 160  # a scene is made of columns so far apart
    pooling: str = one_of("mean", POOLINGS)  # what a scene is of them: mean, or mean and standard deviation

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded weights file; `weights` are float32, named as in `ViT.state_dict()`; `licence` is theirs."""

    encoder: ViTConfig
    weights: dict[str, Tensor]
    front_end: FrontEndConfig = FrontEndConfig()
    served: ServedConfig = ServedConfig()
    provenance: dict[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    whitening: Whitening | None = None

    @property
    def untrained(self) -> bool:
        """Whether the weights are still those of the initialisation."""
        return bool(self.provenance.get("untrained"))

    @property
    def layers(self) -> tuple[int, ...]:
        """The served layers, the last where the file names none."""
        return self.served.layers or (self.encoder.depth,)

    @property
    def grid(self) -> Grid:
        """How sound is cut. Raises `OptionError` where front end and encoder contradict each other."""
        return grid_of(self.front_end, self.encoder)

    def in_windows_of(self, columns: int) -> "Checkpoint":
        """The same, served in windows of so many columns: for an encoder that `fits_any_window`."""
        encoder = replace(self.encoder, n_time_patches=columns)
        positions = POSITIONS[encoder.positions](encoder.n_freq_patches, columns, encoder.width)
        return replace(self, encoder=encoder, weights=self.weights | {"pos_embed": positions})

    def build(self) -> ViT:
        """The encoder with these weights (shared, not copied), in evaluation mode."""
        with torch.device("meta"):  # nothing is drawn that the weights would replace
            encoder = ViT(self.encoder)
        encoder.load_state_dict(self.weights, strict=True, assign=True)
        return encoder.eval().requires_grad_(False)


def grid_of(front_end: FrontEndConfig, encoder: ViTConfig) -> Grid:
    """The grid on which an encoder sees a front end. Raises `OptionError` where the two contradict each other."""
    if front_end.n_mels != encoder.n_freq_patches * encoder.patch_mels:
        raise OptionError(
            f"n_mels is {front_end.n_mels}: the encoder has n_freq_patches = {encoder.n_freq_patches} rows of "
            f"patch_mels = {encoder.patch_mels} bands"
        )
    return Grid(
        sample_rate=front_end.sample_rate,
        hop_length=front_end.hop_length,
        n_mels=front_end.n_mels,
        patch_mels=encoder.patch_mels,
        patch_frames=encoder.patch_frames,
        columns=encoder.n_time_patches,
    )


def save_checkpoint(path: str | Path, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> str:
    """Write the file atomically, the weights stored as `dtype`; return its SHA-256."""
    whitening = checkpoint.whitening.state_dict() if checkpoint.whitening else {}
    tensors = checkpoint.weights | {WHITENING + name: tensor for name, tensor in whitening.items()}
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    config = {part: asdict(getattr(checkpoint, part)) for part in ("encoder", "front_end", "served")}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(config),
        "licence": checkpoint.licence,
        "provenance": json.dumps(checkpoint.provenance),
    }
    header["sha256"] = _checksum(header, weights)
    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata=header)
    return file_sha256(path)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify a weights file. Raises `CheckpointError` with what is wrong and what to do."""
    path = Path(path)
    with _open(path) as file:
        header = file.metadata() or {}
        check_header(path, header)
        checkpoint = _read_config(path, header)
        _check_tensors(path, checkpoint, file)
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    _check_sums(path, header, weights)
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinite weights; take another copy, or an earlier one")
    weights = {name: tensor.float() for name, tensor in weights.items()}
    names = [name for name in weights if name.startswith(WHITENING)]
    whitening = {name.removeprefix(WHITENING): weights.pop(name) for name in names}
    return replace(checkpoint, weights=weights, whitening=Whitening(**whitening) if whitening else None)


def describe(path: str | Path) -> dict[str, Any]:
    """Everything there is to know of a weights file but the weights, as JSON-ready values."""
    checkpoint = load_checkpoint(path)
    return {
        "path": str(path),
        "sha256": file_sha256(path),
        "bytes": Path(path).stat().st_size,
        "licence": checkpoint.licence,
        "parameters": sum(tensor.numel() for name, tensor in checkpoint.weights.items() if name != "pos_embed"),
        "encoder": asdict(checkpoint.encoder),
        "front_end": asdict(checkpoint.front_end),
        "served": asdict(replace(checkpoint.served, layers=checkpoint.layers)),
        "whitened_to": checkpoint.whitening.size if checkpoint.whitening else None,
        "provenance": checkpoint.provenance,
    }


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------- checks


def check_header(path: Path, header: dict[str, str]) -> None:
    """Raise `CheckpointError` unless this is the header of a weights file that this package reads."""
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a safetensors file (format {header.get('format')!r}), {_foreign(path)}")
    version = header.get("version", "")
    if version not in READABLE:
        raise CheckpointError(
            f"{path} has format version {version!r}, this package reads {', '.join(READABLE[:-1])} and {READABLE[-1]}: "
            "upgrade hear-jepa, or take a checkpoint made for this release"
        )
    missing = [key for key in HEADER_KEYS[version] if key not in header]
    if missing:
        raise CheckpointError(f"{path}: its header lacks {', '.join(missing)}: fetch or export the file again")


def check_config(checkpoint: Checkpoint) -> None:
    """Raise `OptionError`, with the field's name, for a part that contradicts another."""
    served, depth = checkpoint.served, checkpoint.encoder.depth
    checkpoint.grid.check_hop(served.scene_hop_ms, "scene_hop_ms")
    if not all(0 <= layer <= depth for layer in served.layers):
        raise OptionError(f"the served layers are {served.layers}: the encoder has layers 0 … {depth}")


def check_shapes(path: Path, checkpoint: Checkpoint, found: dict[str, tuple[int, ...]]) -> None:
    """Raise `CheckpointError` unless the tensors are, one by one, those that the configuration describes."""
    config = checkpoint.encoder
    positions = (config.n_patches, config.width)
    if found.get("pos_embed") == positions:  # else the encoder might be far larger than the file
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in ViT(config).state_dict().items()}
    else:
        expected = found | {"pos_embed": positions}
    if any(name.startswith(WHITENING) for name in found):
        kept = max((1, *found.get(WHITENING + "maps", ())[2:]))
        parts, size = POOLINGS[checkpoint.served.pooling], len(checkpoint.layers) * config.n_freq_patches * config.width
        expected |= {WHITENING + "mean": (parts * size,), WHITENING + "maps": (parts, size, min(kept, size))}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{path} does not hold the encoder that its configuration describes: {name} is "
            f"{found.get(name, 'absent')}, not {expected.get(name, 'part of it')} ({len(wrong)} such tensors)"
        )


def _check_tensors(path: Path, checkpoint: Checkpoint, file: Any) -> None:
    """Names, shapes and types, before a tensor is read."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in slices.items():
        if tensor.get_dtype() not in DTYPES:
            raise CheckpointError(f"{path}: {name} is of type {tensor.get_dtype()}, not one of {', '.join(DTYPES)}")
    check_shapes(path, checkpoint, {name: tuple(tensor.get_shape()) for name, tensor in slices.items()})


def _read_config(path: Path, header: dict[str, str]) -> Checkpoint:
    try:
        config = json.loads(header["config"])
        provenance = json.loads(header["provenance"])
        checkpoint = Checkpoint(
            encoder=changed(ViTConfig(), config["encoder"]),
            weights={},
            front_end=changed(FrontEndConfig(), config["front_end"]),
            served=changed(ServedConfig(), config["served"]),
            provenance=provenance if isinstance(provenance, dict) else {},
            licence=header.get("licence", "unknown"),
        )
        check_config(checkpoint)
    except (KeyError, TypeError, ValueError, RecursionError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path}: its configuration cannot be used ({error}); export the file again") from error
    return checkpoint


def _check_sums(path: Path, header: dict[str, str], weights: dict[str, Tensor]) -> None:
    if header["version"] == "1":
        sound = weights_sha256(weights) == header["weights_sha256"]
    else:
        sound = _checksum(header, weights) == header["sha256"]
    if not sound:
        raise CheckpointError(f"{path} was altered: it does not match its checksum; fetch the file again")


def _checksum(header: dict[str, str], weights: dict[str, Tensor]) -> str:
    parts = [header["config"], header["licence"], header["provenance"], weights_sha256(weights)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _open(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}: give a path, or the name of a shipped one")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        if _first_bytes(path) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise CheckpointError(
                f"{path} is a pickle (.pt, .pth or .ckpt), which is never loaded here, {_foreign(path)}"
            ) from error
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}): it is truncated or damaged; fetch it again"
        ) from error


def _foreign(path: Path) -> str:
    from hear_jepa.families import describe_foreign  # they are built on this module

    return describe_foreign(path)


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(2)
    except OSError:
        return b""
