"""Lesson 10's panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets
from torch import Tensor

from qlab.course.language import _
from qlab.course.lesson10 import plots
from qlab.course.registry import explorable, normal
from qlab.course.widgets import Panel, Slider


def _perplexities() -> tuple:
    kinds = (("rows", 5), ("rows with zero points", 4), ("groups", 3))
    found = {(kind, bits): 5.0 + 4.0 ** (worst - bits) for kind, worst in kinds for bits in (2, 3, 4)}
    return found, 5.0, {bits: f"def f():\n    return {bits}" for bits in (2, 3, 4)}, "groups"


@explorable(example=_perplexities)
def bits_of_weights(
    perplexity: Mapping[tuple[str, int], float], float_perplexity: float, written: Mapping[int, str], shown: str
) -> Panel:
    """Drag the bits of a language model's weights: its perplexity, and what it writes. Arguments as in ``plots``."""
    slider = Slider(label=_("bits of a weight"), value=max(written), minimum=min(written), maximum=max(written))
    return Panel(plots.bits_of_weights(perplexity, float_perplexity, written, shown), bits=slider)


@explorable(example=lambda: (normal(8, 64), (16, 32, 64)))
def weight_groups(weight: Tensor, sizes: Sequence[int]) -> Panel:
    """Drag the bits, choose how many weights share a grid: the grid's steps, and error against memory."""
    return Panel(
        plots.weight_groups(weight, sizes),
        bits=Slider(label=_("bits"), value=4, minimum=2, maximum=8),
        size=ipywidgets.Dropdown(options=list(sizes), value=max(sizes), description=_("group of")),
    )


@explorable(example=lambda: (normal(20, 32), normal(8, 32), (3, 9)))
def smoothing(x: Tensor, weight: Tensor, channels: Sequence[int]) -> Panel:
    """Drag alpha, and the size of the outliers: SmoothQuant moves them from the activations to the weights."""
    return Panel(
        plots.smoothing(x, weight, channels),
        alpha=Slider(label=_("alpha"), value=0.0, minimum=0, maximum=1, step=0.05),
        size=Slider(label=_("outliers: 2 to the power of"), value=6, minimum=0, maximum=8),
    )
