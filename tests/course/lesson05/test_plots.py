"""Lesson 5's figures: the integers are those of the reference engine, saturation is that of 16-bit pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qlab
from qlab import bench
from qlab.course.lesson05 import plots
from qlab.int8.reference import Engine

X, W, BIAS, ENDS = torch.tensor([0.9, -0.4, 1.7, -1.1]), torch.tensor([0.31, -0.22, 0.45, 0.12]), 0.25, (-1.0, 3.0)


@pytest.fixture
def walk():
    return lambda: plots.dot_product(X, W, BIAS, ENDS)


# --- one dot product


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_integers_give_the_code_of_the_reference_engine(bits):
    found = plots.in_integers(X, W, BIAS, ENDS, bits)
    x_qp = qlab.choose_qparams(-1.1, 1.7, bits)
    w_qp = qlab.choose_qparams(-0.45, 0.45, bits, signed=True, symmetric=True, narrow_range=True)
    out_qp = qlab.choose_qparams(*ENDS, bits)
    q_x, q_w = qlab.quantize(X, x_qp), qlab.quantize(W, w_qp)
    assert (found.x, found.w, found.zero_point) == (q_x.tolist(), q_w.tolist(), int(x_qp.zero_point))
    assert found.sums[-1] == int(((q_x.int() - x_qp.zero_point) * q_w).sum())
    code = int(Engine().linear(q_w[None], torch.tensor([BIAS]), w_qp, x_qp, out_qp)(q_x[None]))
    assert abs(found.code - code) <= 1, "the engine may keep the bias on a finer grid"
    assert found.value == pytest.approx(float(qlab.dequantize(torch.tensor(found.code), out_qp)))
    assert found.mantissa / 2**found.shift == pytest.approx(found.step / found.out_step, rel=1e-6)


def test_each_step_says_what_it_adds_and_shows_nothing_of_the_next(walk):
    draw = walk()
    rows = [text for text in draw(0, 8).axes[0].texts if text.get_fontfamily() == ["DejaVu Sans Mono"]]
    shown = [sum(bool(row.get_text()) for row in rows[3:]) for step in range(7) if draw(step, 8)]
    assert shown == [0, 2, 3, 4, 5, 6, 7]
    found = plots.in_integers(X, W, BIAS, ENDS, 8)
    assert draw(0, 8).finding == "Float: 1.000 and the bias 0.25 make 1.250"
    assert f"is {found.sums[-1]:,}" in draw(3, 8).finding and f"code {found.code}" in draw(5, 8).finding
    result = float((X * W).sum() + BIAS)
    off = abs(found.value - result)
    assert draw(6, 8).finding == (
        f"Step 6: integers say {found.value:.3f}, float says {result:.3f}: off by {off:.3f} "
        f"({off / found.out_step:.2f} steps of {found.out_step:.3f})"
    )
    total = found.sums[-1] + found.bias
    requantized = next(row.get_text() for row in rows if ">>" in row.get_text())
    left, right = requantized.replace(",", "").replace("·", "*").split(" = ")
    assert eval(left) == int(right) == found.code and str(total) in left, "as it stands there it is right, half and all"


def test_the_integer_line_is_the_running_sum(walk):
    figure = walk()(4, 8)
    floats, integers = figure.axes[1].lines[0].get_ydata(), figure.axes[1].lines[2].get_ydata()
    assert np.allclose(integers[:4], floats, atol=0.02) and integers[4] == pytest.approx(1.25, abs=0.02)
    assert len(walk()(2, 8).axes[1].lines[2].get_ydata()) == 0


# --- saturation


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(60, 27, generator=generator) * 4 - 2, torch.randn(8, 27, generator=generator)


def by_hand(q: torch.Tensor, weight: torch.Tensor) -> tuple[int, list[int]]:
    """(pairs that saturate, sums), one number at a time."""
    beyond, sums = 0, []
    for row in q.tolist():
        for codes in weight.tolist():
            products, total = [a * b for a, b in zip(row, codes)], 0
            for start in range(0, len(products), 2):
                pair = sum(products[start : start + 2])
                beyond += not -32768 <= pair <= 32767
                total += min(max(pair, -32768), 32767)
            sums.append(total)
    return beyond, sums


def test_saturated_sums_are_those_of_pairs_in_16_bits():
    x, weight = inputs()
    q = qlab.quantize(x, qlab.choose_qparams(float(x.min()), float(x.max()), 8))
    codes = torch.round(weight / weight.abs().amax(1, keepdim=True) * 127).int()
    pairs, sums = plots.saturating_sums(q, codes)
    beyond, expected = by_hand(q, codes)
    assert sums.flatten().tolist() == expected
    assert int(((pairs > 32767) | (pairs < -32768)).sum()) == beyond > 0
    figure = plots.saturation(x, weight)(8, 127)
    assert figure.finding.startswith(f"8 bits: {100 * beyond / pairs.numel():.2g} % of the pairs saturate")
    worth = float(qlab.choose_qparams(float(x.min()), float(x.max()), 8).scale) * weight.abs().amax(1) / 127
    off = (((pairs.sum(-1) - sums) * worth).abs()).max()
    assert figure.finding.endswith(f"wrong, by up to {off:.2f}") and off > 1, "in the units of the layer's output"
    heights = [patch.get_data().values.sum() for patch in figure.axes[0].patches]
    assert heights == [pairs.numel() - beyond, beyond]


@pytest.mark.parametrize("bits, largest", [(7, 127), (5, 127), (8, 64), (8, 31)])
def test_nothing_saturates_with_one_bit_less_on_either_side(bits, largest):
    x, weight = inputs()
    for signs in (weight, weight.abs(), -weight.abs()):
        figure = plots.saturation(x, signs)(bits, largest)
        assert "bits: 0 % of the pairs saturate, 0 % of the outputs are wrong, by up to 0.00" in figure.finding
        assert "wrong by 0.00" in figure.alt
        exact, found = figure.axes[1].lines[-1].get_data()
        assert np.array_equal(exact, found)


# --- speed


def test_the_roofline_names_the_layers_that_gain_least_and_most():
    layers = [
        plots.LayerSpeed("small", 10**6, 4000, 1000, 1e-5, 2e-5),
        plots.LayerSpeed("large", 10**9, 40_000, 10_000, 1e-2, 2.5e-3),
    ]
    figure = plots.roofline(layers, bench.Roof(2e11, 5e11, 1e10))
    assert figure.finding == "int8 is 0.5 times as fast on small, 4 times on large"
    assert "large: float 100, int8 400 billion operations a second" in figure.alt
    assert "float 200, int8 500 billion operations and 10 GB a second" in figure.alt
    for line, level in zip(figure.axes[0].lines[-2:], (200, 500)):
        intensity, height = line.get_data()
        assert np.allclose(height, np.minimum(level, 10 * intensity))
    places = [line.get_xydata()[0].tolist() for line in figure.axes[0].lines if len(line.get_xydata()) == 1]
    assert np.allclose(places, [[250, 100], [1000, 50], [25_000, 100], [100_000, 400]])
