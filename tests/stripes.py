"""A data set that a tiny network learns in a second."""

from __future__ import annotations

import torch

from qlab.data.dataset import Dataset


def stripes(count: int, split: str = "train") -> Dataset:
    """Two classes that a tiny network can tell apart: the left or the upper half is bright."""
    generator = torch.Generator().manual_seed(len(split))
    images = torch.randint(0, 60, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    images[labels == 0, :, :, :16] += 150
    images[labels == 1, :, :16, :] += 150
    return Dataset(images, labels, ("left", "top"), "stripes", split, (0.4,) * 3, (0.3,) * 3)
