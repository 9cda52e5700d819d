"""One trained network for all files here; nobody changes it."""

from __future__ import annotations

import pytest
import torch
from stripes import stripes
from tiny import Tiny
from torch import nn

from qlab import train


@pytest.fixture(scope="session")
def network() -> nn.Module:
    """Trained for a moment, so that its BatchNorms have seen something."""
    torch.manual_seed(3)
    tiny = Tiny()
    train.fit(tiny, stripes(160), None, train.Plan(epochs=6, batch_size=16, lr=0.1, shrink=0), progress=False)
    return tiny
