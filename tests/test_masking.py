"""Claims about the masks:

* unstructured masks have exactly round(share · patches) context patches, and every other patch is a target, or, where
  a target share is given, exactly round(share · patches) of them;
* context and targets of any strategy are disjoint, unique, sorted, inside the grid, of one length, [M, N, K] for M
  masks of N crops, and what `of_crops` picks are the crops asked for;
* over many draws every patch is context and every patch is target, the last row and column included;
* the same generator gives the same masks, another seed gives others, and no two masks of a batch are alike;
* time masks are whole columns; multi-block targets keep to their scale and aspect;
* bounds that leave nothing, and unknown strategies, are refused with a message.
"""

import itertools

import pytest
import torch

from hear_jepa.errors import OptionError
from hear_jepa.train.masking import STRATEGIES, Mask, MaskConfig, block_shapes, draw_masks, one_length, place

GRIDS = [(5, 13), (1, 40)]
CASES = [(strategy, grid) for strategy, grid in itertools.product(STRATEGIES, GRIDS)]
ROWS = {"multi-block": {(1, 40): {"target_aspect": (0.0, 9.0)}}}  # a grid of one row has only flat blocks


def draw(strategy, grid, n_crops=64, seed=0, **options):
    options |= ROWS.get(strategy, {}).get(grid, {})
    return draw_masks(MaskConfig(strategy, **options), n_crops, *grid, torch.Generator().manual_seed(seed))


def test_unstructured_counts_are_exact():
    for (rows, columns), share in itertools.product(GRIDS, (0.2, 0.4, 0.6)):
        mask = draw("unstructured", (rows, columns), context_share=share)
        assert mask.context.shape == (1, 64, round(share * rows * columns))
        for context, target in zip(mask.context[0], mask.target[0], strict=True):
            assert sorted([*context.tolist(), *target.tolist()]) == list(range(rows * columns))
    assert draw("unstructured", (5, 13)).context.shape[2] == 26  # the paper's


def test_a_target_share_hides_the_rest_from_both():
    mask = draw("unstructured", (5, 13), 256, context_share=0.3, target_share=0.34)
    assert (mask.context.shape[2], mask.target.shape[2]) == (20, 22)
    assert set(mask.target.flatten().tolist()) == set(range(65))
    for context, target in zip(mask.context[0], mask.target[0], strict=True):
        assert len({*context.tolist(), *target.tolist()}) == 42


@pytest.mark.parametrize(("strategy", "grid"), CASES)
def test_disjoint_unique_sorted_within_the_grid_and_all_reached(strategy, grid):
    everything = set(range(grid[0] * grid[1]))
    reached = Mask(set(), set())
    for seed in range(10):
        mask = draw(strategy, grid, 128, seed, masks_per_crop=2)
        assert mask.context.shape[:2] == mask.target.shape[:2] == (2, 128)
        for context, target in zip(mask.context.flatten(0, 1), mask.target.flatten(0, 1), strict=True):
            both = torch.cat([context, target])
            assert len(both.unique()) == len(both) and set(both.tolist()) <= everything
            assert context.equal(context.sort().values) and target.equal(target.sort().values)
        reached.context.update(mask.context.flatten().tolist())
        reached.target.update(mask.target.flatten().tolist())
    assert reached.context == reached.target == everything


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_seed_decides(strategy):
    first, again, other = (draw(strategy, (5, 13), 8, seed, masks_per_crop=2) for seed in (3, 3, 4))
    assert first.context.equal(again.context) and first.target.equal(again.target)
    assert first.target.shape != other.target.shape or not first.target.equal(other.target)
    flat = first.target.flatten(0, 1)
    assert len(flat.unique(dim=0)) >= len(flat) / 2  # spans of time have few places to be
    some = first.of_crops(slice(1, None, 3))
    assert some.context.equal(first.context[:, [1, 4, 7]]) and some.target.equal(first.target[:, [1, 4, 7]])


@pytest.mark.parametrize("grid", GRIDS)
def test_time_masks_are_whole_columns(grid):
    for part in draw("time", grid):
        columns = part.unflatten(2, (-1, grid[0]))  # time-major: a column's patches are neighbours
        assert (columns % grid[0] == torch.arange(grid[0])).all()
        assert (columns // grid[0] == columns[..., :1] // grid[0]).all()


def test_target_blocks_are_rectangles_of_the_promised_scale_and_aspect():
    rows, columns = 5, 20
    shapes = block_shapes(rows, columns, (0.15, 0.2), (0.75, 1.5))
    assert shapes == [(4, 4), (4, 5), (5, 4)]
    for height, width in shapes:
        chosen = place([(height, width)], (200, 1), rows, columns, torch.Generator().manual_seed(0))
        chosen = chosen.unflatten(1, (columns, rows))
        assert (chosen.any(dim=1).sum(dim=1) == height).all() and (chosen.any(dim=2).sum(dim=1) == width).all()
        assert (chosen.flatten(1).sum(dim=1) == height * width).all()
    mask = draw("multi-block", (rows, columns), 1, target_blocks=1, context_scale=(1.0, 1.0))
    assert mask.target.shape[2] in (16, 20) and mask.context.shape[2] == 100 - mask.target.shape[2]


def test_what_is_cut_to_one_length_is_the_surplus():
    chosen = torch.tensor([[True, True, False, True], [True, False, False, True]])
    noise = torch.tensor([[0.9, 0.1, 0.0, 0.2], [0.9, 0.0, 0.0, 0.1]])
    assert one_length(chosen, noise).tolist() == [[1, 3], [0, 3]]


def test_impossible_bounds_and_unknown_names_are_refused():
    for message, strategy, options in [
        ("no block", "multi-block", {"target_scale": (0.15, 0.16), "target_aspect": (0.9, 1.1)}),
        ("no patch of a kind", "multi-block", {"target_scale": (1.0, 1.0), "target_aspect": (0.0, 9.0)}),
        ("no block on a 1×13", "time", {"target_scale": (0.02, 0.03)}),
        ("no context or no target", "unstructured", {"context_share": 1.0}),
        *(("target share", "unstructured", {"target_share": share}) for share in (0.61, 0.001, -0.2)),
    ]:
        with pytest.raises(OptionError, match=message):
            draw(strategy, (5, 13), **options)
    with pytest.raises(OptionError, match="'multiblock'.*unstructured, multi-block, time"):
        MaskConfig("multiblock")
