"""The paper's training code: a Lightning file with `encoder.…`, `target_encoder.…` and `predictor.…`.

Patches are 16×16 or any other size, positions [1, rows, T, D]; the front end is ours.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from hear_jepa.errors import CheckpointError
from hear_jepa.families.adapted import (
    Adapted,
    Asked,
    behind,
    first_parts,
    patch_sides,
    refuse_unknown,
    require,
    shape_of,
    standardisation,
    time_major,
)
from hear_jepa.model.front_end import FrontEndConfig

TITLE = "the paper's code"
ORIGIN = "https://github.com/SonyCSLParis/audio-representations"
LICENCE = "unknown"
PREFIXES = {"context": "encoder.", "target": "target_encoder."}
MEAN_STD = (-7.0633, 4.1971)  # of AudioSet, as the paper trains


def recognise(names: Collection[str], file_name: str) -> bool:
    """The names of the encoder, of which positions are stored."""
    return "encoder.pos_embed" in names and "encoder.blocks.0.attn.qkv.weight" in names


def adapt(state: dict[str, Tensor], source: Path, asked: Asked) -> Adapted:
    """One of the two encoders; `asked.encoder` says which."""
    served = asked.encoder or "context"
    prefix = PREFIXES[served]
    found = behind(state, prefix)
    refuse_unknown(source, [name for name in state if not name.startswith((*PREFIXES.values(), "predictor."))])
    patch_mels, patch_frames = patch_sides(source, found)
    positions = require(source, found, "pos_embed")
    if positions.dim() != 4:
        raise CheckpointError(f"{source}: positions of shape {tuple(positions.shape)} are not 4-D")
    if positions.shape[2] == 1:
        raise CheckpointError(f"{source}: its positions along time are relative or rotary, which are not served")
    rows = positions.shape[1]
    weights = found | {
        "patch_embed.proj.weight": found["patch_embed.proj.weight"].flatten(1),
        "pos_embed": time_major(source, positions.flatten(1, 2), rows),
    }
    mean, std, note = standardisation(asked, MEAN_STD, "those of AudioSet, as in the paper; the file holds none")
    return Adapted(
        encoder=shape_of(weights, asked, n_freq_patches=rows, patch_mels=patch_mels, patch_frames=patch_frames),
        weights=weights,
        front_end=replace(FrontEndConfig(), n_mels=rows * patch_mels, mean=mean, std=std),
        served_encoder=served,
        notes=[f"the {served} encoder" + ("" if asked.encoder else "; --encoder target for the other"), note],
        left_out=first_parts(name for name in state if not name.startswith(prefix)),
    )
