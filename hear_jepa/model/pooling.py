"""Columns -> one scene embedding, as they come: sums only, so that the length of a recording costs no memory."""

import torch
from torch import Tensor

from hear_jepa.options import check_name

POOLINGS = {"mean": 1, "mean+std": 2}  # name: parts of an embedding


class Pool:
    """Mean over time of one recording's columns, and their standard deviation beside it where asked for."""

    def __init__(self, pooling: str):
        self._with_std = check_name(pooling, POOLINGS, "pooling") == "mean+std"
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
        """[size] or, with the deviation, [2 · size]; float32."""
        mean = self._sum / self._count
        if not self._with_std:
            return mean.float()
        variance = (self._squares / self._count - mean.square()).clamp(min=0)
        return torch.cat([mean, variance.sqrt()]).float()
