"""The three masking strategies of the paper (figure 1), as pure functions of a generator.

Each returns a `Mask`: which patches of a crop are context and which are targets, as token indices (time-major, see
`hear_jepa.model.vit`) of one length for the whole batch. Context and targets never share a patch.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hear_jepa.errors import OptionError


@dataclass(frozen=True)
class MaskConfig:
    """Which patches are hidden."""

    strategy: Literal["unstructured", "multi-block", "time"] = "unstructured"
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
    masks_per_crop: int = 1
    """Masks drawn for every crop. In the latent domain they share one pass of the target encoder."""


class Mask(NamedTuple):
    """Token indices of a batch: context [N, Kc] and target [N, Kt]."""

    context: Tensor
    target: Tensor


def draw_masks(config: MaskConfig, n_masks: int, n_freq: int, n_time: int, generator: torch.Generator) -> Mask:
    """Draw `n_masks` masks on a grid of n_freq × n_time patches by the configured strategy."""
    if config.strategy == "unstructured":
        return unstructured(n_masks, n_freq, n_time, config.context_share, generator, config.target_share)
    if config.strategy == "multi-block":
        shapes = block_shapes(n_freq, n_time, config.target_scale, config.target_aspect)
    else:
        shapes = column_shapes(n_freq, n_time, config.target_scale)
    whole = (0.0, float("inf"))
    if config.strategy == "multi-block":
        context_shapes = block_shapes(n_freq, n_time, config.context_scale, whole)
    else:
        context_shapes = column_shapes(n_freq, n_time, config.context_scale)
    return blocks(
        n_masks, n_freq, n_time, shapes, config.target_blocks, context_shapes, config.strategy == "time", generator
    )


def unstructured(
    n_masks: int,
    n_freq: int,
    n_time: int,
    context_share: float,
    generator: torch.Generator,
    target_share: float = 0.0,
) -> Mask:
    """round(context_share · patches) patches at random are context; of the others all (paper, section 2.2) are targets,
    or, with a target share, round(target_share · patches) at random."""
    n_patches = n_freq * n_time
    n_context = round(context_share * n_patches)
    n_target = round(target_share * n_patches) if target_share else n_patches - n_context
    if not 0 < n_context < n_patches:
        raise OptionError(f"a context share of {context_share} leaves no context or no target on {n_patches} patches")
    if not 0 < n_target <= n_patches - n_context:
        raise OptionError(
            f"a target share of {target_share} wants {n_target} of {n_patches} patches as targets: beside "
            f"{n_context} of context there must be 1 to {n_patches - n_context}"
        )
    order = torch.rand(n_masks, n_patches, generator=generator).argsort(dim=1)
    context, target = order[:, :n_context], order[:, n_context : n_context + n_target]
    return Mask(context.sort(dim=1).values, target.sort(dim=1).values)


def block_shapes(
    n_freq: int, n_time: int, scale: tuple[float, float], aspect: tuple[float, float]
) -> list[tuple[int, int]]:
    """All (height, width) in patches whose share of the grid and height / width lie within the bounds."""
    shapes = [
        (height, width)
        for height in range(1, n_freq + 1)
        for width in range(1, n_time + 1)
        if _within(height * width / (n_freq * n_time), scale) and _within(height / width, aspect)
    ]
    if not shapes:
        raise OptionError(f"no block on a {n_freq}×{n_time} grid has a scale in {scale} and an aspect in {aspect}")
    return shapes


def column_shapes(n_freq: int, n_time: int, scale: tuple[float, float]) -> list[tuple[int, int]]:
    """All spans of whole columns whose share of the grid lies within the bounds, as (n_freq, width)."""
    shapes = [(n_freq, width) for width in range(1, n_time + 1) if _within(width / n_time, scale)]
    if not shapes:
        raise OptionError(f"no span of whole columns among {n_time} has a scale in {scale}")
    return shapes


def blocks(
    n_masks: int,
    n_freq: int,
    n_time: int,
    target_shapes: list[tuple[int, int]],
    n_target_blocks: int,
    context_shapes: list[tuple[int, int]],
    whole_columns: bool,
    generator: torch.Generator,
) -> Mask:
    """Targets: the union of blocks placed anywhere on the grid. Context: one block, less the targets.

    Blocks overlap by chance, so their unions differ in size; all are cut at random to the smallest of the batch
    (whole columns where `whole_columns`). What is cut is neither context nor target.
    """
    target = _place(n_masks, n_target_blocks, target_shapes, n_freq, n_time, generator)
    context = _place(n_masks, 1, context_shapes, n_freq, n_time, generator) & ~target
    return Mask(
        _one_length(context, n_freq, whole_columns, generator), _one_length(target, n_freq, whole_columns, generator)
    )


def _place(
    n_masks: int, n_blocks: int, shapes: list[tuple[int, int]], n_freq: int, n_time: int, generator: torch.Generator
) -> Tensor:
    """Union of `n_blocks` blocks a mask, corners uniform over every place where the block fits: bool [N, T·F]."""
    choice = torch.randint(len(shapes), (n_masks, n_blocks), generator=generator)
    height, width = torch.tensor(shapes)[choice].unbind(-1)  # [N, blocks]
    corner = torch.rand(2, n_masks, n_blocks, generator=generator)
    top = (corner[0] * (n_freq - height + 1)).long()
    left = (corner[1] * (n_time - width + 1)).long()
    row, column = torch.arange(n_freq), torch.arange(n_time)
    in_rows = (row >= top[..., None]) & (row < (top + height)[..., None])  # [N, blocks, F]
    in_columns = (column >= left[..., None]) & (column < (left + width)[..., None])  # [N, blocks, T]
    return (in_columns[..., :, None] & in_rows[..., None, :]).any(dim=1).flatten(1)


def _one_length(chosen: Tensor, n_freq: int, whole_columns: bool, generator: torch.Generator) -> Tensor:
    """Indices of the chosen patches [N, K], K the smallest count of the batch, the surplus dropped at random."""
    count = int(chosen.sum(dim=1).min())
    if count == 0:
        raise OptionError("a mask left no patch of a kind: lower the target blocks or scale, or widen the grid")
    n_masks, n_patches = chosen.shape
    rank = torch.rand(n_masks, n_patches // n_freq if whole_columns else n_patches, generator=generator)
    if whole_columns:
        rank = rank.repeat_interleave(n_freq, dim=1)
    order = rank.masked_fill(~chosen, 2.0).argsort(dim=1, stable=True)
    return order[:, :count].sort(dim=1).values


def _within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] - 1e-9 <= value <= bounds[1] + 1e-9
