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
        self.register_buffer("sums", torch.zeros(n_patches, width), persistent=False)  # of the step so far
        self.register_buffer("counts", torch.zeros(n_patches), persistent=False)

    @torch.no_grad()
    def forward(self, embeddings: Tensor, indices: Tensor) -> Tensor:
        """embeddings [N, K, D] at tokens [N, K] -> the same less the running mean; kept for `update`."""
        tokens = indices.flatten()
        self.sums.index_add_(0, tokens, embeddings.float().reshape(-1, embeddings.shape[-1]))
        self.counts += torch.bincount(tokens, minlength=len(self.mean))
        return embeddings - self.mean[indices]

    @torch.no_grad()
    def update(self) -> None:
        """Take the step's embeddings, those of all ranks and micro-batches, into the running mean."""
        if dist.is_initialized():
            dist.all_reduce(self.sums)
            dist.all_reduce(self.counts)
        weight = torch.where(self.seen, 1 - self.momentum, 1.0) * (self.counts > 0)
        self.mean.lerp_(self.sums / self.counts.clamp_min(1)[:, None], weight[:, None])
        self.seen |= self.counts > 0
        self.forget()

    def forget(self) -> None:
        """Drop the step's embeddings: the step was not taken."""
        self.sums.zero_()
        self.counts.zero_()
