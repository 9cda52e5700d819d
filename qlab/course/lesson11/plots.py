"""Lesson 11: boxes in an image, before and after non-maximum suppression; two detectors on one video."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from torch import Tensor, nn
from torch.nn import functional as F

from qlab.course.figure import CLIPPED, ERROR, FLOAT, INK, PAPER, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.detect.boxes import finds, match, nms
from qlab.detect.network import ANCHORS, SIZES, STRIDES
from qlab.detect.scene import SIDE, Boxes
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
    shown = ax.imshow(np.zeros((side, side, 3), np.uint8), interpolation="bicubic")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    return shown


def readable(name: str, layer: nn.Conv2d) -> str:
    """What a layer of the detector is, in words, from its name there.

    >>> readable("features.10.conv.1.0", nn.Conv2d(8, 8, 3, groups=8))
    'block 10, depthwise 3x3'
    >>> readable("boxes.2.3", nn.Conv2d(16, 8, 1))
    'boxes of the 5x5 map, 1x1 from 16 to 8'
    """
    part, number, *_rest = name.split(".")
    size = "x".join(map(str, layer.kernel_size))
    kind = _("depthwise {size}") if layer.groups > 1 else _("{size} from {before} to {after}")
    kind = kind.format(size=size, before=layer.in_channels, after=layer.out_channels)
    if part == "features":
        return _("block {number}, {kind}").format(number=number, kind=kind)
    side = -(-SIDE // STRIDES[int(number)])
    where = {
        "boxes": _("boxes of the {side}x{side} map, {kind}"),
        "classes": _("classes of the {side}x{side} map, {kind}"),
    }
    return where[part].format(side=side, kind=kind)


@rc_context(STYLE)
def anchors(image: Tensor, truth: Boxes) -> Figure:
    """One image with its shapes and, for each of the network's maps, the anchors that overlap one by half or more.

    A dot stands at each place of a map; at one place both of its anchors are drawn. An anchor that no shape overlaps by half
    is drawn too where it is the best that a shape has: it has to find that shape (see :func:`qlab.detect.match`).
    """
    labels, _boxes = match(ANCHORS, torch.cat([truth.labels[:, None].float(), truth.xyxy], 1))
    pale = F.avg_pool2d(
        255 - 0.45 * (255 - image.float()), 3, 1, 1, count_include_pad=False
    )  # its boxes are to be seen
    figure = Figure((9, 3.7))
    axes = figure.subplots(1, len(STRIDES))
    for ax, stride, sizes in zip(axes, STRIDES, SIZES):
        mine = (ANCHORS[:, 2] - ANCHORS[:, 0])[:, None].isclose(torch.tensor(sizes)).any(1)
        places = (np.arange(-(-SIDE // stride)) + 0.5) * stride
        faded = image_in(ax, image.shape[1])
        faded.set(data=pale.permute(1, 2, 0).numpy().astype(np.uint8), interpolation="bicubic")
        x, y = np.meshgrid(places - 0.5, places - 0.5)
        ax.plot(x.ravel(), y.ravel(), ".", color=INK, markersize=2)
        middle = places[len(places) // 2]
        squares = torch.tensor([[middle - s / 2, middle - s / 2, middle + s / 2, middle + s / 2] for s in sizes])
        chosen = ANCHORS[mine & (labels > 0)]
        for colour, corners in ((FLOAT, truth.xyxy), (QUANTIZED, chosen), (INK, squares)):
            frames = Frames(ax, colour, named=0)
            frames.lines[0].set_visible(False)  # no white line below on a pale image
            frames.lines[1].set_linestyle((0, (3, 2)) if colour == INK else "-")
            frames.show(Boxes(corners, torch.zeros(len(corners)), torch.ones(len(corners))))
        words = {"side": len(places), "small": sizes[0], "large": sizes[1], "count": len(chosen)}
        ax.set_title(
            _("{side}x{side} places, squares of {small:g} and {large:g}:\n{count} anchors have to find a shape").format(
                **words
            )
        )
    words = {"all": len(ANCHORS), "count": int((labels > 0).sum()), "shapes": len(truth)}
    figure.finding = _(
        "{count} of {all:,} anchors have to find one of the {shapes} shapes, all others the ground"
    ).format(**words)
    figure.alt = _(
        "The same scene three times, its shapes in blue boxes. Dots are the places of a map, dashed squares the two anchors at "
        "one of them; orange are those that overlap a shape by at least one half, or are the best that a shape has."
    )
    return figure


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
        good = finds(kept, truth)
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
