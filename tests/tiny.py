"""A network that trains in a second, and how far and how it is calibrated."""

from __future__ import annotations

from stripes import stripes
from torch import nn

import qlab
from qlab import QConfig, qat, train

PLAN = train.Plan(epochs=3, batch_size=16, lr=0.05, shrink=0, label_smoothing=0.0)


class Tiny(nn.Module):
    """A residual block, so that an edge inside convolution + addition is there too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, stride=4, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.pool, self.flatten = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(self.flatten(self.pool(x)))


def calibrated(network: nn.Module, qconfig: QConfig | None = None) -> qat.Prepared:
    prepared = qlab.prepare(network, qconfig or QConfig.w4a4())
    return qlab.calibrate(prepared, stripes(64).batches(32), progress=False)
