"""Linear and nearest-neighbour probes of frozen features: pure functions of arrays and a seed.

The linear probe is the paper's (section 4.2, after EVAR): standardised features, one linear layer, Adam on batches
of 128, early stopping on the validation score. In addition the learning rate (higher than the paper's 3e-5, which wants
more clips or more dimensions than most tasks have) and an L2 penalty are selected on the validation score; all the
candidates train at once, their layers side by side in one matrix product, until each has stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hear_jepa.evaluation.metrics import Metric, accuracy, mean_average_precision

Predict = Callable[[np.ndarray], np.ndarray]  # features [N, D] -> scores in 0 … 1 of the classes [N, C]


@dataclass(frozen=True)
class LinearConfig:
    learning_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    penalties: tuple[float, ...] = (0.0, 1e-2)  # the loss gains half of this times the weights' squared norm
    batch_size: int = 128
    max_epochs: int = 200
    patience: int = 20  # epochs without a better validation score
    betas: tuple[float, float] = (0.9, 0.999)

    @property
    def candidates(self) -> list[tuple[float, float]]:
        return list(product(self.learning_rates, self.penalties))


@dataclass(frozen=True)
class KnnConfig:
    """Settings of the nearest-neighbour probe: the number of neighbours is selected on the validation score."""

    neighbours: tuple[int, ...] = (1, 3, 5, 10, 20, 50)
    temperature: float = 0.07  # a neighbour of cosine similarity s weighs exp(s / temperature)


def standardiser(train: np.ndarray, device: str) -> Callable[[np.ndarray], Tensor]:
    """Features less the training mean, over the training deviation; a constant feature becomes zero."""
    features = torch.as_tensor(train, dtype=torch.float32)
    deviation = features.std(0, correction=0)
    scale = torch.where(deviation > 1e-8, deviation, torch.ones_like(deviation)).to(device)
    mean = features.mean(0).to(device)
    return lambda values: (torch.as_tensor(values, dtype=torch.float32, device=device) - mean) / scale


def linear_probe(
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    *,
    multilabel: bool = False,
    seed: int = 0,
    config: LinearConfig | None = None,
    device: str = "cpu",
) -> Predict:
    """Train on `train` (features [N, D], targets [N, K]), select on `valid`; the function returned predicts."""
    config = config or LinearConfig()
    standardise = standardiser(train[0], device)
    x, y = standardise(train[0]), torch.as_tensor(train[1], dtype=torch.float32, device=device)
    valid_x, loss = standardise(valid[0]), _binary_cross_entropy if multilabel else _cross_entropy
    metric: Metric = mean_average_precision if multilabel else accuracy
    candidates = _candidates(x.shape[1], y.shape[1], config, seed, device)
    optimiser = torch.optim.Adam([group for c in candidates for group in c.groups], betas=config.betas, fused=True)
    order = torch.Generator().manual_seed(seed + 1)
    active = candidates
    for epoch in range(config.max_epochs):
        for batch in torch.randperm(len(x), generator=order).to(device).split(config.batch_size):
            optimiser.zero_grad()  # a candidate that has stopped gets no gradient: Adam leaves it alone
            loss(_logits(x[batch], active), y[batch]).sum().backward()
            optimiser.step()
        _validate(active, epoch, valid_x, valid[1], metric, loss)
        active = [c for c in active if epoch - c.best_epoch < config.patience]
        if not active:
            break
    weight, bias = max(candidates, key=lambda c: c.best).kept

    def predict(features: np.ndarray) -> np.ndarray:
        logits = standardise(features) @ weight + bias
        return (logits.sigmoid() if multilabel else logits.softmax(1)).cpu().numpy()

    return predict


@dataclass
class _Candidate:
    """A linear layer with a learning rate and a penalty of its own, and what it was at its best epoch."""

    weight: Tensor  # [D, K]
    bias: Tensor  # [K]
    rate: float
    penalty: float
    kept: tuple[Tensor, Tensor]
    best: tuple[float, float] = (-1.0, -float("inf"))  # validation score; of equal scores, the lower loss
    best_epoch: int = 0

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Of the optimiser: the penalty is on the weights alone."""
        weights = {"params": [self.weight], "lr": self.rate, "weight_decay": self.penalty}
        return [weights, {"params": [self.bias], "lr": self.rate}]


def _candidates(n_features: int, n_classes: int, config: LinearConfig, seed: int, device: str) -> list[_Candidate]:
    """All candidates begin with the same weights, drawn as torch's own Linear draws them, and zero biases."""
    uniform = torch.rand(n_features, n_classes, generator=torch.Generator().manual_seed(seed))
    weight, bias = ((uniform * 2 - 1) * n_features**-0.5).to(device), torch.zeros(n_classes, device=device)
    return [
        _Candidate(weight.clone().requires_grad_(), bias.clone().requires_grad_(), rate, penalty, (weight, bias))
        for rate, penalty in config.candidates
    ]


def _logits(x: Tensor, candidates: list[_Candidate]) -> Tensor:
    """[N, D] -> [N, candidates, K], by one matrix product: the layers lie side by side."""
    logits = x @ torch.cat([c.weight for c in candidates], dim=1) + torch.cat([c.bias for c in candidates])
    return logits.unflatten(1, (len(candidates), -1))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the clips, of each candidate: logits [N, candidates, K], targets [N, K] -> [candidates]."""
    return -(logits.log_softmax(2) * targets.unsqueeze(1)).sum(2).mean(0)


def _binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the clips and classes, of each candidate: [candidates]."""
    targets = targets.unsqueeze(1).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((0, 2))


@torch.no_grad()
def _validate(
    candidates: list[_Candidate],
    epoch: int,
    x: Tensor,
    targets: np.ndarray,
    metric: Metric,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Score the validation clips; a candidate that improved keeps its weights."""
    logits = _logits(x, candidates)
    losses = loss(logits, torch.as_tensor(targets, dtype=torch.float32, device=x.device)).tolist()
    for candidate, scored, value in zip(candidates, logits.cpu().numpy().swapaxes(0, 1), losses, strict=True):
        reached = (metric(scored, targets), -value)
        if reached > candidate.best:
            candidate.best, candidate.best_epoch = reached, epoch
            candidate.kept = (candidate.weight.detach().clone(), candidate.bias.detach().clone())


def knn_probe(
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    *,
    multilabel: bool = False,
    config: KnnConfig | None = None,
    device: str = "cpu",
) -> Predict:
    """Vote of the nearest training clips by cosine similarity of standardised features; `valid` selects how many."""
    config = config or KnnConfig()
    standardise = standardiser(train[0], device)
    keys = F.normalize(standardise(train[0]), dim=1)
    votes = torch.as_tensor(train[1], dtype=torch.float32, device=device)
    metric: Metric = mean_average_precision if multilabel else accuracy

    def predict(features: np.ndarray, neighbours: int) -> np.ndarray:
        found = []
        for queries in F.normalize(standardise(features), dim=1).split(1024):
            similarity, nearest = (queries @ keys.T).topk(min(neighbours, len(keys)), dim=1)  # [Q, k]
            weight = (similarity / config.temperature).softmax(1)
            found.append(torch.einsum("qk,qkc->qc", weight, votes[nearest]))
        return torch.cat(found).cpu().numpy()

    best = max(config.neighbours, key=lambda k: metric(predict(valid[0], k), valid[1]))
    return lambda features: predict(features, best)
