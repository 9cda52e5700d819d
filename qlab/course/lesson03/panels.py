"""Lesson 3's panels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qlab.course.language import _
from qlab.course.lesson03 import plots
from qlab.course.registry import explorable, normal
from qlab.course.widgets import Panel, Slider


@explorable(example=lambda: (normal(6, 200).relu(),))
def settling(batches: Sequence[Tensor]) -> Panel:
    """Drag the number of batches seen, and the moving average's momentum: where the observers put the limit."""
    return Panel(
        plots.settling(batches),
        batches=Slider(label=_("batches seen"), value=1, minimum=1, maximum=len(batches)),
        momentum=Slider(label=_("momentum of the moving average"), value=0.1, minimum=0.01, maximum=1, step=0.01),
    )


@explorable(example=lambda: (1 + normal(40, 5).abs(),))
def calibration_size(largest: Tensor) -> Panel:
    """Drag the number of calibration images, and draw other ones: how much of the whole range they show."""
    return Panel(
        plots.calibration_size(largest),
        images=Slider(label=_("calibration images"), value=1, minimum=1, maximum=min(256, len(largest))),
        drawing=Slider(label=_("which drawing"), value=1, minimum=1, maximum=10),
    )
