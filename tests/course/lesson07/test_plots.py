"""Lesson 7's figures: what they say is what training through the rounding does."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
import torch

from qlab import qat
from qlab.course.exercises import exercise
from qlab.course.lesson07 import plots
from qlab.course.lesson07.layer import Snapshot


@pytest.fixture(scope="module")
def weights() -> torch.Tensor:
    return torch.randn(4000, generator=torch.Generator().manual_seed(7)) * 0.1


@pytest.fixture(scope="module")
def training(weights) -> dict[str, list[Snapshot]]:
    """A made-up training: with the pull the weights come to lie on the rungs."""

    def moved(pull: int, step: int) -> torch.Tensor:
        position = weights / 0.1
        return 0.1 * position.lerp(position.round().clamp(-1, 1), pull * step / 4)

    held = weights.abs() > 0.1
    return {
        name: [Snapshot(moved(pull, k), 0.1, 0.5 / (k + 1), held, 0.1 * k) for k in range(5)]
        for pull, name in enumerate(("free", "pulled"))
    }


@pytest.mark.parametrize("start", [-1.2, -0.5, 0.4, 1.3, 3.2])
@pytest.mark.parametrize("steps", [0, 1, 7, 60])
@pytest.mark.parametrize("lr", [0.02, 0.1, 0.5])
def test_one_weight_goes_the_way_of_exercise_7_2(start, steps, lr):
    figure = plots.one_weight()(start, steps, lr, False)
    path = [start, *exercise("7.2").solution(start, 1.3, lr, steps)]
    used, kept = (line.get_ydata() for line in figure.axes[1].lines[1:3])
    assert np.allclose(kept, path) and np.allclose(used, [round(one) for one in path])
    assert f"weight {path[-1]:.2f}, used as {round(path[-1])}" in figure.finding
    gradient = exercise("7.1").solution(torch.tensor([path[-1]]), 1.3).item()
    assert figure.finding.endswith(f"straight through {gradient:.1f}")


def test_one_weight_ends_at_a_threshold_and_its_average_at_the_target():
    figure = plots.one_weight()(-1.0, 60, 0.1, False)
    assert abs(float(re.search(r"weight (\d\.\d+)", figure.finding)[1]) - 1.5) < 0.2
    assert abs(float(re.search(r"was (\d\.\d+)", figure.alt)[1]) - 1.3) < 0.1


def test_a_falling_rate_makes_the_swings_small_and_not_the_jumps_few():
    free, falling = (plots.path(-1.0, 1.3, 0.1, 1000, falls)[-200:] for falls in (False, True))
    assert max(falling) - min(falling) < 0.25 * (max(free) - min(free))
    jumps = [sum(round(a) != round(b) for a, b in pairwise(path)) for path in (free, falling)]
    assert jumps[1] > 0.9 * jumps[0] > 90


def test_a_step_of_a_falling_rate_is_shorter_by_what_has_gone_by():
    """lr * (1 - k / n): the last step of four has a quarter of the rate; no rung is changed on the way."""
    steps = np.diff(plots.path(0.0, 1.0, 0.01, 4, falling=True))
    assert np.allclose(steps, 0.02 * np.array([1, 0.75, 0.5, 0.25]))


@pytest.mark.parametrize("bits, percent", [(2, 10), (2, 100), (3, 45), (4, 3), (8, 95)])
def test_the_triangle_points_where_qlabs_own_lsq_drives_the_scale(weights, bits, percent):
    figure = plots.learned_scale(weights)(bits, percent)
    top = 2 ** (bits - 1) - 1
    scale = (weights.abs().max() * percent / 100 / top).requires_grad_()
    values = qat.LearnedStep.apply(weights, scale, torch.tensor(0.0), -top, top, 1.0, False)
    error = (values - weights).square().sum() / weights.square().sum()
    error.backward()
    assert ("shrinks" in figure.finding) is bool(scale.grad > 0)
    assert f"error {100 * error.item():.2g} %" in figure.finding
    *curves, now = figure.axes[1].lines
    rounding, clipped, both = (curve.get_ydata() for curve in curves)
    assert np.allclose(rounding + clipped, both, rtol=1e-6, atol=1e-8)
    assert now.get_ydata()[0] == pytest.approx(100 * error.item(), rel=1e-4)
    assert len(figure.axes[0].collections[0].get_segments()) == 2 * top + 1


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_lsq_rests_near_the_least_error(weights, bits):
    draw = plots.learned_scale(weights)
    turned = next(percent for percent in range(3, 101) if "shrinks" in draw(bits, percent).finding)
    assert abs(turned - float(re.search(r"at (\d+) %", draw(bits, 50).finding)[1])) <= 6


def test_rounding_drives_a_scale_down_and_clipping_drives_it_up(weights):
    for percent in (10, 40, 100):
        inside, clipped = plots.drives(weights.numpy(), percent / 100 * weights.abs().max().item() / 3, 3)
        assert (inside >= 0).all() and (clipped < 0).all() and len(inside) + len(clipped) == weights.numel()


@pytest.mark.parametrize("name, step", [("free", 0), ("pulled", 0), ("pulled", 10), ("pulled", 20), ("free", 20)])
def test_gathering_counts_the_weights_on_a_rung(training, weights, name, step):
    figure = plots.gathering(training, 5)(name, step)
    one = training[name][step // 5]
    position = (one.weights / one.scale).double()
    on = 100 * ((position - position.round().clamp(-1, 1)).abs() < 0.1).double().mean()
    assert f"step {step}: {on:.0f} % of the weights on a rung" in figure.finding
    assert f"error of the output {100 * one.error:.1f} %" in figure.finding
    assert f"{100 * (weights.abs() > 0.1).double().mean():.0f} % of the weights have the gradient 0" in figure.alt
    assert len(figure.axes[1].lines[0].get_xdata()) == step // 5 + 1  # no look at what is to come
    all_of_them, held = (bars.get_data().values for bars in figure.axes[0].patches)
    assert 0 < all_of_them.max() <= 12 and (held <= all_of_them).all()
