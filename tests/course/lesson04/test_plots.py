"""Lesson 4: what the figures say of channels, scales and equalization is what they are."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import qlab
from qlab.course.lesson04 import plots

SHARES = ["per tensor", "per channel", "groups of 3"]


@pytest.fixture(scope="module")
def depthwise() -> torch.Tensor:
    """Twelve filters, one of them 40 times as large as the others."""
    weight = torch.randn(12, 1, 3, 3, generator=torch.Generator().manual_seed(5)).clamp(-2, 2)
    weight[3] *= 40
    return weight


@pytest.fixture(scope="module")
def expand() -> torch.Tensor:
    """What stands before it: the channel that is large there is small here."""
    weight = torch.randn(12, 6, 1, 1, generator=torch.Generator().manual_seed(6)).clamp(-2, 2)
    weight[3] /= 20
    return weight


def rounded(weight: torch.Tensor, bits: int, share: str) -> torch.Tensor:
    """By hand: every weight to the nearest multiple of its scale."""
    groups = weight.reshape({"per tensor": 1, "per channel": len(weight), "groups of 3": 3 * len(weight)}[share], -1)
    scale = groups.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (torch.round(groups / scale) * scale).reshape(weight.shape)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_title_knows_the_whole_layer_and_its_worst_channel(depthwise, bits, share):
    found = rounded(depthwise, bits, share)
    noise = (found - depthwise).flatten(1).square().sum(1)
    ratio = 10 * torch.log10(depthwise.flatten(1).square().sum(1) / noise)
    figure = plots.channel_ranges(depthwise)(bits, share)
    whole = qlab.analysis.sqnr(depthwise, found)
    assert figure.finding == (
        f"{bits} bits, {share}: whole layer {whole:.1f} dB; median living channel {np.median(ratio):.1f} dB, "
        f"worst {ratio.min():.1f} dB"
    )
    gone = int((found == 0).flatten(1).all(1).sum())
    assert figure.alt.startswith(f"In {gone} of 12 living channels") and "dead" not in figure.alt
    cost = {"per tensor": 16 / 108, "per channel": 16 / 9, "groups of 3": 16 / 3}[share]
    assert f"add {cost:.2g} bits a weight" in figure.alt


def test_channels_that_vanish_are_marked_and_lie_below_half_a_step(depthwise):
    figure = plots.channel_ranges(depthwise)(4, "per tensor")
    left, right = figure.axes
    largest, half = left.lines[0].get_ydata(), left.lines[1].get_ydata()
    alive, dead = (line.get_xdata() for line in right.lines)
    assert set(dead) == {channel + 1 for channel in range(12) if largest[channel] < half[channel]}
    assert len(dead) == 11 and list(alive) == [12]


def test_a_dead_channel_is_drawn_as_dead_and_counts_for_nothing(depthwise):
    dead = depthwise.clone()
    dead[5] /= 1e5
    assert plots.living(dead).tolist() == [channel != 5 for channel in range(12)]
    for share in SHARES:
        figure = plots.channel_ranges(dead)(8, share)
        assert "1 of all 12 channels are dead" in figure.alt and "In 0 of 11 living channels" in figure.alt
        left, right = figure.axes
        places = [x for line in (left.lines[0], *right.lines) for x in line.get_xdata()]
        assert sorted(places) == sorted([*range(2, 13)] * 2), "the dead one, which comes first, has no point"
        assert [text.get_text() for text in left.texts if "dead" in text.get_text()] == ["← dead"]
    assert float(re.search(r"worst ([\d.]+)", plots.channel_ranges(dead)(8, "per tensor").finding)[1]) > 5


def test_as_many_steps_are_shown_as_a_channel_has_scales(depthwise):
    draw = plots.channel_ranges(depthwise)
    for share, lines in zip([*SHARES, *SHARES], (1, 1, 3, 1, 1, 3)):
        steps = draw(4, share).axes[0].lines[1:]
        assert sum(len(line.get_xdata()) > 0 for line in steps) == lines


@pytest.mark.parametrize("share", [0, 50, 100])
def test_equalization_moves_range_and_keeps_the_product(expand, depthwise, share):
    figure = plots.equalization(expand, depthwise)(share, 6)
    shown = [ax.lines[0].get_ydata() for ax in figure.axes]
    r1, r2 = (weight.flatten(1).abs().amax(1).numpy() for weight in (expand, depthwise))
    assert np.allclose(shown[0] * shown[1], r1 * r2, rtol=1e-4)
    assert np.allclose(shown[0] / shown[1], (r1 / r2) ** (1 - share / 100), rtol=1e-3)
    largest = float(shown[1].max())
    assert figure.axes[1].lines[1].get_ydata()[0] == pytest.approx(largest / 31 / 2, rel=1e-4)


def test_equalized_channels_are_quantized_better(expand, depthwise):
    draw = plots.equalization(expand, depthwise)
    both = [list(map(float, re.findall(r"([\d.]+) dB", draw(share, 6).finding))) for share in (0, 50, 100)]
    first, second = zip(*both)
    assert second[0] + 5 < second[1] < second[2] and min(first) > 30


def test_a_channel_that_is_dead_in_one_layer_stays_as_it_is(expand, depthwise):
    dead = expand.clone()
    dead[7] /= 1e5
    first, second = plots.equalized(dead, depthwise)
    assert torch.equal(first[7], dead[7].flatten()) and torch.equal(second[7], depthwise[7].flatten())
    layers = plots.pair(dead, depthwise, 1.0, bits=6)
    assert [len(layer.largest) for layer in layers] == [11, 11]
    assert np.allclose(layers[0].largest, layers[1].largest)


# --- the whole network


CURVES = {"per tensor": {8: 90.0, 6: 88.0, 4: 20.0}, "per channel": {8: 91.0, 6: 90.0, 4: 87.0}}


def test_the_fewest_bits_are_counted_from_above():
    assert plots.fewest_bits({8: 90.0, 7: 80.0, 6: 90.0}, 91.0) == 8, "a lucky 6 below an unlucky 7 does not count"
    assert plots.fewest_bits({8: 50.0, 7: 40.0}, 91.0) == 8
    assert plots.fewest_bits(CURVES["per channel"], 91.0) == 4


def test_a_curve_says_how_few_bits_do_and_takes_a_guess():
    figure = plots.accuracy_of_bits(CURVES, 91.0, images=400)
    assert figure.finding == "Within five points of float: down to 6 bits per tensor and 4 bits per channel"
    assert "per tensor: 20.0 % (4 bits), 88.0 % (6 bits), 90.0 % (8 bits)." in figure.alt
    lines = len(figure.axes[0].lines)
    figure.mark(5, "you said 5 bits")
    assert len(figure.axes[0].lines) == lines + 1


@pytest.mark.parametrize("equalize", [False, True])
@pytest.mark.parametrize("correct", [False, True])
def test_the_switches_show_what_was_measured(equalize, correct):
    found = {
        (bits, e, c): 10.0 * bits + 20 * e + 5 * c for bits in (3, 4) for e in (False, True) for c in (False, True)
    }
    figure = plots.repairs(found, {3: 50.0, 4: 70.0}, 90.0)(equalize, correct)
    chosen = figure.axes[0].lines[-1]
    assert chosen.get_ydata() == [found[bits, equalize, correct] for bits in (3, 4)]
    assert f": {found[4, equalize, correct]:.1f} %; per channel, no repair: 70.0 %" in figure.finding
    assert ("equalized" in figure.finding, "bias corrected" in figure.finding) == (equalize, correct)


def test_full_equalization_is_what_qlab_does(expand, depthwise):
    first, second = torch.nn.Conv2d(6, 12, 1), torch.nn.Conv2d(12, 12, 3, groups=12)
    first.weight.data, second.weight.data = expand.clone(), depthwise.clone()
    qlab.graph.equalize.equalize_pair(first, second)
    shown = [ax.lines[0].get_ydata() for ax in plots.equalization(expand, depthwise)(100, 6).axes]
    for layer, ranges in zip((first, second), shown):
        assert np.allclose(layer.weight.detach().flatten(1).abs().amax(1), ranges, rtol=1e-4)
