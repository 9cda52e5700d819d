"""A network as a graph: one standard form, and honest errors where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qlab import models
from qlab.graph.nodes import kind_of, name_of, shape_of
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


def test_an_addition_is_named_inside_its_block_and_knows_its_shape():
    nodes = trace(models.resnet20(), torch.zeros(1, 3, 32, 32)).graph.nodes
    addition = next(node for node in nodes if kind_of(node) == "add")
    assert name_of(addition) == "layer1.0.add"
    assert shape_of(addition) == (1, 16, 32, 32)


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
