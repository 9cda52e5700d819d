"""Lesson 9's panels."""

from __future__ import annotations

import ipywidgets
from torch import Tensor

from qlab.course.language import _
from qlab.course.lesson09 import plots
from qlab.course.registry import explorable, normal
from qlab.course.widgets import Panel, Slider


@explorable(example=lambda: (normal(500),))
def codebook(values: Tensor) -> Panel:
    """Drag the iterations: the values of a codebook move to where the weights are."""
    return Panel(
        plots.codebook(values),
        bits=Slider(label=_("bits"), value=3, minimum=2, maximum=4),
        iterations=Slider(label=_("iterations of k-means"), value=0, minimum=0, maximum=40),
    )


@explorable(example=lambda: (normal(16, 2, 3, 3),))
def few_values(filters: Tensor) -> Panel:
    """Drag the threshold: which weights of a filter become 0, and what that costs."""
    threshold = _("threshold (mean magnitudes)")
    return Panel(
        plots.few_values(filters),
        threshold=Slider(label=threshold, value=0, minimum=0, maximum=2, step=0.05),
    )


@explorable(example=lambda: (normal(500),))
def small_floats(weights: Tensor) -> Panel:
    """Drag the outlier: what int8 and the two forms of fp8 leave of all other weights."""
    return Panel(
        plots.small_floats(weights),
        grid=ipywidgets.Dropdown(options=list(plots.GRIDS), value="e4m3", description=_("grid")),
        power=Slider(label=_("n: the outlier is 10**n times the largest"), value=0, minimum=0, maximum=8, step=0.25),
    )
