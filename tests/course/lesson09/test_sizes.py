"""The bytes that grids of few values take are those that they are stored in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qlab
from qlab.course.exercises import exercise
from qlab.course.lesson09 import sizes
from qlab.qconfig import Binary, KMeans


@pytest.mark.parametrize("weights, bits, tables", [(8, 1, 1), (1001, 3, 1), (9216, 8, 32)])
def test_a_codebooks_bytes_are_those_of_exercise_9_3(weights, bits, tables):
    assert sum(sizes.of_codebook(weights, bits, tables)) == exercise("9.3").solution(weights, bits, tables)


@pytest.mark.parametrize(
    "grid, expected",
    [(KMeans(3), 4 * 16 * 3 / 8 + 4 * 8), (Binary(), 4 * 16 / 8 + 4 * 4)],
)
def test_a_layer_takes_its_codes_and_one_table_or_a_scale_a_channel(grid, expected):
    network = nn.Sequential(nn.Linear(16, 4))
    qconfig = qlab.QConfig(weight=grid, activation=None, first_last=None)
    assert sizes.bytes_of(qlab.prepare(network, qconfig, torch.zeros(1, 16))) == expected
