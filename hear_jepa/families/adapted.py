"""What a family makes of a file, and the steps that families share."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from hear_jepa.errors import CheckpointError, OptionError
from hear_jepa.model.front_end import FrontEndConfig
from hear_jepa.model.vit import ViTConfig, sine_cosine_positions

HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16}  # by width, as ViTs have them: the weights do not tell
MOVED = 0.3  # relative distance of positions from sines and cosines; fine-tuning moves them by less


@dataclass(frozen=True)
class Asked:
    """What a user says that a file does not tell; None: nothing said."""

    encoder: str | None = None
    mean: float | None = None
    std: float | None = None
    heads: int | None = None
    sample_rate: int | None = None


@dataclass(frozen=True)
class Adapted:
    """Our configuration and weights, and for the user what was found, from where, and what was left out."""

    encoder: ViTConfig
    weights: dict[str, Tensor]
    front_end: FrontEndConfig
    served_encoder: str = "context"
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def patch_sides(source: Path, state: dict[str, Tensor]) -> tuple[int, int]:
    """Bands and frames of a patch, as the kernel `patch_embed.proj.weight` [D, 1, bands, frames] tells."""
    kernel = require(source, state, "patch_embed.proj.weight")
    if kernel.dim() != 4 or kernel.shape[1] != 1:
        raise CheckpointError(f"{source}: its patches are of shape {tuple(kernel.shape[1:])}, not of one channel")
    return kernel.shape[2], kernel.shape[3]


def require(source: Path, state: dict[str, Tensor], name: str) -> Tensor:
    """A tensor without which there is no encoder."""
    if name not in state:
        raise CheckpointError(f"{source} lacks {name} of the encoder asked for")
    return state[name]


def behind(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it, as float32."""
    return {name.removeprefix(prefix): tensor.float() for name, tensor in state.items() if name.startswith(prefix)}


def of_frequency_major(source: Path, found: dict[str, Tensor], n_mels: int) -> tuple[dict[str, Tensor], dict]:
    """Weights by our names of an MAE-like ViT, whose patches come row after row, and what they tell of its shape."""
    patch_mels, patch_frames = patch_sides(source, found)
    rows = n_mels // patch_mels
    positions = require(source, found, "pos_embed")
    weights = found | {"patch_embed.proj.weight": found["patch_embed.proj.weight"].flatten(1)}
    if "cls_token" in found:
        weights["class_token"] = (weights.pop("cls_token") + positions[:, :1]).flatten()
        positions = positions[:, 1:]
    weights["pos_embed"] = time_major(source, positions, rows)
    _check_positions(source, weights["pos_embed"], rows)
    return weights, {
        "n_freq_patches": rows,
        "patch_mels": patch_mels,
        "patch_frames": patch_frames,
        "norm_eps": 1e-6,
    }


def time_major(source: Path, positions: Tensor, rows: int) -> Tensor:
    """[1, rows · T, D] in frequency-major order -> [T · rows, D] in ours."""
    if positions.dim() != 3 or positions.shape[1] % rows:
        raise CheckpointError(f"{source}: positions of shape {tuple(positions.shape)} are not of {rows} rows")
    return positions[0].unflatten(0, (rows, -1)).transpose(0, 1).flatten(0, 1)


def _check_positions(source: Path, positions: Tensor, rows: int) -> None:
    """Raise `CheckpointError` unless positions [T · rows, D] are near the sines and cosines of that grid.

    The names of a ViT's tensors are the same whoever trained it. Its positions tell how tokens lie.
    """
    expected = sine_cosine_positions(rows, len(positions) // rows, positions.shape[1])
    if (positions - expected).norm() > MOVED * expected.norm():
        raise CheckpointError(
            f"{source}: its positions are not those of {rows} rows × {len(positions) // rows} columns; "
            "it is a file of another family, or of another order of patches"
        )


def shape_of(weights: dict[str, Tensor], asked: Asked, **known) -> ViTConfig:
    """The architecture that the shapes of weights by our names tell; `known`: the fields that they do not."""
    width = weights["pos_embed"].shape[1]
    if asked.heads is None and width not in HEADS:
        raise OptionError(f"say how many heads attention has (--heads): a width of {width} does not tell")
    if asked.heads is not None and (asked.heads < 1 or width % asked.heads):
        raise OptionError(f"--heads is {asked.heads}: the width {width} must be a multiple of it")
    second = weights.get("blocks.0.mlp.fc2.weight")
    return ViTConfig(
        width=width,
        depth=1 + max((int(name.split(".")[1]) for name in weights if name.startswith("blocks.")), default=0),
        heads=HEADS[width] if asked.heads is None else asked.heads,
        n_time_patches=len(weights["pos_embed"]) // known["n_freq_patches"],
        mlp_ratio=4.0 if second is None else second.shape[1] / width,
        class_token="class_token" in weights,
        **known,
    )


def standardisation(asked: Asked, told: tuple[float, float] | None, where: str) -> tuple[float, float, str]:
    """Mean and deviation of the log-mel in training, and a note of where they come from."""
    if (asked.mean is None) != (asked.std is None):
        raise OptionError("--mean and --std go together")
    if asked.mean is not None and asked.std is not None:
        return asked.mean, asked.std, f"mean {asked.mean}, standard deviation {asked.std}: as asked"
    if told is None:
        raise OptionError(f"say --mean and --std of the log-mel in training: {where}")
    mean, std = told
    return mean, std, f"mean {mean:.6g}, standard deviation {std:.6g}: {where}"


def leave_out(state: dict[str, Tensor], known: tuple[str, ...]) -> tuple[dict[str, Tensor], list[str]]:
    """Part the tensors that serving does not need, by the starts of their names, from the others."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(known)}
    return kept, first_parts(state.keys() - kept.keys())


def first_parts(names: Iterable[str]) -> list[str]:
    """The first parts of dotted names, for a message."""
    return sorted({name.split(".")[0] for name in names})


def refuse_unknown(source: Path, names: Iterable[str]) -> None:
    """Nothing is dropped in silence."""
    names = sorted(names)
    if names:
        raise CheckpointError(f"{source} holds {len(names)} tensors of no known use: {', '.join(names[:6])}")
