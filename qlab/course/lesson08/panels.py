"""Lesson 8's panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets

from qlab.course.language import _
from qlab.course.lesson08 import plots
from qlab.course.registry import explorable
from qlab.course.widgets import Panel, Slider


def _candidates() -> tuple[list[plots.Candidate]]:
    rows = (
        ("w8a8", 800e3, 0.1, False),
        ("w4a4", 400e3, 8.0, False),
        ("w4a4", 400e3, 0.5, True),
        ("w2a2", 200e3, 6.0, True),
    )
    return ([plots.Candidate(*row) for row in rows],)


@explorable(example=lambda: ({2: 24.0, 3: 72.0, 4: 80.0}, {2: 80.0, 4: 87.5}, 88.0))
def ptq_and_qat(ptq: Mapping[int, float], qat: Mapping[int, float], float_accuracy: float) -> Panel:
    """Drag the bits: what is right without training, and with it. Arguments as in ``plots``."""
    slider = Slider(label=_("bits of weights and activations"), value=max(ptq), minimum=min(ptq), maximum=max(ptq))
    return Panel(plots.ptq_and_qat(ptq, qat, float_accuracy), bits=slider)


@explorable(example=_candidates)
def choice(candidates: Sequence[plots.Candidate]) -> Panel:
    """Drag the loss that is allowed, tick whether training is possible: the smallest network that is good enough."""
    return Panel(
        plots.choice(candidates),
        tolerance=Slider(label=_("points that may be lost"), value=1.0, minimum=0.0, maximum=10.0, step=0.5),
        can_train=ipywidgets.Checkbox(description=_("there is data and time to train"), value=False, indent=False),
    )
