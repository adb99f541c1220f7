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

    def __init__(self, config: PredictorConfig, encoder: ViTConfig, reconstructs: bool = False):
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
        patch_size = encoder.patch_mels * encoder.patch_frames
        self.reconstruction = nn.Linear(config.width, patch_size) if reconstructs else None
        self.apply(initialise)

    def forward(self, context: Tensor, context_indices: Tensor, target_indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """context [N, Kc, D] at tokens [N, Kc]; targets at tokens [N, Kt] -> predictions [N, Kt, D], and the log-mel of
        the patches, context first [N, Kc + Kt, patch], or None."""
        n_context = context.shape[1]
        seen = self.embed(context) + take(self.pos_embed, context_indices)
        hidden = self.mask_token + take(self.pos_embed, target_indices)
        x = torch.cat([seen, hidden.to(seen.dtype)], dim=1)  # [N, Kc + Kt, width]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, n_context:]), None if self.reconstruction is None else self.reconstruction(x)


class MeanPredictor(nn.Module):
    """No predictor at all: the mean of the context, for every target. Collapses by design; the monitor must see it."""

    def forward(self, context: Tensor, context_indices: Tensor, target_indices: Tensor) -> tuple[Tensor, None]:
        """context [N, Kc, D] -> [N, Kt, D]."""
        return context.mean(dim=1, keepdim=True).expand(-1, target_indices.shape[1], -1), None


def build_predictor(config: PredictorConfig, encoder: ViTConfig, reconstructs: bool = False) -> nn.Module:
    """The configured predictor; `MeanPredictor` where its depth is 0."""
    return Predictor(config, encoder, reconstructs) if config.depth else MeanPredictor()
