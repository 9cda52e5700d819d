"""What `start` puts into a network and `finish` takes out again; in between it says the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stripes import stripes
from tiny import PLAN, calibrated
from torch import nn

import qlab
from qlab import QConfig, qat
from qlab.graph.layers import QuantConv2d
from qlab.quantizers import AffineQuantizer


def test_starting_and_finishing_changes_nothing_that_the_network_says(network):
    prepared = calibrated(network)
    x = next(stripes(32).batches(32))[0]
    before = prepared(x)
    qat.start(prepared, [x])
    assert any(isinstance(m, nn.BatchNorm2d) for m in prepared.modules())
    assert torch.allclose(prepared.eval()(x), before, atol=1e-4)
    during = prepared(x)
    qat.finish(prepared)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in prepared.modules())
    assert all(type(layer) is QuantConv2d for name, layer in prepared.weighted() if "conv" in name)
    assert all(type(quantizer) is AffineQuantizer for _, quantizer in prepared.quantizers())
    assert torch.equal(prepared(x), during)


def test_a_network_without_batchnorm_gets_none():
    bare = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    prepared = qat.start(calibrated(bare), [next(stripes(32).batches(32))[0]])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    qat.fit(calibrated(bare), stripes(32), None, replace(PLAN, epochs=1), progress=False)


def test_weights_and_values_behind_a_relu_have_their_zero_at_0(network):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]])
    learning = {name for name, quantizer in prepared.quantizers() if not quantizer.at_zero}
    assert learning == {"quantizers.input", "quantizers.conv2", "quantizers.fc"}


def test_a_grid_behind_a_relu6_does_not_grow_beyond_6():
    """There the grid's top does the cutting off, so a network with a larger one could not be converted."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, stride=4)
    nn.init.constant_(convolution.bias, 5.9)
    model = nn.Sequential(convolution, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    prepared = qat.start(calibrated(model, QConfig.w8a8()), [next(stripes(32).batches(32))[0]])
    tops = [q for _, q in prepared.quantizers() if getattr(q, "largest", None)]
    assert len(tops) == 1 and tops[0].scale.item() * 255 == pytest.approx(6, rel=0.03)
    for _ in range(9):
        with torch.no_grad():
            tops[0].scale.mul_(1.01)
        tops[0].hold()
    assert tops[0].scale.item() == pytest.approx(6 / 255)
    qlab.convert(qat.finish(prepared), "reference")


def test_pact_learns_the_ends_of_activations_and_weights_follow(network):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]], "pact")
    kinds = {type(layer.weight_quantizer) for _, layer in prepared.weighted()}
    assert kinds == {qat.FollowingQuantizer}
    assert any(getattr(q, "pact", False) for _, q in prepared.quantizers())


def test_bias_correction_after_training_compares_with_the_trained_weights(network):
    prepared = qlab.correct_bias(calibrated(network), [next(stripes(32).batches(32))[0]], progress=False)
    qat.fit(prepared, stripes(64), None, replace(PLAN, epochs=1), progress=False)
    trained = dict(prepared.weighted())["conv2"].weight.clone()
    qlab.correct_bias(prepared, [next(stripes(32).batches(32))[0]], progress=False)
    assert torch.equal(dict(prepared.weighted())["conv2"].original[0], trained)


def test_no_batch_to_start_with_is_an_error(network):
    with pytest.raises(ValueError, match="no batch to train on"):
        qat.start(calibrated(network), [])
