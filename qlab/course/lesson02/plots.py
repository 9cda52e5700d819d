"""Lesson 2: range against resolution."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from matplotlib import rc_context
from matplotlib.patches import Rectangle
from torch import Tensor

from qlab import observers
from qlab.course.figure import CLIPPED, ERROR, FLOAT, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.qconfig import QuantSpec


def clipping_texts() -> dict[str, str]:
    """What is said of rounding against clipping, here and in js/clipping.js."""
    return {
        "activation": _("activation"), "count": _("how many"), "limit": _("limit of the grid"),
        "squared": _("mean squared error"), "rounding": _("rounding"), "clipped": _("clipping"), "total": _("both"),
        "finding": _("{bits} bits, limit {at:.2f}: mean squared error {total:.2g}; least at {best:.2f}"),
        "alt": _("Of the error, {rounding:.2g} comes from rounding and {clipped:.2g} from clipping the {share:.2g} % "
                 "of the values that lie above the limit."),
    }  # fmt: skip


def enough_of(values: Tensor) -> np.ndarray:
    """At most 50,000 of the values, the largest first: enough for a figure."""
    x = np.sort(values.detach().float().flatten().double().numpy())
    return x[:: -max(1, math.ceil(len(x) / 50_000))]


def clipping_errors(x: np.ndarray, bits: int, limit: float) -> tuple[float, float, float]:
    """The mean squared errors of x, none below 0, on the grid from 0 to ``limit``: (of rounding, of clipping, both)."""
    step = limit / (2**bits - 1)
    squared = np.square(np.minimum(np.round(x / step), 2**bits - 1) * step - x)
    return squared[x <= limit].sum() / len(x), squared[x > limit].sum() / len(x), squared.mean()


@rc_context(STYLE)
def clipping(values: Tensor) -> Callable[[int, float], Figure]:
    """Rounding against clipping; a function from bits and the limit, in percent of the largest value.

    ``values`` are activations behind a relu: any shape, none below 0.
    """
    texts = clipping_texts()
    x = enough_of(values)
    limits = x.max() * np.linspace(0.02, 1, 50)
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
    (now,) = right.plot([], [], "o", color=QUANTIZED, markersize=10)
    image.moves(cut, *curves, now)

    @cache
    def whole(bits: int) -> np.ndarray:
        return np.array([clipping_errors(x, bits, limit) for limit in limits]).T

    def draw(bits: int, limit: float) -> Figure:
        at = x.max() * limit / 100
        rounding, clipped, total = clipping_errors(x, bits, at)
        for curve, line in zip(curves, whole(bits)):
            curve.set_data(limits, np.maximum(line, 1e-12))
        now.set_data([at], [total])
        cut.set_bounds(at, 0, x.max() - at, 1)
        best = limits[whole(bits)[2].argmin()]
        image.finding = texts["finding"].format(bits=bits, at=at, total=total, best=best)
        image.alt = texts["alt"].format(rounding=rounding, clipped=clipped, share=100 * (x > at).mean())
        return image

    return draw


@rc_context(STYLE)
def chosen_limits(values: Tensor) -> Callable[[int], Figure]:
    """Where each observer puts the limit for these values (any shape, none below 0); a function from bits."""
    names = {"minmax": _("min-max"), "percentile": _("percentile 99.99"), "entropy": _("entropy (KL)"), "mse": _("MSE")}
    image = Figure((9, 3.4))
    above, below = image.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    largest = float(values.max())
    above.hist(values.detach().float().flatten().numpy(), 80, color=FLOAT)
    above.set(yscale="log", xlim=(0, largest * 1.02), ylabel=_("how many"))
    below.set(ylim=(3.6, -0.6), xlabel=_("activation"), yticks=range(4), yticklabels=names.values())
    (points,) = below.plot([], [], "o", color=QUANTIZED, markersize=10)
    image.moves(points)

    @cache
    def limit(name: str, bits: int) -> float:
        observer = observers.build(QuantSpec(bits, observer=name))
        observer(values)
        qparams = observer.qparams()
        return float(qparams.scale) * (qparams.qmax - int(qparams.zero_point))

    def draw(bits: int) -> Figure:
        found = [limit(name, bits) for name in names]
        points.set_data(found, range(4))
        finding = _("{bits} bits: MSE clips at {mse:.2f}, entropy at {entropy:.2f}, min-max at {minmax:.2f}")
        image.finding = finding.format(bits=bits, **dict(zip(names, found)))
        words = ", ".join(_("{name} at {value:.2f}").format(name=n, value=v) for n, v in zip(names.values(), found))
        image.alt = _("The limits on the axis of the activations: {words}.").format(words=words)
        return image

    return draw
