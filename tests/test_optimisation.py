"""Claims about the optimiser: matrices decay and nothing else, or everything where asked for; a gradient within the
limit is left as it is, and none is clipped where the limit is 0."""

import pytest
import torch

from hear_jepa.train.config import ComputeConfig, OptimConfig
from hear_jepa.train.optimisation import Optimiser


def optimiser(**options):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    config = OptimConfig(weight_decay=0.5, **options)
    return model, Optimiser(model.named_parameters(), config, ComputeConfig(), torch.device("cpu"))


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_what_decays(decay):
    model, adamw = optimiser(decay=decay)
    adamw.backward(sum((p * 0).sum() for p in model.parameters()))  # no gradient: what moves has decayed
    adamw.step(0.1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, torch.ones_like(p))}
    assert moved == ({"0.weight"} if decay == "matrices" else {"0.weight", "0.bias", "1.weight", "1.bias"})
    torch.testing.assert_close(model[0].weight.data, torch.full((3, 3), 1 - 0.1 * 0.5))


@pytest.mark.parametrize(("clip", "largest"), [(3.0, 3.0), (100.0, 10.0), (0.0, 10.0)])
def test_the_gradient_is_clipped_to_its_limit(clip, largest):
    model, adamw = optimiser(clip=clip)
    taken = []
    adamw.adamw.register_step_pre_hook(lambda *_: taken.append([p.grad.clone() for p in adamw.parameters]))
    adamw.backward(model[0].bias.sum() * 10 / 3**0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    norm, finite = adamw.step(0.1)
    assert norm == pytest.approx(10.0) and finite
    assert torch.cat([g.flatten() for g in taken[0]]).norm().item() == pytest.approx(largest, rel=1e-5)
