"""The predictor: context embeddings and the places of the targets -> predicted target embeddings (paper, figure 2)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hear_jepa.model.vit import Block, ViTConfig, initialise, sine_cosine_positions, take


@dataclass(frozen=True)
class PredictorConfig:
    """Architecture of the predictor: a narrow transformer with a learned mask token."""

    width: int = 512
    """Width of its tokens (the paper: 512)."""
    depth: int = 8
    """Transformer blocks (the paper: 8). 0: no predictor, the mean of the context is the prediction; for tests."""
    heads: int = 16
    """Attention heads (the paper: 16)."""


class Predictor(nn.Module):
    """Transformer over the context tokens and one mask token for each target."""

    def __init__(self, config: PredictorConfig, encoder: ViTConfig):
        super().__init__()
        self.embed = nn.Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.empty(config.width).normal_(std=0.02))
        positions = sine_cosine_positions(encoder.n_freq_patches, encoder.n_time_patches, config.width)
        self.register_buffer("pos_embed", positions, persistent=False)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, encoder.mlp_ratio, encoder.norm_eps) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=encoder.norm_eps)
        self.head = nn.Linear(config.width, encoder.width)
        self.apply(initialise)

    def forward(self, context: Tensor, context_indices: Tensor, target_indices: Tensor) -> Tensor:
        """context [N, Kc, D] at tokens [N, Kc]; targets at tokens [N, Kt] -> predictions [N, Kt, D]."""
        n_context = context.shape[1]
        seen = self.embed(context) + take(self.pos_embed, context_indices)
        hidden = self.mask_token + take(self.pos_embed, target_indices)
        x = torch.cat([seen, hidden.to(seen.dtype)], dim=1)  # [N, Kc + Kt, width]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, n_context:]))


class MeanPredictor(nn.Module):
    """No predictor at all: the mean of the context, for every target. Collapses by design; the monitor must see it."""

    def forward(self, context: Tensor, context_indices: Tensor, target_indices: Tensor) -> Tensor:
        """context [N, Kc, D] -> [N, Kt, D]."""
        return context.mean(dim=1, keepdim=True).expand(-1, target_indices.shape[1], -1)


def build_predictor(config: PredictorConfig, encoder: ViTConfig) -> nn.Module:
    """The configured predictor; `MeanPredictor` where its depth is 0."""
    return Predictor(config, encoder) if config.depth else MeanPredictor()
