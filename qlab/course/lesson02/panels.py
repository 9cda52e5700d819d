"""Lesson 2's panels."""

from __future__ import annotations

from torch import Tensor

from qlab.course.language import _
from qlab.course.lesson02 import plots
from qlab.course.registry import explorable, normal
from qlab.course.widgets import Drawn, Panel, Slider


@explorable(example=lambda: (normal(500).relu(),))
def clipping(values: Tensor) -> Drawn:
    """Drag the limit of the grid: less clipping means coarser steps."""
    return Drawn(
        "clipping", plots.clipping(values), plots.clipping_texts(),
        plots.enough_of(values).astype("float32").tobytes(),
        bits=dict(label=_("bits"), value=4, minimum=2, maximum=8),
        limit=dict(label=_("limit (% of the largest)"), value=100, minimum=5, maximum=100),
    )  # fmt: skip


@explorable(example=lambda: (normal(500).relu(),))
def chosen_limits(values: Tensor) -> Panel:
    """Drag the bits: where each observer puts the limit."""
    return Panel(plots.chosen_limits(values), bits=Slider(label=_("bits"), value=8, minimum=2, maximum=8))


@explorable(example=lambda: (normal(500).relu(),))
def outlier(values: Tensor) -> Panel:
    """Double the largest value, again and again: where each observer puts the limit, and what it costs the others."""
    return Panel(
        plots.outlier(values),
        doublings=Slider(label=_("the largest value, doubled so many times"), value=0, minimum=0, maximum=12),
    )
