"""What the prediction is held to: distances, and further terms of the loss, all computed in float32.

`LOSSES` holds distances by name: functions (prediction, target), both [N, K, D] -> a scalar. `REGULARISERS` holds
terms that are added with a weight: functions of a `Pass` -> a scalar. A new one is one function in its table.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hear_jepa.options import check_name


@dataclass(frozen=True)
class LossConfig:
    """What the prediction is held to."""

    kind: str = "smooth-l1"
    """Distance between prediction and target: smooth-l1 with beta 1 (the paper), mse, cosine or info-nce."""
    normalise_target: bool = True
    """Standardise every target over its width (the paper: yes)."""
    regularisers: tuple[tuple[str, float], ...] = ()
    """Further terms and their weights, such as "reconstruction 0.3". reconstruction: of the log-mel of all patches from
    the predictor; clip: of the mean target of the crop; variance, covariance: VICReg's, of the context embeddings."""

    def __post_init__(self):
        check_name(self.kind, LOSSES, "--loss.kind")
        for name, _ in self.regularisers:
            check_name(name, REGULARISERS, "--loss.regularisers")


class Pass(NamedTuple):
    """What one forward pass gives the further terms; tokens of M·N masked crops, those of the context first."""

    patches: Tensor  # [M·N, Kc + Kt, patch], log-mel
    context: Tensor  # [M·N, Kc, D], embeddings of the context encoder
    heads: dict[str, Tensor]  # what the predictor's further heads give for every token [M·N, Kc + Kt, …]
    clip_target: Tensor  # [M·N, D], mean of what the target encoder gave for the crop


def normalise(target: Tensor) -> Tensor:
    """(t - mean) / sqrt(var + 1e-6) over the width, the variance unbiased (MAE's pixel norm, as in the paper)."""
    target = target.float()
    return (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1e-6).sqrt()


# -------------------------------------------------------------------- distances


def smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Half the square where the two differ by less than 1, else the absolute difference less a half."""
    return F.smooth_l1_loss(prediction.float(), target.float(), beta=1.0)


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(prediction.float(), target.float())


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - cosine of the angle between the two."""
    return 1 - F.cosine_similarity(prediction.float(), target.float(), dim=-1).mean()


def info_nce(prediction: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of the choice, among all targets of a micro-batch on all ranks, of the one that a prediction is
    for, by the cosine over a temperature of 0.1 (van den Oord et al. 2018, eq. 4; Baevski et al. 2020, eq. 3)."""
    predicted, targets = (F.normalize(x.float().flatten(0, -2), dim=-1) for x in (prediction, target))
    own = torch.arange(len(targets), device=targets.device)
    if dist.is_initialized():  # no gradient goes through targets
        everywhere = [torch.empty_like(targets) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, targets)
        own, targets = own + dist.get_rank() * len(targets), torch.cat(everywhere)
    return F.cross_entropy(predicted @ targets.T / 0.1, own)


LOSSES = {"smooth-l1": smooth_l1, "mse": mse, "cosine": cosine, "info-nce": info_nce}

# -------------------------------------------------------------------- further terms


def reconstruction(step: Pass) -> Tensor:
    """Squared error of the log-mel of every patch, context and targets, by the predictor's head of that name."""
    return F.mse_loss(step.heads["reconstruction"].float(), step.patches.float())


def clip(step: Pass) -> Tensor:
    """Smooth L1 between the mean of the head's outputs and the standardised mean of the crop's targets."""
    return smooth_l1(step.heads["clip"].mean(dim=1), normalise(step.clip_target))


def variance(step: Pass) -> Tensor:
    """VICReg's hinge on the standard deviation of each dimension (Bardes et al. 2022, eq. 1); tokens are samples."""
    z = step.context.float().flatten(0, 1)
    return F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()


def covariance(step: Pass) -> Tensor:
    """VICReg's mean squared covariance of different dimensions (Bardes et al. 2022, eq. 3-4); tokens are samples."""
    z = step.context.float().flatten(0, 1)
    z = z - z.mean(dim=0)
    products = z.T @ z / (len(z) - 1)
    off_diagonal = products - torch.diag(products.diagonal())
    return off_diagonal.square().sum() / z.shape[1]


REGULARISERS = {"reconstruction": reconstruction, "clip": clip, "variance": variance, "covariance": covariance}
