"""Lesson 5's panels."""

from __future__ import annotations

from torch import Tensor, tensor

from qlab.course.language import _
from qlab.course.lesson05 import plots
from qlab.course.registry import explorable, normal
from qlab.course.widgets import Panel, Slider


@explorable(example=lambda: (tensor([0.9, -0.4, 1.7]), tensor([0.31, -0.22, 0.45]), 0.25, (-1.0, 3.0)))
def dot_product(x: Tensor, w: Tensor, bias: float, ends: tuple[float, float]) -> Panel:
    """Walk through one dot product in integers, step by step."""
    return Panel(
        plots.dot_product(x, w, bias, ends),
        step=Slider(label=_("step"), value=0, minimum=0, maximum=6),
        bits=Slider(label=_("bits"), value=8, minimum=2, maximum=8),
    )


@explorable(example=lambda: (normal(30, 27), normal(8, 27)))
def saturation(x: Tensor, weight: Tensor) -> Panel:
    """Drag the bits of the inputs, or the size of the weights: which pairs of products fit 16 bits."""
    return Panel(
        plots.saturation(x, weight),
        bits=Slider(label=_("bits of the activations"), value=8, minimum=5, maximum=8),
        largest=Slider(label=_("largest code of the weights"), value=127, minimum=31, maximum=127, step=8),
    )
