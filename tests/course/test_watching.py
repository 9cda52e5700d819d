"""A hook sees what enters a layer, and is gone afterwards, whatever happens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qlab.course.watching import inputs_of, largest_inputs

NETWORK = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
BATCHES = [torch.randn(5, 3), (torch.randn(2, 3), torch.zeros(2))]


def test_what_enters_a_layer_is_what_the_layers_before_it_give():
    first, second = inputs_of(NETWORK[2], NETWORK, BATCHES)
    assert torch.equal(first, NETWORK[1](NETWORK[0](BATCHES[0])).detach()) and second.shape == (2, 4)


def test_the_largest_value_of_each_image_and_layer():
    found = largest_inputs([NETWORK[0], NETWORK[2]], NETWORK, BATCHES)
    assert found.shape == (7, 2)
    assert torch.equal(found[:5, 0], BATCHES[0].amax(1))
    assert torch.equal(found[5:, 1], inputs_of(NETWORK[2], NETWORK, BATCHES)[1].amax(1))


@pytest.mark.parametrize("watch", [inputs_of, lambda layer, *rest: largest_inputs([layer], *rest)])
def test_no_hook_stays(watch):
    watch(NETWORK[2], NETWORK, BATCHES)
    with pytest.raises(RuntimeError):
        watch(NETWORK[2], NETWORK, [torch.zeros(1, 7)])
    assert not NETWORK[2]._forward_pre_hooks
