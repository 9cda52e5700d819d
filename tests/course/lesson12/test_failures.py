"""What lesson 12 shows of networks that fail elsewhere than in an accuracy."""

from __future__ import annotations

import torch
from torch import nn

import qlab
from qlab import QConfig
from qlab.course.lesson12.failures import OwnNorm, shares_in_8_bits, steps_of, with_own_norms, wrong_sums
from qlab.course.lesson12.large_layer import LargeLayer, usable
from qlab.course.lesson12.runtimes import agreement

X = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).eval()


def test_a_norm_that_no_tool_knows_stays_in_float_between_two_conversions():
    folded = qlab.ptq(network(), [X], engine="reference")
    prepared = qlab.prepare(with_own_norms(network()), example=X[:1], leaves=(OwnNorm,))
    unfolded = qlab.convert(qlab.calibrate(prepared, [X], progress=False), "reference")
    assert steps_of(folded)["in float"] == 0 and steps_of(folded)["into and out of codes"] == 2
    counted = steps_of(unfolded)
    assert counted["in float"] == counted["into and out of codes"] == 4, (
        "the norm, and what follows up to the next weights"
    )
    assert counted["steps"] == len(unfolded.layers)


def test_sums_of_two_products_fit_16_bits_with_7_bit_weights():
    seven, eight = (
        qlab.ptq(network(), [X], QConfig.w8a8(reduce_range=reduced), engine="reference") for reduced in (True, False)
    )
    assert wrong_sums(seven, X) == 0 < wrong_sums(eight, X)


def test_a_softmax_over_many_values_vanishes_in_8_bits_and_one_over_few_does_not():
    assert shares_in_8_bits(1024)[1] < 0.5 and abs(shares_in_8_bits(8)[1] - 1) < 0.05


def test_agreement_counts_steps():
    scores = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    found = agreement(scores, scores + torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 1.0]]), step=0.5)
    assert found.steps == 2 and found.answers == 100 and round(found.scores, 1) == round(400 / 6, 1)


def test_the_large_layer_reads_a_quarter_of_the_bytes():
    layer = LargeLayer(64, 32)
    for name in usable():
        compared = layer.compare(name, rounds=1)
        float32, int8 = layer.gigabytes_per_second(compared)
        times = compared["float32"].ms / compared[f"int8 {name}"].ms
        assert abs(4 * int8 / float32 - times) < 1e-6 * times
