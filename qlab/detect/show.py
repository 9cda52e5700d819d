"""What a detector found, for people: in words, and drawn into the frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from qlab.detect.scene import Boxes

INK = "#C85200"


def words(found: Boxes, classes: Sequence[str]) -> str:
    """The boxes in words, the surest first.

    >>> import torch
    >>> words(Boxes(torch.zeros(1, 4), torch.tensor([1]), torch.tensor([0.9])), ("ring", "star"))
    'star 0.90'
    """
    return ", ".join(f"{classes[label]} {score:.2f}" for label, score in zip(found.labels, found.scores.tolist()))


def draw(image: Tensor, found: Boxes, classes: Sequence[str]) -> Image.Image:
    """The frame with its boxes, for a look at it."""
    drawn = Image.fromarray(image.permute(1, 2, 0).numpy())
    pen = ImageDraw.Draw(drawn)
    for (left, top, right, bottom), label in zip(found.xyxy.tolist(), found.labels):
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=INK, width=2)
        pen.text((left + 3, top + 2), classes[label], fill="white", stroke_width=1, stroke_fill="black")
    return drawn


def save(folder: Path, number: int, drawn: Image.Image) -> None:
    """Write one frame."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn.save(folder / f"{number:06}.jpg", quality=90)
