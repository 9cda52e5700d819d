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
    assert figure.finding == f"{bits} bits, {share}: SQNR {whole:.1f} dB, worst channel {ratio.min():.1f} dB"
    gone = int((found == 0).flatten(1).all(1).sum())
    assert figure.alt.startswith(f"In {gone} of 12 channels")
    cost = {"per tensor": 16 / 108, "per channel": 16 / 9, "groups of 3": 16 / 3}[share]
    assert f"add {cost:.2g} bits a weight" in figure.alt


def test_channels_that_vanish_are_marked_and_lie_below_half_a_step(depthwise):
    figure = plots.channel_ranges(depthwise)(4, "per tensor")
    left, right = figure.axes
    largest, half = left.lines[0].get_ydata(), left.lines[1].get_ydata()
    alive, dead = (line.get_xdata() for line in right.lines)
    assert set(dead) == {channel + 1 for channel in range(12) if largest[channel] < half[channel]}
    assert len(dead) == 11 and list(alive) == [12]


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
    mean = [float(re.search(r"([\d.]+) dB", draw(share, 6).finding)[1]) for share in (0, 50, 100)]
    assert mean[0] + 5 < mean[1] < mean[2]


def test_full_equalization_is_what_qlab_does(expand, depthwise):
    first, second = torch.nn.Conv2d(6, 12, 1), torch.nn.Conv2d(12, 12, 3, groups=12)
    first.weight.data, second.weight.data = expand.clone(), depthwise.clone()
    qlab.graph.equalize.equalize_pair(first, second)
    shown = [ax.lines[0].get_ydata() for ax in plots.equalization(expand, depthwise)(100, 6).axes]
    for layer, ranges in zip((first, second), shown):
        assert np.allclose(layer.weight.detach().flatten(1).abs().amax(1), ranges, rtol=1e-4)
