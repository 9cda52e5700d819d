"""Lesson 6's measurements at each layer: they agree with what the package says, and with what was made wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qlab
from qlab import QConfig, analysis
from qlab.course.lesson06 import noise


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def prepared(network, x, qconfig=None):
    return qlab.calibrate(qlab.prepare(network, qconfig or QConfig.preset("w4a4", first_last=None), x[:1]), [x])


def test_the_noise_of_a_layer_is_that_of_the_package(network, x):
    quantized = prepared(network, x)
    rows = {row.layer: row for row in analysis.layer_sqnr(quantized, [x])}
    for look in noise.looks(quantized, x):
        assert look.output == pytest.approx(rows[look.layer].output, abs=1e-3)
        assert look.weight == pytest.approx(rows[look.layer].weight, abs=1e-3)


def test_tables_have_what_is_quantized_alone_and_together(network, x):
    found = noise.tables(network, x, (3, 8))
    assert set(found) == {(what, bits) for what in noise.WHAT for bits in (3, 8)}
    answers = {key: rows[-1].output for key, rows in found.items()}
    for bits in (3, 8):
        assert answers["both", bits] < min(answers["weights", bits], answers["activations", bits])
    assert answers["both", 8] > answers["both", 3] + 20


def test_min_max_clips_nothing_and_uses_its_whole_grid(network, x):
    for look in noise.looks(prepared(network, x), x):
        assert look.clipped == 0 and look.used == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("factor, clips", [(16, False), (1 / 4, True)])
def test_a_range_that_does_not_fit_is_seen_at_its_layer_alone(network, x, factor, clips):
    from dataclasses import replace

    quantized = prepared(network, x)
    (edge,) = quantized.input_quantizers()["2"]
    edge.qparams = replace(edge.qparams, scale=edge.qparams.scale * factor)
    first, second, last = noise.looks(quantized, x)
    assert (second.clipped > 0.01) is clips and (second.used < 0.1) is not clips
    assert first.clipped == last.clipped == 0 and min(first.used, last.used) > 0.8


def test_a_lost_bias_is_an_error_that_moves_whole_channels(network, x):
    quantized = prepared(network, x, QConfig.w8a8())
    layer = dict(quantized.weighted())["2"]
    assert noise.looks(quantized, x)[1].shift < 0.5
    layer.keep_original()
    layer.bias = nn.Parameter(torch.zeros_like(layer.bias))
    assert noise.looks(quantized, x)[1].shift > 0.95


def test_the_average_over_all_places_takes_noise_away(network, x):
    before, behind = noise.around_pool(prepared(network, x), x)
    assert behind > before + 3
    with pytest.raises(ValueError, match="no average over all places"):
        noise.around_pool(prepared(network[:3], x), x)


def test_sparing_all_is_the_same_whichever_come_first(network, x):
    qconfig = QConfig.preset("w3a3", first_last=None)
    rows = analysis.sensitivity(prepared(network, x, qconfig), [x], progress=False)
    found = noise.sparing(network, qconfig, rows, (0, 1, 3), [x], x)
    assert found[True, 0] == found[False, 0] and found[True, 3] == found[False, 3] > found[True, 0] + 10
    assert found[True, 1] > found[True, 0]
