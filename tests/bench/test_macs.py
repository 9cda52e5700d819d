"""Multiplications are counted layer by layer."""

from __future__ import annotations

import torch
from torch import nn

from qlab import bench


def test_macs_are_counted_for_layers_that_multiply():
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 10))
    assert bench.macs(network, torch.zeros(2, 4, 5, 5)) == 2 * (8 * 25 * 2 * 9 + 200 * 10)
    assert not any(layer._forward_hooks for layer in network.modules())
    assert bench.macs(network.to("meta"), torch.zeros(1, 4, 5, 5, device="meta")) == 8 * 25 * 18 + 2000
