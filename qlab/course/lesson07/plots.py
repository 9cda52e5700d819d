"""Lesson 7: training through the rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from torch import Tensor

from qlab.course.figure import CLIPPED, ERROR, FLOAT, QUANTIZED, STYLE, Figure
from qlab.course.language import _

STEPS = 60  # of the one weight's training
NEAR = 0.1  # steps of the grid: so near to a rung a weight counts as being on it


@rc_context(STYLE)
def one_weight(target: float = 1.3, lr: float = 0.1) -> Callable[[float, int], Figure]:
    """One weight learns to be ``target`` although it is rounded; a function from its start and the steps done.

    The loss is (round(weight) - target)²; a step subtracts ``lr`` times its straight-through gradient.
    """
    image = Figure((9, 3.6))
    left, right = image.subplots(1, 2)
    axis = np.linspace(-1.4, 3.4, 1200)
    left.plot(axis, (axis - target) ** 2, color=FLOAT, linewidth=1)
    left.plot(axis, (np.rint(axis) - target) ** 2, color=QUANTIZED)
    left.set(xlabel=_("weight"), ylabel=_("loss"), xlim=(-1.4, 3.4), ylim=(-0.4, 6))
    left.text(0.97, 0.93, _("without rounding"), color=FLOAT, ha="right", transform=left.transAxes)
    left.text(0.97, 0.85, _("rounded"), color=QUANTIZED, ha="right", transform=left.transAxes)
    right.set(xlabel=_("steps of training"), ylabel=_("weight"), xlim=(0, STEPS), ylim=(-1.4, 3.4))
    right.axhline(target, color=CLIPPED, linestyle="--", linewidth=1)
    right.text(STEPS, target - 0.08, _("target"), color=CLIPPED, ha="right", va="top")
    right.text(0.97, 0.93, _("the float weight"), color=FLOAT, ha="right", transform=right.transAxes)
    right.text(0.97, 0.85, _("what the network uses"), color=QUANTIZED, ha="right", transform=right.transAxes)
    (push,) = left.plot([], [], color=CLIPPED, linewidth=3)
    (head,) = left.plot([], [], color=CLIPPED, linestyle="", markersize=9)
    (now,) = left.plot([], [], "o", color=QUANTIZED, markersize=10)
    (used,) = right.plot([], [], color=QUANTIZED, drawstyle="steps-post")
    (kept,) = right.plot([], [], color=FLOAT)
    image.moves(push, head, now, used, kept)

    def draw(start: float, steps: int) -> Figure:
        path = [start]
        for _step in range(steps):
            path.append(path[-1] - lr * 2 * (np.rint(path[-1]) - target))
        weight, rounded = path[-1], np.rint(path) + 0.0  # -0 is 0
        slope = 2 * (rounded[-1] - target)
        loss = (rounded[-1] - target) ** 2
        now.set_data([weight], [loss])
        push.set_data([weight, weight - 0.3 * slope], [loss, loss])
        head.set_data([weight - 0.3 * slope], [loss])
        head.set_marker("<" if slope > 0 else ">")
        used.set_data(range(steps + 1), rounded)
        kept.set_data(range(steps + 1), path)
        words = {"steps": steps, "weight": weight, "rounded": rounded[-1], "slope": slope}
        image.finding = _(
            "after {steps} steps: weight {weight:.2f}, used as {rounded:.0f}; slope of the stairs 0, straight through "
            "{slope:.1f}"
        ).format(**words)
        image.alt = _(
            "The arrow shows the next step: the weight moves by {move:.2f}. So far, or over the last 40 steps, the rounded "
            "weight was {mean:.2f} on average; the target is {target:g}."
        ).format(move=-lr * slope, mean=rounded[-41:].mean(), target=target)
        return image

    return draw


@rc_context(STYLE)
def learned_scale(weights: Tensor) -> Callable[[int, float], Figure]:
    """The error of ``weights`` (any shape) on a symmetric grid, and where LSQ's gradient drives its scale.

    A function from bits (>= 2) and the scale, in percent of the one that clips nothing.
    """
    w = weights.detach().double().flatten().numpy()
    largest = np.abs(w).max()
    shares = np.linspace(0.03, 1, 98)
    image = Figure((9, 3.6))
    left, right = image.subplots(1, 2)
    left.hist(w, 61, color=FLOAT)
    left.set(xlabel=_("weight"), ylabel=_("how many"), xlim=(-largest, largest))
    rungs = left.vlines([], 0, 1, color=QUANTIZED, linewidth=1.2, transform=left.get_xaxis_transform())
    left.text(0.02, 0.93, _("weights"), color=FLOAT, transform=left.transAxes)
    left.text(0.02, 0.85, _("the grid"), color=QUANTIZED, transform=left.transAxes)
    power = np.square(w).mean()
    right.set(xlabel=_("scale, in % of the one that clips nothing"), ylabel=_("squared error, in % of the weights'"))
    right.set(xlim=(0, 101), yscale="log", ylim=(3e-3, 200))
    curves = _three_errors(right)
    (push,) = right.plot([], [], linestyle="", color=QUANTIZED, markersize=13)
    image.moves(rungs, *curves, push)

    @cache
    def whole(bits: int) -> np.ndarray:
        top = 2 ** (bits - 1) - 1
        return 100 / power * np.array([scale_errors(w, share * largest / top, top) for share in shares]).T

    def draw(bits: int, percent: float) -> Figure:
        top = 2 ** (bits - 1) - 1
        scale = percent / 100 * largest / top
        rounding, clipped, both, gradient = 100 / power * np.array(scale_errors(w, scale, top))
        for curve, line in zip(curves, whole(bits)):
            curve.set_data(100 * shares, np.maximum(line, 1e-9))
        push.set_data([percent], [both])
        push.set_marker("<" if gradient > 0 else ">")
        rungs.set_segments([[(code * scale, 0), (code * scale, 1)] for code in range(-top, top + 1)])
        way = _("shrinks") if gradient > 0 else _("grows")
        words = {"bits": bits, "scale": scale, "both": both, "way": way, "best": 100 * shares[whole(bits)[2].argmin()]}
        image.finding = _(
            "{bits} bits, scale {scale:.3g}: error {both:.2g} %; LSQ's scale {way} (least error at {best:.0f} %)"
        ).format(**words)
        image.alt = _(
            "Rounding makes an error of {rounding:.2g} %, clipping {clipped:.2g} %. The triangle points where LSQ's "
            "gradient drives the scale: it {way}."
        ).format(rounding=rounding, clipped=clipped, way=way)
        return image

    return draw


def scale_errors(w: np.ndarray, scale: float, top: int) -> tuple[float, float, float, float]:
    """Mean squared error of ``w`` on the grid from -top to top times ``scale``: (rounding, clipping, both, gradient).

    The gradient is LSQ's, that of both with respect to the scale (Esser et al. 2020, equation 3).
    """
    position = w / scale
    codes = np.clip(np.rint(position), -top, top)
    clipped, error = np.abs(position) > top, codes * scale - w
    gradient = 2 * (error * np.where(clipped, codes, codes - position)).mean()
    both, beyond = np.square(error).mean(), np.square(error * clipped).mean()
    return both - beyond, beyond, both, gradient


def _three_errors(ax: Axes) -> list:
    """Empty curves for rounding, clipping and both, with their names in a corner."""
    kinds = {_("rounding"): ERROR, _("clipping"): CLIPPED, _("both"): QUANTIZED}
    for place, (name, colour) in enumerate(kinds.items()):
        ax.text(0.3, 0.26 - 0.08 * place, name, color=colour, va="top", transform=ax.transAxes)
    return [ax.plot([], [], color=colour)[0] for colour in kinds.values()]


class Snapshot(NamedTuple):
    """One layer at one moment of its training: its weights, their scale, and the output's relative squared error."""

    weights: Tensor
    scale: float
    error: float


@rc_context(STYLE)
def gathering(training: Mapping[int, Sequence[Snapshot]], every: int) -> Callable[[int, int], Figure]:
    """Where a layer's weights lie between the rungs while it trains; a function from the pull and the step.

    ``training[pull]`` is what happened with that pull, a snapshot after ``every`` steps, the first before them all.
    """
    steps = every * (len(next(iter(training.values()))) - 1)
    edges = np.linspace(-3, 3, 121)
    image = Figure((9, 3.6))
    left, right = image.subplots(1, 2, width_ratios=(3, 2))
    bars = left.stairs(np.zeros(120), edges, fill=True, color=FLOAT)
    left.set(xlabel=_("weight, in steps of the grid"), ylabel=_("share in %"), xlim=(-3, 3), ylim=(0, 12))
    left.vlines((-1, 0, 1), 0, 1, transform=left.get_xaxis_transform(), color=QUANTIZED, linewidth=1)
    left.vlines((-0.5, 0.5), 0, 1, transform=left.get_xaxis_transform(), color=CLIPPED, linestyle="--", linewidth=1)
    left.text(0.02, 0.93, _("rungs"), color=QUANTIZED, transform=left.transAxes)
    left.text(0.02, 0.85, _("thresholds"), color=CLIPPED, transform=left.transAxes)
    right.set(xlabel=_("steps of training"), ylabel=_("in % of the start"), xlim=(0, steps), ylim=(0, 110))
    right.text(0.97, 0.93, _("output's error"), color=ERROR, ha="right", transform=right.transAxes)
    right.text(0.97, 0.85, _("scale"), color=QUANTIZED, ha="right", transform=right.transAxes)
    (error,) = right.plot([], [], color=ERROR)
    (scale,) = right.plot([], [], color=QUANTIZED)
    image.moves(bars, error, scale)

    def draw(pull: int, step: int) -> Figure:
        done = training[pull][: step // every + 1]
        first, last = done[0], done[-1]
        position = (last.weights / last.scale).flatten().double().numpy()
        counts = np.histogram(position, edges)[0]
        bars.set_data(np.minimum(12, 100 * counts / len(position)))
        times = every * np.arange(len(done))
        error.set_data(times, [100 * one.error / first.error for one in done])
        scale.set_data(times, [100 * one.scale / first.scale for one in done])
        away = np.abs(position - np.clip(np.rint(position), -1, 1))
        words = {"step": step, "on": 100 * (away < NEAR).mean(), "error": 100 * last.error, "scale": last.scale}
        image.finding = _(
            "step {step}: {on:.0f} % of the weights on a rung; error of the output {error:.1f} %; scale {scale:.3f}"
        ).format(**words)
        image.alt = _(
            "{on:.0f} % of the weights are at most a tenth of a step from a rung, {at:.0f} % as near to a threshold "
            "between two of them."
        ).format(on=words["on"], at=100 * (np.abs(np.abs(position) - 0.5) < NEAR).mean())
        return image

    return draw
