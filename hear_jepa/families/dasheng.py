"""Dasheng (Dinkel et al. 2024): patches of 64 bands × 4 frames, learnt positions of time and of frequency apart.

Its log-mel is in decibels, each band standardised by a BatchNorm whose statistics are fixed. Both are affine, so they
go into the front end's mean and deviation (one for all bands) and what is left of them into the patch projection.
"""

import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hear_jepa.errors import CheckpointError, OptionError
from hear_jepa.families.adapted import Adapted, Asked, leave_out, patch_sides, require, shape_of
from hear_jepa.model.front_end import FrontEndConfig

TITLE = "Dasheng"
ORIGIN = "https://github.com/XiaoMi/dasheng"
LICENCE = "Apache-2.0"
ENCODER = "encoder."  # of the training's files, and of those of the Hugging Face Hub
LEFT_OUT = ("front_end.", "outputlayer", "decoder.", "mask_token")
PATCH = (64, 4)
HEADS = {768: 12, 1280: 16, 1536: 24}
NEPERS = math.log(10) / 10  # in a decibel
FRONT_END = FrontEndConfig(n_fft=512, n_mels=64, f_min=0.0, mel_scale="htk", log_floor=1e-10, log_floor_by="clamping")


def recognise(names: Collection[str], file_name: str) -> bool:
    """Positions of time and of frequency apart, after a BatchNorm of bands."""
    return any(prefix + "time_pos_embed" in names and prefix + "freq_pos_embed" in names for prefix in ("", ENCODER))


def adapt(state: dict[str, Tensor], source: Path, asked: Asked) -> Adapted:
    """The encoder, with its BatchNorm folded into the patch projection."""
    if asked.encoder is not None or asked.mean is not None or asked.std is not None:
        raise OptionError("a Dasheng file holds its one encoder and its statistics: no --encoder, --mean or --std")
    found, left_out = leave_out(state, LEFT_OUT)
    found = {name.removeprefix(ENCODER): tensor.float() for name, tensor in found.items()}
    found, left_out_inside = leave_out(found, LEFT_OUT)
    if patch_sides(source, found) != PATCH:
        raise CheckpointError(f"{source}: its patches are not Dasheng's, of 64 bands × 4 frames")
    scale, shift = _batch_norm(source, found)
    mean, std = float((-shift / scale).mean()), float((1 / scale).square().mean().sqrt())
    kernel = found["patch_embed.proj.weight"][:, 0]  # [D, bands, frames]
    offset = scale * mean + shift  # of each band, once all are standardised alike
    weights = found | {
        "patch_embed.proj.weight": (kernel * (std * scale)[:, None]).flatten(1),
        "patch_embed.proj.bias": found["patch_embed.proj.bias"] + kernel.sum(2) @ offset,
        "pos_embed": found["time_pos_embed"][0, :, 0].T + found["freq_pos_embed"][0, :, :, 0].T,
    }
    del weights["time_pos_embed"], weights["freq_pos_embed"]
    heads = asked.heads or HEADS.get(weights["pos_embed"].shape[1])
    known = {"n_freq_patches": 1, "patch_mels": PATCH[0], "patch_frames": PATCH[1], "norm_eps": 1e-6}
    return Adapted(
        encoder=shape_of(weights, replace(asked, heads=heads), **known),
        weights=weights,
        front_end=replace(FRONT_END, mean=mean * NEPERS, std=std * NEPERS),
        notes=[f"each band standardised by the file's BatchNorm: mean {mean:.4g} dB, deviation {std:.4g} dB in all"],
        left_out=sorted({*left_out, *left_out_inside}),
    )


def _batch_norm(source: Path, found: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Factor and offset [bands] of its BatchNorm, taken out of `found`."""
    parts = {name.rsplit(".", 1)[1]: found.pop(name) for name in list(found) if name.startswith("init_bn.")}
    parts.pop("num_batches_tracked", None)
    weight = require(source, parts, "weight")
    scale = weight / torch.sqrt(require(source, parts, "running_var") + 1e-5)
    return scale, require(source, parts, "bias") - scale * require(source, parts, "running_mean")
