"""`hear-jepa convert SRC OUT`: a foreign checkpoint becomes one of ours.

Two layouts are known. Both store 16×16 patch kernels and positions in frequency-major order (ours is time-major):

* `jepa`: the paper's training code. A Lightning file whose `state_dict` holds `encoder.…`, `target_encoder.…` and
  `predictor.…`; `pos_embed` [1, 5, T, D].
* `m2d`: M2D and MSM-MAE. Names without a prefix, optionally under `model`; `cls_token`; `pos_embed` [1, 1 + 5·T, D];
  a decoder, or a target network, may lie beside them.

Only tensors are read: a file whose pickle would have to run code is refused. Loading is strict: a tensor that is
neither used nor known to be of no use in serving is an error.
"""

import argparse
import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hear_jepa.disk import file_sha256
from hear_jepa.errors import CheckpointError, OptionError
from hear_jepa.model.checkpoint import Checkpoint, ServedConfig, check_shapes, save_checkpoint
from hear_jepa.model.front_end import FrontEndConfig
from hear_jepa.model.vit import ViTConfig

log = logging.getLogger(__name__)

LAYOUTS = ("auto", "jepa", "m2d")
PREFIXES = {"context": "encoder.", "target": "target_encoder."}
NORM_EPS = {"jepa": 1e-5, "m2d": 1e-6}
MEAN_STD = {"jepa": (-7.0633, 4.1971), "m2d": (-7.1, 4.2)}  # of the AudioSet log-mel that each was trained on
M2D_LEFT_OUT = ("decoder_", "mask_token", "target_", "predictor")
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}  # by width: the weights do not tell
N_FREQ = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Source, destination, and what the source does not say."""
    parser.add_argument("source", type=Path, help="foreign checkpoint: .ckpt, .pth, .pt or .safetensors")
    parser.add_argument("out", type=Path, help="file to write, NAME.safetensors")
    parser.add_argument("--layout", choices=LAYOUTS, default="auto")
    parser.add_argument("--encoder", choices=tuple(PREFIXES), help="which of a jepa file (default: context)")
    parser.add_argument("--mean", type=float, help="mean of the log-mel in training (default: that of AudioSet)")
    parser.add_argument("--std", type=float, help="standard deviation of the log-mel in training")
    parser.add_argument("--heads", type=int, help="attention heads (default: one for every 64 of the width)")


def run(arguments: argparse.Namespace) -> int:
    """Convert, write, and say what was left out."""
    checkpoint, left_out = convert(
        arguments.source,
        layout=arguments.layout,
        encoder=arguments.encoder,
        mean=arguments.mean,
        std=arguments.std,
        heads=arguments.heads,
    )
    sha256 = save_checkpoint(arguments.out, checkpoint)
    print(f"{arguments.out}: {json.dumps(vars(checkpoint.encoder))}, SHA-256 {sha256}")
    print(f"left out, of no use in serving: {', '.join(left_out) or 'nothing'}")
    return 0


def convert(
    source: str | Path,
    layout: str = "auto",
    encoder: str | None = None,
    mean: float | None = None,
    std: float | None = None,
    heads: int | None = None,
) -> tuple[Checkpoint, list[str]]:
    """Read a foreign checkpoint; return ours and the names (first parts) of the tensors left out.

    layout: "auto", "jepa" or "m2d"; encoder: "context" or "target", of a jepa file; mean, std: of the log-mel in
    training, where they were not AudioSet's; heads: attention heads, one for every 64 of the width by default.
    Raises `CheckpointError` for a file that cannot be used, `OptionError` for options that do not fit it.
    """
    source = Path(source)
    state = read_state(source)
    layout = find_layout(source, state) if layout == "auto" else layout
    if layout == "m2d" and encoder is not None:
        raise OptionError("encoder is an option of the jepa layout: an m2d file serves the one encoder it has")
    select = select_jepa if layout == "jepa" else select_m2d
    found, left_out = select(source, state, encoder or "context")
    default_mean, default_std = found.pop("norm_stats", MEAN_STD[layout])
    weights = translate(source, found)
    config = infer_config(weights, heads, NORM_EPS[layout])
    checkpoint = Checkpoint(
        encoder=config,
        weights=weights,
        front_end=replace(
            FrontEndConfig(),
            mean=float(default_mean) if mean is None else mean,
            std=float(default_std) if std is None else std,
        ),
        served=ServedConfig(encoder=encoder or "context"),
        provenance={"converted_from": source.name, "source_sha256": file_sha256(source), "layout": layout},
    )
    check_shapes(source, checkpoint, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    log.info("%s: layout %s, left out %s", source, layout, left_out)
    return checkpoint, left_out


def read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, at its root or under `state_dict` or `model`; no code of a pickle runs."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    contents = _read(path)
    for key in ("state_dict", "model"):
        if isinstance(contents, dict) and isinstance(contents.get(key), dict):
            contents = contents[key]
    if not isinstance(contents, dict) or not contents or not all(isinstance(v, Tensor) for v in contents.values()):
        raise CheckpointError(f"{path} holds no state_dict of tensors, at its root or under `state_dict` or `model`")
    return dict(contents)


def find_layout(path: Path, state: dict[str, Tensor]) -> str:
    """Tell the layout from the names."""
    if "encoder.pos_embed" in state:
        return "jepa"
    if "cls_token" in state and "pos_embed" in state:
        return "m2d"
    some = ", ".join(sorted(state)[:3])
    raise CheckpointError(f"{path} is of neither layout, jepa or m2d (it holds {some}, …): see hear-jepa convert -h")


def select_jepa(path: Path, state: dict[str, Tensor], encoder: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one encoder, without its prefix, positions [1, 5·T, D]."""
    prefix = PREFIXES[encoder]
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    known = (*PREFIXES.values(), "predictor.")
    refuse_unknown(path, [name for name in state if not name.startswith(known)])
    if "pos_embed" in found and found["pos_embed"].dim() == 4:
        found["pos_embed"] = found["pos_embed"].flatten(1, 2)
    return found, sorted({name.split(".")[0] for name in state} - {prefix[:-1]})


def select_m2d(path: Path, state: dict[str, Tensor], encoder: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the online encoder; the class token takes its position along."""
    del encoder  # there is one
    left_out = [name for name in state if name.startswith(M2D_LEFT_OUT)]
    found = {name: tensor for name, tensor in state.items() if name not in left_out}
    if "cls_token" in found and "pos_embed" in found:
        positions = found["pos_embed"]
        found["class_token"] = (found.pop("cls_token") + positions[:, :1]).flatten()
        found["pos_embed"] = positions[:, 1:]
    return found, sorted({name.split(".")[0] for name in left_out})


def translate(path: Path, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names, shapes and order of tokens."""
    weights = {name: tensor.detach().float() for name, tensor in found.items()}
    needed = ("patch_embed.proj.weight", "pos_embed")
    missing = [name for name in needed if name not in weights]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)} of the encoder asked for")
    kernel, positions = weights["patch_embed.proj.weight"], weights["pos_embed"]
    if tuple(kernel.shape[1:]) != (1, 16, 16):
        raise CheckpointError(f"{path} has patches of {tuple(kernel.shape[1:])}: only 16×16 on one channel is served")
    if positions.dim() != 3 or positions.shape[1] % N_FREQ:
        raise CheckpointError(f"{path}: positions of shape {tuple(positions.shape)} are not of 5 frequency patches")
    weights["patch_embed.proj.weight"] = kernel.flatten(1)  # [D, 256], band by band
    weights["pos_embed"] = positions[0].unflatten(0, (N_FREQ, -1)).transpose(0, 1).flatten(0, 1)  # time-major
    return weights


def infer_config(weights: dict[str, Tensor], heads: int | None, norm_eps: float) -> ViTConfig:
    """The architecture that the shapes tell."""
    positions = weights["pos_embed"]
    width = positions.shape[1]
    if heads is None and width not in HEADS:
        raise OptionError(f"say how many heads attention has (--heads): a width of {width} does not tell")
    if heads is not None and (heads < 1 or width % heads):
        raise OptionError(f"--heads is {heads}: the width {width} must be a multiple of it")
    hidden = weights["blocks.0.mlp.fc1.weight"].shape[0] if "blocks.0.mlp.fc1.weight" in weights else 4 * width
    return ViTConfig(
        width=width,
        depth=1 + max((int(name.split(".")[1]) for name in weights if name.startswith("blocks.")), default=0),
        heads=HEADS[width] if heads is None else heads,
        n_freq_patches=N_FREQ,
        n_time_patches=len(positions) // N_FREQ,
        mlp_ratio=hidden / width,
        norm_eps=norm_eps,
        class_token="class_token" in weights,
    )


def refuse_unknown(path: Path, names: list[str]) -> None:
    """Nothing is dropped in silence."""
    if names:
        some = ", ".join(sorted(names)[:6])
        raise CheckpointError(f"{path} holds {len(names)} tensors of no known use: {some}")


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors, which would need the code of its pickle to run: refused. "
            "Where you trust the file, load it with its own code and save its state_dict() alone"
        ) from error
    except (RuntimeError, EOFError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read, it is truncated or damaged: {error}") from error
