"""Lesson 11's panels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from qlab.course.language import _
from qlab.course.lesson11 import plots
from qlab.course.lesson11.live import Live
from qlab.course.registry import explorable
from qlab.course.widgets import Panel, Slider
from qlab.detect.network import Detector, load
from qlab.detect.scene import CLASSES, Boxes, Scene
from qlab.detect.video import SceneSource, Source


def _scene() -> tuple[Tensor, Boxes, Boxes, Sequence[str]]:
    """A made scene in which each shape is found twice, the second time less surely and some pixels off."""
    image, truth = Scene(4)(0.0)
    scores = torch.linspace(0.9, 0.1, 2 * len(truth))
    return image, Boxes(torch.cat([truth.xyxy, truth.xyxy + 4]), truth.labels.repeat(2), scores), truth, CLASSES


@explorable(example=_scene)
def suppression(image: Tensor, candidates: Boxes, truth: Boxes, classes: Sequence[str]) -> Panel:
    """Drag the least score, and the overlap that is allowed: which boxes are left. Arguments as in ``plots``."""
    return Panel(
        plots.suppression(image, candidates, truth, classes),
        score=Slider(label=_("least score (%)"), value=30, minimum=5, maximum=95, step=5),
        overlap=Slider(label=_("overlap allowed (%)"), value=95, minimum=5, maximum=95, step=5),
    )


def _video() -> tuple[Callable[[], Source], dict[str, nn.Module], dict[str, float]]:
    """A made scene at the detectors' own pace; the float network stands in for the int8 one."""
    network = load()
    return lambda: SceneSource(4, live=False), {"float": network, "int8": network}, {"float": 90.0, "int8": 89.5}


@explorable(example=_video)
def live_detection(
    open_source: Callable[[], Source], detectors: Mapping[str, nn.Module], map_of: Mapping[str, float], **options
) -> Live:
    """Both networks of ``detectors`` on a live video. Arguments as in :class:`Live`; start and stop it by its buttons."""
    return Live(
        open_source, {name: Detector(net, threshold=0.05) for name, net in detectors.items()}, map_of, **options
    )
