"""The joint-embedding predictive architecture: the paper's figure 2 as one module, and its parts."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hear_jepa.errors import OptionError
from hear_jepa.model.vit import Block, ViT, ViTConfig, initialise, patchify, sine_cosine_positions, take
from hear_jepa.options import within
from hear_jepa.train.losses import LOSSES, REGULARISERS, LossConfig, Pass, normalise
from hear_jepa.train.masking import Mask


@dataclass(frozen=True)
class TargetConfig:
    """How targets are made."""

    domain: Literal["input", "latent"] = "input"
    """input: the target encoder sees only the target patches; latent: all, and targets are picked from its output."""
    top_layers: int = 1
    """1: the output of the last layer (the paper); K > 1: the mean of the normalised outputs of the last K blocks."""
    centre: bool = False
    """Subtract from every target the running mean of its position, so that only the sound is left to predict."""
    loss_on: Literal["hidden", "all"] = "hidden"
    """Patches that the loss is taken over. hidden: the target patches; all: in the latent domain those of the context
    too, as in the authors' code. The input domain has targets for hidden patches only."""
    frozen_from: Path | None = None
    """Take targets from the encoder of this checkpoint, a file or a shipped model's name, which never changes; none:
    from the moving average of the context encoder (the paper). Mean and standard deviation of the log-mel are the
    checkpoint's."""


@dataclass(frozen=True)
class PredictorConfig:
    """Architecture of the predictor: a narrow transformer with a learned mask token."""

    width: int = 512
    """Width of its tokens (the paper: 512)."""
    depth: int = within(8, 1)
    """Transformer blocks (the paper: 8)."""
    heads: int = 16
    """Attention heads (the paper: 16)."""


class Prediction(NamedTuple):
    """What one pass gives: the loss, and what it compares ([N, K, D], detached)."""

    loss: Tensor
    predicted: Tensor
    target: Tensor


class JEPA(nn.Module):
    """Context encoder, predictor, and target encoder: the context encoder's moving average, or a frozen one."""

    def __init__(
        self,
        encoder: ViTConfig,
        predictor: PredictorConfig,
        target: TargetConfig,
        loss: LossConfig,
        random_patch_bias: bool = False,
        frozen_target: ViT | None = None,
    ):
        super().__init__()
        self.target_config, self.loss_config = target, loss
        self.distance = LOSSES[loss.kind]
        self.regularisers = [(REGULARISERS[name], weight) for name, weight in loss.regularisers]
        self.context_encoder = ViT(encoder)
        if random_patch_bias:
            initialise_as_convolution(self.context_encoder.patch_embed.proj)
        target_config = frozen_target.config if frozen_target else encoder
        self.predictor = Predictor(predictor, encoder, target_config.width, [name for name, _ in loss.regularisers])
        self.target_encoder = frozen_target or copy.deepcopy(self.context_encoder).requires_grad_(False)
        if not 1 <= target.top_layers <= target_config.depth:
            raise OptionError(
                f"--target.top-layers is {target.top_layers}: the target encoder has {target_config.depth} layers"
            )
        self.frozen = frozen_target is not None
        self.position_mean = PositionMean(encoder.n_patches, target_config.width) if target.centre else None

    def forward(self, log_mel: Tensor, mask: Mask) -> Prediction:
        """log_mel [N, mels, frames]; mask [M, N, K], M masks of every crop."""
        config, times = self.context_encoder.config, len(mask.target)
        mask = Mask(mask.context.flatten(0, 1), mask.target.flatten(0, 1))  # [M·N, K]
        both = torch.cat([mask.context, mask.target], dim=1)  # [M·N, Kc + Kt]
        scored = both if self._scores_context else mask.target  # [M·N, Ks]
        patches = patchify(log_mel, config.patch_mels, config.patch_frames)  # [N, P, patch]

        # The context encoder sees the context patches alone.
        masked = _repeat(patches, times)  # [M·N, P, patch]
        context = self.context_encoder(masked, mask.context)  # [M·N, Kc, D]
        # From them and the places of the targets, the predictor tells the target encoder's embeddings.
        tokens = self.predictor(context, mask.context, mask.target)  # [M·N, Kc + Kt, width]
        predicted = self.predictor.head(tokens[:, -scored.shape[1] :])  # [M·N, Ks, D]
        # The target encoder gives them, without a gradient.
        target, clip_target = self.targets(patches, mask, scored)  # [M·N, Ks, D], [M·N, D]
        # The loss is the distance of the two, and whatever else is asked for.
        step = Pass(take(masked, both), context, self.predictor.further(tokens), clip_target)
        with torch.autocast(log_mel.device.type, enabled=False):  # its products are of float32 too
            loss = self.distance(predicted, target)
            for regulariser, weight in self.regularisers:
                loss = loss + weight * regulariser(step)
        return Prediction(loss, predicted.detach(), target)

    @torch.no_grad()
    def targets(self, patches: Tensor, mask: Mask, scored: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the scored patches [M·N, Ks] by the target encoder, [M·N, Ks, D], normalised where configured;
        and the mean of all that it gave for the crop [M·N, D]. Masks are [M·N, K]."""
        top, depth = self.target_config.top_layers, self.target_encoder.config.depth
        layers = range(depth - top + 1, depth + 1)
        latent = self.target_config.domain == "latent"
        times = len(scored) // len(patches)
        if latent:  # it sees everything, once for all masks of a crop
            outputs = self.target_encoder(patches, None, layers)
        else:  # it sees the targets alone, so every mask needs its own pass
            outputs = self.target_encoder(_repeat(patches, times), mask.target, layers)
        output = outputs[0] if top == 1 else _mean_of_normalised(outputs)
        if latent:
            output = _repeat(output, times)
        target = take(output, scored) if latent else output
        if self.position_mean is not None:
            target = self.position_mean(target, scored)
        return normalise(target) if self.loss_config.normalise_target else target, output.mean(dim=1)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    @property
    def encoders(self) -> dict[str, ViT]:
        """The encoders that this run makes, by name."""
        trained = {"context": self.context_encoder}
        return trained if self.frozen else trained | {"target": self.target_encoder}

    @torch.no_grad()
    def update_target(self, ema_momentum: float) -> None:
        """target ← m · target + (1 - m) · context, over parameters and buffers (paper, eq. 2); a frozen one stays."""
        if not self.frozen:
            target, context = _tensors(self.target_encoder), _tensors(self.context_encoder)
            torch._foreach_lerp_(target, context, 1 - ema_momentum)  # pyright: ignore[reportPrivateImportUsage]

    def update_position_mean(self, step_taken: bool) -> None:
        """Take the step's targets into the running mean of every position, or forget a step that was not taken."""
        if self.position_mean is not None:
            self.position_mean.update() if step_taken else self.position_mean.forget()

    @property
    def _scores_context(self) -> bool:
        return self.target_config.loss_on == "all" and self.target_config.domain == "latent"


class Predictor(nn.Module):
    """Transformer over the context tokens and one mask token for each target, and heads on its tokens.

    `head` gives the predicted embeddings; the `heads` serve the further terms of the loss that need one.
    """

    pos_embed: Tensor

    def __init__(
        self, config: PredictorConfig, encoder: ViTConfig, target_width: int, regularisers: Sequence[str] = ()
    ):
        super().__init__()
        self.embed = nn.Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.empty(config.width).normal_(std=0.02))
        positions = sine_cosine_positions(encoder.n_freq_patches, encoder.n_time_patches, config.width)
        self.register_buffer("pos_embed", positions, persistent=False)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, encoder.mlp_ratio, encoder.norm_eps) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=encoder.norm_eps)
        self.head = nn.Linear(config.width, target_width)
        sizes = {"reconstruction": encoder.patch_mels * encoder.patch_frames, "clip": target_width}
        self.heads = nn.ModuleDict(
            {name: nn.Linear(config.width, size) for name, size in sizes.items() if name in regularisers}
        )
        self.apply(initialise)

    def forward(self, context: Tensor, context_indices: Tensor, target_indices: Tensor) -> Tensor:
        """context [N, Kc, D] at tokens [N, Kc], targets at tokens [N, Kt] -> [N, Kc + Kt, width], context first."""
        seen = self.embed(context) + take(self.pos_embed, context_indices)
        hidden = self.mask_token + take(self.pos_embed, target_indices)
        x = torch.cat([seen, hidden.to(seen.dtype)], dim=1)  # [N, Kc + Kt, width]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def further(self, tokens: Tensor) -> dict[str, Tensor]:
        """What the further heads give for the tokens [N, K, width], by their names."""
        return {name: head(tokens) for name, head in self.heads.items()}


class PositionMean(nn.Module):
    """Running mean of the target embeddings at each position of the grid.

    Target encoders repeat the position in every embedding, and a predictor that knows the position earns most of its
    loss with it. Less this mean, a target is what the sound makes of it (cf. the centring of DINO, Caron et al. 2021,
    section 3.1, there over all tokens).
    """

    mean: Tensor
    seen: Tensor
    sums: Tensor
    counts: Tensor

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


def initialise_as_convolution(linear: nn.Linear) -> None:
    """Draw the bias as torch's convolution does, evenly from ± 1 / sqrt(inputs): that of the authors' patches."""
    nn.init.uniform_(linear.bias, -(linear.in_features**-0.5), linear.in_features**-0.5)


def _mean_of_normalised(layers: Sequence[Tensor]) -> Tensor:
    """Mean of [N, P, D] tensors, each after a LayerNorm without parameters."""
    total, *others = (F.layer_norm(x.float(), x.shape[-1:]) for x in layers)
    for other in others:
        total = total + other
    return total / len(layers)


def _repeat(per_crop: Tensor, times: int) -> Tensor:
    """[N, …] -> [M·N, …] for the M masks of every crop."""
    return per_crop if times == 1 else per_crop.repeat(times, *[1] * (per_crop.dim() - 1))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
