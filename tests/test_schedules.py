"""Claims about the schedules: the learning rate rises in a straight line to its peak, then falls along half a cosine to
its final value; the momentum of the moving average hits both of its ends exactly and never leaves them."""

import math

import pytest

from hear_jepa.train.schedules import interpolate, warmup_cosine


def test_learning_rate_follows_its_formula():
    rates = [warmup_cosine(step, 100, 10, 0.5, 0.05) for step in range(101)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.5)
    assert rates[55] == pytest.approx((0.5 + 0.05) / 2)
    assert rates[100] == pytest.approx(0.05)
    assert all(before >= after for before, after in zip(rates[10:], rates[11:], strict=False))


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_momentum_goes_from_start_to_end(shape):
    values = [interpolate(step, 1000, 0.996, 0.9999, shape) for step in range(1000)]
    assert values[0] == 0.996
    assert values[-1] == pytest.approx(0.9999, abs=1e-12)
    assert all(before <= after for before, after in zip(values, values[1:], strict=False))
    quarter = 0.25 if shape == "linear" else 0.5 * (1 - math.cos(math.pi / 4))
    assert interpolate(250, 1001, 0.0, 1.0, shape) == pytest.approx(quarter)
