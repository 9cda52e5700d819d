"""A small residual network with random weights, its images, and the two made ready."""

from __future__ import annotations

import torch
from torch import nn

import qlab
from qlab import QConfig

IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 5


class Net(nn.Module):
    """A first layer, a residual block, max-pooling in front of a last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.relu, self.pool, self.flatten = nn.ReLU(), nn.MaxPool2d(16), nn.Flatten()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        return self.fc(self.flatten(self.pool(self.relu(self.left(x) + self.right(x)))))


def network() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def calibrated(qconfig: QConfig | None = None, net: nn.Module | None = None):
    prepared = qlab.prepare(net or network(), qconfig, IMAGES[:1])
    return qlab.calibrate(prepared, [IMAGES], progress=False)
