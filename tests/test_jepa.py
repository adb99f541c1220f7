"""Claims about the model that is trained:

* the loss is the definition: smooth L1 against the target standardised with an unbiased variance, recomputed here in
  plain arithmetic;
* gradients reach every weight of the context encoder and of the predictor, and none of the target encoder;
* after k updates the target encoder is the moving average by its formula, buffers included;
* `latent` and `input` differ by what the target encoder sees, and by nothing else;
* several masks of a crop give what each mask alone gives;
* averaged top layers, centring and the VICReg terms are what their definitions say.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from hear_jepa.model.vit import ViTConfig, patchify, take
from hear_jepa.train.centring import PositionMean
from hear_jepa.train.jepa import JEPA, TargetConfig
from hear_jepa.train.losses import LossConfig, normalise, prediction_loss, variance_covariance
from hear_jepa.train.masking import Mask, MaskConfig, draw_masks
from hear_jepa.train.predictor import PredictorConfig

ENCODER = ViTConfig(width=32, depth=3, heads=2, n_time_patches=4)
PREDICTOR = PredictorConfig(width=16, depth=2, heads=2)


def model(target=None, loss=None):
    torch.manual_seed(0)
    return JEPA(ENCODER, PREDICTOR, target or TargetConfig(), loss or LossConfig())


def crops(n=3):
    return torch.randn(n, 80, 64, generator=torch.Generator().manual_seed(1))


def masks(n=3, seed=0):
    return draw_masks(MaskConfig(), n, 5, 4, torch.Generator().manual_seed(seed))


def test_loss_by_hand():
    prediction = torch.tensor([[[0.5, -3.0, 0.0]]])
    target = torch.tensor([[[1.0, 2.0, 6.0]]])
    mean, variance = 3.0, ((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2
    by_hand = 0.0
    for p, t in zip([0.5, -3.0, 0.0], [1.0, 2.0, 6.0], strict=True):
        distance = abs(p - (t - mean) / math.sqrt(variance + 1e-6))
        by_hand += (0.5 * distance**2 if distance < 1 else distance - 0.5) / 3
    assert prediction_loss(prediction, normalise(target), "smooth-l1").item() == pytest.approx(by_hand, rel=1e-6)
    assert prediction_loss(prediction, target, "mse").item() == pytest.approx((0.25 + 25 + 36) / 3)
    cosine = (0.5 - 6) / (math.sqrt(9.25) * math.sqrt(41))
    assert prediction_loss(prediction, target, "cosine").item() == pytest.approx(1 - cosine, rel=1e-5)


def test_the_models_loss_is_that_of_its_parts():
    jepa, mask = model(), masks()
    output = jepa(crops(), mask)
    target = normalise(jepa.target_encoder(patchify(crops()), mask.target))
    context = jepa.context_encoder(patchify(crops()), mask.context)
    predicted, _ = jepa.predictor(context, mask.context, mask.target)
    assert output.loss.item() == pytest.approx(F.smooth_l1_loss(predicted, target).item(), rel=1e-6)


def test_gradients_reach_all_that_is_trained_and_nothing_else():
    jepa = model()
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


def test_moving_average_by_its_formula():
    jepa = model()
    expected = {name: tensor.clone() for name, tensor in jepa.target_encoder.state_dict().items()}
    for step, momentum in enumerate([0.9, 0.95, 0.99]):
        with torch.no_grad():
            for tensor in [*jepa.context_encoder.parameters(), *jepa.context_encoder.buffers()]:
                tensor.add_(0.1 * (step + 1))
        jepa.update_target(momentum)
        for name, tensor in jepa.context_encoder.state_dict().items():
            expected[name] = momentum * expected[name] + (1 - momentum) * tensor
    for name, tensor in jepa.target_encoder.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_domains_differ_by_what_the_target_encoder_sees():
    mask, patches = masks(), patchify(crops())
    on_input, on_latent = model(TargetConfig("input")), model(TargetConfig("latent"))
    everything = on_latent.target_encoder(patches)
    torch.testing.assert_close(on_latent.targets(patches, mask), normalise(take(everything, mask.target)))
    alone = on_input.target_encoder(patches, mask.target)
    torch.testing.assert_close(on_input.targets(patches, mask), normalise(alone))

    heard = patches.clone()
    for row, context in enumerate(mask.context):
        heard[row, context] += 1.0  # what is not a target changes
    assert on_input.targets(heard, mask).equal(on_input.targets(patches, mask))
    assert not torch.allclose(on_latent.targets(heard, mask), on_latent.targets(patches, mask), atol=1e-3)


@pytest.mark.parametrize("domain", ["input", "latent"])
def test_several_masks_of_a_crop(domain):
    jepa, first, second = model(TargetConfig(domain)), masks(seed=0), masks(seed=1)
    both = jepa(crops(), Mask(*(torch.cat(pair) for pair in zip(first, second, strict=True))))
    losses = [jepa(crops(), mask).loss.item() for mask in (first, second)]
    assert both.loss.item() == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_top_layers_are_normalised_then_averaged():
    jepa = model(TargetConfig("latent", top_layers=2), LossConfig(normalise_target=False))
    patches, mask = patchify(crops()), masks()
    outputs = jepa.target_encoder(patches, layers=[2, 3])
    average = sum(F.layer_norm(output, (32,)) for output in outputs) / 2
    torch.testing.assert_close(jepa.targets(patches, mask), take(average, mask.target))


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


def test_variance_covariance_by_their_definition():
    z = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1.0, 2.0])
    flat = z.flatten(0, 1)
    covariance = torch.cov(flat.T)
    hinge = [max(0.0, 1 - math.sqrt(covariance[i, i].item() + 1e-4)) for i in range(3)]
    off = sum(covariance[i, j].item() ** 2 for i in range(3) for j in range(3) if i != j)
    variance_term, covariance_term = variance_covariance(z)
    assert variance_term.item() == pytest.approx(sum(hinge) / 3, rel=1e-4)
    assert covariance_term.item() == pytest.approx(off / 3, rel=1e-4)
    plain = model()(crops(), masks()).loss
    regularised = model(loss=LossConfig(variance_weight=1.0, covariance_weight=1.0))(crops(), masks()).loss
    assert regularised > plain
