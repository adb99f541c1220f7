"""Taking out of the targets what their position alone explains."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class PositionMean(nn.Module):
    """Running mean of the target embeddings at each position of the grid.

    Target encoders repeat the position in every embedding, and a predictor that is told the position earns most of
    its loss with it. Less this mean, a target is what the sound makes of it (cf. the centring of DINO, Caron et al.
    2021, section 3.1, there over all tokens).
    """

    def __init__(self, n_patches: int, width: int, momentum: float = 0.99):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(n_patches, width))
        self.register_buffer("seen", torch.zeros(n_patches, dtype=torch.bool))

    @torch.no_grad()
    def forward(self, embeddings: Tensor, indices: Tensor) -> Tensor:
        """embeddings [N, K, D] at tokens [N, K] -> the same less the running mean, which takes them in first.

        The mean is over the crops of all ranks.
        """
        width = embeddings.shape[-1]
        sums = torch.zeros_like(self.mean).index_add_(0, indices.flatten(), embeddings.float().reshape(-1, width))
        counts = torch.bincount(indices.flatten(), minlength=len(self.mean)).to(sums.dtype)
        if dist.is_initialized():
            dist.all_reduce(sums)
            dist.all_reduce(counts)
        batch_mean = sums / counts.clamp_min(1)[:, None]
        weight = torch.where(self.seen, 1 - self.momentum, 1.0) * (counts > 0)
        self.mean.lerp_(batch_mean, weight[:, None])
        self.seen |= counts > 0
        return embeddings - self.mean[indices]
