"""Linear and nearest-neighbour probes of frozen features: pure functions of arrays and a seed.

The linear probe is the paper's (section 4.2, after EVAR): standardised features, one linear layer, Adam on batches
of 128, early stopping on the validation score. In addition the learning rate (higher than the paper's 3e-5, which wants
more clips or more dimensions than most tasks have) and an L2 penalty are selected on the validation score; all the
candidates train at once, side by side in one wide layer, until each has stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hear_jepa.evaluation.metrics import Metric, accuracy, mean_average_precision

Predict = Callable[[np.ndarray], np.ndarray]  # features [N, D] -> scores in 0 … 1 of the classes [N, C]


@dataclass(frozen=True)
class LinearConfig:
    """Settings of the linear probe."""

    learning_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    penalties: tuple[float, ...] = (0.0, 1e-2)  # the loss gains half of this times the weights' squared norm
    batch_size: int = 128
    max_epochs: int = 200
    patience: int = 20  # epochs without a better validation score
    betas: tuple[float, float] = (0.9, 0.999)

    @property
    def candidates(self) -> list[tuple[float, float]]:
        """Every learning rate with every penalty."""
        return list(product(self.learning_rates, self.penalties))


@dataclass(frozen=True)
class KnnConfig:
    """Settings of the nearest-neighbour probe: the number of neighbours is selected on the validation score."""

    neighbours: tuple[int, ...] = (1, 3, 5, 10, 20, 50)
    temperature: float = 0.07  # a neighbour of cosine similarity s weighs exp(s / temperature)


@dataclass(frozen=True)
class Standardiser:
    """Features less the training mean, over the training deviation; a constant feature becomes zero."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, train: np.ndarray, device: torch.device) -> "Standardiser":
        """Statistics of the training features [N, D]."""
        features = torch.as_tensor(train, dtype=torch.float32)
        deviation = features.std(0, correction=0)
        scale = torch.where(deviation > 1e-8, deviation, torch.ones_like(deviation))
        return cls(features.mean(0).to(device), scale.to(device))

    def __call__(self, features: np.ndarray) -> Tensor:
        values = torch.as_tensor(features, dtype=torch.float32, device=self.mean.device)
        return (values - self.mean) / self.scale


def linear_probe(
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    *,
    multilabel: bool = False,
    seed: int = 0,
    config: LinearConfig | None = None,
    device: str = "cpu",
) -> Predict:
    """Train on `train` (features [N, D], targets [N, C]), select on `valid`; the function returned predicts."""
    config = config or LinearConfig()
    standardise = Standardiser.of(train[0], torch.device(device))
    x, y = standardise(train[0]), torch.as_tensor(train[1], dtype=torch.float32, device=device)
    layer = _WideLayer(x.shape[1], y.shape[1], config, multilabel, torch.Generator().manual_seed(seed), device)
    selection = _Selection(layer, standardise(valid[0]), valid[1], multilabel)
    order = torch.Generator().manual_seed(seed + 1)
    for epoch in range(config.max_epochs):
        for batch in torch.randperm(len(x), generator=order).to(device).split(config.batch_size):
            layer.step(x[batch], y[batch])
        selection.look(epoch)
        layer.keep(selection.unfinished(epoch, config.patience))
        if not layer.active:
            break
    weight, bias = selection.winner()

    def predict(features: np.ndarray) -> np.ndarray:
        logits = standardise(features) @ weight + bias
        return (logits.sigmoid() if multilabel else logits.softmax(1)).cpu().numpy()

    return predict


class _WideLayer:
    """One linear layer for every candidate, side by side, each with its own Adam."""

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        config: LinearConfig,
        multilabel: bool,
        generator: torch.Generator,
        device: str,
    ):
        n_candidates = len(config.candidates)
        bound = n_features**-0.5
        initial = (torch.rand(n_features, n_classes, generator=generator) * 2 - 1) * bound  # as torch's own Linear
        zeros = torch.zeros(1, n_classes)  # the last row is the bias
        self.weights = torch.cat([initial, zeros]).repeat(1, n_candidates).to(device)  # [D + 1, candidates · C]
        self.moments = (torch.zeros_like(self.weights), torch.zeros_like(self.weights))
        columns = torch.tensor(config.candidates, device=device).repeat_interleave(n_classes, dim=0)
        self.rates, self.penalties = columns.unbind(1)
        self.active, self.n_classes = list(range(n_candidates)), n_classes
        self.betas, self.multilabel, self.steps = config.betas, multilabel, 0

    def logits(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, active, C]."""
        return (x @ self.weights[:-1] + self.weights[-1]).unflatten(1, (len(self.active), self.n_classes))

    def keep(self, positions: list[int]) -> None:
        """Go on with these of the active candidates alone."""
        if len(positions) == len(self.active):
            return
        columns = torch.arange(len(self.active) * self.n_classes, device=self.weights.device)
        columns = columns.unflatten(0, (len(self.active), self.n_classes))[positions].flatten()
        self.weights = self.weights[:, columns]
        self.moments = (self.moments[0][:, columns], self.moments[1][:, columns])
        self.rates, self.penalties = self.rates[columns], self.penalties[columns]
        self.active = [self.active[position] for position in positions]

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step of Adam on the mean loss of a batch: cross-entropy, or binary cross-entropy over the classes."""
        logits = self.logits(x)
        probabilities = logits.sigmoid() if self.multilabel else logits.softmax(2)
        error = (probabilities - y.unsqueeze(1)).flatten(1) / (len(x) * (y.shape[1] if self.multilabel else 1))
        gradient = torch.cat([x.T @ error + self.penalties * self.weights[:-1], error.sum(0, keepdim=True)])
        self.steps += 1
        (first, second), (beta1, beta2) = self.moments, self.betas
        first.mul_(beta1).add_(gradient, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        corrected = (second / (1 - beta2**self.steps)).sqrt_().add_(1e-8)
        self.weights.sub_(self.rates / (1 - beta1**self.steps) * first / corrected)


class _Selection:
    """The best epoch of each candidate by the validation score; of equal scores, the one of lower loss."""

    def __init__(self, layer: _WideLayer, x: Tensor, targets: np.ndarray, multilabel: bool):
        self.layer, self.x, self.targets, self.multilabel = layer, x, targets, multilabel
        self.y = torch.as_tensor(targets, dtype=torch.float32, device=x.device)
        self.metric: Metric = mean_average_precision if multilabel else accuracy
        self.best = [(-1.0, -float("inf"))] * len(layer.active)
        self.best_epoch = [0] * len(layer.active)
        self.kept = layer.weights.clone().unflatten(1, (len(layer.active), layer.n_classes))  # [D + 1, candidates, C]

    def look(self, epoch: int) -> None:
        """Score the validation clips and keep the weights of those candidates that improved."""
        logits = self.layer.logits(self.x)  # [N, active, C]
        current = self.layer.weights.unflatten(1, logits.shape[1:])
        for position, candidate in enumerate(self.layer.active):
            scored = logits[:, position]
            value = (self.metric(scored.cpu().numpy(), self.targets), -self._loss(scored))
            if value > self.best[candidate]:
                self.best[candidate], self.best_epoch[candidate] = value, epoch
                self.kept[:, candidate] = current[:, position]

    def unfinished(self, epoch: int, patience: int) -> list[int]:
        """Positions of the active candidates that improved in the last `patience` epochs."""
        active = enumerate(self.layer.active)
        return [position for position, candidate in active if epoch - self.best_epoch[candidate] < patience]

    def winner(self) -> tuple[Tensor, Tensor]:
        """Weights [D, C] and biases [C] of the best candidate."""
        kept = self.kept[:, max(range(len(self.best)), key=self.best.__getitem__)]
        return kept[:-1], kept[-1]

    def _loss(self, logits: Tensor) -> float:
        if self.multilabel:
            return float(F.binary_cross_entropy_with_logits(logits, self.y))
        return float(F.cross_entropy(logits, self.y))


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
    standardise = Standardiser.of(train[0], torch.device(device))
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
