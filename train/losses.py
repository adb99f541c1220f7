"""Losses and what is done to their inputs: pure functions of [N, K, D] embeddings, computed in float32."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossConfig:
    """What the prediction is held to."""

    kind: Literal["smooth-l1", "mse", "cosine"] = "smooth-l1"
    """Distance between prediction and target (the paper: smooth L1 with beta 1)."""
    normalise_target: bool = True
    """Standardise every target over its width (the paper: yes)."""
    reconstruction_weight: float = 0.0
    """Weight of the reconstruction of the log-mel of every patch, context and targets, from the predictor (0: off)."""
    variance_weight: float = 0.0
    """Weight of VICReg's variance term on the context embeddings (0: off)."""
    covariance_weight: float = 0.0
    """Weight of VICReg's covariance term on the context embeddings (0: off)."""


def normalise(target: Tensor) -> Tensor:
    """(t - mean) / sqrt(var + 1e-6) over the width, the variance unbiased (MAE's pixel norm, as in the paper)."""
    target = target.float()
    return (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def prediction_loss(prediction: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean distance of [N, K, D] predictions to targets of the same shape."""
    prediction, target = prediction.float(), target.float()
    if kind == "smooth-l1":
        return F.smooth_l1_loss(prediction, target, beta=1.0)
    if kind == "mse":
        return F.mse_loss(prediction, target)
    return 1 - F.cosine_similarity(prediction, target, dim=-1).mean()


def variance_covariance(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """VICReg (Bardes et al. 2022, eq. 1-4): hinge on each dimension's deviation, and mean squared covariance off it.

    embeddings [N, K, D]: every token is a sample.
    """
    z = embeddings.float().flatten(0, 1)
    z = z - z.mean(dim=0)
    variance = F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()
    covariance = z.T @ z / (len(z) - 1)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    return variance, off_diagonal.square().sum() / z.shape[1]
