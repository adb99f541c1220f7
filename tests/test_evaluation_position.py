"""The measures of the place in the window are what they say.

* The share of constructed columns is the share that was put in; it is 0 where the index tells nothing, however few the
  crops, and 1 where it tells all.
* An encoder with absolute positions has a share, and cuts of windows show in a second's embedding; one that sees every
  column alone has neither, and rotary positions have no share.
* Too few crops, short recordings and a second outside the recording are errors.
"""

from dataclasses import replace

import pytest
import torch
from conftest import SMALL, random_checkpoint

from hear_jepa import Embedder
from hear_jepa.errors import AudioError
from hear_jepa.evaluation.position import explained_share, place_consistency, position_share, random_crops


@pytest.fixture(scope="module")
def blind() -> Embedder:
    """It sees each column alone: no positions, and attention that adds nothing."""
    checkpoint = random_checkpoint()
    weights = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    for name, tensor in weights.items():
        if name == "pos_embed" or "attn.proj" in name:
            tensor.zero_()
    return Embedder(replace(checkpoint, weights=weights))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_the_share_is_the_one_that_was_put_in(share):
    generator = torch.Generator().manual_seed(1)
    index = torch.randn(13, 400, generator=generator) * share**0.5
    sound = torch.randn(200, 13, 400, generator=generator) * (1 - share) ** 0.5
    assert explained_share(index + sound + 3) == pytest.approx(share, abs=0.03 * share + 0.002)


def test_chance_is_not_counted():
    columns = torch.randn(4, 13, 4000, generator=torch.Generator().manual_seed(0))
    assert explained_share(columns) < 0.01  # the means of 4 crops differ by a quarter of the variance


def test_positions_show_and_an_encoder_without_them_has_none(model, blind, minute):
    rotary = Embedder(random_checkpoint(replace(SMALL, positions="rotary-time")))
    assert position_share(model, [minute], 200) > 0.03
    assert position_share(blind, [minute], 200) < 0.01
    assert position_share(rotary, [minute], 200) < 0.01


def test_a_second_embeds_alike_wherever_windows_are_cut_if_nothing_tells_the_place(model, blind, minute):
    recording = minute[: 16000 * 10]
    assert place_consistency(blind, recording, start_s=4) > 0.9999
    assert place_consistency(model, recording, start_s=4) < 0.99


def test_crops_are_pieces_of_the_recordings_in_turn():
    recordings = [torch.arange(100.0), torch.arange(1000.0, 1100.0)]
    crops = random_crops(recordings, 10, 6, seed=0)
    assert torch.equal(crops.diff(dim=1), torch.ones(6, 9))
    assert (crops[:, 0] >= 1000).tolist() == [False, True] * 3
    assert torch.equal(crops, random_crops(recordings, 10, 6, seed=0))


def test_mistakes_are_errors(model):
    with pytest.raises(AudioError, match="at least 200"):
        position_share(model, [torch.zeros(160000)], 50)
    with pytest.raises(AudioError, match="a window needs 33280"):
        position_share(model, [torch.zeros(16000)])
    for start_s in (1.0, 9.5):
        with pytest.raises(AudioError, match="begin after a window"):
            place_consistency(model, torch.zeros(160000), start_s)
