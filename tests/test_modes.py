"""Whoever looks at a network gives every module its mode back."""

from __future__ import annotations

from written import Base, X

import qlab


def test_modes_of_every_module_are_as_before():
    """A frozen BatchNorm in a training network stays in eval mode, whatever looked at it."""
    net = Base().train()
    net.norm.eval()
    prepared = qlab.prepare(net, example=X)
    assert not any(module.training for module in prepared.modules()) and net.training and not net.norm.training
    prepared.train()
    prepared.network.second.eval()
    qlab.calibrate(prepared, [X])
    qlab.correct_bias(prepared, [X], progress=False)
    qlab.analysis.layer_sqnr(prepared, [X], progress=False)
    qlab.analysis.sensitivity(prepared, [X], progress=False)
    assert prepared.training and not prepared.network.second.training
