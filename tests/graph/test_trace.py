"""A network as a graph: it computes the same, the network stays as it was, and what has no graph is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from written import ENOUGH, Base, X, decibel

from qlab import models
from qlab.graph.nodes import kind_of
from qlab.graph.trace import trace

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_the_graph_of_a_network_computes_what_the_network_computes(name):
    torch.manual_seed(0)
    model = models.ARCHITECTURES[name]().eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(trace(model, x)(x), model(x))


def test_tracing_leaves_the_model_as_it_was():
    model = models.resnet20().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace(model, torch.randn(2, 3, 32, 32))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # the data decides
            return x
        return -x


def test_a_branch_on_data_is_refused_with_its_line_and_the_way_out():
    with pytest.raises(ValueError, match=r"test_trace.py:\d+: `if x.sum\(\) > 0:.*leaves=\(ThatModule,\)"):
        trace(Branches(), IMAGES)


def test_a_leaf_is_kept_whole():
    network = trace(nn.Sequential(nn.Conv2d(3, 3, 1), Branches()), IMAGES, leaves=(Branches,))
    assert [kind_of(node) for node in network.graph.nodes] == ["input", "conv", "other", "output"]


def test_an_example_that_does_not_fit_is_named():
    with pytest.raises(
        ValueError, match=r"the example, \(2, 1, 8, 8\) torch.float32, does not run.*Expected one batch"
    ):
        trace(nn.Conv2d(3, 4, 3), IMAGES[:, :1])


def test_inputs_with_a_default_get_it_and_others_are_refused():
    class Two(nn.Module):
        def forward(self, x, mask=None, scale: float = 2.0, double=False):
            x = x if mask is None else x + mask
            return x * scale if not double else x + x

    network = trace(Two(), IMAGES)
    assert torch.equal(network(IMAGES), IMAGES * 2)
    assert sum(node.op == "placeholder" for node in network.graph.nodes) == 1

    class Needs(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(ValueError, match="does not run through the network"):
        trace(Needs(), IMAGES)


class TiedWeights(Base):
    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.third.weight = self.second.weight

    def forward(self, x):
        y = self.relu(self.norm(self.second(self.conv(x))))
        return self.head(self.third(y))


class WeightNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        with pytest.warns(FutureWarning):
            self.conv = nn.utils.weight_norm(self.conv)
        self.second = nn.utils.spectral_norm(self.second)
        self.third = nn.utils.parametrizations.weight_norm(self.third)
        nn.utils.prune.l1_unstructured(self.fc, "weight", 0.3)

    def forward(self, x):
        return self.head(self.third(self.relu(self.norm(self.second(self.conv(x))))))


class Optional(Base):
    def forward(self, x, mask=None, scale: float = 0.5):
        y = self.conv(x) if mask is None else self.conv(x * mask)
        return self.head(self.second(y * scale))


@pytest.mark.parametrize("network", [TiedWeights, WeightNorm, Optional])
def test_weights_that_are_computed_or_shared_and_optional_inputs_come_out_right(network):
    assert decibel(network()) > ENOUGH


@pytest.mark.parametrize("network", [TiedWeights, WeightNorm])
def test_a_network_is_prepared_after_a_run_with_gradients_too(network):
    net = network().eval()
    net(X).sum().backward()
    assert decibel(net) > ENOUGH
