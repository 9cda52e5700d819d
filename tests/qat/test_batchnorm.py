"""BatchNorm inside a convolution in training: weights are rounded as the folded ones will be."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stripes import stripes
from tiny import calibrated
from torch import nn
from torch.nn import functional as F

from qlab import QConfig, qat
from qlab.qat import batchnorm, training


def test_weights_are_rounded_as_the_folded_weights_will_be(network):
    """The convolution in training sees Q(w * g) / g: without the fold it would see Q(w)."""
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]]).train()
    layer = dict(prepared.weighted())["conv2"]
    with torch.no_grad():
        layer.norm.weight.mul_(torch.linspace(0.3, 1.7, 8))
    x = torch.rand(4, 8, 5, 5)
    seen = layer.norm.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    captured: list[torch.Tensor] = []
    gain = layer._gain()[:, None, None, None]
    expected = F.conv2d(x, layer.weight_quantizer(layer.weight * gain) / gain, padding=1)
    layer(x)
    seen.remove()
    assert torch.allclose(captured[0], expected, atol=1e-5)
    assert not torch.allclose(captured[0], F.conv2d(x, layer.weight_quantizer(layer.weight), padding=1), atol=1e-3)


def test_training_begins_with_weights_of_the_size_of_he_initialization(network):
    """However large the folded weights are: their size is what a gradient is divided by (He et al. 2015)."""
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]])
    layers = [layer for _, layer in prepared.weighted() if isinstance(layer, qat.NormalizedConv2d)]
    assert len(layers) == 2
    for layer in layers:
        spread = layer.weight.square().mean((1, 2, 3)).sqrt()
        torch.testing.assert_close(spread, torch.full_like(spread, (2 / layer.weight[0].numel()) ** 0.5))


def test_a_channel_of_nothing_but_0_stays_so():
    layer = nn.Conv2d(3, 2, 1)
    nn.init.zeros_(layer.weight)
    assert torch.equal(batchnorm.he_size(layer.weight), torch.ones(2))


@given(st.lists(st.floats(0.01, 100), min_size=8, max_size=8))
@settings(deadline=None, max_examples=20)
def test_weights_and_scales_of_a_channel_learn_alike_whatever_its_gain(network, gains):
    """The gain cancels out: values and gradients, those of the learned scales too, are those of the unfolded network."""
    x = next(stripes(32).batches(32))[0]
    prepared = qat.start(calibrated(network), [x]).train()
    layer = dict(prepared.weighted())["conv1"]
    layer.weight_quantizer.scale.data.mul_(0.97)  # so that no weight lies just where the grid ends
    seen = []
    for gain in (torch.ones(8), torch.tensor(gains)):
        layer.norm.running_var.copy_((layer.norm.weight.detach() / gain) ** 2 - layer.norm.eps)
        y = layer(x)
        loss = (y * torch.arange(y.numel()).reshape(y.shape).cos()).sum()
        seen.append((y.detach(), *torch.autograd.grad(loss, (layer.weight, layer.weight_quantizer.scale))))
    for one, other in zip(*seen):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_frozen_statistics_stand_still_and_live_ones_move(network):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]]).train()
    norm = dict(prepared.weighted())["conv1"].norm
    x = torch.rand(8, 3, 32, 32) * 5
    training._freeze(prepared, ranges=False, batchnorm=True)
    before = norm.running_mean.clone()
    prepared(x)
    assert torch.equal(norm.running_mean, before)
    training._freeze(prepared, ranges=False, batchnorm=False)
    prepared(x)
    assert not torch.equal(norm.running_mean, before)


def test_gamma_learns_with_live_and_with_frozen_statistics(network):
    for frozen in (False, True):
        prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]]).train()
        training._freeze(prepared, ranges=False, batchnorm=frozen)
        prepared(torch.rand(8, 3, 32, 32)).square().sum().backward()
        assert dict(prepared.weighted())["conv2"].norm.weight.grad.abs().sum() > 0


def test_a_frozen_layer_gives_what_it_gives_in_eval_mode(network):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]])
    training._freeze(prepared, ranges=False, batchnorm=True)
    x = torch.rand(8, 3, 32, 32)
    layer = dict(prepared.weighted())["conv1"]
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), atol=1e-5, rtol=1e-5)


def test_frozen_gamma_has_the_gradient_of_the_rounded_weights(network):
    """Straight through the fold it would be that of the weights before rounding, and with 2 bits training diverges."""
    prepared = qat.start(calibrated(network, QConfig.w2a2()), [next(stripes(32).batches(32))[0]]).train()
    training._freeze(prepared, ranges=False, batchnorm=True)
    layer = dict(prepared.weighted())["conv2"]
    norm, gain = layer.norm, layer._gain()[:, None, None, None]
    x, upstream = torch.rand(4, 8, 5, 5), torch.randn(4, 8, 5, 5)
    (layer(x) * upstream).sum().backward()
    y = F.conv2d(x, layer.weight_quantizer(layer.weight * gain) / gain, padding=1)
    mean, var = (statistic[:, None, None] for statistic in (norm.running_mean, norm.running_var))
    expected = (upstream * (y - mean) / (var + norm.eps).sqrt()).sum((0, 2, 3))
    torch.testing.assert_close(norm.weight.grad, expected, atol=1e-3, rtol=1e-3)


def test_a_dead_channel_does_not_divide_by_zero(network):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]]).train()
    layer = dict(prepared.weighted())["conv1"]
    with torch.no_grad():
        layer.norm.weight[2] = 0
    assert prepared(torch.rand(4, 3, 32, 32)).isfinite().all()
