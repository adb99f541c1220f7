"""M2D, M2D-S, M2D-X, M2D-AS, M2D-CLAP (both), and MSM-MAE, by NTT.

One ViT under a few wrappings: names without a prefix, or behind `backbone.` (its runtime) or `ar.runtime.backbone.`
(fine-tuning by EVAR). Tokens are frequency-major; the class token has a position of its own; MSM-MAE may have none, and
keeps the biases of queries and values apart. The name of the folder says what the tensors cannot:

    m2d_vit_base-80x608p16x16-220930-mr7           crops of 608 frames of 80 bands, patches of 16 × 16, 16 kHz, 2022
    m2d_as_vit_base-80x1001p16x16p32k-240413_…     the same at 32 kHz
    80x512p16x16_paper                             MSM-MAE
"""

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hear_jepa.errors import CheckpointError, OptionError
from hear_jepa.families.adapted import (
    Adapted,
    Asked,
    leave_out,
    of_frequency_major,
    shape_of,
    standardisation,
)
from hear_jepa.families.reading import named_after
from hear_jepa.model.front_end import FrontEndConfig

TITLE = "M2D or MSM-MAE"
ORIGIN = "https://github.com/nttcslab/m2d"
LICENCE = "NTT software license agreement for evaluation (non-commercial): https://github.com/nttcslab/m2d"
BACKBONES = ("ar.runtime.backbone.", "backbone.")
LEFT_OUT = (
    *("decoder_", "mask_token", "target_", "predictor", "offline_predictor", "audio_proj", "text_proj", "logit_scale"),
    *("text_encoder", "head", "ar.", "to_spec", "fc_norm"),
)
NAME = re.compile(
    r"(?P<model>m2d\w*-)?(?P<bands>\d+)x(?P<frames>\d+)p(?P<mels>\d+)x(?P<columns>\d+)(?:p(?P<khz>\d+)k)?"
)
OF_2022 = re.compile(r"-22\d{4}")
STATISTICS_2022 = (-7.1, 4.2)
N_MELS = 80
FRONT_ENDS = {
    16000: FrontEndConfig(n_mels=N_MELS),
    32000: FrontEndConfig(sample_rate=32000, n_fft=800, hop_length=320, n_mels=N_MELS, f_max=16000.0),
}


def recognise(names: Collection[str], file_name: str) -> bool:
    """A bare ViT with a class token, or one that a file or folder of the family's names."""
    for prefix in ("", *BACKBONES):
        if {f"{prefix}pos_embed", f"{prefix}patch_embed.proj.weight", f"{prefix}blocks.0.attn.qkv.weight"} <= set(
            names
        ):
            return f"{prefix}cls_token" in names or bool(NAME.search(file_name)) or "decoder_pos_embed" in names
    return False


def adapt(state: dict[str, Tensor], source: Path, asked: Asked) -> Adapted:
    """The online encoder."""
    if asked.encoder is not None:
        raise OptionError("--encoder is an option of the paper's files: an M2D file serves the one encoder it has")
    found, left_out = leave_out(_backbone(state), LEFT_OUT)
    statistics = found.pop("norm_stats", None)
    weights, shape = of_frequency_major(source, {name: tensor.float() for name, tensor in found.items()}, N_MELS)
    _join_biases(weights)
    name = named_after(source)
    rate, rate_note = _rate(name, asked)
    _check_name(source, name, shape["patch_mels"], shape["patch_frames"])
    mean, std, note = _statistics(name, statistics, asked)
    return Adapted(
        encoder=shape_of(weights, asked, **shape),
        weights=weights,
        front_end=replace(FRONT_ENDS[rate], mean=mean, std=std),
        notes=[rate_note, note],
        left_out=left_out,
    )


def _backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the ViT without what its runtime puts before them."""
    for prefix in BACKBONES:
        if f"{prefix}pos_embed" in state:
            return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def _join_biases(weights: dict[str, Tensor]) -> None:
    """MSM-MAE keeps the biases of queries and values apart, and has none of keys."""
    for name in [name for name in weights if name.endswith(".attn.q_bias")]:
        block = name.removesuffix("q_bias")
        query, value = weights.pop(name), weights.pop(f"{block}v_bias")
        weights[f"{block}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])


def _rate(name: str, asked: Asked) -> tuple[int, str]:
    """Sample rate in Hz, and where it comes from: nothing in the tensors tells."""
    found = NAME.search(name)
    if found is None and asked.sample_rate is None:
        raise OptionError(
            f"say --sample-rate 16000 or 32000: neither tensors nor the name {name} tell. "
            "The published folders are named like m2d_vit_base-80x608p16x16-220930-mr7: keep the name"
        )
    told = None if found is None else 1000 * int(found["khz"] or 16)
    rate = asked.sample_rate or told
    if rate not in FRONT_ENDS or told not in (None, rate):
        raise OptionError(f"--sample-rate is {rate}: it must be 16000 or 32000, and what the name {name} tells")
    return rate, f"{rate} Hz: " + ("as asked" if asked.sample_rate else f"the name {name} tells")


def _check_name(source: Path, name: str, patch_mels: int, patch_frames: int) -> None:
    found = NAME.search(name)
    if found and (int(found["mels"]), int(found["columns"])) != (patch_mels, patch_frames):
        raise CheckpointError(
            f"{source} is named as a model with patches of {found['mels']}×{found['columns']}, and holds one of "
            f"{patch_mels}×{patch_frames}: it has the name of another file"
        )


def _statistics(name: str, stored: Tensor | None, asked: Asked) -> tuple[float, float, str]:
    if stored is not None:
        return standardisation(asked, (float(stored[0]), float(stored[1])), "norm_stats of the file")
    if OF_2022.search(name):
        return standardisation(asked, STATISTICS_2022, "those of M2D's models of 2022, as its own code takes them")
    return standardisation(
        asked, None, "the file holds none. M2D's models of 2022, and AudioSet heard at 16 kHz, have -7.1 and 4.2"
    )
