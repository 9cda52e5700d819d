"""Which layer is broken? Every fault is seen where it is, and mended by its own repair at its own layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qlab
from qlab import QConfig, analysis
from qlab.course.lesson06 import mystery
from qlab.course.lesson06.mystery import BIAS, NARROW, WEIGHTS, WIDE, broken_layer
from qlab.course.lesson06.noise import looks
from qlab.data import Dataset

REPAIR = {
    WEIGHTS: "8 bits for its weights", WIDE: "calibrate its input anew", NARROW: "calibrate its input anew",
    BIAS: "correct its bias",
}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = []
    for inside in (3, 8, 8):
        layers += [nn.Conv2d(inside, 8, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    for layer in network[::2]:
        if isinstance(layer, nn.Conv2d):
            layer.bias.data.uniform_(-1, 1)  # without it little would be lost
    return network


@pytest.fixture(scope="module")
def data() -> Dataset:
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Dataset(images, torch.arange(64) % 2, ("cat", "dog"), "noise", "train", (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def healthy(network, data):
    x, _labels = next(data.batches(64))
    return qlab.calibrate(qlab.prepare(network, QConfig.w8a8(), x[:1]), [x])


@pytest.fixture(scope="module")
def make(network, data):
    return broken_layer(network, data, data)


def decibel(text: str) -> float:
    return float(text.split(" dB")[0].split(": ")[-1])


@pytest.mark.parametrize("seed", range(12))
def test_the_right_repair_at_the_right_layer_brings_the_answers_back(make, seed):
    case = make(seed)
    layer, what = case.truth
    spoilt = decibel(case.measure("answers"))
    case.diagnose(layer, what)
    before, after, verdict = case.repair(REPAIR[what]).splitlines()
    assert decibel(before) == spoilt and decibel(after) > spoilt + mystery.SUFFERS - 2
    assert "That is it." in verdict and mystery.BECAUSE[what] in verdict


def test_a_repair_at_another_layer_does_not(make):
    case = make(0)
    layer, what = case.truth
    other = next(name for name in case.questions["layer"] if name != layer)
    case.diagnose(other, what)
    before, after, verdict = case.repair(REPAIR[what]).splitlines()
    assert decibel(after) < decibel(before) + 3 and f"It was: {layer}, {what}." in verdict


def test_a_seed_is_a_mystery_and_different_seeds_are_different_ones(make):
    assert make(5).truth == make(5).truth
    assert len({make(seed).truth for seed in range(10)}) > 3


@pytest.mark.parametrize("what", [WEIGHTS, WIDE, NARROW, BIAS])
def test_each_fault_has_a_measurement_that_shows_it_at_its_layer(healthy, data, what):
    x, _labels = next(data.batches(64))
    broken = {look.layer: look for look in looks(mystery.break_at(healthy, "2", what), x)}
    usual = {look.layer: look for look in looks(healthy, x)}
    shown = {
        WEIGHTS: lambda look: look.weight < 15, WIDE: lambda look: look.used < 0.1,
        NARROW: lambda look: look.clipped > 0.01, BIAS: lambda look: look.shift > 0.9 and look.output < 20,
    }[what]  # fmt: skip
    assert shown(broken["2"]) and not shown(broken["0"])
    assert not any(shown(look) for look in usual.values())
    assert broken["2"].output < usual["2"].output - 10, "the first bad one is the layer itself"
    assert broken["0"].output == pytest.approx(usual["0"].output)


def test_a_range_is_broken_only_where_no_other_layer_reads_it():
    network = qlab.models.build("resnet20")
    prepared = qlab.prepare(network.eval(), QConfig.w8a8())
    cases = mystery._cases(prepared)
    assert ("layer2.0.conv2", WIDE) in cases and ("layer2.0.conv1", WEIGHTS) in cases
    assert ("layer2.0.conv1", WIDE) not in cases and ("layer2.0.shortcut.0", NARROW) not in cases


def test_the_network_it_comes_from_stays_as_it_was(network, healthy, data):
    x, _labels = next(data.batches(64))
    with torch.no_grad():
        before = analysis.sqnr(network(x), healthy(x))
        for what in mystery.BECAUSE:
            mystery.break_at(healthy, "2", what)
        assert analysis.sqnr(network(x), healthy(x)) == before
