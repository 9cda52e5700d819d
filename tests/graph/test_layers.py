"""Layers that see their own weights through a quantizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qlab import PerTensor, QuantSpec, quantizers
from qlab.graph.layers import QuantConv2d, QuantLinear
from qlab.qconfig import Binary


def made(kind: str, bias: bool = True):
    """A float layer, the layer that takes it over with weights of one bit, and an input."""
    if kind == "conv":
        layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, bias=bias, padding_mode="reflect")
        return layer, QuantConv2d(layer, quantizers.build(Binary(PerTensor()))), torch.randn(2, 4, 9, 9)
    layer = nn.Linear(4, 6, bias=bias)
    return layer, QuantLinear(layer, quantizers.build(Binary(PerTensor()))), torch.randn(2, 5, 4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_it_computes_what_the_float_layer_does_with_rounded_weights(kind, bias):
    layer, rounded, x = made(kind, bias)
    assert rounded.weight is layer.weight and rounded.bias is layer.bias
    y = rounded(x)
    rounded.weight_quantizer.mode = "off"
    assert torch.equal(rounded(x), layer(x))
    with torch.no_grad():
        layer.weight.copy_(rounded.weight.sign() * rounded.weight.abs().mean())
    torch.testing.assert_close(layer(x), y)


def test_the_mode_of_the_float_layer_is_kept():
    for training in (True, False):
        layer = nn.Linear(3, 2).train(training)
        assert QuantLinear(layer, quantizers.build(QuantSpec(8))).training is training


def test_the_original_is_the_weight_from_before_the_first_change():
    _, layer, _ = made("linear")
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    for _ in range(2):
        kept = layer.keep_original()
        assert torch.equal(kept[0], weight) and torch.equal(kept[1], bias)
        with torch.no_grad():
            layer.weight.add_(1)
            layer.bias.add_(1)
