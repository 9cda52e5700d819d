"""The committed networks of few bits, and the configurations that they have."""

from __future__ import annotations

import pytest
import torch

import qlab
from qlab import qat


def test_eight_bits_become_seven_so_that_the_network_runs_on_every_engine():
    assert qat.qconfig("w8a8").activation.bits == 7
    assert qat.qconfig("w8a8").elementwise.bits == 7
    assert qat.qconfig("w2a2").weight.bits == 2


def test_beside_activations_of_one_bit_the_shortcuts_keep_eight():
    rows = {row.layer: row for row in qlab.prepare(qlab.models.resnet20(), qat.qconfig("w1a1")).report()}
    shortcut, beside = rows["layer2.0.shortcut.0"], rows["layer2.0.conv1"]
    assert (shortcut.weight, shortcut.input) == ("8 bits, per channel", "7 bits, per tensor")
    assert (beside.weight, beside.input) == ("1 bit (binary), per channel", "1 bit, per tensor")
    assert qat.qconfig("w1a2").shortcuts is None


@pytest.mark.parametrize("key", [k for k, e in qlab.models.manifest().items() if "qconfig" in e])
def test_every_committed_network_loads_and_converts(key):
    name, data, preset = key.split("-")
    prepared = qat.load(name, preset, data)
    int8 = qlab.convert(prepared, "reference")  # which compares the two on noise
    with torch.inference_mode():
        assert int8(torch.zeros(1, 3, 32, 32)).isfinite().all()


def test_a_network_that_was_not_trained_is_named():
    with pytest.raises(ValueError, match="no trained weights for 'resnet20-cifar10-w5a5'"):
        qat.load("resnet20", "w5a5")
