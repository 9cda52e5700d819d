"""Lesson 7's panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from qlab.course.language import _
from qlab.course.lesson07 import plots
from qlab.course.registry import explorable, normal
from qlab.course.widgets import Panel, Slider


def _training() -> tuple[dict[int, list[plots.Snapshot]], int]:
    """Three snapshots of weights, 5 steps apart; with the pull they come to lie on the rungs."""
    weights = normal(500)
    pulled = [weights.lerp(weights.round().clamp(-1, 1), done) for done in (0.0, 0.5, 1.0)]
    runs = {0: [weights] * 3, 1: pulled}
    return {pull: [plots.Snapshot(w, 1.0, 0.5 / (1 + k)) for k, w in enumerate(run)] for pull, run in runs.items()}, 5


@explorable()
def one_weight() -> Panel:
    """Drag the steps: one weight is trained through the rounding."""
    return Panel(
        plots.one_weight(),
        start=Slider(label=_("the weight at the start"), value=-1, minimum=-1.2, maximum=3.2, step=0.1),
        steps=Slider(label=_("steps of training"), value=0, minimum=0, maximum=60),
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
def gathering(training: Mapping[int, Sequence[plots.Snapshot]], every: int) -> Panel:
    """Drag the training's step: where the weights lie between the rungs. Arguments as in ``plots``."""
    steps = every * (len(training[0]) - 1)
    return Panel(
        plots.gathering(training, every),
        step=Slider(label=_("step of training"), value=0, minimum=0, maximum=steps, step=every),
        pull=Slider(label=_("pull to the rungs (0: off, 1: on)"), value=0, minimum=0, maximum=1),
    )
