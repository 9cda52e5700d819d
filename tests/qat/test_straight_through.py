"""Grids that follow what passes, until they are frozen."""

from __future__ import annotations

import torch
from stripes import stripes
from tiny import calibrated

from qlab import qat
from qlab.qat import training


def test_grids_that_follow_stand_still_once_frozen(network):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]], "straight_through").train()
    quantizer = next(q for _, q in prepared.quantizers() if not q.of_weight)
    before = quantizer.scale.clone()
    training._freeze(prepared, ranges=True, batchnorm=False)
    prepared(torch.rand(4, 3, 32, 32) * 9)
    assert torch.equal(quantizer.scale, before)
    training._freeze(prepared, ranges=False, batchnorm=False)
    prepared(torch.rand(4, 3, 32, 32) * 9)
    assert not torch.equal(quantizer.scale, before)
