"""Lesson 7's panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets
from torch import Tensor

from qlab.course.language import _
from qlab.course.lesson07 import plots
from qlab.course.lesson07.layer import Snapshot
from qlab.course.registry import explorable, normal
from qlab.course.widgets import Panel, Slider


def _training() -> tuple[dict[str, list[Snapshot]], int]:
    """Three snapshots of weights, 5 steps apart; with the pull they come to lie on the rungs."""
    weights = normal(500)
    pulled = [weights.lerp(weights.round().clamp(-1, 1), done) for done in (0.0, 0.5, 1.0)]
    runs = {"as it is": [weights] * 3, "with a pull": pulled}
    return {
        name: [Snapshot(w, 1.0, 0.5 / (1 + k), w.abs() > 1, 0.1 * k) for k, w in enumerate(run)]
        for name, run in runs.items()
    }, 5


@explorable()
def one_weight() -> Panel:
    """Drag the steps: one weight is trained through the rounding."""
    return Panel(
        plots.one_weight(),
        start=Slider(label=_("the weight at the start"), value=-1, minimum=-1.2, maximum=3.2, step=0.1),
        steps=Slider(label=_("steps of training"), value=0, minimum=0, maximum=plots.STEPS),
        lr=Slider(label=_("learning rate"), value=0.1, minimum=0.02, maximum=0.5, step=0.02),
        falling=ipywidgets.Checkbox(description=_("the rate falls to 0"), value=False, indent=False),
    )


@explorable(example=lambda: (normal(500),))
def learned_scale(values: Tensor) -> Panel:
    """Drag the scale: the error it makes, and where LSQ's gradient drives it."""
    return Panel(
        plots.learned_scale(values),
        bits=Slider(label=_("bits"), value=3, minimum=2, maximum=8),
        percent=Slider(label=_("scale (% of the one that clips nothing)"), value=100, minimum=3, maximum=100),
    )


@explorable(example=_training)
def gathering(training: Mapping[str, Sequence[Snapshot]], every: int) -> Panel:
    """Drag the training's step: where the weights lie between the rungs. Arguments as in ``plots``."""
    names = list(training)
    steps = every * (len(training[names[0]]) - 1)
    return Panel(
        plots.gathering(training, every),
        run=ipywidgets.Dropdown(options=names, value=names[0], description=_("training")),
        step=Slider(label=_("step of training"), value=0, minimum=0, maximum=steps, step=every),
    )
