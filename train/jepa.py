"""The joint-embedding predictive architecture: the paper's figure 2 as one module."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hear_jepa.errors import OptionError
from hear_jepa.model.vit import ViT, ViTConfig, patchify, take
from hear_jepa.train.centring import PositionMean
from hear_jepa.train.losses import LossConfig, normalise, prediction_loss, variance_covariance
from hear_jepa.train.masking import Mask
from hear_jepa.train.predictor import PredictorConfig, build_predictor


@dataclass(frozen=True)
class TargetConfig:
    """How targets are made."""

    domain: Literal["input", "latent"] = "input"
    """input: the target encoder sees only the target patches; latent: all, and targets are picked from its output."""
    top_layers: int = 1
    """1: the output of the last layer (the paper); K > 1: the mean of the normalised outputs of the last K blocks."""
    centre: bool = False
    """Subtract from every target the running mean of its position, so that only the sound is left to predict."""


class Prediction(NamedTuple):
    """What one pass gives: the loss, and what the monitor looks at ([N, K, D], detached)."""

    loss: Tensor
    predicted: Tensor
    target: Tensor
    context: Tensor


class JEPA(nn.Module):
    """Context encoder, target encoder (its moving average) and predictor."""

    def __init__(self, encoder: ViTConfig, predictor: PredictorConfig, target: TargetConfig, loss: LossConfig):
        super().__init__()
        if not 1 <= target.top_layers <= encoder.depth:
            raise OptionError(f"--target.top-layers is {target.top_layers}: the encoder has {encoder.depth} layers")
        self.target_config, self.loss_config = target, loss
        self.context_encoder = ViT(encoder)
        self.predictor = build_predictor(predictor, encoder, loss.reconstruction_weight > 0)
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)
        self.position_mean = PositionMean(encoder.n_patches, encoder.width) if target.centre else None

    def forward(self, log_mel: Tensor, mask: Mask) -> Prediction:
        """log_mel [N, mels, frames]; a mask for each crop, or several: masks m·N … m·N + N - 1 are the m-th of each."""
        config = self.context_encoder.config
        patches = patchify(log_mel, config.patch_mels, config.patch_frames)
        target = self.targets(patches, mask)  # [M·N, Kt, D]
        context = self.context_encoder(_repeat(patches, mask), mask.context)  # [M·N, Kc, D]
        predicted, reconstruction = self.predictor(context, mask.context, mask.target)  # [M·N, Kt, D]
        loss = prediction_loss(predicted, target, self.loss_config.kind)
        if reconstruction is not None:
            seen = take(_repeat(patches, mask), torch.cat([mask.context, mask.target], dim=1))
            loss = loss + self.loss_config.reconstruction_weight * F.mse_loss(reconstruction.float(), seen.float())
        loss = loss + self._regulariser(context)
        return Prediction(loss, predicted.detach(), target, context.detach())

    @torch.no_grad()
    def targets(self, patches: Tensor, mask: Mask) -> Tensor:
        """Embeddings of the target patches [M·N, Kt, D] by the target encoder, normalised where configured."""
        top = self.target_config.top_layers
        depth = self.target_encoder.config.depth
        layers = range(depth - top + 1, depth + 1)
        if self.target_config.domain == "input":  # it sees the targets alone, so every mask needs its own pass
            outputs = self.target_encoder(_repeat(patches, mask), mask.target, layers)
        else:  # it sees everything, once for all masks of a crop
            outputs = self.target_encoder(patches, None, layers)
        target = outputs[0] if top == 1 else sum(F.layer_norm(x.float(), x.shape[-1:]) for x in outputs) / top
        if self.target_config.domain == "latent":
            target = take(_repeat(target, mask), mask.target)
        if self.position_mean is not None:
            target = self.position_mean(target, mask.target)
        return normalise(target) if self.loss_config.normalise_target else target

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Named parameters of the context encoder and the predictor."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """target ← momentum · target + (1 - momentum) · context, over parameters and buffers (paper, eq. 2)."""
        target, context = _tensors(self.target_encoder), _tensors(self.context_encoder)
        torch._foreach_lerp_(target, context, 1 - momentum)
        if self.position_mean is not None:
            self.position_mean.update()

    def skip_update(self) -> None:
        """Forget a step that was not taken."""
        if self.position_mean is not None:
            self.position_mean.forget()

    def _regulariser(self, context: Tensor) -> Tensor | float:
        config = self.loss_config
        if not (config.variance_weight or config.covariance_weight):
            return 0.0
        variance, covariance = variance_covariance(context)
        return config.variance_weight * variance + config.covariance_weight * covariance


def _repeat(per_crop: Tensor, mask: Mask) -> Tensor:
    """[N, …] -> [M·N, …] for the M masks of every crop."""
    times = len(mask.target) // len(per_crop)
    return per_crop if times == 1 else per_crop.repeat(times, *[1] * (per_crop.dim() - 1))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
