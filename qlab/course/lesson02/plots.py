"""Lesson 2: range against resolution."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.patches import Rectangle
from torch import Tensor

from qlab import observers
from qlab.affine import choose_qparams, fake_quantize
from qlab.course.figure import CLIPPED, ERROR, FLOAT, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.qconfig import QuantSpec


def clipping_texts() -> dict[str, str]:
    """What is said of rounding against clipping, here and in js/clipping.js."""
    return {
        "activation": _("activation"), "count": _("how many"), "limit": _("limit of the grid"),
        "squared": _("mean squared error"), "rounding": _("rounding"), "clipped": _("clipping"), "total": _("both"),
        "finding": _("{bits} bits, limit {at:.2f}: mean squared error {total:.2g}, {times:.1f} times the least"),
        "alt": _("Of the error, {rounding:.2g} comes from rounding and {clipped:.2g} from clipping the {share:.2g} % "
                 "of the values that lie above the limit."),
    }  # fmt: skip


ENOUGH = 50_000  # values for a figure
LEAST = 1e-12  # what is smaller is drawn and said as if it were this


def enough_of(values: Tensor) -> np.ndarray:
    """At most 50,000 of the values, the largest first. Where there are more, one stands for those after it."""
    x = np.sort(values.detach().float().flatten().double().numpy())
    return x[:: -max(1, math.ceil(len(x) / ENOUGH))]


def clipping_errors(x: np.ndarray, bits: int, limit: float) -> tuple[float, float, float]:
    """The mean squared errors of x, none below 0, on the grid from 0 to ``limit``: (of rounding, of clipping, both)."""
    step = limit / (2**bits - 1)
    squared = np.square(np.minimum(np.round(x / step), 2**bits - 1) * step - x)
    return squared[x <= limit].sum() / len(x), squared[x > limit].sum() / len(x), squared.mean()


def limits_to_try(x: np.ndarray) -> np.ndarray:
    """The limits at 2 %, 3 %, ... 100 % of the largest value."""
    return x.max() * np.linspace(0.02, 1, 99)


def limit_of_least_error(values: Tensor, bits: int) -> float:
    """The limit with the smallest mean squared error, of those at 2 %, 3 %, ... 100 % of the largest value.

    ``values`` are as for :func:`clipping`, whose figure has its minimum there.
    """
    x = enough_of(values)
    return float(min(limits_to_try(x), key=lambda limit: clipping_errors(x, bits, limit)[2]))


@rc_context(STYLE)
def clipping(values: Tensor) -> Callable[[int, float], Figure]:
    """Rounding against clipping; a function from bits and the limit, in percent of the largest value.

    ``values`` are activations behind a relu: any shape, none below 0.
    """
    texts = clipping_texts()
    x = enough_of(values)
    limits = limits_to_try(x)
    image = Figure((9, 3.4))
    left, right = image.subplots(1, 2)
    left.hist(x, 60, color=FLOAT)
    left.set(yscale="log", xlim=(0, x.max()), xlabel=texts["activation"], ylabel=texts["count"])
    cut = left.add_patch(Rectangle((0, 0), 0, 1, transform=left.get_xaxis_transform(), color=CLIPPED, alpha=0.4))
    right.set(yscale="log", xlim=(0, x.max()), xlabel=texts["limit"], ylabel=texts["squared"])
    right.set_ylim(1e-6 * np.square(x).mean(), 2 * np.square(x).mean())
    kinds = {"rounding": ERROR, "clipped": CLIPPED, "total": QUANTIZED}
    for place, (name, colour) in enumerate(kinds.items()):
        right.text(
            0.97, 0.95 - 0.09 * place, texts[name], color=colour, ha="right", va="top", transform=right.transAxes
        )
    curves = [right.plot([], [], color=colour)[0] for colour in kinds.values()]
    (now,) = right.plot([], [], "o", color=QUANTIZED, markersize=10, clip_on=False)
    image.moves(cut, *curves, now)

    @cache
    def whole(bits: int) -> np.ndarray:
        return np.array([clipping_errors(x, bits, limit) for limit in limits]).T

    def draw(bits: int, limit: float) -> Figure:
        at = x.max() * limit / 100
        rounding, clipped, total = clipping_errors(x, bits, at)
        for curve, line in zip(curves, whole(bits)):
            curve.set_data(limits, np.maximum(line, LEAST))
        now.set_data([at], [total])
        cut.set_bounds(at, 0, x.max() - at, 1)
        times = total / max(whole(bits)[2].min(), LEAST)
        image.finding = texts["finding"].format(bits=bits, at=at, total=total, times=times)
        image.alt = texts["alt"].format(rounding=rounding, clipped=clipped, share=100 * (x > at).mean())
        return image

    return draw


def observer_names() -> dict[str, str]:
    """The four observers of this lesson, and how they are called in figures."""
    return {
        "minmax": _("min-max"), "percentile": _("percentile 99.99"), "entropy": _("entropy (KL)"), "mse": _("MSE"),
    }  # fmt: skip


def limit_of(name: str, values: Tensor, bits: int) -> float:
    """The upper end of the grid that the observer of that name chooses for these values.

    >>> import torch
    >>> limit_of("minmax", torch.tensor([0.0, 1.0, 4.0]), bits=8)
    4.0
    """
    observer = observers.build(QuantSpec(bits, observer=name))
    observer(values)
    grid = observer.qparams()
    return float(grid.scale * (grid.qmax - grid.zero_point))


@rc_context(STYLE)
def chosen_limits(values: Tensor) -> Callable[[int], Figure]:
    """Where each observer puts the limit for these values (any shape, none below 0); a function from bits."""
    names = observer_names()
    image = Figure((9, 3.4))
    above, below = image.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    largest = float(values.max())
    above.hist(values.detach().float().flatten().numpy(), 80, color=FLOAT)
    above.set(yscale="log", xlim=(0, largest * 1.02), ylabel=_("how many"))
    below.set(ylim=(3.6, -0.6), xlabel=_("activation"), yticks=range(4), yticklabels=names.values())
    (points,) = below.plot([], [], "o", color=QUANTIZED, markersize=10)
    image.moves(points)

    @cache
    def found_with(bits: int) -> list[float]:
        return [limit_of(name, values, bits) for name in names]

    def draw(bits: int) -> Figure:
        found = found_with(bits)
        points.set_data(found, range(4))
        finding = _("{bits} bits: MSE clips at {mse:.2f}, entropy at {entropy:.2f}, min-max at {minmax:.2f}")
        image.finding = finding.format(bits=bits, **dict(zip(names, found)))
        words = ", ".join(_("{name} at {value:.2f}").format(name=n, value=v) for n, v in zip(names.values(), found))
        image.alt = _("The limits on the axis of the activations: {words}.").format(words=words)
        return image

    return draw


@rc_context(STYLE)
def outlier(values: Tensor, bits: int = 8) -> Callable[[int], Figure]:
    """One value among ``values`` (any shape, none below 0) grows; a function from how often it was doubled.

    It starts as the largest value. Left the limit of each observer, right the mean squared error of all other values.
    """
    names = observer_names()
    x = values.detach().float().flatten().clone()
    place, largest = int(x.argmax()), float(x.max())
    others = x[torch.arange(len(x)) != place]
    image = Figure((9, 3.2))
    left, right = image.subplots(1, 2, sharey=True)
    power = float(others.square().mean())
    for ax, label, ends in (
        (left, _("limit"), (0.3 * largest, largest * 2**15)),
        (right, _("mean squared error of all other values"), (1e-6 * power, 3 * power)),
    ):
        ax.set(xscale="log", xlim=ends, xlabel=label, ylim=(3.6, -0.6), yticks=range(4), yticklabels=names.values())
    (limits,) = left.plot([], [], "o", color=QUANTIZED, markersize=10)
    there = left.axvline(largest, color=CLIPPED, linestyle="--")
    (errors,) = right.plot([], [], "o", color=ERROR, markersize=10)
    image.moves(limits, there, errors)

    @cache
    def seen(doublings: int) -> tuple[list[float], list[float]]:
        x[place] = largest * 2**doublings
        chosen = [limit_of(name, x, bits) for name in names]
        return chosen, [squared_error(others, limit, bits) for limit in chosen]

    def draw(doublings: int) -> Figure:
        chosen, wrong = seen(doublings)
        limits.set_data(chosen, range(4))
        there.set_xdata([largest * 2**doublings] * 2)
        errors.set_data(wrong, range(4))
        times = dict(zip(names, (error / max(min(wrong), LEAST) for error in wrong)))
        best = names[min(times, key=times.get)]
        image.finding = _("One value of {size}: min-max has {times} times the error of the best, {best}").format(
            size=short(largest * 2**doublings), times=short(times["minmax"]), best=best
        )
        words = ", ".join(_("{name} at {value:.2f}").format(name=n, value=v) for n, v in zip(names.values(), chosen))
        image.alt = _("The limits, with {bits} bits: {words}. The dashed line is the one value.").format(
            bits=bits, words=words
        )
        return image

    return draw


def short(number: float) -> str:
    """A number with no more digits than a title needs.

    >>> short(4.6178), short(29883.46)
    ('4.62', '29,883')
    """
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def squared_error(values: Tensor, limit: float, bits: int) -> float:
    """The mean squared error of ``values``, none below 0, on the grid from 0 to ``limit``."""
    return float((fake_quantize(values, choose_qparams(0.0, limit, bits)) - values).square().mean())
