"""What tells learning from collapse: deviation and rank of the embeddings, and an online probe."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hear_jepa.model.checkpoint import Checkpoint, ServedConfig
from hear_jepa.model.embedder import Embedder
from hear_jepa.model.front_end import FrontEndConfig
from hear_jepa.model.vit import ViT, patchify

log = logging.getLogger(__name__)

COLLAPSED_STD = 0.02  # of embeddings that a LayerNorm has brought to order one
COLLAPSED_RANK_SHARE = 0.03  # RankMe as a share of the width


def rank_me(embeddings: Tensor) -> float:
    """Effective rank of [n, D]: exp of the entropy of the normalised singular values (Garrido et al. 2023, eq. 1)."""
    singular = torch.linalg.svdvals(embeddings.cpu().double())  # Apple's GPUs have no float64
    share = singular / singular.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def content(embeddings: Tensor) -> Tensor:
    """Embeddings [N, P, D] less the mean of each position over the crops.

    Positions are given to the encoder; an encoder that repeats them and ignores the sound has collapsed, and only
    this shows it.
    """
    return embeddings - embeddings.mean(dim=0, keepdim=True)


@torch.no_grad()
def collapse_statistics(encoder: ViT, log_mel: Tensor) -> dict[str, float]:
    """Look at the embeddings of whole crops [N, mels, frames].

    std: mean over the dimensions of their deviation over crops and positions; content_std: the same less each
    position's mean; rank_me: effective rank of the latter, at most the width.
    """
    training = encoder.training
    patch = encoder.config.patch_mels, encoder.config.patch_frames
    embeddings = encoder.eval()(patchify(log_mel, *patch)).float()  # [N, P, D]
    encoder.train(training)
    heard = content(embeddings).flatten(0, 1)
    return {
        "std": float(embeddings.flatten(0, 1).std(dim=0).mean()),
        "content_std": float(heard.std(dim=0).mean()),
        "rank_me": rank_me(heard[:: max(1, len(heard) // 2000)]),
    }


def is_collapsed(statistics: dict[str, float], width: int) -> bool:
    """Whether embeddings hardly differ from clip to clip, or differ in a few directions only."""
    return statistics["content_std"] < COLLAPSED_STD or statistics["rank_me"] < COLLAPSED_RANK_SHARE * width


def cosine(predicted: Tensor, target: Tensor) -> float:
    """Mean cosine of predictions and targets [N, K, D]."""
    return float(F.cosine_similarity(predicted.float(), target.float(), dim=-1).mean())


def snapshot(encoder: ViT, front_end: FrontEndConfig, served: ServedConfig, provenance: dict) -> Checkpoint:
    """The encoder as it is now, as a serving checkpoint."""
    weights = {name: tensor.detach().float().cpu().clone() for name, tensor in encoder.state_dict().items()}
    return Checkpoint(encoder.config, weights, front_end, served, provenance)


def check_probe_tasks(tasks: Sequence[Path]) -> None:
    """Raise `TaskError` for a folder that is not a task which the probes can score."""
    from hear_jepa.evaluation.scoring import check_protocol
    from hear_jepa.evaluation.tasks import read_task

    for folder in tasks:
        check_protocol(read_task(folder), "linear")


def probe(checkpoint: Checkpoint, tasks: Sequence[Path], max_clips: int, device: torch.device) -> dict[str, float]:
    """Validation scores (%) on HEAR-format tasks of a quick linear probe, by task, and their `mean`; and of a
    nearest-neighbour probe, as `knn/…`."""
    from hear_jepa.evaluation.scoring import probe_model  # evaluation libraries only when probing

    scores = probe_model(Embedder(checkpoint).to(device), tasks, max_clips=max_clips, device=str(device))
    by_name = {}
    for protocol, prefix in (("linear", ""), ("knn", "knn/")):
        by_name |= {f"{prefix}{task}": 100 * score for task, score in scores[protocol].items()}
        by_name[f"{prefix}mean"] = 100 * sum(scores[protocol].values()) / len(tasks)
    return by_name
