"""Columns -> one scene embedding, as they come: sums only, so that the length of a recording costs no memory.

A scene may then be whitened: less the mean of many scenes, and turned and scaled so that its numbers are uncorrelated
and of like variance. Distances then count what tells sounds apart, not what all of them share.
"""

import torch
from torch import Tensor, nn

from hear_jepa.errors import OptionError
from hear_jepa.options import check_name

POOLINGS = {"mean": 1, "mean+std": 2}  # name: parts of an embedding
AT_ONCE = 512  # scenes whose products are summed at once: adding up the matrices costs more than a product


class Whitening(nn.Module):
    """What makes the numbers of a scene uncorrelated: its parts (mean, deviation), each less its mean, by a matrix.

    mean: [parts · size]; maps: [parts, size, kept], the matrix of each part.
    """

    mean: Tensor
    maps: Tensor

    def __init__(self, mean: Tensor, maps: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("maps", maps)

    @property
    def size(self) -> int:
        """Of a whitened scene."""
        return self.maps.shape[0] * self.maps.shape[2]

    def forward(self, scenes: Tensor) -> Tensor:
        """[n, parts · size] -> [n, parts · kept], on the device of the matrices."""
        centred = (scenes.to(self.mean.device) - self.mean).unflatten(1, (len(self.maps), -1))
        return (centred.transpose(0, 1) @ self.maps).transpose(0, 1).flatten(1)


class ScenesMeasured:
    """Mean and covariance of many scenes, and the `Whitening` that they ask for."""

    def __init__(self, parts: int, size: int):
        self.count = 0
        self._waiting: list[Tensor] = []
        self._sum = torch.zeros(parts, size, dtype=torch.float64)
        self._products = torch.zeros(parts, size, size, dtype=torch.float64)

    def add(self, scenes: Tensor) -> None:
        """Take scenes [n, parts · size]."""
        self.count += len(scenes)
        self._waiting.append(scenes.cpu())
        if sum(map(len, self._waiting)) >= AT_ONCE:
            self._sum_up()

    def _sum_up(self) -> None:
        if self._waiting:
            parts = torch.cat(self._waiting).double().unflatten(-1, self._sum.shape).transpose(0, 1)  # [parts, n, size]
            self._sum += parts.sum(1)
            self._products += parts.mT @ parts
            self._waiting.clear()

    def whitening(self, kept: int | None = None) -> Whitening:
        """The `kept` principal components of each part (all by default), each divided by the root of its variance plus
        the mean one: what hardly varies is mostly noise, and is not blown up.

        Raises OptionError for more components than a part has, or more than there were scenes.
        """
        size = self._sum.shape[1]
        kept = size if kept is None else kept
        if not 1 <= kept <= size:
            raise OptionError(f"the components kept of a part must be 1 to {size}, not {kept}")
        if self.count <= kept:
            raise OptionError(f"{self.count} scenes do not tell {kept} components: take more sound, or keep fewer")
        self._sum_up()
        mean = self._sum / self.count
        covariance = self._products / self.count - mean[:, :, None] * mean[:, None]
        variance, directions = torch.linalg.eigh(covariance)  # smallest first
        variance = variance.clamp_min(0)
        scale = (variance + variance.mean(1, keepdim=True)).rsqrt()
        if not torch.isfinite(scale).all():
            raise OptionError("the scenes are all alike: take more sound")
        maps = (directions * scale[:, None]).flip(2)[:, :, :kept]
        return Whitening(mean.flatten().float(), maps.float().contiguous())


class Pool:
    """Mean over time of one recording's columns, and their standard deviation beside it where asked for."""

    def __init__(self, pooling: str, whitening: Whitening | None = None):
        self._with_std = check_name(pooling, POOLINGS, "pooling") == "mean+std"
        self._whitening = whitening
        self._count = 0
        self._sum = self._squares = torch.zeros(())

    def add(self, columns: Tensor) -> None:
        """Take new columns [n, size]; summed in float64 (float32 where the device has no other)."""
        columns = columns.to(torch.float32 if columns.device.type == "mps" else torch.float64)
        self._sum = self._sum.to(columns) + columns.sum(0)
        if self._with_std:
            self._squares = self._squares.to(columns) + columns.square().sum(0)
        self._count += len(columns)

    def embedding(self) -> Tensor:
        """[size] or, with the deviation, [2 · size], or what a whitening makes of them; float32."""
        scene = self._sum / self._count
        if self._with_std:
            variance = (self._squares / self._count - scene.square()).clamp(min=0)
            scene = torch.cat([scene, variance.sqrt()])
        return scene.float() if self._whitening is None else self._whitening(scene.float()[None])[0]
