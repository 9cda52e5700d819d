"""BatchNorm folding keeps the function and loses the layer."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from written import ENOUGH, Base, X, decibel

import qlab
from qlab import models
from qlab.graph.fold import fold_batchnorm, fold_layer
from qlab.graph.trace import trace


def lived_in(model: nn.Module) -> nn.Module:
    """The model with BatchNorms that have seen something."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), bias=st.booleans(), affine=st.booleans(), groups=st.sampled_from([1, 2, 4]))
def test_a_folded_convolution_computes_convolution_then_batchnorm(seed, bias, affine, groups):
    torch.manual_seed(seed)
    conv, norm = nn.Conv2d(4, 8, 3, groups=groups, bias=bias), nn.BatchNorm2d(8, affine=affine)
    lived_in(norm)
    x = torch.randn(2, 4, 6, 6)
    expected = norm(conv(x))
    fold_layer(conv, norm)
    torch.testing.assert_close(conv(x), expected, atol=1e-4, rtol=1e-4)


def test_a_linear_layer_folds_too():
    torch.manual_seed(0)
    model = lived_in(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)))
    x = torch.randn(3, 5)
    folded = fold_batchnorm(trace(model, x))
    assert norms(folded) == 0
    torch.testing.assert_close(folded(x), model(x))


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_no_batchnorm_is_left_in_the_networks_of_the_course(name):
    torch.manual_seed(0)
    model = lived_in(models.ARCHITECTURES[name]())
    x = torch.randn(2, 3, 32, 32)
    folded = fold_batchnorm(trace(model, x))
    assert norms(folded) == 0
    expected = model(x)
    assert (folded(x) - expected).abs().max() < 1e-3 * expected.abs().max()


class Shared(nn.Module):
    """A convolution that two layers read, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.a(x)
        return self.norm2(self.b(self.norm(y) + self.b(y)))


def test_a_layer_that_somebody_else_needs_unfolded_is_left_alone():
    torch.manual_seed(0)
    model = lived_in(Shared())
    x = torch.randn(2, 3, 4, 4)
    folded = fold_batchnorm(trace(model, x))
    assert norms(folded) == 2
    torch.testing.assert_close(folded(x), model(x))


def test_a_batchnorm_without_statistics_is_refused():
    with pytest.raises(ValueError, match="keeps no running statistics.*cannot be folded"):
        fold_layer(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))


class LinearAndChannels(nn.Module):
    """BatchNorm1d over axis 1 of (N, C, L) behind a linear layer: its channels are not the layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.last = nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)
        nn.init.uniform_(self.norm.running_var, 0.2, 3.0)

    def forward(self, x):
        return self.last(self.norm(self.fc(x[:, 0, :12])))


class NoStatistics(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)


@pytest.mark.parametrize("network", [LinearAndChannels, NoStatistics])
def test_norms_that_cannot_be_folded_come_out_right(network):
    assert decibel(network()) > ENOUGH


def test_a_look_at_a_network_whose_norm_has_no_statistics_changes_nothing():
    prepared = qlab.calibrate(qlab.prepare(NoStatistics().eval(), example=X), [X])
    state = copy.deepcopy(prepared.state_dict())
    prepared(X)
    assert all(torch.equal(value, state[name]) for name, value in prepared.state_dict().items())
