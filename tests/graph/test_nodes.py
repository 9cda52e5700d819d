"""What a node is: its kind, its name, its shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qlab import models
from qlab.graph.nodes import kind_of, name_of, shape_of
from qlab.graph.trace import trace


def test_an_addition_is_named_inside_its_block_and_knows_its_shape():
    nodes = trace(models.resnet20(), torch.zeros(1, 3, 32, 32)).graph.nodes
    addition = next(node for node in nodes if kind_of(node) == "add")
    assert name_of(addition) == "layer1.0.add"
    assert shape_of(addition) == (1, 16, 32, 32)


class Own(nn.Conv2d):
    """It may have a forward of its own."""


@pytest.mark.parametrize("layer, kind", [
    (nn.Conv2d(3, 3, 1), "conv"), (Own(3, 3, 1), "other"),
    (nn.MaxPool2d(2), "max_pool"), (nn.MaxPool2d(2, return_indices=True), "other"),
])  # fmt: skip
def test_what_may_compute_something_else_than_the_layer_that_it_looks_like_is_other(layer, kind):
    nodes = trace(nn.Sequential(layer), torch.ones(1, 3, 4, 4), leaves=(Own,)).graph.nodes
    assert [kind_of(node) for node in nodes] == ["input", kind, "output"]
