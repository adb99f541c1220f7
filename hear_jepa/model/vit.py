"""The Vision Transformer on log-mel patches (paper, section 3.1).

Tokens are in time-major order: the patch in column `t` and frequency row `f` is token `t · n_freq_patches + f`, so a
shorter recording uses a prefix of the positions, and the patches of one column lie side by side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from hear_jepa.device import copied
from hear_jepa.errors import OptionError
from hear_jepa.options import check_fields, one_of, within

ROTARY_BASE = 10_000.0
AXIAL_RESOLUTION = 224  # of the image for which the frequencies of "rotary-both" were made


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of an encoder. `n_time_patches` is the trained duration: 13 columns of 160 ms are 2.08 s."""

    width: int = within(192, 1, 2**14)
    depth: int = within(12, 1, 256)
    heads: int = within(3, 1, 1024)
    n_freq_patches: int = within(5, 1, 1024)
    n_time_patches: int = within(13, 1, 2**14)
    mlp_ratio: float = within(4.0, 1e-3, 64)
    norm_eps: float = within(1e-5, 1e-12, 0.1)
    class_token: bool = False  # some foreign checkpoints carry one; it is attended to and never served
    patch_mels: int = within(16, 1, 1024)  # mel bands of a patch
    patch_frames: int = within(16, 1, 1024)  # frames of a patch
    # the paper's, of both axes; or absolute in frequency, relative in time; or relative in both
    positions: str = one_of("sine-cosine", ("sine-cosine", "rotary-time", "rotary-both"))
    gated_mlp: bool = False  # SwiGLU, of which a gate is the first half of a layer twice as wide
    qk_norm: bool = False  # a LayerNorm of each head's queries, and of its keys
    patch_norm: bool = False  # a LayerNorm after the projection of patches

    def __post_init__(self):
        check_fields(self)
        if self.width % self.heads:
            raise OptionError(f"heads is {self.heads}: the width {self.width} must be a multiple of it")

    @property
    def n_patches(self) -> int:
        return self.n_freq_patches * self.n_time_patches

    @property
    def fits_any_window(self) -> bool:
        """Whether it may serve other durations than the trained one: positions along time are relative, in columns."""
        return self.positions == "rotary-time"


def patchify(log_mel: Tensor, patch_mels: int = 16, patch_frames: int = 16) -> Tensor:
    """[N, mels, frames] -> [N, T·F, patch]: time-major patches, each flattened band by band.

    mels and frames must be multiples of the patch's sides.
    """
    return (
        log_mel.unflatten(2, (-1, patch_frames))  # [N, mels, T, frames of a patch]
        .unflatten(1, (-1, patch_mels))  # [N, F, mels of a patch, T, frames of a patch]
        .permute(0, 3, 1, 2, 4)
        .flatten(3)
        .flatten(1, 2)
    )


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


def frequency_positions(n_freq: int, n_time: int, width: int) -> Tensor:
    """Fixed positions of the frequency row alone [n_time · n_freq, width], the same in every column."""
    return sine_cosine_positions(1, n_freq, 2 * width)[:, :width].repeat(n_time, 1)


def rotary_angles(n_freq: int, n_time: int, head_width: int) -> Tensor:
    """Angles [n_time · n_freq, head_width / 2] by which a token's queries and keys are turned (Su et al. 2021, eq. 15).

    They grow with the column, so attention sees how far apart two columns are, and never where they lie.
    """
    if head_width % 2:
        raise OptionError(f"rotary positions need heads of an even width, not {head_width}")
    counting = torch.arange(max(n_time, head_width), dtype=torch.float64, device="cpu")  # also in a model on meta
    frequencies = ROTARY_BASE ** -(counting[: head_width // 2] / (head_width // 2))
    return (counting[:n_time, None] * frequencies).repeat_interleave(n_freq, dim=0).float()


def axial_angles(n_freq: int, n_time: int, head_width: int) -> Tensor:
    """Angles [n_time · n_freq, head_width / 2], of which half grow with the column, and half with the frequency row.

    Both axes go from -1 to 1, the columns over the trained duration, as image models count them.
    """
    if head_width % 4:
        raise OptionError(f"rotary positions of two axes need heads of a multiple of 4, not {head_width}")
    top = math.log2(AXIAL_RESOLUTION) - 1
    frequencies = math.pi * 2 ** torch.linspace(0, top, head_width // 4, dtype=torch.float64, device="cpu")

    def turn(n_places: int) -> Tensor:
        return torch.linspace(-1, 1, n_places, dtype=torch.float64, device="cpu")[:, None] * frequencies

    return torch.cat([turn(n_time).repeat_interleave(n_freq, dim=0), turn(n_freq).repeat(n_time, 1)], dim=1).float()


POSITIONS = {  # added to the patches
    "sine-cosine": sine_cosine_positions,
    "rotary-time": frequency_positions,
    "rotary-both": lambda n_freq, n_time, width: torch.zeros(n_time * n_freq, width),
}
ANGLES = {"rotary-time": rotary_angles, "rotary-both": axial_angles}  # by which attention turns them


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs (first half, second half) of x [N, H, P, D/H] by angles of which cosine and sine are given."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Pick tokens: [N, P, D] or [P, D] with indices [N, K] or [K] -> [N, K, D] or [K, D]."""
    if indices.dim() == 1:
        return tokens[..., indices, :]
    if tokens.dim() == 2:
        return tokens[indices]
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class Attention(nn.Module):
    """Multi-head self-attention [N, P, D] -> [N, P, D]."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False):
        super().__init__()
        if width % heads:
            raise OptionError(f"the width {width} is not a multiple of the number of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """rotation: cosine and sine of each token's angles, [P, D/2H] or [N, 1, P, D/2H]; visible: bool [N, P], the
        tokens that may be attended to."""
        queries, keys, values = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, H, P, D/H]
        queries, keys = self.q_norm(queries), self.k_norm(keys)
        if rotation is not None:
            queries, keys = rotate(queries, *rotation), rotate(keys, *rotation)
        mask = None if visible is None else visible[:, None, None]
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between, or with a gate of a SiLU (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, gated: bool = False):
        super().__init__()
        self.gated = gated
        self.fc1 = nn.Linear(width, 2 * hidden if gated else hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            return self.fc2(F.silu(gate) * x)
        return self.fc2(F.gelu(x))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-5,
        gated_mlp: bool = False,
        qk_norm: bool = False,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, qk_norm)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, int(width * mlp_ratio), gated_mlp)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None, visible: Tensor | None = None
    ) -> Tensor:
        x = x + self.attn(self.norm1(x), rotation, visible)
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Linear projection of the flattened patches, kept under the field's usual name `proj`."""

    def __init__(self, patch_size: int, width: int, norm: bool = False):
        super().__init__()
        self.proj = nn.Linear(patch_size, width)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(self, patches: Tensor) -> Tensor:
        return self.norm(self.proj(patches))


def initialise(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero biases, as in MAE."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class ViT(nn.Module):
    """Encoder of patches. Positions are fixed, and stored with the weights."""

    pos_embed: Tensor  # [T·F, D]

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        n_freq, n_time, width = config.n_freq_patches, config.n_time_patches, config.width
        positions = POSITIONS[config.positions](n_freq, n_time, width)
        self.patch_embed = PatchEmbedding(config.patch_mels * config.patch_frames, width, config.patch_norm)
        self.register_buffer("pos_embed", positions)  # [T·F, D]
        self.class_token = nn.Parameter(torch.zeros(width)) if config.class_token else None
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, config.norm_eps, config.gated_mlp, config.qk_norm)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.gradient_checkpointing = False
        self.apply(initialise)

    def forward(
        self,
        patches: Tensor,
        indices: Tensor | None = None,
        layers: Sequence[int] | None = None,
        visible: Tensor | None = None,
    ) -> Tensor | list[Tensor]:
        """Encode the patches that `indices` names, or all.

        patches: [N, P, patch] from `patchify`, P at most the trained number; indices: [K] or [N, K] of tokens;
        visible: bool [N, P] of tokens that the others may attend to (all of them without it).
        Returns the last layer, after the final LayerNorm, [N, K, D]. With `layers` (0 … depth; 0: the embedded patches
        before the first block), a list with the output of each: the last one as above, earlier ones after a LayerNorm
        without parameters.
        """
        n_patches = patches.shape[1]
        if n_patches > len(self.pos_embed):
            raise ValueError(f"{n_patches} patches are more than the trained {len(self.pos_embed)}: cut into windows")
        positions = self.pos_embed[:n_patches]
        rotation = self._rotation(n_patches, indices)
        if indices is not None:  # hidden patches are never computed
            patches, positions = take(patches, indices), take(positions, indices)
        x = self.patch_embed(patches) + positions
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], 1, -1).to(x.dtype), x], dim=1)
            visible = None if visible is None else F.pad(visible, (1, 0), value=True)
        depth = len(self.blocks)
        wanted = [depth] if layers is None else layers
        outputs = {}
        for number in range(max(wanted) + 1):
            if number:
                block = self.blocks[number - 1]
                if self._recomputes():
                    x = recompute(block, x, rotation, visible, use_reentrant=False)
                else:
                    x = block(x, rotation, visible)
            if number in wanted:
                outputs[number] = self._without_class(
                    self.norm(x) if number == depth else F.layer_norm(x, x.shape[-1:])
                )
        return outputs[depth] if layers is None else [outputs[number] for number in layers]

    def _rotation(self, n_patches: int, indices: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine of the angles of the tokens encoded, [P, D/2H] or [N, 1, K, D/2H]; a class token has none."""
        config = self.config
        if config.positions not in ANGLES:
            return None
        angles = ANGLES[config.positions](config.n_freq_patches, config.n_time_patches, config.width // config.heads)
        angles = copied(angles, self.pos_embed.device)[:n_patches]
        angles = angles if indices is None else take(angles, indices)
        if self.class_token is not None:
            angles = F.pad(angles, (0, 0, 1, 0))
        if angles.dim() == 3:
            angles = angles[:, None]
        return angles.cos(), angles.sin()

    def _recomputes(self) -> bool:
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()

    def _without_class(self, x: Tensor) -> Tensor:
        return x if self.class_token is None else x[:, 1:]
