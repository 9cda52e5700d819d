"""Lesson 7: training through the rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from torch import Tensor

from qlab.course.figure import CLIPPED, ERROR, FLOAT, PAPER, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.course.lesson07.layer import Snapshot, share

STEPS = 60  # of the one weight's training


def path(start: float, target: float, lr: float, steps: int, falling: bool = False) -> list[float]:
    """One weight before and after each step of its training: exercise 7.2, with a learning rate that may fall to 0.

    >>> path(0.2, 1.0, lr=0.25, steps=1)
    [0.2, 0.7]
    """
    weights = [start]
    for step in range(steps):
        rate = lr * (1 - step / steps) if falling else lr
        weights.append(weights[-1] - rate * 2 * (float(np.rint(weights[-1])) - target))
    return weights


@rc_context(STYLE)
def one_weight(target: float = 1.3) -> Callable[[float, int, float, bool], Figure]:
    """One weight learns to be ``target`` although it is rounded.

    A function from its start, the steps done, the learning rate, and whether that falls to 0 over all the steps. The loss
    is (round(weight) - target)²; a step subtracts the rate times its straight-through gradient.
    """
    image = Figure((10, 3.8))
    left, right = image.subplots(1, 2)
    axis = np.linspace(-1.4, 3.4, 1200)
    left.plot(axis, (axis - target) ** 2, color=FLOAT, linewidth=1)
    left.plot(axis, (np.rint(axis) - target) ** 2, color=QUANTIZED)
    left.set(xlabel=_("weight"), ylabel=_("loss"), xlim=(-1.4, 3.4), ylim=(-0.4, 6))
    left.text(0.97, 0.93, _("without rounding"), color=FLOAT, ha="right", transform=left.transAxes)
    left.text(0.97, 0.85, _("rounded"), color=QUANTIZED, ha="right", transform=left.transAxes)
    right.set(xlabel=_("steps of training"), ylabel=_("weight"), xlim=(0, STEPS), ylim=(-1.4, 3.4))
    right.axhline(target, color=CLIPPED, linestyle="--", linewidth=1)
    right.text(STEPS + 0.7, target, _("target"), color=CLIPPED, va="center")
    right.text(0.97, 0.93, _("the float weight"), color=FLOAT, ha="right", transform=right.transAxes)
    right.text(0.97, 0.85, _("what the network uses"), color=QUANTIZED, ha="right", transform=right.transAxes)
    (push,) = left.plot([], [], color=CLIPPED, linewidth=3)
    (head,) = left.plot([], [], color=CLIPPED, linestyle="", markersize=9)
    (now,) = left.plot([], [], "o", color=QUANTIZED, markersize=10)
    (used,) = right.plot([], [], color=QUANTIZED, drawstyle="steps-post")
    (kept,) = right.plot([], [], color=FLOAT)
    image.moves(push, head, now, used, kept)
    image.takes_guess(left, "x")

    def draw(start: float, steps: int, lr: float, falling: bool) -> Figure:
        whole = path(start, target, lr, STEPS, falling)
        weights = whole[: steps + 1]
        weight, rounded = weights[-1], np.rint(weights) + 0.0  # -0 is 0
        slope = 2 * (rounded[-1] - target)
        loss = (rounded[-1] - target) ** 2
        now.set_data([weight], [loss])
        push.set_data([weight, weight - 0.3 * slope], [loss, loss])
        head.set_data([weight - 0.3 * slope], [loss])
        head.set_marker("<" if slope > 0 else ">")
        used.set_data(range(steps + 1), rounded)
        kept.set_data(range(steps + 1), weights)
        words = {"steps": steps, "weight": weight, "rounded": rounded[-1], "slope": slope}
        image.finding = _(
            "after {steps} steps: weight {weight:.2f}, used as {rounded:.0f}; slope of the stairs 0, straight through "
            "{slope:.1f}"
        ).format(**words)
        step = whole[steps + 1] - weight if steps < STEPS else 0.0
        image.alt = _(
            "In the next step the weight moves by {step:.2f}. So far, or over the last 40 steps, the rounded weight was "
            "{mean:.2f} on average; the target is {target:g}."
        ).format(step=step, mean=rounded[-40:].mean(), target=target)
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
    image = Figure((10, 3.8))
    left, right = image.subplots(1, 2)
    left.hist(w, 61, color=FLOAT)
    left.set(xlabel=_("weight"), ylabel=_("how many"), xlim=(-largest, largest))
    rungs = left.vlines([], 0, 1, color=QUANTIZED, linewidth=1.2, transform=left.get_xaxis_transform())
    room = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}  # the rungs pass behind the words
    left.text(0.02, 0.93, _("weights"), color=FLOAT, transform=left.transAxes, bbox=room)
    left.text(0.02, 0.85, _("the grid"), color=QUANTIZED, transform=left.transAxes, bbox=room)
    power = np.square(w).mean()
    right.set(xlabel=_("scale, in % of the one that clips nothing"), ylabel=_("relative squared error (%)"))
    right.set(xlim=(0, 101), yscale="log", ylim=(3e-3, 200))
    curves = _three_errors(right)
    (push,) = right.plot([], [], linestyle="", color=QUANTIZED, markersize=13)
    image.moves(rungs, *curves, push)
    image.takes_guess(right, "x")

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
    clipped, error = np.abs(position) > top, np.clip(np.rint(position), -top, top) * scale - w
    both, beyond = np.square(error).mean(), np.square(error * clipped).mean()
    gradient = sum(part.sum() for part in drives(w, scale, top)) / w.size
    return both - beyond, beyond, both, gradient


def drives(w: np.ndarray, scale: float, top: int) -> tuple[np.ndarray, np.ndarray]:
    """What each value has to do with LSQ's gradient of the squared error: (those inside the grid, those clipped).

    >>> drives(np.array([0.8, 3.0]), scale=1.0, top=1)  # 2 * 0.2 * 0.2, and 2 * -2 * 1
    (array([0.08]), array([-4.]))
    """
    position = w / scale
    codes = np.clip(np.rint(position), -top, top)
    clipped, error = np.abs(position) > top, codes * scale - w
    return (2 * error * (codes - position))[~clipped], (2 * error * codes)[clipped]


def _three_errors(ax: Axes) -> list:
    """Empty curves for rounding, clipping and both, with their names in a corner."""
    kinds = {_("rounding"): ERROR, _("clipping"): CLIPPED, _("both"): QUANTIZED}
    for place, (name, colour) in enumerate(kinds.items()):
        ax.text(0.3, 0.26 - 0.08 * place, name, color=colour, va="top", transform=ax.transAxes)
    return [ax.plot([], [], color=colour)[0] for colour in kinds.values()]


@rc_context(STYLE)
def gathering(training: Mapping[str, Sequence[Snapshot]], every: int) -> Callable[[str, int], Figure]:
    """Where a layer's weights lie between the rungs while it trains; a function from the training's name and the step.

    ``training[name]`` is what happened in that training, a snapshot after ``every`` steps, the first before them all.
    """
    steps = every * (len(next(iter(training.values()))) - 1)
    edges = np.linspace(-3, 3, 121)
    image = Figure((10, 4.2))
    left, right = image.subplots(1, 2, width_ratios=(3, 2))
    bars = left.stairs(np.zeros(120), edges, fill=True, color=FLOAT)
    held = left.stairs(np.zeros(120), edges, fill=True, color=CLIPPED)
    left.set(xlabel=_("weight, in steps of the grid"), ylabel=_("share in %"), xlim=(-3, 3), ylim=(0, 12))
    left.vlines((-1, 0, 1), 0, 1, transform=left.get_xaxis_transform(), color=QUANTIZED, linewidth=1)
    left.vlines((-0.5, 0.5), 0, 1, transform=left.get_xaxis_transform(), color=CLIPPED, linestyle="--", linewidth=1)
    names = {_("they learn"): FLOAT, _("their gradient is 0"): CLIPPED, _("rungs"): QUANTIZED}
    for place, (name, colour) in enumerate(names.items()):
        left.text(0.02, 0.93 - 0.075 * place, name, color=colour, transform=left.transAxes)
    right.set(xlabel=_("steps of training"), ylabel=_("in %"), xlim=(0, steps), ylim=(0, 145), yticks=range(0, 101, 20))
    names = {_("output's error"): ERROR, _("scale, of its start"): QUANTIZED, _("gradient is 0"): CLIPPED}
    names |= {_("code has just changed"): FLOAT}
    curves = []
    for place, (name, colour) in enumerate(names.items()):
        right.text(0.97, 0.93 - 0.075 * place, name, color=colour, ha="right", transform=right.transAxes)
        curves += right.plot([], [], color=colour)
    image.moves(bars, held, *curves)

    def draw(run: str, step: int) -> Figure:
        done = training[run][: step // every + 1]
        first, last = done[0], done[-1]
        position = (last.weights / last.scale).flatten().double().numpy()
        percent = 100 / len(position)
        bars.set_data(np.minimum(12, percent * np.histogram(position, edges)[0]))
        held.set_data(np.minimum(12, percent * np.histogram(position[last.held.flatten().numpy()], edges)[0]))
        lines = (
            [100 * one.error for one in done],
            [100 * one.scale / first.scale for one in done],
            [100 * one.held.double().mean() for one in done],
            [100 * one.jumped for one in done],
        )
        for curve, line in zip(curves, lines):
            curve.set_data(every * np.arange(len(done)), line)
        words = {"step": step, "error": 100 * last.error, "jumped": 100 * last.jumped}
        words |= {"on": 100 * share(last, -1, 0, 1), "at": 100 * share(last, -0.5, 0.5)}
        image.finding = _(
            "step {step}: {on:.0f} % of the weights on a rung, {at:.0f} % at a threshold; error of the output {error:.1f} %"
        ).format(**words)
        image.alt = _(
            "{held:.0f} % of the weights have the gradient 0 and stay, {jumped:.1f} % changed their code in the last "
            "{every} steps. On a rung, or at a threshold (dashed), is what is at most a tenth of a step from it. The scale "
            "is {scale:.3f}."
        ).format(held=lines[2][-1], every=every, scale=last.scale, **words)
        return image

    return draw
