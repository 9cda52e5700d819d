"""How large a network is, and how much it has to multiply."""

from __future__ import annotations

import torch
from torch import nn
from zoo import convolutions

import qlab
from qlab import bench


def test_int8_is_a_quarter_in_memory_and_little_more_on_disk():
    network = convolutions()
    int8 = qlab.ptq(network, [torch.randn(4, 3, 6, 6)], engine="reference")
    assert bench.memory_bytes(network) == 4 * sum(p.numel() for p in network.parameters())
    assert bench.memory_bytes(int8) == int8.size_bytes
    assert 0.25 < bench.memory_bytes(int8) / bench.memory_bytes(network) < 0.35
    assert bench.memory_bytes(int8) < bench.file_bytes(int8) < 0.6 * bench.file_bytes(network)


def test_macs_are_counted_for_layers_that_multiply():
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 10))
    assert bench.macs(network, torch.zeros(2, 4, 5, 5)) == 2 * (8 * 25 * 2 * 9 + 200 * 10)
    assert not any(layer._forward_hooks for layer in network.modules())
    assert bench.macs(network.to("meta"), torch.zeros(1, 4, 5, 5, device="meta")) == 8 * 25 * 18 + 2000
