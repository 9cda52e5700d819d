"""Networks for several test files: one with every kind of layer, one of three layers."""

from __future__ import annotations

import torch
from torch import nn


class Zoo(nn.Module):
    """Every kind of layer, and joins of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.right = nn.Conv2d(8, 8, 1, bias=False)
        self.max_pool, self.avg_pool = nn.MaxPool2d(2), nn.AvgPool2d(3, stride=2, padding=1)
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()
        self.fc1, self.fc2 = nn.Linear(24, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.max_pool(self.relu6(self.stem(x)))
        y = torch.cat([self.relu(self.left(x) + self.right(x)), x, x + x], dim=1)
        y = self.relu(self.avg_pool(y))  # a relu with no layer before it
        y = torch.flatten(nn.functional.adaptive_avg_pool2d(y, 1), 1)
        return self.fc2(self.relu(self.fc1(y)) * 1.0)  # a float island


def convolutions() -> nn.Module:
    """Two convolutions and a linear layer, for images (N, 3, 6, 6)."""
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.Flatten(), nn.Linear(256, 10)]
    return nn.Sequential(*layers).eval()
