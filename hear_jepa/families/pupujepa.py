"""PupuJEPA (Gu et al. 2026): patches of 16 bands × 4 frames of 24 kHz sound, rotary positions along time and frequency.

Blocks with gated layers, and norms of queries and keys. Nothing in the file tells the trained duration, which is 1024
frames in all published models. Their frame `i` is centred 5 ms after ours.
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
from hear_jepa.model.front_end import FrontEndConfig

TITLE = "PupuJEPA"
ORIGIN = "https://github.com/sizigi/PupuJEPA"
LICENCE = "unknown"  # the code's is MIT
PREFIXES = {"context": "student.", "target": "teacher."}
MEAN_STD = (-4.089994845986366, 2.0242277159094813)
ROWS, COLUMNS, PATCH = 8, 256, (16, 4)
FRONT_END = FrontEndConfig(
    sample_rate=24000,
    n_fft=1024,
    hop_length=240,
    n_mels=128,
    f_min=0.0,
    f_max=12000.0,
    log_floor=1e-5,
    log_floor_by="clamping",
    spectrum="magnitude",
)


def recognise(names: Collection[str], file_name: str) -> bool:
    """A norm of patches beside a teacher."""
    return "patch_embed.norm_layer.weight" in names and "teacher.norm.weight" in names


def adapt(state: dict[str, Tensor], source: Path, asked: Asked) -> Adapted:
    """The teacher, as the authors serve it, or the student; their patches are the same."""
    served = asked.encoder or "target"
    prefix = PREFIXES[served]
    refuse_unknown(source, [n for n in state if not n.startswith(("patch_embed.", "predictor.", *PREFIXES.values()))])
    kernel = require(source, state, "patch_embed.proj.weight")  # [D, 1, frames, bands]
    if tuple(kernel.shape[1:]) != (1, *PATCH[::-1]):
        raise CheckpointError(f"{source}: its patches are not PupuJEPA's, of 16 bands × 4 frames")
    head_width = len(require(source, state, f"{prefix}blocks.0.attn.q_norm.weight"))
    weights = {name: _halves(name, tensor, head_width) for name, tensor in behind(state, prefix).items()}
    patches = behind(state, "patch_embed.")
    weights |= {
        **{f"patch_embed.{name.replace('norm_layer', 'norm')}": tensor for name, tensor in patches.items()},
        "patch_embed.proj.weight": kernel.float().transpose(2, 3).flatten(1),
        "pos_embed": torch.zeros(ROWS * COLUMNS, kernel.shape[0]),
    }
    mean, std, note = standardisation(asked, MEAN_STD, "those of PupuJEPA's own code; the file holds none")
    known = {"n_freq_patches": ROWS, "patch_mels": PATCH[0], "patch_frames": PATCH[1], "positions": "rotary-both"}
    encoder = shape_of(
        weights,
        replace(asked, heads=asked.heads or kernel.shape[0] // head_width),
        **known,
        gated_mlp=True,
        qk_norm=True,
        patch_norm=True,
    )
    return Adapted(
        encoder=encoder,
        weights=weights,
        front_end=replace(FRONT_END, mean=mean, std=std),
        served_encoder=served,
        notes=[f"the {'teacher' if served == 'target' else 'student'}", note],
        left_out=first_parts(name for name in state if not name.startswith((prefix, "patch_embed."))),
    )


def _halves(name: str, tensor: Tensor, head_width: int) -> Tensor:
    """Queries and keys as ours turn them: first the even rows of each head, then the odd ones."""
    if ".attn.q_norm." in name or ".attn.k_norm." in name:
        return torch.cat([tensor[::2], tensor[1::2]])
    if ".attn.qkv." not in name:
        return tensor
    heads = tensor.unflatten(0, (3, -1, head_width))  # [3, H, D/H, …]
    turned = torch.cat([heads[:2, :, ::2], heads[:2, :, 1::2]], dim=2)
    return torch.cat([turned, heads[2:]]).flatten(0, 2)
