"""MobileNetV2 (Sandler et al. 2018) at half width for 32x32 images: depthwise convolutions, hard to quantize."""

from __future__ import annotations

from torch import nn

# expansion, channels (before the width is halved), repeats, stride: the paper's table 2 with two of its five halvings
# of the image taken out (one is the stem's), since 32x32 pixels have none to spare: 32, 16, 8, 4.
STAGES = [[1, 16, 1, 2], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 1], [6, 96, 3, 2], [6, 160, 3, 1], [6, 320, 1, 1]]


def mobilenet_v2(classes: int = 10, stages: list[list[int]] = STAGES) -> nn.Module:
    """torchvision's MobileNetV2, width 0.5, its first layer with stride 1."""
    try:
        from torchvision.models import MobileNetV2
    except Exception as error:  # a mismatched pair fails with RuntimeError, a missing one with ImportError
        raise ImportError(
            f"mobilenet_v2 is built from torchvision's blocks, and torchvision cannot be imported ({error}). "
            "torch and torchvision must come from the same source: reinstall both in one command, "
            "`uv pip install --reinstall torch torchvision` (or `make clean lab` in a clone)."
        ) from error
    network = MobileNetV2(num_classes=classes, width_mult=0.5, inverted_residual_setting=stages, dropout=0.1)
    network.features[0][0].stride = (1, 1)
    return network
