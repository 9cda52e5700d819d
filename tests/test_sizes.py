"""Bytes are counted once, and all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qlab.sizes import memory_bytes, packed_bytes


def test_what_two_layers_share_counts_once():
    tied = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    assert memory_bytes(tied) == 800
    tied[1].weight = tied[0].weight
    assert memory_bytes(tied) == 400


def test_weights_without_memory_count_as_what_they_would_take():
    with torch.device("meta"):
        assert memory_bytes(nn.Sequential(nn.Linear(10, 5), nn.Linear(5, 2))) == 220 + 48


def test_what_a_kernel_keeps_counts_too():
    layer = nn.Linear(10, 5)
    layer.packed_bytes = 7
    assert memory_bytes(layer) == 227


@pytest.mark.parametrize("count, bits, expected", [(8, 1, 1), (9, 1, 2), (3, 8, 3), (5, 3, 2), (0, 4, 0)])
def test_packed_codes_leave_no_bit_unused(count, bits, expected):
    assert packed_bytes(count, bits) == expected
