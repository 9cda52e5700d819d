"""Inputs come out of batches with labels and without."""

from __future__ import annotations

import pytest
import torch

import qlab
from qlab.batches import inputs

X = torch.zeros(4, 3)


@pytest.mark.parametrize("batch", [X, (X, torch.zeros(4)), [X, None]])
def test_labels_are_left_out(batch):
    (x,) = inputs([batch])
    assert x is X


@pytest.mark.parametrize("batches, said", [
    (X, r"one tensor of shape \(4, 3\) is no list of batches: give \[x\]"),
    ([{"x": X}], r"a batch is dict: expected a tensor x, or a pair \(x, label\)"),
    ([()], "a batch is tuple: expected a tensor x"),
])  # fmt: skip
def test_what_is_no_batch_is_refused(batches, said):
    with pytest.raises(ValueError, match=said):
        list(inputs(batches))


def test_calibration_refuses_images_that_are_no_batches():
    """Their rows would be taken for images without a batch, and the ranges would be of single ones."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    prepared = qlab.prepare(network, example=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="is no list of batches"):
        qlab.calibrate(prepared, torch.rand(4, 3, 8, 8))
    with pytest.raises(ValueError, match="is no list of batches"):
        qlab.ptq(network, torch.rand(4, 3, 8, 8))
