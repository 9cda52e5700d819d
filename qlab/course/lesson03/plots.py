"""Lesson 3: ranges that settle while calibration images pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib import rc_context
from torch import Tensor

from qlab import observers
from qlab.course.figure import CLIPPED, FLOAT, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.qconfig import QuantSpec


@rc_context(STYLE)
def settling(batches: Sequence[Tensor], bits: int = 4) -> Callable[[int, float], Figure]:
    """The limits that four observers have chosen after each batch; a function from batches seen and momentum.

    ``batches`` are activations behind a relu, of any shape. ``momentum`` is the weight of the newest batch in
    the moving average. Left what follows the largest values, right what counts all values.
    """
    largest = np.array([float(batch.max()) for batch in batches])
    number = np.arange(1, len(batches) + 1)
    limits = limits_of(batches, bits)
    image = Figure((9, 3.4))
    left, right = image.subplots(1, 2, sharey=True)
    left.set(ylabel=_("limit"), ylim=(0.5 * limits["mse"].min(), 1.25 * largest.max()))
    for ax in (left, right):
        ax.set(xlabel=_("batches seen"), xlim=(0, len(batches) + 1))
    keys = (
        (left, 0.06, _("largest of a batch"), {"color": FLOAT, "linestyle": "", "marker": "."}),
        (left, 0.94, _("min-max"), {"color": QUANTIZED}),
        (left, 0.84, _("moving average"), {"color": QUANTIZED, "linestyle": "--"}),
        (right, 0.94, _("percentile 99.99"), {"color": QUANTIZED}),
        (right, 0.84, _("MSE, {bits} bits").format(bits=bits), {"color": QUANTIZED, "linestyle": "--"}),
    )
    for ax, height, name, look in keys:
        places = [0.06] if "marker" in look else [0.03, 0.09]
        ax.plot(places, [height] * len(places), transform=ax.transAxes, **look)
        ax.text(0.11, height, name, color=look["color"], va="center", transform=ax.transAxes)
    lines = [ax.plot([], [], **look)[0] for ax, _height, _name, look in keys]
    for line in lines[1:]:  # of one batch a line alone would show nothing
        line.set(marker="o", markevery=[-1])
    image.moves(*lines)

    def draw(batches: int, momentum: float) -> Figure:
        average = moving_average(largest, momentum)
        curves = (largest, limits["minmax"], average, limits["percentile"], limits["mse"])
        for line, curve in zip(lines, curves):
            line.set_data(number[:batches], curve[:batches])
        names = ("minmax", "average", "percentile", "mse")
        now = {name: curve[batches - 1] for name, curve in zip(names, curves[1:])}
        image.finding = _(
            "{batches} of {count} batches: min-max at {minmax:.2f}, moving average {average:.2f}, percentile {percentile:.2f}, "
            "MSE {mse:.2f}"
        ).format(batches=batches, count=len(number), **now)
        records = int((np.diff(limits["minmax"][:batches]) > 0).sum())
        share = {name: 100 * now[name] / limits[name][-1] for name in ("minmax", "percentile", "mse")}
        image.alt = _(
            "Since the first batch, min-max has grown {records} times. Of the limits after the last batch, min-max "
            "has {minmax:.0f} %, percentile {percentile:.0f} %, MSE {mse:.0f} %."
        ).format(records=records, **share)
        return image

    return draw


def limits_of(batches: Sequence[Tensor], bits: int = 4, momentum: float = 0.1) -> dict[str, np.ndarray]:
    """The limit that each of four observers has chosen after each batch: by name, float64 (batches,)."""
    limits = {name: limits_after_each(batches, name, bits) for name in ("minmax", "percentile", "mse")}
    average = moving_average(np.array([float(batch.max()) for batch in batches]), momentum)
    return {"minmax": limits.pop("minmax"), "moving_average": average, **limits}


def limits_after_each(batches: Sequence[Tensor], name: str, bits: int) -> np.ndarray:
    """The upper end of the range that the observer of that name has chosen after each batch."""
    observer = observers.build(QuantSpec(bits, observer=name))
    found = []
    for batch in batches:
        observer(batch)
        found.append(float(observer.range()[1]))
    return np.array(found)


def moving_average(values: np.ndarray, momentum: float) -> np.ndarray:
    """The average after each value, the newest weighing ``momentum``; it starts at the first value."""
    averages = [values[0]]
    for value in values[1:]:
        averages.append(averages[-1] + momentum * (value - averages[-1]))
    return np.array(averages)


def shares_of_range(largest: Tensor, drawings: int = 10) -> np.ndarray:
    """How many percent of the range of all images the first 1, 2, 3, ... show: (drawings, images, layers).

    ``largest`` is each image's largest value in each layer, (images, layers). Every drawing puts the images into another
    order.
    """
    values = largest.detach().float()
    orders = [torch.randperm(len(values), generator=torch.Generator().manual_seed(seed)) for seed in range(drawings)]
    seen = [values[order].cummax(0).values for order in orders]
    return np.stack([(100 * each / each[-1]).numpy() for each in seen])


@rc_context(STYLE)
def calibration_size(largest: Tensor, drawings: int = 10) -> Callable[[int, int], Figure]:
    """How much of the whole range some images show; a function from their number and which drawing of them.

    ``largest``: each image's largest value in each layer, shape (images, layers), all above 0. Every one of
    the ``drawings`` puts the images into another order and takes the first ones.
    """
    count, layers = largest.shape
    shares = shares_of_range(largest, drawings)
    mean, number = shares.mean(2), np.arange(1, count + 1)
    image = Figure((9, 3.4))
    left, right = image.subplots(1, 2, sharey=True)
    left.set(xlabel=_("layer"), xlim=(0, layers + 1), xticks=range(1, layers + 1, 1 + layers // 10), ylim=(0, 108))
    left.set_ylabel(_("% of the range of all {count:,}").format(count=count))
    right.set(xlabel=_("calibration images"), xscale="log", xlim=(0.9, count * 1.1))
    right.set_xticks([4**power for power in range(6) if 4**power <= count])
    right.set_xticks([], minor=True)
    right.xaxis.set_major_formatter("{x:.0f}")
    right.plot(number, mean.T, color=CLIPPED, linewidth=0.5)
    right.text(0.97, 0.06, _("mean of the layers, ten drawings"), color=CLIPPED, ha="right", transform=right.transAxes)
    left.axhline(100, color=FLOAT, linestyle="--")
    right.axhline(100, color=FLOAT, linestyle="--")
    image.takes_guess(right, "y")
    (points,) = left.plot([], [], "o", color=QUANTIZED)
    (curve,) = right.plot([], [], color=QUANTIZED)
    (now,) = right.plot([], [], "o", color=QUANTIZED, markersize=10)
    image.moves(points, curve, now)

    def draw(images: int, drawing: int) -> Figure:
        share, line = shares[drawing - 1, images - 1], mean[drawing - 1, :images]
        points.set_data(np.arange(1, layers + 1), share)
        curve.set_data(number[:images], line)
        now.set_data([images], line[-1:])
        words = {"images": images, "count": count, "mean": line[-1], "least": share.min(), "layer": share.argmin() + 1}
        image.finding = _(
            "{images} of {count:,} images: {mean:.0f} % of the range on average, {least:.0f} % in layer {layer}"
        ).format(**words)
        image.alt = _(
            "How much of the whole range can be seen with so many images, in each of {layers} layers. Over the ten "
            "drawings the mean goes from {low:.0f} to {high:.0f} %."
        ).format(layers=layers, low=mean[:, images - 1].min(), high=mean[:, images - 1].max())
        return image

    return draw
