"""Claims about the masks:

* unstructured masks have exactly round(share · patches) context patches, and every other patch is a target, or, where
  a target share is given, exactly round(share · patches) of them;
* context and targets of any strategy are disjoint, unique, sorted, inside the grid, and of one length for the batch;
* over many draws every patch is context and every patch is target, the last row and column included;
* the same generator gives the same masks, another seed gives others;
* time masks are whole columns; multi-block shapes keep to their scale and aspect;
* bounds that leave nothing are refused with a message.
"""

import itertools

import pytest
import torch

from hear_jepa.train.masking import MaskConfig, block_shapes, blocks, draw_masks, unstructured

GRIDS = [(5, 13), (5, 20), (5, 40)]
STRATEGIES = ["unstructured", "multi-block", "time"]
CASES = list(itertools.product(STRATEGIES, GRIDS))


def draw(strategy, grid, n_masks=64, seed=0):
    return draw_masks(MaskConfig(strategy=strategy), n_masks, *grid, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_unstructured_counts_are_exact(grid, share):
    n_patches = grid[0] * grid[1]
    mask = unstructured(8, *grid, share, torch.Generator().manual_seed(0))
    assert mask.context.shape == (8, round(share * n_patches))
    for context, target in zip(*mask, strict=True):
        assert sorted([*context.tolist(), *target.tolist()]) == list(range(n_patches))


def test_a_target_share_hides_the_rest_from_both():
    mask = unstructured(256, 5, 13, 0.3, torch.Generator().manual_seed(0), target_share=0.34)
    assert (mask.context.shape[1], mask.target.shape[1]) == (20, 22)
    assert set(mask.target.flatten().tolist()) == set(range(65))
    for context, target in zip(*mask, strict=True):
        assert len({*context.tolist(), *target.tolist()}) == 42


def test_the_papers_grid_has_26_context_and_39_target_patches():
    mask = draw("unstructured", (5, 13))
    assert (mask.context.shape[1], mask.target.shape[1]) == (26, 39)


@pytest.mark.parametrize(("strategy", "grid"), CASES)
def test_disjoint_unique_sorted_and_within_the_grid(strategy, grid):
    mask = draw(strategy, grid)
    assert len(mask.context) == len(mask.target) == 64
    for context, target in zip(*mask, strict=True):
        everything = torch.cat([context, target])
        assert len(everything.unique()) == len(everything)
        assert everything.min() >= 0 and everything.max() < grid[0] * grid[1]
        assert context.equal(context.sort().values) and target.equal(target.sort().values)


@pytest.mark.parametrize(("strategy", "grid"), CASES)
def test_every_patch_is_reached_as_context_and_as_target(strategy, grid):
    everything = set(range(grid[0] * grid[1]))
    context, target = set(), set()
    for seed in range(20):
        mask = draw(strategy, grid, 256, seed)
        context |= set(mask.context.flatten().tolist())
        target |= set(mask.target.flatten().tolist())
    assert context == everything
    assert target == everything


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_seed_decides(strategy):
    first, again, other = (draw(strategy, (5, 13), seed=seed) for seed in (3, 3, 4))
    assert first.context.equal(again.context) and first.target.equal(again.target)
    assert first.target.shape != other.target.shape or not first.target.equal(other.target)


@pytest.mark.parametrize("grid", GRIDS)
def test_time_masks_are_whole_columns(grid):
    n_freq, _ = grid
    for part in draw("time", grid):
        columns = part.unflatten(1, (-1, n_freq))  # time-major: a column's patches are neighbours
        assert (columns % n_freq == torch.arange(n_freq)).all()
        assert (columns // n_freq == columns[..., :1] // n_freq).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_one_target_block_is_a_rectangle_of_the_promised_scale_and_aspect(grid):
    n_freq, n_time = grid
    shapes = block_shapes(n_freq, n_time, (0.15, 0.2), (0.75, 1.5))
    for shape in shapes:  # one shape at a time: nothing is cut, so the block can be looked at
        mask = blocks(64, n_freq, n_time, [shape], 1, [grid], False, torch.Generator().manual_seed(0))
        for target in mask.target:
            time, freq = target // n_freq, target % n_freq
            height = int(freq.max() - freq.min()) + 1
            width = int(time.max() - time.min()) + 1
            assert height * width == len(target)  # a full rectangle
            assert 0.15 <= height * width / (n_freq * n_time) <= 0.2
            assert 0.75 <= height / width <= 1.5


def test_impossible_bounds_are_refused():
    generator = torch.Generator()
    with pytest.raises(ValueError, match="no block"):
        block_shapes(5, 13, (0.15, 0.16), (0.9, 1.1))
    with pytest.raises(ValueError, match="no context or no target"):
        unstructured(2, 5, 13, 1.0, generator)
    for share in (0.61, 0.001, -0.2):
        with pytest.raises(ValueError, match="target share"):
            unstructured(2, 5, 13, 0.4, generator, share)
    with pytest.raises(ValueError, match="no patch of a kind"):
        blocks(2, 5, 13, [(5, 13)], 1, [(5, 13)], False, generator)
