"""Cross-layer equalization: other weights, the same function, ranges that fit one scale."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import qlab
from qlab import PerTensor, QConfig, QuantSpec, models
from qlab.graph.equalize import absorb_high_bias, equalize, equalize_pair, input_ranges, pairs, through
from qlab.graph.fold import fold_batchnorm, fold_layer
from qlab.graph.trace import trace


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def uneven(*layers: nn.Module) -> nn.Sequential:
    """A network whose channels differ a hundredfold, with its BatchNorms as if they had been trained."""
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            factor = 10 ** (2 * torch.rand(module.weight.shape[0]) - 1)
            module.weight.data *= factor.reshape(-1, *[1] * (module.weight.ndim - 1))
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model.eval()


def separable(activation=nn.ReLU) -> nn.Sequential:
    """Expand, depthwise, project: an inverted residual as in MobileNetV2."""
    return uneven(
        nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), activation(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), activation(),
        nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4),
    )  # fmt: skip


def folded(model: nn.Module, x: torch.Tensor):
    return fold_batchnorm(trace(model, x))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    first=st.sampled_from([1, 2, 4]),
    second=st.sampled_from([1, 2, 8]),
    bias=st.booleans(),
)
def test_a_pair_computes_the_same_before_and_after(seed, first, second, bias):
    torch.manual_seed(seed)
    a, b = nn.Conv2d(4, 8, 3, groups=first, bias=bias), nn.Conv2d(8, 16, 3, groups=second, bias=bias)
    model = uneven(a, nn.ReLU(), b)
    x = torch.randn(2, 4, 8, 8)
    expected = model(x)
    equalize_pair(a, b)
    assert difference(model(x), expected) < 1e-4
    torch.testing.assert_close(a.weight.flatten(1).abs().amax(1), input_ranges(b, 8))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_conv_depthwise_conv_computes_the_same_and_all_ranges_meet(seed):
    torch.manual_seed(seed)
    model, x = separable(), torch.randn(2, 3, 8, 8)
    network = folded(model, x)
    # without BatchNorm's statistics no bias is absorbed, so the function stays the same exactly
    for module in network.modules():
        if hasattr(module, "output_mean"):
            del module.output_mean, module.output_std
    equalize(network)
    assert difference(network(x), model(x)) < 1e-4
    for pair in pairs(network):
        outer, inner = pair.first.weight.flatten(1).abs().amax(1), input_ranges(pair.second, 8)
        torch.testing.assert_close(outer, inner, rtol=0.01, atol=0)


def disturbed() -> tuple[nn.Module, torch.Tensor]:
    """A network with one channel of each value a hundred times as large, and read by a hundredth: the same
    function."""
    model, x = (
        nn.Sequential(*(nn.Conv2d(8, 8, 1) if i % 2 == 0 else nn.ReLU() for i in range(5))),
        torch.randn(4, 8, 4, 4),
    )
    for first, second in ((model[0], model[2]), (model[2], model[4])):
        first.weight[3] *= 100
        first.bias[3] *= 100
        second.weight[:, 3] /= 100
    return model.eval(), x


def test_the_channels_of_a_layer_get_about_the_same_range():
    model, x = disturbed()
    network = equalize(folded(model, x))
    for before, after in zip((model[0], model[2]), (pair.first for pair in pairs(network))):
        ranges = [layer.weight.flatten(1).abs().amax(1) for layer in (before, after)]
        assert ranges[0].max() / ranges[0].median() > 50
        assert ranges[1].max() / ranges[1].median() < 2


def test_weights_with_one_scale_lose_far_less_when_equalized():
    model, x = disturbed()
    spec = QuantSpec(6, signed=True, symmetric=True, granularity=PerTensor())
    qconfig = QConfig(weight=spec, activation=None, first_last=None)
    errors = []
    for wanted in (False, True):
        prepared = qlab.calibrate(qlab.prepare(model, qconfig, x, equalize=wanted), [x])
        errors.append(float((prepared(x) - model(x)).square().mean()))
    assert errors[1] < 0.05 * errors[0]


def test_linear_layers_equalize_too_directly_and_behind_a_flatten():
    x = torch.randn(4, 3, 4, 4)
    model = uneven(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 2),
    )  # fmt: skip
    network = equalize(folded(model, x))
    assert [type(pair.second) for pair in pairs(network)] == [nn.Linear, nn.Linear]
    assert difference(network(x), model(x)) < 1e-4


def test_relu6_becomes_relu_inside_a_pair_and_nowhere_else():
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(separable(nn.ReLU6), nn.ReLU6(), nn.Sigmoid()).eval()
    network = equalize(folded(model, x))
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(nn.ReLU) == 2 and kinds.count(nn.ReLU6) == 1


class Twice(nn.Module):
    """A value that two layers read, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        y = self.a(x)
        return self.c(self.b(self.b(y)) + y)


def test_a_value_with_two_readers_and_a_layer_called_twice_are_left_alone():
    x = torch.randn(2, 3, 4, 4)
    assert pairs(folded(Twice().eval(), x)) == []


def test_an_activation_that_is_not_homogeneous_ends_the_chain():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)).eval()
    assert pairs(folded(model, torch.randn(1, 3, 4, 4))) == [], "a linear layer on pixels reads no channels"


def test_a_dead_channel_stays_as_it_is():
    first, second = nn.Linear(3, 3), nn.Linear(3, 2)
    first.weight.data[1], second.weight.data[:, 2] = 0.0, 0.0
    bias = first.bias.detach().clone()
    equalize_pair(first, second)
    assert torch.equal(first.bias[1:], bias[1:]) and first.weight.isfinite().all()


def high(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The convolution with a BatchNorm folded into it whose mean is 10 standard deviations above zero."""
    norm.bias.data.fill_(10.0)
    fold_layer(conv, norm.eval())
    return conv


def test_absorption_keeps_the_function_and_narrows_the_range():
    first = high(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    first.weight.data.clamp_(-0.5, 0.5)
    second = nn.Conv2d(4, 2, 3, bias=False)
    x = torch.rand(4, 3, 8, 8)
    hidden = first(x).relu()
    expected = second(hidden)
    assert torch.allclose(absorb_high_bias(first, second), torch.tensor(7.0))
    assert torch.allclose(second(first(x).relu()), expected, atol=1e-4)
    assert first(x).relu().max() < hidden.max() - 6.9
    assert torch.allclose(first.output_mean, torch.tensor(3.0))


def test_nothing_is_absorbed_where_zero_padding_stands_for_real_zeros():
    first, second = high(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.Conv2d(4, 2, 3, padding=1)
    assert absorb_high_bias(first, second) is None
    assert absorb_high_bias(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)) is None, "no BatchNorm, no statistics"


def test_prepare_absorbs_too():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.bias.data.fill_(10.0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), norm, nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    x = torch.rand(4, 3, 8, 8)
    tops = []
    for wanted in (False, True):
        prepared = qlab.calibrate(qlab.prepare(model, None, x, equalize=wanted), [x])
        assert difference(prepared(x), model(x)) < 0.05
        grid = prepared.network.quantizers.get_submodule("0").qparams
        tops.append(float(grid.scale * grid.qmax / prepared.network.get_submodule("0").weight.abs().max()))
    assert tops[1] < 0.6 * tops[0]


def test_a_resnet_computes_the_same():
    model, x = models.resnet20().eval(), torch.rand(1, 3, 32, 32)
    network = folded(model, x)
    expected = network(x)
    equalize(network)
    assert difference(network(x), expected) < 1e-4
    assert len(pairs(network)) == 9, "in each block the value between its two convolutions"


def test_every_inverted_residual_of_a_mobilenet_has_its_two_pairs():
    network = folded(models.mobilenet_v2().eval(), torch.rand(1, 3, 32, 32))
    assert len(pairs(network)) == 37


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_through_is_what_the_layer_gives_for_constant_channels(groups):
    layer = nn.Conv2d(4, 8, 3, groups=groups, bias=False)
    channels = torch.randn(4)
    x = channels.reshape(1, 4, 1, 1).expand(1, 4, 3, 3)
    torch.testing.assert_close(through(layer, layer.weight, channels), layer(x).flatten())
