"""Lesson 2's figures: rounding and clipping add up, and the limits are those of the observers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qlab
from qlab.course.lesson02 import plots


@pytest.fixture(scope="module")
def activations() -> torch.Tensor:
    return torch.randn(20_000, generator=torch.Generator().manual_seed(2)).relu() ** 1.5


def test_rounding_and_clipping_add_up_and_the_title_knows_how_far_the_best_is(activations):
    draw = plots.clipping(activations)
    figure = draw(4, 50)
    limits, rounding = figure.axes[1].lines[0].get_data()
    clipped, both = (line.get_ydata() for line in figure.axes[1].lines[1:3])
    assert np.allclose(rounding + clipped, both, rtol=1e-4, atol=1e-10)
    assert (np.diff(clipped) <= 1e-12).all()
    assert limits[both.argmin()] == pytest.approx(plots.limit_of_least_error(activations, 4))
    half = activations.max() / 2
    error = (qlab.fake_quantize(activations, qlab.choose_qparams(0.0, half, 4)) - activations).square().mean()
    assert figure.axes[1].lines[3].get_ydata()[0] == pytest.approx(error.item(), rel=1e-4)
    assert figure.finding.endswith(f"{error / min(both):.1f} times the least")
    best = {bits: plots.limit_of_least_error(activations, bits) for bits in (2, 4, 8)}
    assert best[2] < best[4] < best[8]
    at_best = draw(4, round(100 * best[4] / float(activations.max()))).finding
    assert at_best.endswith(", 1.0 times the least")


def test_the_limits_are_those_of_the_observers_and_the_mse_is_best(activations):
    figure = plots.chosen_limits(activations)(3)
    minmax, percentile, entropy, mse = figure.axes[1].lines[0].get_xdata()
    assert minmax == pytest.approx(float(activations.max()), rel=1e-3)
    assert mse < percentile < minmax

    def error(limit):
        grid = qlab.choose_qparams(0.0, float(limit), 3)
        return (qlab.fake_quantize(activations, grid) - activations).square().mean()

    assert error(mse) == min(error(limit) for limit in (minmax, percentile, entropy, mse))
    assert f"MSE clips at {mse:.2f}" in figure.finding and f"percentile 99.99 at {percentile:.2f}" in figure.alt


def test_an_outlier_moves_min_max_and_mse_and_the_others_pay_for_it(activations):
    draw = plots.outlier(activations)
    start = draw(0)
    before = list(start.axes[0].lines[0].get_xdata())
    assert before == pytest.approx([plots.limit_of(name, activations, 8) for name in plots.observer_names()])
    figure = draw(7)
    (limits, _), (errors, _) = (ax.lines[0].get_data() for ax in figure.axes)
    minmax, percentile, entropy, mse = limits
    assert minmax == pytest.approx(float(activations.max()) * 128, rel=1e-3) and mse > 0.5 * minmax
    assert percentile < 1.5 * before[1] and entropy < 1.5 * before[2]
    assert errors[0] > 100 * errors[1] and f"{errors[0] / min(errors):,.0f} times" in figure.finding
    others = activations[activations < activations.max()]
    assert errors[0] == pytest.approx(plots.squared_error(others, minmax, 8))
