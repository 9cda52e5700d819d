"""Where bits are well spent: the best choice of widths within a budget."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from residual import IMAGES, LABELS, calibrated, network
from torch import nn

import qlab
from qlab import QConfig, analysis, data, models
from qlab.analysis import BitCost, BitCosts, Front
from qlab.qconfig import Binary, KMeans


def made_costs(sizes: list[int], noises: list[list[float]]) -> BitCosts:
    bits = (2, 4, 8)
    rows = [
        BitCost(f"layer{i}", b, size * b, -10 * math.log10(noise))
        for i, (size, noise) in enumerate(zip(sizes, noises)) for b, noise in zip(bits, noise)
    ]  # fmt: skip
    return BitCosts(rows, QConfig.w8a8(), {f"layer{i}": QConfig.w8a8() for i in range(len(sizes))})


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.lists(st.floats(1e-4, 1.0), min_size=3, max_size=3)),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 500),
)
@settings(max_examples=60)
def test_no_choice_within_the_budget_is_better_by_exhaustion(layers, extra):
    sizes, noises = [size for size, _ in layers], [noise for _, noise in layers]
    costs = made_costs(sizes, noises)
    budget = 2 * sum(sizes) + extra
    chosen = Front(costs).best(budget)
    by_layer = [[cost for cost in costs if cost.layer == f"layer{i}"] for i in range(len(sizes))]
    best = min(
        sum(cost.noise for cost in choice) for choice in product(*by_layer)
        if sum(cost.size_bytes for cost in choice) <= budget
    )  # fmt: skip
    assert chosen.noise == pytest.approx(best, rel=1e-9)
    own = [next(c for c in options if c.bits == chosen.bits[c.layer]) for options in by_layer]
    assert sum(cost.size_bytes for cost in own) == chosen.size_bytes <= budget
    assert sum(cost.noise for cost in own) == pytest.approx(chosen.noise)


def test_along_the_front_more_bytes_mean_less_noise():
    front = Front(made_costs([3, 5, 7], [[0.5, 0.1, 0.01], [0.4, 0.2, 0.02], [0.1, 0.2, 0.05]]))
    assert (front.size_bytes[1:] > front.size_bytes[:-1]).all() and (front.noise[1:] < front.noise[:-1]).all()
    assert front.best(10**9).bits == {"layer0": 8, "layer1": 8, "layer2": 8}
    assert front.best(35).bits["layer2"] == 2, "a width that is larger and noisier is never chosen"
    with pytest.raises(ValueError, match="budget_bytes=29: the smallest choice has 30 bytes of weights; expected"):
        front.best(29)


def test_the_cost_of_a_width_is_the_noise_of_that_layer_alone():
    net = network()
    costs = analysis.bit_costs(net, [IMAGES], (3, 8), progress=False)
    assert [(cost.layer, cost.bits) for cost in costs][:2] == [("stem", 3), ("stem", 8)] and len(costs) == 8
    cost = costs[2]
    assert (cost.layer, cost.size_bytes) == ("left", 8 * 8 * 9 * 3 // 8)
    spec = replace(QConfig.weight, bits=3)
    with torch.no_grad():
        expected = net(IMAGES)
        scale = net.left.weight.abs().amax((1, 2, 3)) / 3
        net.left.weight.copy_((net.left.weight / scale[:, None, None, None]).round() * scale[:, None, None, None])
        assert cost.sqnr == pytest.approx(analysis.sqnr(expected, net(IMAGES)), abs=0.01)
    assert costs.choose({"left": 3}).overrides["left"].weight == spec


def test_what_comes_before_a_layer_runs_once_for_all_its_widths(monkeypatch):
    runs, forward = [], nn.Conv2d._conv_forward

    def counted(layer, x, weight, bias):
        runs.append(tuple(x.shape[:2]))
        return forward(layer, x, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", counted)
    costs = analysis.bit_costs(network(), [IMAGES[:5], IMAGES[5:]], (2, 3, 4, 5), progress=False)
    assert runs.count((5, 3)) == runs.count((3, 3)) == 1 + 4 + 1, "the float answer, its own widths, what follows"
    whole = analysis.bit_costs(network(), [IMAGES], (2, 3, 4, 5), progress=False)
    assert [cost.sqnr for cost in costs] == pytest.approx([cost.sqnr for cost in whole], abs=1e-3)


def test_the_choice_is_a_configuration_of_the_size_that_was_asked_for():
    overrides = {"right": None}
    qconfig = QConfig.w4a4(overrides=overrides)
    budget = analysis.weight_bytes(qlab.prepare(network(), QConfig.w4a4(overrides=overrides), IMAGES[:1]))
    chosen = analysis.mixed_precision(network(), [(IMAGES, LABELS)], budget, qconfig=qconfig, progress=False)
    assert list(chosen.bits) == ["stem", "left", "fc"] and chosen.size_bytes <= budget
    prepared = calibrated(chosen.qconfig)
    assert analysis.weight_bytes(prepared) == chosen.size_bytes
    assert {name: layer.weight_quantizer.spec.bits for name, layer in prepared.weighted()} == chosen.bits
    rows = {row.layer: row for row in prepared.report()}
    assert rows["right"].float_because and rows["left"].input.startswith("4 bits")
    assert rows["fc"].input.startswith("8 bits"), "the activations of first and last layer as without a search"
    assert f"{chosen.size_bytes:,} bytes of weights, {chosen.sqnr:.1f} dB predicted" in str(chosen)
    assert "stem" in str(chosen) and len(str(chosen).splitlines()) == 3 + 1 + 3
    tables = QConfig(KMeans(4), None, first_last=None)
    tables = analysis.mixed_precision(network(), [IMAGES], 400, (1, 4), qconfig=tables, progress=False)  # fmt: skip
    assert tables.qconfig.overrides["left"].weight == KMeans(tables.bits["left"])


def test_a_network_of_mixed_bits_beats_one_of_equal_bits_and_size():
    """On ResNet-20, judged on other images than those that the search has seen."""
    net = models.load("resnet20", data="shapes10")
    images = data.shapes10("validation").sample(72)
    some, others = images.subset(slice(8)), images.subset(slice(8, None))
    uniform = QConfig.preset("w3a32", first_last=None)
    budget = analysis.weight_bytes(qlab.prepare(net, uniform))
    chosen = analysis.mixed_precision(net, some.batches(8), budget, (2, 3, 4), qconfig=uniform, progress=False)
    assert len(set(chosen.bits.values())) > 1 and chosen.size_bytes <= budget
    ((x, _),) = others.batches(64)
    with torch.no_grad():
        mixed, equal = (
            analysis.sqnr(net(x), qlab.calibrate(qlab.prepare(net, qconfig), [])(x))
            for qconfig in (chosen.qconfig, uniform)
        )
    assert mixed > equal


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match=r"got no batch: give it at least one, for instance data.sample\(256\)"):
        analysis.bit_costs(network(), [])
    for bits in ((), (4, 4)):
        with pytest.raises(ValueError, match="bits=.*expected at least one width, and none twice"):
            analysis.bit_costs(network(), [IMAGES], bits)
    with pytest.raises(ValueError, match=r"weight=Binary\(.*has one width only; expected a QuantSpec or KMeans"):
        analysis.bit_costs(network(), [IMAGES], qconfig=QConfig(Binary()))
    with pytest.raises(ValueError, match="at least 2 bits"):
        analysis.bit_costs(network(), [IMAGES], (1,))
