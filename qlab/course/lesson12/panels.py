"""Lesson 12's panels."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets
from torch import Tensor

from qlab.course.language import _
from qlab.course.lesson12 import plots
from qlab.course.lesson12.savings import Workload
from qlab.course.registry import explorable, normal
from qlab.course.widgets import Panel, Slider


def _works() -> tuple[list[Workload]]:
    return ([Workload("large layers", 100_000_000, 100_000_000), Workload("small images", 270_000, 41_000_000)],)


@explorable(example=_works)
def savings(works: Sequence[Workload]) -> Panel:
    """Put in your own machine and prices: what int8 saves. Arguments as in ``plots``."""
    names = [(work.name, number) for number, work in enumerate(works)]
    return Panel(
        plots.savings(works),
        work=ipywidgets.Dropdown(options=names, value=0, description=_("network")),
        memory=Slider(label=_("memory, gigabytes a second"), value=10, minimum=1, maximum=200),
        macs=Slider(label=_("billion float multiplications a second"), value=50, minimum=1, maximum=500),
        speedup=Slider(label=_("int8 multiplications, times as many"), value=2.0, minimum=1.0, maximum=4.0, step=0.5),
        dollars=Slider(label=_("price of an hour, dollars"), value=0.1, minimum=0.0, maximum=5.0, step=0.05),
        download=Slider(label=_("download, megabits a second"), value=20, minimum=1, maximum=200),
    )


@explorable(example=lambda: (normal(3, 4), normal(3), 1.0))
def qdq(weight: Tensor, bias: Tensor, top: float) -> Panel:
    """Walk through the nodes around one layer of an ONNX graph. Arguments as in ``plots``."""
    return Panel(
        plots.qdq(weight, bias, top),
        step=Slider(label=_("step"), value=0, minimum=0, maximum=7),
        bits=Slider(label=_("bits of the activations"), value=8, minimum=3, maximum=8),
        first=Slider(label=_("first input"), value=0.5, minimum=-1.0, maximum=1.0, step=0.1),
    )
