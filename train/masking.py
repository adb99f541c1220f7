"""The masking strategies of the paper (figure 1), as pure functions of a generator.

A strategy is a function (config, masks, rows, columns, generator) -> `Mask` of [masks, K] token indices; `STRATEGIES`
holds them by name. Tokens are counted in time-major order (see `hear_jepa.model.vit`). Context and targets of a mask
never share a patch, and all masks of a batch are of one length.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from hear_jepa.device import copied
from hear_jepa.errors import OptionError
from hear_jepa.options import check_name, within

Shapes = list[tuple[int, int]]  # (height, width) of blocks, in patches


@dataclass(frozen=True)
class MaskConfig:
    """Which patches are hidden."""

    strategy: str = "unstructured"
    """unstructured: patches drawn at random; multi-block: rectangles, as in I-JEPA; time: spans of every frequency. The
    masks of the last two are cut to the smallest of the batch, so a larger batch has smaller ones."""
    context_share: float = 0.4
    """Unstructured: the share of patches that is context (the paper: 0.4)."""
    target_share: float = 0.0
    """Unstructured: the share of patches that is target, drawn from the hidden ones; 0: all of them (the paper). Fewer
    targets make a step cheaper."""
    target_blocks: int = 4
    """Multi-block and time: target blocks of a mask."""
    target_scale: tuple[float, float] = (0.15, 0.2)
    """Multi-block and time: least and greatest share of the grid that one target block covers."""
    target_aspect: tuple[float, float] = (0.75, 1.5)
    """Multi-block: least and greatest height over width of a target block."""
    context_scale: tuple[float, float] = (0.85, 1.0)
    """Multi-block and time: share of the grid that the context block covers, before the targets are taken out."""
    masks_per_crop: int = within(1, 1)
    """Masks drawn for every crop. In the latent domain they share one pass of the target encoder."""

    def __post_init__(self):
        check_name(self.strategy, STRATEGIES, "--mask.strategy")


class Mask(NamedTuple):
    """Token indices of the M masks of each of N crops: context [M, N, Kc] and target [M, N, Kt]."""

    context: Tensor
    target: Tensor

    def of_crops(self, crops: slice) -> "Mask":
        return Mask(self.context[:, crops], self.target[:, crops])

    def to(self, device: torch.device) -> "Mask":
        return Mask(*(copied(part, device) for part in self))


def draw_masks(config: MaskConfig, n_crops: int, rows: int, columns: int, generator: Generator) -> Mask:
    """Draw the masks of a batch on a grid of rows × columns patches: [M, N, K], M the masks of a crop."""
    drawn = STRATEGIES[config.strategy](config, config.masks_per_crop * n_crops, rows, columns, generator)
    return Mask(*(part.unflatten(0, (config.masks_per_crop, n_crops)) for part in drawn))


# -------------------------------------------------------------------- strategies


def unstructured(config: MaskConfig, n_masks: int, rows: int, columns: int, generator: Generator) -> Mask:
    """round(context_share · patches) patches at random are context; of the others all (paper, section 2.2) are targets,
    or, with a target share, round(target_share · patches) at random."""
    n_patches = rows * columns
    n_context = round(config.context_share * n_patches)
    n_target = round(config.target_share * n_patches) if config.target_share else n_patches - n_context
    if not 0 < n_context < n_patches:
        raise OptionError(
            f"a context share of {config.context_share} leaves no context or no target on {n_patches} patches"
        )
    if not 0 < n_target <= n_patches - n_context:
        raise OptionError(
            f"a target share of {config.target_share} wants {n_target} of {n_patches} patches as targets: beside "
            f"{n_context} of context there must be 1 to {n_patches - n_context}"
        )
    order = torch.rand(n_masks, n_patches, generator=generator).argsort(dim=1)
    context, target = order[:, :n_context], order[:, n_context : n_context + n_target]
    return Mask(context.sort(dim=1).values, target.sort(dim=1).values)


def multi_block(config: MaskConfig, n_masks: int, rows: int, columns: int, generator: Generator) -> Mask:
    """Targets: the union of rectangles. Context: one large block, of any aspect, less the targets (I-JEPA)."""
    target_shapes = block_shapes(rows, columns, config.target_scale, config.target_aspect)
    context_shapes = block_shapes(rows, columns, config.context_scale, (0.0, float("inf")))
    target = place(target_shapes, (n_masks, config.target_blocks), rows, columns, generator)
    context = place(context_shapes, (n_masks, 1), rows, columns, generator) & ~target
    return Mask(*(one_length(chosen, torch.rand(chosen.shape, generator=generator)) for chosen in (context, target)))


def time_spans(config: MaskConfig, n_masks: int, rows: int, columns: int, generator: Generator) -> Mask:
    """The same on a grid of one row, with its columns whole: what is cut to one length are whole columns too."""
    flat = replace(config, target_aspect=(0.0, float("inf")))
    spans = multi_block(flat, n_masks, 1, columns, generator)
    whole = torch.arange(rows)
    return Mask(*((part[..., None] * rows + whole).flatten(1) for part in spans))


STRATEGIES = {"unstructured": unstructured, "multi-block": multi_block, "time": time_spans}

# -------------------------------------------------------------------- blocks


def block_shapes(rows: int, columns: int, scale: tuple[float, float], aspect: tuple[float, float]) -> Shapes:
    """All (height, width) in patches whose share of the grid and height / width lie within the bounds."""
    shapes = [
        (height, width)
        for height in range(1, rows + 1)
        for width in range(1, columns + 1)
        if _within(height * width / (rows * columns), scale) and _within(height / width, aspect)
    ]
    if not shapes:
        raise OptionError(f"no block on a {rows}×{columns} grid has a scale in {scale} and an aspect in {aspect}")
    return shapes


def place(shapes: Shapes, counts: tuple[int, int], rows: int, columns: int, generator: Generator) -> Tensor:
    """counts: [masks, blocks of a mask] -> the union of each mask's blocks, bool [masks, columns · rows].

    Shapes are drawn from the list, corners uniformly from every place where the block fits.
    """
    choice = torch.randint(len(shapes), counts, generator=generator)
    height, width = torch.tensor(shapes)[choice].unbind(-1)  # [masks, blocks]
    corner = torch.rand(2, *counts, generator=generator)
    top = (corner[0] * (rows - height + 1)).long()
    left = (corner[1] * (columns - width + 1)).long()
    row, column = torch.arange(rows), torch.arange(columns)
    in_rows = (row >= top[..., None]) & (row < (top + height)[..., None])  # [masks, blocks, rows]
    in_columns = (column >= left[..., None]) & (column < (left + width)[..., None])  # [masks, blocks, columns]
    return (in_columns[..., :, None] & in_rows[..., None, :]).any(dim=1).flatten(1)


def one_length(chosen: Tensor, noise: Tensor) -> Tensor:
    """Indices of the chosen patches, bool [masks, P] -> [masks, K], K the smallest count of the batch.

    The surplus, the patches of the largest noise [masks, P], is dropped: it is neither context nor target.
    """
    count = int(chosen.sum(dim=1).min())
    if count == 0:
        raise OptionError("a mask left no patch of a kind: lower the target blocks or scale, or widen the grid")
    order = noise.masked_fill(~chosen, 2.0).argsort(dim=1, stable=True)
    return order[:, :count].sort(dim=1).values


def _within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] - 1e-9 <= value <= bounds[1] + 1e-9
