"""A small VGG (Simonyan and Zisserman 2015): plain 3x3 convolutions, no shortcuts, with BatchNorm."""

from __future__ import annotations

from torch import nn

WIDTHS = (32, "pool", 64, 64, "pool", 128, 128, "pool", 256, 256)


def vgg(classes: int = 10) -> nn.Sequential:
    """Seven convolutions, three max-pools, a global average and one linear layer; 1.2 million weights."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in WIDTHS:
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
