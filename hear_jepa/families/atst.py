"""ATST-Frame (Li et al. 2024): patches of 64 bands × 4 frames, learnt positions, the teacher of a Lightning file.

Its log-mel is in decibels, brought to -1 … 1 by the least and greatest value of its training: a mean and a deviation.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hear_jepa.errors import CheckpointError
from hear_jepa.families.adapted import (
    Adapted,
    Asked,
    behind,
    first_parts,
    refuse_unknown,
    require,
    shape_of,
    standardisation,
)
from hear_jepa.families.dasheng import NEPERS
from hear_jepa.model.front_end import FrontEndConfig

TITLE = "ATST-Frame"
ORIGIN = "https://github.com/Audio-WestlakeU/audiossl"
LICENCE = "CC-BY-4.0"
PREFIXES = {"context": "model.student.encoder.", "target": "model.teacher.encoder."}
DISTILLED = "encoder.encoder."  # of files that hold one encoder
UNUSED = ("mask_embed", "prompt_embed")
PATCH = (64, 4)
LEAST, GREATEST = -79.6482, 50.6842  # dB
MEAN_STD = ((LEAST + GREATEST) / 2 * NEPERS, (GREATEST - LEAST) / 2 * NEPERS)
FRONT_END = FrontEndConfig(
    n_fft=1024, n_mels=64, f_min=60.0, f_max=7800.0, mel_scale="htk", log_floor=1e-10, log_floor_by="clamping"
)


def recognise(names: Collection[str], file_name: str) -> bool:
    """Its patches are projected by a layer that is named twice."""
    return any(f"{prefix}patch_embed.patch_embed.weight" in names for prefix in (*PREFIXES.values(), DISTILLED))


def adapt(state: dict[str, Tensor], source: Path, asked: Asked) -> Adapted:
    """The teacher, as its own code serves it, or the student."""
    served = asked.encoder or "target"
    prefix = PREFIXES[served]
    if not any(name.startswith(prefix) for name in state) and asked.encoder is None:
        prefix = DISTILLED
    found = behind(state, prefix)
    known_starts = ("model.student.", "model.teacher.", prefix)
    refuse_unknown(source, [name for name in state if not name.startswith(known_starts)])
    kernel = require(source, found, "patch_embed.patch_embed.weight")
    if kernel.shape[1] != PATCH[0] * PATCH[1]:
        raise CheckpointError(f"{source}: its patches are not ATST-Frame's, of 64 bands × 4 frames")
    if "prompt_embed" in found:
        raise CheckpointError(f"{source} has prompts before its tokens (prompt_embed), which are not served")
    weights = {
        "patch_embed.proj.weight": kernel,
        "patch_embed.proj.bias": require(source, found, "patch_embed.patch_embed.bias"),
        "pos_embed": require(source, found, "pos_embed")[0, 1:],  # the first is of a class token that it has no more
    }
    for name, tensor in found.items():
        if name.startswith("blocks."):
            weights[name] = tensor
        elif name.startswith("norm_frame."):
            weights[name.replace("norm_frame", "norm")] = tensor
        elif not name.startswith(("patch_embed.", "pos_embed", *UNUSED)):
            refuse_unknown(source, [name])
    for name in [name for name in weights if name.endswith(".attn.qkv.weight")]:  # without a bias in the published ones
        weights.setdefault(name.replace("weight", "bias"), torch.zeros(len(weights[name])))
    mean, std, note = standardisation(asked, MEAN_STD, f"its own code's {LEAST} … {GREATEST} dB brought to -1 … 1")
    known = {"n_freq_patches": 1, "patch_mels": PATCH[0], "patch_frames": PATCH[1], "norm_eps": 1e-6}
    return Adapted(
        encoder=shape_of(weights, asked, **known),
        weights=weights,
        front_end=replace(FRONT_END, mean=mean, std=std),
        served_encoder=served,
        notes=[f"the {'teacher' if served == 'target' else 'student'}", note],
        left_out=[
            *first_parts(name.removeprefix("model.") for name in state if not name.startswith(prefix)),
            *UNUSED[:1],
        ],
    )
