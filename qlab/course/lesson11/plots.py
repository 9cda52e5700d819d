"""Lesson 11: boxes in an image, before and after non-maximum suppression; two detectors on one video."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from torch import Tensor

from qlab.course.figure import CLIPPED, ERROR, FLOAT, PAPER, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.detect.boxes import hits, iou, nms
from qlab.detect.scene import Boxes
from qlab.detect.video import Meter, Seen

NAMED = 9  # boxes that get their class written at them
MILLISECONDS = np.geomspace(1, 1000, 61)


class Frames:
    """Boxes drawn in an axis: a coloured line on a white one, and the classes of the surest."""

    def __init__(self, ax: Axes, colour: str, named: int = NAMED) -> None:
        self.lines = [LineCollection([], colors=c, linewidths=w) for c, w in ((PAPER, 3.5), (colour, 1.8))]
        for line in self.lines:
            ax.add_collection(line)
        style = {"color": PAPER, "fontsize": 8, "va": "bottom", "clip_on": True}
        box = {"facecolor": colour, "edgecolor": "none", "pad": 1}
        self.names = [ax.text(0, 0, "", bbox=box, **style) for _number in range(named)]
        self.artists = (*self.lines, *self.names)

    def show(self, boxes: Boxes, classes: Sequence[str] = ()) -> None:
        """Draw these, and no others."""
        left, top, right, bottom = (boxes.xyxy.numpy() - 0.5).T
        corners = np.stack([left, top, right, top, right, bottom, left, bottom, left, top], 1).reshape(-1, 5, 2)
        for line in self.lines:
            line.set_segments(corners)
        for place, text in enumerate(self.names):
            there = place < len(boxes) and len(classes) > 0
            text.set_visible(there)
            if there:
                text.set_position((left[place], top[place]))
                text.set_text(classes[boxes.labels[place]])


def image_in(ax: Axes, side: int):
    """An axis without ticks that shows images of ``side`` pixels; the artist that holds the image."""
    shown = ax.imshow(np.zeros((side, side, 3), np.uint8), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    return shown


@rc_context(STYLE)
def suppression(
    image: Tensor, candidates: Boxes, truth: Boxes, classes: Sequence[str]
) -> Callable[[float, float], Figure]:
    """One image with all boxes above a score, and those that non-maximum suppression keeps; a function from the
    least score and the largest overlap of two boxes of one class, both in percent.

    ``candidates`` are all boxes that a network gives, the surest first.
    """
    figure = Figure((9, 4.6))
    axes = figure.subplots(1, 2)
    for ax, title in zip(axes, (_("before: everything above the score"), _("after: what is kept"))):
        image_in(ax, image.shape[1]).set_data(image.permute(1, 2, 0).numpy())
        ax.set_title(title)
    before, right = Frames(axes[0], CLIPPED, named=0), Frames(axes[1], FLOAT)
    wrong = Frames(axes[1], ERROR)
    figure.moves(*before.artists, *right.artists, *wrong.artists)

    def draw(score: float, overlap: float) -> Figure:
        sure = candidates.above(score / 100)
        apart = sure.xyxy + sure.labels[:, None] * 1000.0  # classes do not suppress each other
        kept = sure.at(nms(apart, sure.scores, overlap / 100))
        good = hits(iou(kept.xyxy, truth.xyxy) * (kept.labels[:, None] == truth.labels), 0.5)
        before.show(sure)
        right.show(kept.at(good), classes)
        wrong.show(kept.at(~good), classes)
        words = {"before": len(sure), "after": len(kept), "right": int(good.sum()), "all": len(truth)}
        words["wrong"] = words["after"] - words["right"]
        figure.finding = _(
            "From {score:.0f} % up: {before} boxes become {after}; {right} of {all} shapes found, {wrong} wrong or double"
        ).format(score=score, **words)
        figure.alt = _(
            "With scores of at least {score:.0f} %, and overlaps of at most {overlap:.0f} %, {after} of {before} boxes are "
            "kept. {right} of them surround a shape (blue), {wrong} are doubles or wrong (purple)."
        ).format(score=score, overlap=overlap, **words)
        return figure

    return draw


@rc_context(STYLE)
def side_by_side(
    names: Sequence[str], classes: Sequence[str], map_of: Mapping[str, float], side: int
) -> Callable[[Seen, Mapping[str, Meter], float, int], Figure]:
    """One frame with the boxes of two detectors, a float and a quantized one, and how long they take; a function from
    what was seen, the detectors' meters, the least score in percent, and the frames that were dropped.

    ``map_of`` is each detector's mAP in percent, measured before.
    """
    colours = dict(zip(names, (FLOAT, QUANTIZED)))
    figure = Figure((9, 5.6))
    layout = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    shown, frames, steps, medians = {}, {}, {}, {}
    below = figure.add_subplot(layout[1, :])
    below.set(xscale="log", xlim=(MILLISECONDS[0], MILLISECONDS[-1]), ylim=(0, 1.05), yticks=[])
    below.set_xticks(*zip(*((t, f"{t:,}") for t in (1, 3, 10, 30, 100, 300, 1000))))
    below.set(xlabel=_("milliseconds a frame"), ylabel=_("frames"))
    for column, name in enumerate(names):
        ax = figure.add_subplot(layout[0, column])
        shown[name] = image_in(ax, side)
        ax.set_title(_("{name}: mAP {map:.1f} %").format(name=name, map=map_of[name]), color=colours[name])
        frames[name] = Frames(ax, colours[name])
        style = {"fill": True, "alpha": 0.45, "color": colours[name]}
        steps[name] = below.stairs(np.zeros(len(MILLISECONDS) - 1), MILLISECONDS, **style)
        medians[name] = below.axvline(1, color=colours[name])
        figure.moves(shown[name], *frames[name].artists, steps[name], medians[name])

    def draw(seen: Seen, meters: Mapping[str, Meter], score: float, dropped: int) -> Figure:
        found = {name: seen.found[name].above(score / 100) for name in names}
        for name in names:
            shown[name].set_data(seen.frame.image.permute(1, 2, 0).numpy())
            frames[name].show(found[name], classes)
            counts = np.histogram(1000 * np.array(meters[name].seconds), MILLISECONDS)[0]
            steps[name].set_data(counts / max(1, counts.max()))
            medians[name].set_xdata([meters[name].ms] * 2)
        speeds = [_("{name} {fps:.0f} frames/s").format(name=name, fps=meters[name].fps) for name in names]
        figure.finding = ", ".join(speeds)
        counts = [_("{name} finds {count}").format(name=name, count=len(found[name])) for name in names]
        there = "" if seen.frame.truth is None else _(" of {all} shapes").format(all=len(seen.frame.truth))
        figure.alt = _(
            "Frame {number}, scores of at least {score:.0f} %: {counts}{there}. {dropped} frames were dropped so far. "
            "Below: how long each detector took for a frame, with the median as a line."
        ).format(number=seen.frame.number, score=score, counts=", ".join(counts), there=there, dropped=dropped)
        return figure

    return draw
