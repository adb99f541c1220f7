"""Claims about the schedules, by plain arithmetic: the learning rate rises in a straight line to its peak, then falls
along half a cosine, or stays and falls in a straight line at the end; the momentum of the moving average goes from one
end to the other and stays there; both have the authors' variants; unknown names are refused."""

import math

import pytest

from hear_jepa.errors import OptionError
from hear_jepa.train.config import EmaConfig, OptimConfig


def optim(**options):
    return OptimConfig(steps=100, batch_size=256, base_lr=0.5, warmup_steps=10, final_lr_share=0.1, **options)


def test_warm_up_then_half_a_cosine():
    rates = [optim().lr(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert rates[10:] == pytest.approx([0.05 + 0.45 * (1 + math.cos(math.pi * k / 90)) / 2 for k in range(90)])


def test_the_authors_warm_up_starts_at_zero():
    rates = [optim(warmup_from_zero=True).lr(step) for step in range(11)]
    assert rates == pytest.approx([0.5 * k / 9 for k in range(10)] + [0.5])


def test_constant_then_a_straight_line():
    rates = [optim(schedule="constant", decay_share=0.2).lr(step) for step in range(100)]
    assert rates[10:80] == pytest.approx([0.5] * 70)
    assert rates[80:] == pytest.approx([0.05 + 0.45 * (20 - k) / 21 for k in range(20)])
    longer = OptimConfig(steps=1000, batch_size=256, base_lr=0.5, warmup_steps=10, schedule="constant")
    assert longer.lr(50) == rates[50]  # a run of more steps takes the same ones


def test_warm_up_as_a_share_of_the_steps():
    assert OptimConfig(steps=3000, warmup_share=20 / 300).warmup == 200
    assert OptimConfig(batch_size=2048, base_lr=3e-4).peak_lr == pytest.approx(2.4e-3)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_momentum_goes_from_start_to_end(shape):
    ema = EmaConfig(0.996, 0.9999, shape)
    values = [ema.momentum(step, 1000) for step in range(1001)]
    assert values[0] == 0.996
    assert values[999] == values[1000] == pytest.approx(0.9999, abs=1e-12)
    quarter = 0.25 if shape == "linear" else 0.5 * (1 - math.cos(math.pi / 4))
    assert EmaConfig(0.0, 1.0, shape).momentum(250, 1001) == pytest.approx(quarter)


def test_momentum_on_a_ramp_and_the_authors():
    ramp = EmaConfig(0.0, 1.0, ramp_steps=11)
    assert [ramp.momentum(step, 1000) for step in (0, 5, 10, 11, 999)] == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0])
    authors = EmaConfig(0.0, 1.0, reaches_end=False)
    assert [authors.momentum(step, 10) for step in (0, 5, 9)] == pytest.approx([0.0, 0.5, 0.9])


def test_unknown_names_are_refused():
    with pytest.raises(OptionError, match="'cosinus'.*cosine, constant"):
        OptimConfig(schedule="cosinus")
    with pytest.raises(OptionError, match="'square'.*linear, cosine"):
        EmaConfig(shape="square")
