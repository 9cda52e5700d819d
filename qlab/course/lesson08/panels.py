"""Lesson 8's panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets
import torch
from torch import Tensor

from qlab.course.language import _
from qlab.course.lesson08 import plots
from qlab.course.registry import explorable
from qlab.course.widgets import Panel, Slider

IMAGES = (100, 200, 500, 1000, 2000)


def _candidates() -> tuple[list[plots.Candidate]]:
    rows = (
        ("w8a8", 800e3, 0.1, False, 0.1), ("w4a4", 400e3, 8.0, False, 1.0), ("w4a4", 400e3, 0.5, True, 0.3),
        ("w2a2", 200e3, 1.6, True, 0.6),
    )  # fmt: skip
    return ([plots.Candidate(*row) for row in rows],)


def _hits() -> tuple[dict[int, Tensor], dict[int, Tensor], Tensor]:
    """200 images of which 176 are right in float, and fewer with few bits."""
    first = torch.arange(200) * 37 % 200  # as even in the first 100 as in all
    return {8: first < 174, 4: first < 160, 3: first < 144}, {4: first < 175}, first < 176


@explorable(example=_hits)
def ptq_and_qat(ptq: Mapping[int, Tensor], qat: Mapping[int, Tensor], float_hits: Tensor) -> Panel:
    """Drag the bits, choose how many images count: what is lost without training, and with it. Arguments as in ``plots``."""
    there = [images for images in IMAGES if images <= len(float_hits)]
    return Panel(
        plots.ptq_and_qat(ptq, qat, float_hits),
        bits=Slider(label=_("bits of weights and activations"), value=max(ptq), minimum=min(ptq), maximum=max(ptq)),
        images=ipywidgets.Dropdown(options=there, value=there[-1], description=_("images:")),
    )


@explorable(example=_candidates)
def choice(candidates: Sequence[plots.Candidate]) -> Panel:
    """Drag the loss that is allowed, tick whether training is possible: the smallest network that is good enough."""
    return Panel(
        plots.choice(candidates),
        tolerance=Slider(label=_("points that may be lost"), value=0.0, minimum=0.0, maximum=2.0, step=0.05),
        can_train=ipywidgets.Checkbox(description=_("there is data and time to train"), value=False, indent=False),
        sure=ipywidgets.Checkbox(description=_("be sure: the loss and two standard errors"), value=False, indent=False),
    )
