"""Claims about the model that is trained:

* the distances, and the further terms of the loss, are their definitions; the model's loss is that of its parts, each
  with its weight, of what the predictor, which knows where context and targets lie, says of the targets;
* gradients reach every weight of the context encoder and of the predictor, and none of the target encoder, which is the
  moving average by its formula, or frozen;
* `latent` and `input` differ by what the target encoder sees, and by nothing else; several masks of a crop give what
  each mask alone gives; averaged top layers and centring are what their definitions say.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from hear_jepa.errors import OptionError
from hear_jepa.model.vit import ViT, ViTConfig, patchify, sine_cosine_positions, take
from hear_jepa.train.jepa import JEPA, PositionMean, PredictorConfig, TargetConfig
from hear_jepa.train.losses import LOSSES, REGULARISERS, LossConfig, Pass, normalise
from hear_jepa.train.masking import Mask, MaskConfig, draw_masks

ENCODER = ViTConfig(width=32, depth=3, heads=2, n_time_patches=4)
PREDICTOR = PredictorConfig(width=16, depth=2, heads=2)


def model(target=None, loss=None, **parts):
    torch.manual_seed(0)
    return JEPA(ENCODER, PREDICTOR, target or TargetConfig(), loss or LossConfig(), **parts)


def crops(n=3):
    return torch.randn(n, 80, 64, generator=torch.Generator().manual_seed(1))


def masks(n=3, seed=0, **options):
    return draw_masks(MaskConfig(**options), n, 5, 4, torch.Generator().manual_seed(seed))


def targets(jepa, patches, mask):
    flat = Mask(mask.context.flatten(0, 1), mask.target.flatten(0, 1))
    return jepa.targets(patches, flat, flat.target)[0]


def test_losses_by_hand():
    prediction = torch.tensor([[[0.5, -3.0, 0.0]]])
    target = torch.tensor([[[1.0, 2.0, 6.0]]])
    mean, variance = 3.0, ((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2
    by_hand = 0.0
    for p, t in zip([0.5, -3.0, 0.0], [1.0, 2.0, 6.0], strict=True):
        distance = abs(p - (t - mean) / math.sqrt(variance + 1e-6))
        by_hand += (0.5 * distance**2 if distance < 1 else distance - 0.5) / 3
    assert LOSSES["smooth-l1"](prediction, normalise(target)).item() == pytest.approx(by_hand, rel=1e-6)
    assert LOSSES["mse"](prediction, target).item() == pytest.approx((0.25 + 25 + 36) / 3)
    cosine = (0.5 - 6) / (math.sqrt(9.25) * math.sqrt(41))
    assert LOSSES["cosine"](prediction, target).item() == pytest.approx(1 - cosine, rel=1e-5)


def test_info_nce_chooses_among_all_targets_of_the_step():
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    logits = [
        [F.cosine_similarity(p, t, dim=0).item() / 0.1 for t in target.flatten(0, 1)] for p in predicted.flatten(0, 1)
    ]
    by_hand = sum(math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(logits)) / 6
    assert LOSSES["info-nce"](predicted, target).item() == pytest.approx(by_hand, rel=1e-5)
    assert LOSSES["info-nce"](3 * target, target) < LOSSES["info-nce"](target.flip(0), target)


def test_further_terms_by_hand():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 50, 3, generator=generator) * torch.tensor([0.1, 1.0, 2.0])
    heads = {"reconstruction": torch.randn(2, 60, 4), "clip": torch.randn(2, 60, 3)}
    step = Pass(torch.randn(2, 60, 4), z, heads, torch.randn(2, 3))
    flat = z.flatten(0, 1)
    covariance = torch.cov(flat.T)
    hinge = [max(0.0, 1 - math.sqrt(covariance[i, i].item() + 1e-4)) for i in range(3)]
    off = sum(covariance[i, j].item() ** 2 for i in range(3) for j in range(3) if i != j)
    assert REGULARISERS["variance"](step).item() == pytest.approx(sum(hinge) / 3, rel=1e-4)
    assert REGULARISERS["covariance"](step).item() == pytest.approx(off / 3, rel=1e-4)
    by_hand = sum((heads["reconstruction"] - step.patches).square().flatten().tolist()) / (2 * 60 * 4)
    assert REGULARISERS["reconstruction"](step).item() == pytest.approx(by_hand, rel=1e-5)
    pooled = sum(heads["clip"].unbind(1)) / 60
    by_hand = F.smooth_l1_loss(pooled, normalise(step.clip_target)).item()
    assert REGULARISERS["clip"](step).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("domain", ["input", "latent"])
def test_the_models_loss_is_that_of_its_parts(domain):
    loss = LossConfig(regularisers=(("reconstruction", 0.3), ("clip", 0.2), ("variance", 0.1)))
    jepa, mask = model(TargetConfig(domain), loss), masks()
    output = jepa(crops(), mask)
    patches, hidden = patchify(crops()), mask.target[0]
    context = jepa.context_encoder(patches, mask.context[0])
    tokens = jepa.predictor(context, mask.context[0], hidden)
    predicted = jepa.predictor.head(tokens[:, mask.context.shape[2] :])
    seen = jepa.target_encoder(patches, hidden if domain == "input" else None)
    target = seen if domain == "input" else take(seen, hidden)
    everything = take(patches, torch.cat([mask.context[0], hidden], dim=1))
    expected = F.smooth_l1_loss(predicted, normalise(target))
    expected += 0.3 * F.mse_loss(jepa.predictor.heads["reconstruction"](tokens), everything)
    pooled = jepa.predictor.heads["clip"](tokens).mean(1)
    expected += 0.2 * F.smooth_l1_loss(pooled, normalise(seen.mean(1)))
    expected += 0.1 * REGULARISERS["variance"](Pass(patches, context, {}, pooled))
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_is_computed_in_float32_under_autocast_too():
    loss = LossConfig("info-nce", regularisers=(("covariance", 1.0),))
    jepa, seen = model(loss=loss), []
    jepa.regularisers = [(lambda step: seen.append((step.context @ step.context.mT).dtype) or 0.0, 1.0)]
    with torch.autocast("cpu", torch.bfloat16):
        output = jepa(crops(), masks())
    assert output.predicted.dtype == torch.bfloat16 and seen == [torch.float32]
    assert output.loss.item() == pytest.approx(LOSSES["info-nce"](output.predicted, output.target).item(), rel=1e-6)


def test_the_predictor_knows_where_its_context_and_its_targets_lie():
    jepa, mask = model(), masks()
    predictor, context, hidden = jepa.predictor, mask.context[0], mask.target[0]
    embedded = torch.randn(3, context.shape[1], 32)
    positions = sine_cosine_positions(5, 4, 16)
    tokens = [predictor.embed(embedded) + positions[context], predictor.mask_token + positions[hidden]]
    by_hand = torch.cat(tokens, dim=1)
    for block in predictor.blocks:
        by_hand = block(by_hand)
    torch.testing.assert_close(predictor(embedded, context, hidden), predictor.norm(by_hand))


def test_a_loss_on_all_patches():
    jepa, mask = model(TargetConfig("latent", loss_on="all")), masks()
    output = jepa(crops(), mask)
    both = torch.cat([mask.context[0], mask.target[0]], dim=1)
    patches = patchify(crops())
    tokens = jepa.predictor(jepa.context_encoder(patches, mask.context[0]), mask.context[0], mask.target[0])
    target = normalise(take(jepa.target_encoder(patches), both))
    assert output.loss.item() == pytest.approx(F.smooth_l1_loss(jepa.predictor.head(tokens), target).item(), rel=1e-5)
    on_input = [model(TargetConfig("input", loss_on=on))(crops(), mask).loss for on in ("hidden", "all")]
    assert on_input[0] == on_input[1]  # there, only hidden patches have targets


def test_gradients_reach_all_that_is_trained_and_nothing_else():
    jepa = model(loss=LossConfig(regularisers=(("reconstruction", 1.0), ("clip", 1.0))))
    jepa(crops(8), masks(8)).loss.backward()
    for part in (jepa.context_encoder, jepa.predictor):
        for name, parameter in part.named_parameters():
            if name.endswith("qkv.bias"):  # the keys' bias cancels in the softmax: look at the queries' and values'
                gradient = torch.cat([parameter.grad[: len(parameter) // 3], parameter.grad[-len(parameter) // 3 :]])
            else:
                gradient = parameter.grad
            assert gradient is not None and (gradient != 0).any(), name
    assert all(p.grad is None and not p.requires_grad for p in jepa.target_encoder.parameters())
    assert {id(p) for _, p in jepa.trained_parameters()}.isdisjoint(map(id, jepa.target_encoder.parameters()))


def change(encoder, by):
    with torch.no_grad():
        for tensor in [*encoder.parameters(), *encoder.buffers()]:
            tensor.add_(by)


def test_moving_average_by_its_formula():
    jepa = model()
    expected = {name: tensor.clone() for name, tensor in jepa.target_encoder.state_dict().items()}
    for step, momentum in enumerate([0.9, 0.95, 0.99]):
        change(jepa.context_encoder, 0.1 * (step + 1))
        jepa.update_target(momentum)
        for name, tensor in jepa.context_encoder.state_dict().items():
            expected[name] = momentum * expected[name] + (1 - momentum) * tensor
    for name, tensor in jepa.target_encoder.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_a_frozen_target_never_moves():
    torch.manual_seed(1)
    frozen = ViT(ViTConfig(width=48, depth=2, heads=2, n_time_patches=4)).eval().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    jepa = model(TargetConfig("latent", top_layers=2, centre=True), frozen_target=frozen)
    output = jepa(crops(), masks())
    output.loss.backward()
    change(jepa.context_encoder, 0.1)
    jepa.update_target(0.5)
    assert output.target.shape[-1] == output.predicted.shape[-1] == 48
    assert list(jepa.encoders) == ["context"]
    assert all(tensor.equal(before[name]) for name, tensor in jepa.target_encoder.state_dict().items())
    with pytest.raises(OptionError, match="top-layers is 3: the target encoder has 2"):
        model(TargetConfig(top_layers=3), frozen_target=frozen)


def test_the_bias_of_the_patches():
    assert (model().context_encoder.patch_embed.proj.bias == 0).all()
    jepa = model(random_patch_bias=True)
    bias = jepa.context_encoder.patch_embed.proj.bias
    assert 0.8 / 16 < bias.abs().max() <= 1 / 16  # ± 1 / sqrt(256)
    assert bias.equal(jepa.target_encoder.patch_embed.proj.bias)


def test_domains_differ_by_what_the_target_encoder_sees():
    mask, patches = masks(), patchify(crops())
    on_input, on_latent = model(TargetConfig("input")), model(TargetConfig("latent"))
    everything = on_latent.target_encoder(patches)
    torch.testing.assert_close(targets(on_latent, patches, mask), normalise(take(everything, mask.target[0])))
    alone = on_input.target_encoder(patches, mask.target[0])
    torch.testing.assert_close(targets(on_input, patches, mask), normalise(alone))

    changed = patches.clone()
    for row, context in enumerate(mask.context[0]):
        changed[row, context] += 1.0  # what is not a target changes
    assert targets(on_input, changed, mask).equal(targets(on_input, patches, mask))
    assert not torch.allclose(targets(on_latent, changed, mask), targets(on_latent, patches, mask), atol=1e-3)


@pytest.mark.parametrize("domain", ["input", "latent"])
def test_several_masks_of_a_crop(domain):
    jepa, both = model(TargetConfig(domain)), masks(masks_per_crop=2)
    alone = [jepa(crops(), Mask(both.context[m : m + 1], both.target[m : m + 1])).loss.item() for m in range(2)]
    assert alone[0] != alone[1]
    assert jepa(crops(), both).loss.item() == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_top_layers_are_normalised_then_averaged():
    jepa = model(TargetConfig("latent", top_layers=2), LossConfig(normalise_target=False))
    patches, mask = patchify(crops()), masks()
    outputs = jepa.target_encoder(patches, layers=[2, 3])
    average = sum(F.layer_norm(output, (32,)) for output in outputs) / 2
    torch.testing.assert_close(targets(jepa, patches, mask), take(average, mask.target[0]))


def test_centring_takes_out_each_positions_running_mean():
    centre = PositionMean(4, 2, momentum=0.5)
    indices = torch.tensor([[0, 1], [0, 2]])
    embeddings = torch.tensor([[[1.0, 1.0], [2.0, 2.0]], [[3.0, 5.0], [4.0, 4.0]]])
    assert centre(embeddings, indices).equal(embeddings)  # nothing is known yet
    centre.update()
    assert centre.mean.equal(torch.tensor([[2.0, 3.0], [2.0, 2.0], [4.0, 4.0], [0.0, 0.0]]))  # position 3: never seen
    assert centre(embeddings, indices).equal(torch.tensor([[[-1.0, -2.0], [0.0, 0.0]], [[1.0, 2.0], [0.0, 0.0]]]))
    centre.forget()  # that step was not taken
    centre(torch.zeros(1, 2, 2), indices[:1])  # two micro-batches of one step
    centre(torch.zeros(1, 2, 2), indices[1:])
    centre.update()
    assert centre.mean.equal(torch.tensor([[1.0, 1.5], [1.0, 1.0], [2.0, 2.0], [0.0, 0.0]]))


def test_unknown_names_are_refused():
    with pytest.raises(OptionError, match="'l1'.*smooth-l1, mse, cosine"):
        LossConfig("l1")
    with pytest.raises(OptionError, match="'contrast'.*reconstruction, clip"):
        LossConfig(regularisers=(("contrast", 0.1),))
