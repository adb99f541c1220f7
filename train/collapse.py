"""What tells learning from collapse: deviation and rank of the embeddings."""

import logging
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hear_jepa.model.vit import ViT, patchify

if TYPE_CHECKING:
    from hear_jepa.train.metrics_log import MetricsLog

log = logging.getLogger(__name__)

COLLAPSED_STD = 0.02  # of embeddings that a LayerNorm has brought to order one
COLLAPSED_RANK_SHARE = 0.03  # RankMe as a share of the width


def watch_collapse(encoders: dict[str, ViT], log_mel: Tensor, step: int, metrics: "MetricsLog") -> None:
    """Write the statistics of every encoder on crops [N, mels, frames], and warn of one that has collapsed."""
    for name, encoder in encoders.items():
        statistics = collapse_statistics(encoder, log_mel)
        metrics.write(step, {f"{name}/{key}": value for key, value in statistics.items()})
        if is_collapsed(statistics, encoder.config.width):
            metrics.write(step, {f"{name}/collapsed": 1.0})
            log.warning("step %d: the %s encoder has collapsed: %s", step, name, statistics)


@torch.no_grad()
def collapse_statistics(encoder: ViT, log_mel: Tensor) -> dict[str, float]:
    """Statistics of the embeddings of whole crops [N, mels, frames].

    std: mean over the dimensions of their standard deviation over crops and positions; content_std: the same less each
    position's mean; rank_me: effective rank of the latter, at most the width; position_share: share of the variance
    that the position explains.
    """
    training = encoder.training
    patch = encoder.config.patch_mels, encoder.config.patch_frames
    embeddings = encoder.eval()(patchify(log_mel, *patch)).float()  # [N, P, D]
    encoder.train(training)
    tokens = embeddings.flatten(0, 1)
    content = without_positions(embeddings).flatten(0, 1)
    return {
        "std": float(tokens.std(dim=0).mean()),
        "content_std": float(content.std(dim=0).mean()),
        "rank_me": rank_me(content[:: max(1, len(content) // 2000)]),
        "position_share": float(1 - content.var(dim=0).sum() / tokens.var(dim=0).sum().clamp_min(1e-12)),
    }


def is_collapsed(statistics: dict[str, float], width: int) -> bool:
    """Whether embeddings hardly differ from clip to clip, or differ in a few directions only."""
    return statistics["content_std"] < COLLAPSED_STD or statistics["rank_me"] < COLLAPSED_RANK_SHARE * width


def without_positions(embeddings: Tensor) -> Tensor:
    """Embeddings [N, P, D] less the mean of each position over the crops.

    The encoder knows the positions; one that repeats them and ignores the sound has collapsed, and only this shows it.
    """
    return embeddings - embeddings.mean(dim=0, keepdim=True)


def rank_me(embeddings: Tensor) -> float:
    """Effective rank of [n, D]: exp of the entropy of the normalised singular values (Garrido et al. 2023, eq. 1)."""
    singular = torch.linalg.svdvals(embeddings.cpu().double())  # Apple's GPUs have no float64
    share = singular / singular.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def cosine(predicted: Tensor, target: Tensor) -> float:
    """Mean cosine of predictions and targets [N, K, D]."""
    return float(F.cosine_similarity(predicted.float(), target.float(), dim=-1).mean())
