"""Claims about the encoder:

* patches of any shape are flattened band by band, in time-major order; the projection is that of a convolution;
* positions: fixed sines and cosines tell column and row apart; rotary ones only how far apart columns are;
* attention is its definition; hidden and invisible patches change nothing; the order of tokens is that of the indices,
  shared or per clip; a class token is attended to and not returned;
* layers come as asked, each normalised; recomputed activations give the same gradients; bad widths are refused.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hear_jepa.model.vit import Attention, ViT, ViTConfig, patchify, sine_cosine_positions

CONFIG = ViTConfig(width=48, depth=3, heads=3)


@pytest.fixture
def encoder():
    return ViT(CONFIG).eval()


@pytest.mark.parametrize("mels, frames", [(16, 16), (80, 2), (8, 16), (16, 4)])
def test_patches_are_time_major_and_band_by_band(mels, frames):
    log_mel = torch.randn(2, 80, 48)
    patches = patchify(log_mel, mels, frames).unflatten(1, (48 // frames, 80 // mels))
    for t, f in itertools.product(range(48 // frames), range(80 // mels)):
        expected = log_mel[:, mels * f : mels * (f + 1), frames * t : frames * (t + 1)].flatten(1)
        assert torch.equal(patches[:, t, f], expected)


def test_the_projection_is_a_convolution(encoder):
    log_mel = torch.randn(2, 80, 48)
    projection = encoder.patch_embed.proj
    expected = F.conv2d(log_mel[:, None], projection.weight.view(-1, 1, 16, 16), projection.bias, stride=16)
    found = encoder.patch_embed(patchify(log_mel)).unflatten(1, (3, 5))  # [N, T, F, D]
    torch.testing.assert_close(found, expected.permute(0, 3, 2, 1), rtol=0, atol=1e-5)


def test_positions_tell_column_and_row_apart():
    positions = sine_cosine_positions(5, 13, 48).view(13, 5, 48)
    assert torch.equal(positions[:, :1, :24].expand(-1, 5, -1), positions[:, :, :24])
    assert torch.equal(positions[:1, :, 24:].expand(13, -1, -1), positions[:, :, 24:])
    distances = torch.cdist(positions.flatten(0, 1), positions.flatten(0, 1)) + 9 * torch.eye(65)
    assert distances.min() > 0.1
    assert positions[7, 0, 0] == pytest.approx(math.sin(7)) and positions[0, 3, 24 + 12] == pytest.approx(math.cos(3))


def test_rotary_positions_tell_only_how_far_apart_columns_are():
    encoder = ViT(replace(CONFIG, positions="rotary-time")).eval()
    patches = torch.randn(1, 65, 256)
    columns = torch.arange(65).view(13, 5)
    with torch.no_grad():
        early = encoder(patches, columns[0:3].flatten())
        moved = patches.clone()
        moved[:, columns[8:11].flatten()] = patches[:, columns[0:3].flatten()]
        torch.testing.assert_close(encoder(moved, columns[8:11].flatten()), early, rtol=0, atol=1e-5)
        moved[:, columns[9]] = patches[:, columns[2]]
        apart = encoder(moved, torch.cat([columns[8], columns[10], columns[9]]))
        assert (apart[:, :5] - early[:, :5]).abs().max() > 1e-3  # the same patches, two of them swapped in time
        swapped = patches[:, :5].flip(1)
        assert (encoder(swapped).flip(1) - encoder(patches[:, :5])).abs().max() > 1e-3


def test_attention_is_its_definition():
    attention, x = Attention(12, 3), torch.randn(2, 7, 12)
    q, k, v = (x @ w.T + b for w, b in zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True))
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 2.0).softmax(-1)
        heads.append(weights @ v[..., part])
    expected = torch.cat(heads, -1) @ attention.proj.weight.T + attention.proj.bias
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-6)


def test_hidden_patches_change_nothing(encoder):
    patches, indices = torch.randn(2, 65, 256), torch.tensor([3, 64, 0, 17])
    with torch.no_grad():
        shown = encoder(patches, indices)
        hidden = torch.ones(65, dtype=torch.bool)
        hidden[indices] = False
        patches[:, hidden] = 1e6
        assert torch.equal(encoder(patches, indices), shown)
        assert torch.equal(encoder(patches, indices.expand(2, -1)), shown)
        back = encoder(patches, indices.flip(0)).flip(1)
        patches, visible = torch.randn(2, 20, 256), (torch.arange(20) < 15).expand(2, -1)
        seen = encoder(patches, visible=visible)[:, :15]
        torch.testing.assert_close(seen, encoder(patches[:, :15]), rtol=0, atol=1e-5)
    torch.testing.assert_close(back, shown, rtol=0, atol=1e-5)
    assert shown.shape == (2, 4, 48)


def test_each_clip_may_have_indices_of_its_own(encoder):
    patches = torch.randn(2, 65, 256)
    indices = torch.stack([torch.randperm(65)[:9] for _ in range(2)])
    with torch.no_grad():
        together = encoder(patches, indices)
        alone = torch.cat([encoder(patches[i : i + 1], indices[i]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_shorter_input_takes_a_prefix_of_the_positions(encoder):
    patches = torch.randn(1, 65, 256)
    with torch.no_grad():
        torch.testing.assert_close(encoder(patches[:, :20]), encoder(patches, torch.arange(20)), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="70 patches are more than the trained 65"):
        encoder(torch.randn(1, 70, 256))


def test_layers_on_request(encoder):
    patches = torch.randn(2, 10, 256)
    with torch.no_grad():
        last, embedded, first, again = encoder(patches, layers=[3, 0, 1, 3])
        assert torch.equal(last, encoder(patches)) and torch.equal(again, last)
        x = encoder.patch_embed(patches) + encoder.pos_embed[:10]
        for found, expected in [(embedded, x), (first, encoder.blocks[0](x))]:
            mean, variance = expected.mean(-1, keepdim=True), expected.var(-1, unbiased=False, keepdim=True)
            torch.testing.assert_close(found, (expected - mean) / (variance + 1e-5).sqrt(), rtol=0, atol=1e-5)
        for block in encoder.blocks[1:]:
            block.forward = None  # what lies above the layers asked for is not computed
        assert torch.equal(encoder(patches, layers=[1, 0])[0], first)


def test_a_class_token_is_attended_to_and_not_returned():
    encoder = ViT(ViTConfig(width=48, depth=2, heads=3, class_token=True)).eval()
    patches = torch.randn(1, 10, 256)
    with torch.no_grad():
        before = encoder(patches)
        encoder.class_token += torch.randn(48)
        after = encoder(patches)
    assert before.shape == (1, 10, 48) and (before - after).abs().max() > 1e-3


def test_recomputed_activations_give_the_same_gradients(encoder):
    patches, gradients = torch.randn(2, 10, 256), []
    for recompute in (False, True):
        encoder.train().zero_grad()
        encoder.gradient_checkpointing = recompute
        encoder(patches).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_impossible_architectures_are_refused():
    with pytest.raises(ValueError, match="50 is not a multiple of the number of heads 3"):
        Attention(50, 3)
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_cosine_positions(5, 13, 54)
