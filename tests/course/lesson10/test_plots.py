"""Lesson 10's figures: what a title says is what a computation of one's own gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qlab
from qlab import PerChannel, PerGroup
from qlab.course.lesson10 import plots

BITS = (2, 3, 4)
FOUND = {
    (kind, bits): base * (1 + 4.0 ** (3 - bits)) for kind, base in (("row", 5.0), ("groups", 4.0)) for bits in BITS
}
WRITTEN = {bits: f"def f{bits}():\n    return $x_{bits}$" for bits in BITS}
CHANNELS = (3, 9)


def layer() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(40, 64, generator=draw), 0.1 * torch.randn(48, 64, generator=draw)


def bits_of_weights():
    return plots.bits_of_weights(FOUND, 4.0, WRITTEN, "groups")


# --- perplexity against bits


@pytest.mark.parametrize("bits", BITS)
def test_the_title_says_the_perplexity_and_the_text_is_what_the_model_wrote(bits):
    figure = bits_of_weights()(bits)
    assert figure.finding == f"{bits} bits: perplexity {FOUND['groups', bits]:.2f} (groups); in float 4.00"
    assert figure.axes[1].texts[1].get_text() == WRITTEN[bits]
    assert f"row {FOUND['row', bits]:.2f}" in figure.alt and f"/     return $x_{bits}$" in figure.alt
    curves = {
        line.get_label(): line.get_ydata() for line in figure.axes[0].lines if line.get_label() in ("row", "groups")
    }
    assert list(curves["row"]) == [FOUND["row", each] for each in BITS]


def test_a_perplexity_beyond_the_axis_is_drawn_at_its_end():
    figure = plots.bits_of_weights({**FOUND, ("row", 2): 1e9}, 4.0, WRITTEN, "groups")(2)
    curve = next(line for line in figure.axes[0].lines if line.get_label() == "row")
    assert curve.get_ydata()[0] == 80 == figure.axes[0].get_ylim()[1]


# --- groups


@pytest.mark.parametrize("bits, size", [(4, 64), (4, 16), (2, 32), (8, 64)])
def test_groups_have_the_error_and_the_memory_that_the_title_says(bits, size):
    weight = layer()[1]
    figure = plots.weight_groups(weight, (16, 32, 64))(bits, size)
    groups = weight.reshape(48, -1, size)
    grid = qlab.choose_qparams(groups.amin(-1), groups.amax(-1), bits, granularity=PerGroup(size))
    error = 100 * float((qlab.fake_quantize(weight, grid) - weight).norm() / weight.norm())
    stored, shown = bits + 32 / size, figure.axes[1].lines[1].get_xydata()[0]
    assert figure.finding.startswith(f"{bits} bits in groups of {size}: {stored:.2f} bits a weight, error ")
    assert shown[0] == stored and shown[1] == pytest.approx(error, rel=0.02)  # scales are bfloat16
    row = (weight.abs().amax(1) / weight.std(1)).argmax()
    steps = figure.axes[0].patches[0].get_data().values
    assert np.allclose(steps, grid.scale[row].repeat_interleave(size), rtol=2**-7)


# --- outliers


def errors_of(x: torch.Tensor, weight: torch.Tensor, channels=CHANNELS) -> tuple[float, float]:
    """W8A8's error in percent: of what the ordinary channels give, and of the whole output."""
    options = {"bits": 8, "signed": True, "symmetric": True, "narrow_range": True, "granularity": PerChannel(0)}
    tops = x.abs().amax(1), weight.abs().amax(1)
    near = [qlab.fake_quantize(t, qlab.choose_qparams(-top, top, **options)) for t, top in zip((x, weight), tops)]
    ordinary = [column for column in range(x.shape[1]) if column not in channels]
    found = []
    for some in (ordinary, list(range(x.shape[1]))):
        right = x[:, some] @ weight[:, some].T
        found.append(100 * float((near[0][:, some] @ near[1][:, some].T - right).norm() / right.norm()))
    return tuple(found)


@pytest.mark.parametrize("alpha, size", [(0.0, 6), (0.5, 6), (1.0, 6), (0.5, 0), (0.25, 8)])
def test_smoothing_has_the_errors_that_quantizing_tokens_and_rows_gives(alpha, size):
    x, weight = layer()
    figure = plots.smoothing(x, weight, CHANNELS)(alpha, size)
    x = x.clone()
    x[:, list(CHANNELS)] *= 2**size
    s = x.abs().amax(0) ** alpha / weight.abs().amax(0) ** (1 - alpha)
    (smoothed, whole), (plain, _all) = errors_of(x / s, weight * s), errors_of(x, weight)
    assert figure.finding == (
        f"alpha {alpha:.2f}, outliers {2**size} times: ordinary channels' error {smoothed:.2g} %, unsmoothed {plain:.2g} %"
    )
    assert f"outliers and all, {whole:.2g} % are wrong" in figure.alt
    inputs, weights = (line.get_ydata() for line in figure.axes[0].lines)
    assert np.allclose(inputs, (x / s).abs().amax(0)) and np.allclose(weights, (weight * s).abs().amax(0))


def test_half_and_half_is_better_than_either_end():
    draw = plots.smoothing(*layer(), CHANNELS)
    errors = [draw(alpha, 6).axes[1].lines[3].get_ydata()[0] for alpha in (0.0, 0.5, 1.0)]
    assert errors[1] < 0.7 * min(errors[0], errors[2])


def test_what_outliers_do_to_the_others_does_not_show_in_the_whole_output():
    """The outliers make up most of the output, and they are rounded well: the ordinary channels are not."""
    x, weight = layer()
    x[:, list(CHANNELS)] *= 256
    ordinary, whole = plots.w8a8_error(x, weight, plots.others(64, CHANNELS)), plots.w8a8_error(x, weight)
    assert (ordinary, whole) == pytest.approx(errors_of(x, weight), rel=1e-4)
    assert ordinary > 10 * whole
