"""Lesson 1's figures: how far rounding moves a number, and what each format stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qlab.course.lesson01 import plots


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shift", [0.0, 0.3, 0.5, 0.9])
def test_rounding_is_off_by_half_a_step_at_most_wherever_the_grid_stands(bits, shift):
    figure = plots.rounding()(bits, shift)
    step = 2 / (2**bits - 1)
    above, below = figure.axes
    stairs, error = above.lines[1].get_ydata(), below.lines[0].get_ydata()
    assert np.abs(error).max() <= step / 2 + 1e-9
    assert len(above.collections[0].get_segments()) == 2**bits >= len(np.unique(stairs))
    assert f"{2**bits} rungs, and the stairs use {len(np.unique(stairs))} of them" in figure.alt
    assert np.allclose(above.lines[0].get_ydata() - stairs, error)
    assert ("0 is on the grid" in figure.finding) is (shift == 0)
    assert f"largest error {np.abs(error).max():.3f}" in figure.finding


def test_errors_are_evenly_spread_while_steps_are_small_and_not_with_two_bits():
    draw = plots.rounding_errors(torch.randn(20_000, generator=torch.Generator().manual_seed(1)))
    assert "8 bits: mean squared error 1.0" in draw(8).finding
    heights = [bar.get_height() for bar in draw(8).axes[0].patches]
    assert len(heights) == 20 and 0.85 < min(heights) and max(heights) < 1.15
    assert "mean squared error 1.0" not in draw(2).finding


@pytest.mark.parametrize("number", [0.3, -1.0, 0.0, 4.5, -5.0, 1e-3])
def test_formats_store_what_the_formats_store(number):
    texts_of = [text.get_text() for text in plots.formats()(number).axes[0].texts]
    for name, (exponent, fraction, dtype) in plots.FORMATS.items():
        bits = "".join(texts_of[texts_of.index(name) + 1 :][:3]).replace(" ", "")
        sign, power, rest = int(bits[0]), int(bits[1 : 1 + exponent], 2), int(bits[1 + exponent :], 2)
        bias = 2 ** (exponent - 1) - 1
        size = (1 + rest / 2**fraction) * 2.0 ** (power - bias) if power else rest / 2**fraction * 2.0 ** (1 - bias)
        assert (-1) ** sign * size == torch.tensor(number).to(dtype).double()
        assert f"{name} stores {torch.tensor(number).to(dtype).double().item():.9g}" in plots.formats()(number).alt
    code = int("".join(texts_of[texts_of.index("int8") + 1 :][:3]).replace(" ", ""), 2)
    assert code - 256 * (code > 127) == max(-128, min(127, round(number * 32)))
