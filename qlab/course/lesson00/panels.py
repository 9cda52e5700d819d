"""Lesson 0's panel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qlab.course.language import _
from qlab.course.lesson00 import plots
from qlab.course.registry import explorable
from qlab.course.widgets import Panel, Slider
from qlab.data.dataset import Dataset


def _guesses() -> tuple:
    """Four grey images, and answers of which one more is wrong with each bit less."""
    labels = torch.tensor([0, 1, 0, 1])
    sample = Dataset(torch.full((4, 3, 32, 32), 128, dtype=torch.uint8), labels, ("cat", "dog"), "grey squares", "test",
                     (0.5,) * 3, (0.25,) * 3)  # fmt: skip
    said = {bits: (labels + (torch.arange(4) >= bits)) % 2 for bits in (2, 3, 4)}
    return sample, said, torch.ones(4, dtype=torch.bool)


@explorable(example=_guesses)
def fewer_bits(images: Dataset, said: Mapping[int, Tensor], float_right: Tensor) -> Panel:
    """Drag the number of bits: the network's answers, and how many are right. Arguments as in ``plots``."""
    most, least = max(said), min(said)
    slider = Slider(label=_("bits of weights and activations"), value=most, minimum=least, maximum=most)
    return Panel(plots.fewer_bits(images, said, float_right), bits=slider)
