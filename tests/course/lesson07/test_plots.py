"""Lesson 7's figures: what they say is what training through the rounding does."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from qlab import qat
from qlab.course.exercises import exercise
from qlab.course.lesson07 import plots


@pytest.fixture(scope="module")
def weights() -> torch.Tensor:
    return torch.randn(4000, generator=torch.Generator().manual_seed(7)) * 0.1


@pytest.fixture(scope="module")
def training(weights) -> dict[int, list[plots.Snapshot]]:
    """A made-up training: with the pull the weights come to lie on the rungs."""

    def moved(pull: int, step: int) -> torch.Tensor:
        position = weights / 0.1
        return 0.1 * position.lerp(position.round().clamp(-1, 1), pull * step / 4)

    return {p: [plots.Snapshot(moved(p, k), 0.1, 0.5 / (k + 1)) for k in range(5)] for p in (0, 1)}


@pytest.mark.parametrize("start", [-1.2, -0.5, 0.4, 1.3, 3.2])
@pytest.mark.parametrize("steps", [0, 1, 7, 60])
def test_one_weight_goes_the_way_of_exercise_7_2(start, steps):
    figure = plots.one_weight()(start, steps)
    path = [start, *exercise("7.2").solution(start, 1.3, 0.1, steps)]
    used, kept = (line.get_ydata() for line in figure.axes[1].lines[1:3])
    assert np.allclose(kept, path) and np.allclose(used, [round(one) for one in path])
    assert f"weight {path[-1]:.2f}, used as {round(path[-1])}" in figure.finding
    gradient = exercise("7.1").solution(torch.tensor([path[-1]]), 1.3).item()
    assert figure.finding.endswith(f"straight through {gradient:.1f}")


def test_one_weight_ends_at_a_threshold_and_its_average_at_the_target():
    figure = plots.one_weight()(-1.0, 60)
    assert abs(float(re.search(r"weight (\d\.\d+)", figure.finding)[1]) - 1.5) < 0.2
    assert abs(float(re.search(r"was (\d\.\d+)", figure.alt)[1]) - 1.3) < 0.1


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


@pytest.mark.parametrize("pull, step", [(0, 0), (1, 0), (1, 10), (1, 20), (0, 20)])
def test_gathering_counts_the_weights_on_a_rung(training, pull, step):
    figure = plots.gathering(training, 5)(pull, step)
    one = training[pull][step // 5]
    position = (one.weights / one.scale).double()
    on = 100 * ((position - position.round().clamp(-1, 1)).abs() < 0.1).double().mean()
    assert f"step {step}: {on:.0f} % of the weights on a rung" in figure.finding
    assert f"error of the output {100 * one.error:.1f} %" in figure.finding
    assert len(figure.axes[1].lines[0].get_xdata()) == step // 5 + 1  # no look at what is to come
    assert 0 < figure.axes[0].patches[0].get_data().values.max() <= 12
