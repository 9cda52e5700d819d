"""Lesson 1's panels."""

from __future__ import annotations

from torch import Tensor

from qlab.course.language import _
from qlab.course.lesson01 import plots
from qlab.course.registry import explorable, normal
from qlab.course.widgets import Drawn, Panel, Slider


@explorable()
def formats() -> Drawn:
    """Drag a number, or click its bits: what each of six formats stores.

    A click makes ``values`` a pattern in one format, such as ``{"format": "float16", "pattern": 0x3C00}``.
    """
    number = dict(label=_("number"), value=0.3, minimum=-5, maximum=5, step=0.05)
    return Drawn("formats", plots.formats(), plots.formats_texts(), number=number)


@explorable()
def rounding() -> Drawn:
    """Drag the bits, and the grid up and down: what rounding makes of a sine."""
    return Drawn(
        "rounding", plots.rounding(), plots.rounding_texts(),
        bits=dict(label=_("bits"), value=3, minimum=2, maximum=8),
        shift=dict(label=_("grid moved by (steps)"), value=0, minimum=0, maximum=0.9, step=0.1),
    )  # fmt: skip


@explorable(example=lambda: (normal(500),))
def rounding_errors(values: Tensor) -> Panel:
    """Drag the bits: how the errors of ``values`` are spread over a step."""
    return Panel(plots.rounding_errors(values), bits=Slider(label=_("bits"), value=8, minimum=2, maximum=10))
