"""The Vision Transformer on log-mel patches (paper, section 3.1).

Tokens are in time-major order: the patch in column `t` and frequency row `f` is token `t · n_freq_patches + f`, so a
shorter recording uses a prefix of the positions, and the patches of one column lie side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from hear_jepa.errors import OptionError

PATCH = 16  # mel bands and frames of a patch


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of an encoder. `n_time_patches` is the trained duration: 13 columns of 160 ms are 2.08 s."""

    width: int = 192
    depth: int = 12
    heads: int = 3
    n_freq_patches: int = 5
    n_time_patches: int = 13
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-5
    class_token: bool = False  # some foreign checkpoints carry one; it is attended to and never served

    @property
    def n_patches(self) -> int:
        """Patches of the trained duration."""
        return self.n_freq_patches * self.n_time_patches


SIZES = {  # name: (width, depth, heads)
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}


def patchify(log_mel: Tensor) -> Tensor:
    """[N, mels, frames] -> [N, T·F, 256]: 16×16 patches, flattened band by band; both sizes multiples of 16."""
    rows, columns = log_mel.shape[1] // PATCH, log_mel.shape[2] // PATCH
    grid = log_mel.unflatten(1, (rows, PATCH)).unflatten(3, (columns, PATCH))  # [N, F, 16, T, 16]
    return grid.permute(0, 3, 1, 2, 4).reshape(len(log_mel), columns * rows, PATCH * PATCH)


def sine_cosine_positions(n_freq: int, n_time: int, width: int) -> Tensor:
    """Fixed 2-D positions [n_time · n_freq, width]: half of the width encodes the column, half the frequency row."""
    if width % 4:
        raise OptionError(f"the width must be a multiple of 4 for 2-D positions, not {width}")
    counting = torch.arange(max(n_freq, n_time, width), dtype=torch.float64, device="cpu")  # also in a model on meta
    frequencies = 10000.0 ** -(counting[: width // 4] / (width // 4))

    def encode(positions: Tensor) -> Tensor:
        angles = positions[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    time = encode(counting[:n_time]).repeat_interleave(n_freq, dim=0)
    freq = encode(counting[:n_freq]).repeat(n_time, 1)
    return torch.cat([time, freq], dim=1).float()


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Pick tokens: [N, P, D] or [P, D] with indices [N, K] or [K] -> [N, K, D] or [K, D]."""
    if indices.dim() == 1:
        return tokens[..., indices, :]
    if tokens.dim() == 2:
        return tokens[indices]
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class Attention(nn.Module):
    """Multi-head self-attention [N, P, D] -> [N, P, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise OptionError(f"the width {width} is not a multiple of the number of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, H, P, D/H]
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, norm_eps: float = 1e-5):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Linear projection of the flattened patches, kept under the field's usual name `proj`."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Linear(PATCH * PATCH, width)

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(patches)


def initialise(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero biases, as in MAE."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class ViT(nn.Module):
    """Encoder of patches. Positions are fixed, and stored with the weights."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config.width)
        positions = sine_cosine_positions(config.n_freq_patches, config.n_time_patches, config.width)
        self.register_buffer("pos_embed", positions)  # [T·F, D]
        self.class_token = nn.Parameter(torch.zeros(config.width)) if config.class_token else None
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, config.norm_eps) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.gradient_checkpointing = False
        self.apply(initialise)

    def forward(
        self, patches: Tensor, indices: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Encode the patches that `indices` names, or all.

        patches: [N, P, 256] from `patchify`, P at most the trained number; indices: [K] or [N, K] of tokens.
        Returns the last layer, after the final LayerNorm, [N, K, D]. With `layers` (1 … depth), a list with the
        output of each: the last one as above, earlier ones after a LayerNorm without parameters.
        """
        n_patches = patches.shape[1]
        if n_patches > len(self.pos_embed):
            raise ValueError(f"{n_patches} patches are more than the trained {len(self.pos_embed)}: cut into windows")
        positions = self.pos_embed[:n_patches]
        if indices is not None:  # hidden patches are never computed
            patches, positions = take(patches, indices), take(positions, indices)
        x = self.patch_embed(patches) + positions
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1).to(x.dtype), x], dim=1)
        wanted = set(layers or ())
        outputs = {}
        for number, block in enumerate(self.blocks, start=1):
            x = recompute(block, x, use_reentrant=False) if self._recomputes() else block(x)
            if number in wanted and number < len(self.blocks):
                outputs[number] = self._without_class(F.layer_norm(x, x.shape[-1:]))
        last = self._without_class(self.norm(x))
        outputs[len(self.blocks)] = last
        return [outputs[number] for number in layers] if layers is not None else last

    def _recomputes(self) -> bool:
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()

    def _without_class(self, x: Tensor) -> Tensor:
        return x if self.class_token is None else x[:, 1:]
