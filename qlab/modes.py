"""Looking at a network without leaving a trace: eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """``network`` and all its parts in eval mode; afterwards each part in the mode it was in, whatever happened.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    >>> with in_eval_mode(network):
    ...     network.training, network[1].training
    (False, False)
    >>> network.training
    True
    """
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
