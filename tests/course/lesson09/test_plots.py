"""Lesson 9's figures: errors and sizes of grids with few values are those that qlab.codebook gives."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import qlab
from qlab import codebook
from qlab.course.exercises import exercise
from qlab.course.lesson09 import plots
from qlab.formats import float_format


@pytest.fixture(scope="module")
def weights() -> torch.Tensor:
    return torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(9)) * 0.1


def share(weights: torch.Tensor, rounded: torch.Tensor) -> float:
    """The squared error in percent of the weights' squares."""
    return 100 * float((rounded - weights).square().sum() / weights.square().sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("iterations", [0, 1, 40])
def test_the_codebooks_error_is_that_of_k_means(weights, bits, iterations):
    figure = plots.codebook(weights)(bits, iterations)
    table, codes = codebook.kmeans(weights, bits, iterations=iterations)
    assert f"error {share(weights, codebook.look_up(table, codes)):.3g} % with the codebook" in figure.finding
    assert f"The {2**bits} values" in figure.alt
    left, right = figure.axes
    drawn = [segment[0][0] for segment in left.collections[0].get_segments()]
    assert np.allclose(drawn, table)
    assert len(right.lines[0].get_xdata()) == iterations + 1  # no look at what is to come


def test_one_iteration_is_exercise_9_2(weights):
    """What the student writes moves the centroids as the figure does."""
    flat = weights.flatten()
    start = torch.linspace(float(flat.min()), float(flat.max()), 8)
    updated = exercise("9.2").solution(flat, start)
    drawn = [segment[0][0] for segment in plots.codebook(weights)(3, 1).axes[0].collections[0].get_segments()]
    assert np.allclose(drawn, updated, atol=1e-6)


def test_k_means_never_gets_worse_and_ends_better_than_equal_steps(weights):
    draw = plots.codebook(weights)
    for bits in (2, 3, 4):
        figure = draw(bits, 40)
        errors = figure.axes[1].lines[0].get_ydata()
        assert (np.diff(errors) <= 1e-9).all()
        assert errors[-1] < float(re.search(r"codebook, ([\d.e-]+) %", figure.finding)[1])


def test_threshold_0_is_binary_and_0_7_is_ternary(weights):
    draw = plots.few_values(weights)
    binary = share(weights, qlab.dequantize(*codebook.binary(weights)))
    assert draw(0.0).finding.startswith(f"binary, threshold 0.00: 0 % are 0, error {binary:.0f} %")
    codes, grid = codebook.ternary(weights)
    ternary = share(weights, qlab.dequantize(codes, grid))
    zeros = 100 * (codes == 0).double().mean()
    assert draw(0.7).finding.startswith(f"ternary, threshold 0.70: {zeros:.0f} % are 0, error {ternary:.0f} %")
    best = float(re.search(r"least at (\d\.\d+)", draw(0.7).finding)[1])
    assert 0.5 < best < 0.9 and ternary < binary


def test_a_tile_shows_the_filter_on_three_values(weights):
    figure = plots.few_values(weights)(0.7)
    above, below = (image.get_array() for image in figure.axes[0].images)
    values = qlab.dequantize(*codebook.ternary(weights))
    mean = weights.abs().mean((1, 2, 3))
    for number, (row, column) in {0: (0, 0), 5: (0, 20), 11: (8, 20)}.items():
        there = slice(column, column + 3)
        assert np.allclose(above[row : row + 3, there], weights[number, 0] / mean[number], atol=1e-5)
        assert np.allclose(below[row + 4 : row + 7, there], values[number, 0] / mean[number], atol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.35, 0.7, 1.5])
def test_the_ternary_error_is_the_figures(weights, threshold):
    error = 100 * plots.ternary_error(weights, threshold)
    assert f"error {error:.0f} %" in plots.few_values(weights)(threshold).finding


def test_the_best_threshold_is_the_papers_for_even_and_for_normal_weights():
    """Li and Liu (2016), section 2.1: 2/3 of the mean magnitude, and about 0.75 of it."""
    generator = torch.Generator().manual_seed(0)
    spread = {2 / 3: torch.rand(1, 100_000, generator=generator) - 0.5}
    spread[0.75] = torch.randn(1, 100_000, generator=generator)
    for expected, w in spread.items():
        thresholds = np.arange(0.4, 1.2, 0.02)
        best = thresholds[np.argmin([plots.ternary_error(w, one) for one in thresholds])]
        assert best == pytest.approx(expected, abs=0.04)


# --- small floats


@pytest.mark.parametrize("grid", plots.GRIDS)
@pytest.mark.parametrize("power", [0, 2, 5])
def test_small_floats_say_what_is_left_of_the_other_weights(weights, grid, power):
    figure = plots.small_floats(weights)(grid, power)
    moved = weights.flatten().clone()
    moved[0] = 10.0**power * weights.abs().max()
    rounded = plots.eight_bits(moved, grid)
    error = (rounded - moved)[1:].double().square().sum()
    decibel = 10 * np.log10(float(moved[1:].double().square().sum() / error))
    assert f"{grid}, one weight {10**power:,} times the largest: {decibel:.1f} dB" in figure.finding
    assert figure.finding.endswith(f"{100 * (rounded[1:] == 0).double().mean():.0f} % of them are 0")
    assert figure.axes[1].lines[-1].get_ydata() == pytest.approx(decibel)


@pytest.mark.parametrize("grid, floor", [("e4m3", -9), ("e5m2", -16)])
def test_a_small_float_reaches_down_to_its_smallest_value_and_no_further(grid, floor):
    """2**-9 and 2**-16 (OCP 8-bit Floating Point Specification, table 1)."""
    largest = torch.finfo(float_format(grid)).max
    values = torch.tensor([largest, 2.0**floor, 2.0**floor * 0.49])
    assert plots.eight_bits(values, grid).tolist() == [largest, 2.0**floor, 0.0]
    assert f"its smallest magnitude is {2.0**floor:.3g}" in plots.small_floats(torch.randn(50))(grid, 0).alt


def test_an_outlier_costs_int8_at_once_e4m3_late_and_e5m2_later(weights):
    w = weights.flatten()
    plain, far, farther = (
        {grid: plots.others_decibel(plots.with_outlier(w, power), grid) for grid in plots.GRIDS} for power in (0, 2, 5)
    )
    assert plain["int8"] > plain["e4m3"] > plain["e5m2"] > 20
    assert far["int8"] < 5 and far["e4m3"] == pytest.approx(plain["e4m3"], abs=1)
    assert farther["e4m3"] < 10 and farther["e5m2"] == pytest.approx(plain["e5m2"], abs=1)
