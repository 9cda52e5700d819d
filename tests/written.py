"""Layers to write networks with as people do, and how much W8A8 leaves of one."""

from __future__ import annotations

import copy

import torch
from torch import nn

import qlab
from qlab import QConfig
from qlab.analysis import sqnr

X = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ENOUGH = 30.0  # dB that 8 bits leave of a small network with random weights


class Base(nn.Module):
    """Layers to make networks of, and a plain network of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)
        for values in self.norm.buffers():
            if values.is_floating_point():
                nn.init.uniform_(values, 0.5, 1.5)

    def forward(self, x):
        return self.head(self.second(self.relu(self.norm(self.conv(x)))))

    def head(self, y):
        return self.fc(y.mean((2, 3)))


def decibel(model: nn.Module, x: torch.Tensor = X, qconfig: QConfig | None = None, engine: str = "reference") -> float:
    """What W8A8 leaves of the answers, in integers."""
    model = model.eval()
    before = copy.deepcopy(model.state_dict())
    int8 = qlab.ptq(model, [x], qconfig, engine)
    with torch.no_grad():
        expected, given = model(x), int8(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the model was changed"
    return sqnr(expected, given)
