"""Lesson 4's panels."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import ipywidgets
from torch import Tensor

from qlab.course.language import _
from qlab.course.lesson04 import plots
from qlab.course.registry import explorable, normal
from qlab.course.widgets import Panel, Slider


@explorable(example=lambda: (normal(12, 1, 3, 3),))
def channel_ranges(weight: Tensor) -> Panel:
    """Drag the bits, choose who shares a scale: what becomes of each channel of a depthwise layer's ``weight``."""
    names = list(plots.granularities())
    return Panel(
        plots.channel_ranges(weight),
        bits=Slider(label=_("bits"), value=4, minimum=2, maximum=14),
        share=ipywidgets.Dropdown(options=names, value=names[0], description=_("one scale")),
    )


@explorable(example=lambda: (normal(12, 6, 1, 1), normal(12, 1, 3, 3)))
def equalization(first: Tensor, second: Tensor) -> Panel:
    """Drag the share of equalization: the ranges of the channels that two layers have in common."""
    return Panel(
        plots.equalization(first, second),
        share=Slider(label=_("equalized (%)"), value=0, minimum=0, maximum=100, step=5),
        bits=Slider(label=_("bits"), value=6, minimum=3, maximum=8),
    )


def _accuracies() -> tuple[dict, dict, float]:
    """For the small panel: the more is repaired, the better, and the more bits."""
    found = {
        (bits, *how): 10.0 * bits + 8 * sum(how) + how[0]
        for bits in (3, 4, 5)
        for how in product((False, True), repeat=2)
    }
    return found, {bits: 12.0 * bits for bits in (3, 4, 5)}, 90.0


@explorable(example=_accuracies)
def repairs(
    found: Mapping[tuple[int, bool, bool], float], per_channel: Mapping[int, float], float_accuracy: float
) -> Panel:
    """Switch equalization and bias correction on: the accuracy of one scale a tensor, as measured in ``found``."""
    box = {"value": False, "indent": False}
    return Panel(
        plots.repairs(found, per_channel, float_accuracy),
        equalize=ipywidgets.Checkbox(description=_("equalization"), **box),
        correct=ipywidgets.Checkbox(description=_("bias correction"), **box),
    )
