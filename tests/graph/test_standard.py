"""One spelling of every operation, whatever people write."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from written import ENOUGH, Base, decibel

import qlab
from qlab import QConfig
from qlab.graph.nodes import kind_of
from qlab.graph.trace import trace

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Spelled(nn.Module):
    """A network whose middle part is given as a function of (module, tensor)."""

    def __init__(self, middle) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4 * 36, 2)
        self.middle = middle

    def forward(self, x):
        return self.fc(self.middle(self, self.conv(x)))


SPELLINGS = {
    "F.relu, view(size)": lambda self, x: F.relu(x).view(x.size(0), -1),
    "torch.relu, reshape(shape)": lambda self, x: torch.relu(x).reshape(x.shape[0], -1),
    "x.relu(), flatten": lambda self, x: x.relu().flatten(1),
    "x.relu_(), size()": lambda self, x: x.relu_().view(x.size()[0], -1),
    "inplace, dropout": lambda self, x: torch.flatten(F.dropout(F.relu(x, inplace=True), 0.3, self.training), 1),
    "view with a tuple": lambda self, x: F.relu(input=x).view((x.size(0), -1)),
}


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
def test_every_spelling_of_relu_and_flatten_becomes_the_same_graph(spelling):
    model = Spelled(SPELLINGS[spelling]).eval()
    network = trace(model, IMAGES)
    kinds = [kind_of(node) for node in network.graph.nodes]
    assert kinds == ["input", "conv", "relu", "flatten", "linear", "output"]
    torch.testing.assert_close(network(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
    "pool, kind",
    [
        (lambda x: F.max_pool2d(x, 2), "max_pool"),
        (lambda x: F.avg_pool2d(x, 2, stride=1), "avg_pool"),
        (lambda x: F.adaptive_avg_pool2d(x, (1, 1)), "global_pool"),
    ],
)
def test_functional_pools_become_modules(pool, kind):
    class Pooled(nn.Module):
        def forward(self, x):
            return pool(x)

    network = trace(Pooled(), IMAGES)
    assert [kind_of(node) for node in network.graph.nodes] == ["input", kind, "output"]
    torch.testing.assert_close(network(IMAGES), pool(IMAGES))


def test_an_addition_of_a_number_is_an_addition_but_one_with_alpha_is_not():
    class Adds(nn.Module):
        def forward(self, x):
            return torch.add(x.add(1.0), x, alpha=2)

    kinds = [kind_of(node) for node in trace(Adds(), IMAGES).graph.nodes]
    assert kinds == ["input", "add", "other", "output"]


def test_other_reshapes_stay_what_they_are():
    class Reshapes(nn.Module):
        def forward(self, x):
            return x.view(-1, 64).reshape((x.size(0) * 3, -1)).view(2, 3, 8, 8)

    kinds = [kind_of(node) for node in trace(Reshapes(), IMAGES).graph.nodes]
    assert "flatten" not in kinds


class ByKeyword(Base):
    def forward(self, x):
        return self.head(self.second(input=self.relu(input=self.norm(input=self.conv(input=x)))))


class CatByAxis(Base):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(16, 8, 3)

    def forward(self, x):
        y = self.relu(self.conv(x))
        return self.head(self.second(torch.cat((y, y * 2), axis=-3)))


class Dropouts(Base):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(0.5, inplace=True)

    def forward(self, x):
        y = F.dropout(self.drop(self.conv(x)), 0.3, self.training)
        F.relu(y, inplace=True)
        return self.head(self.second(y))


class FloatView(Base):
    def forward(self, x):
        y = torch.sigmoid(self.conv(x))
        return self.head(self.second(y.view(y.size(0), 8, 8, 32).view(-1, 8, 16, 16)))


@pytest.mark.parametrize("network", [ByKeyword, CatByAxis, Dropouts, FloatView])
def test_keywords_axes_dropouts_and_views_come_out_right(network):
    assert decibel(network()) > ENOUGH


class TorchsTutorial(nn.Module):
    """x.view(-1, 16 * 5 * 5), as in torch's own CIFAR tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def test_torchs_own_tutorial_runs_on_every_engine():
    torch.manual_seed(0)
    x, net = torch.randn(8, 3, 32, 32), TorchsTutorial()
    for name, one in qlab.int8.engines.available().items():
        if one.usable:
            assert decibel(net, x, QConfig.w8a8(reduce_range=True), name) > ENOUGH, name
