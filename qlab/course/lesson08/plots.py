"""Lesson 8: what post-training quantization loses, what training brings back, and which network to take.

Networks are compared on the same images; every loss is drawn with two standard errors of the paired difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.text import Text
from torch import Tensor

from qlab.analysis import paired
from qlab.course.figure import CLIPPED, FLOAT, PAPER, QUANTIZED, STYLE, Figure
from qlab.course.language import _, signed

WORST, BEST = (
    -6.0,
    2.5,
)  # points against float between which a difference is drawn; what lies beyond is marked at the edge


class Candidate(NamedTuple):
    """A quantized network: its bits ("w4a4"), the bytes of its weights, the points that it loses, was it trained?

    ``error`` is the standard error of the loss.
    """

    bits: str
    size_bytes: float
    loss: float
    trained: bool
    error: float = 0.0

    @property
    def name(self) -> str:
        """What it is called in a figure."""
        return f"{self.bits.upper()} {_('by QAT') if self.trained else _('by PTQ')}"

    def at_most(self, sure: bool = False) -> float:
        """The points that it loses as measured; ``sure`` adds two standard errors."""
        return self.loss + 2 * self.error * sure


class _Points:
    """The marks of one method in one plot, each with a bar of two standard errors; what lies beyond is told at the edge."""

    def __init__(self, ax: Axes, places: Sequence[float], marker: str, inside: str, line: str = "none") -> None:
        self.ax, self.places = ax, np.array(places, float)
        (self.marks,) = ax.plot(
            [], [], marker, linestyle=line, color=QUANTIZED, mfc=inside, markersize=8, zorder=3, clip_on=False
        )
        (self.beyond,) = ax.plot([], [], linestyle="none", color=CLIPPED, markersize=9, clip_on=False)
        self.bars = ax.vlines([], [], [], color=QUANTIZED, linewidth=1.5)
        self.told: list[Text] = [ax.text(place, 0, "", color=CLIPPED, size=9, ha="center") for place in places]

    @property
    def artists(self) -> tuple:
        """What moves."""
        return (self.marks, self.beyond, self.bars, *self.told)

    def show(self, values: Sequence[float], errors: Sequence[float], form: Callable[[float], str] = signed) -> None:
        """The first values, as many as are given, at their places."""
        values, errors = np.array(values, float), np.array(errors, float)
        low, high = sorted(self.ax.get_ylim())
        places, inside = self.places[: len(values)], (low <= values) & (values <= high)
        self.marks.set_data(places[inside], values[inside])
        ends = np.clip([values - 2 * errors, values + 2 * errors], low, high).T[inside]
        self.bars.set_segments([[(x, one), (x, other)] for x, (one, other) in zip(places[inside], ends)])
        outside = places[~inside]
        edge, up = (high, True) if (values > high).any() else (low, False)
        upside = self.ax.yaxis_inverted()
        self.beyond.set_marker("^" if up != upside else "v")
        self.beyond.set_data(outside, np.full(len(outside), edge))
        inwards = (low - high) * (0.05 if up else -0.05)
        for number, text in enumerate(self.told):
            there = number < len(values) and not inside[number]
            text.set_text(form(values[number]) if there else "")
            text.set(y=edge + inwards, va="top" if up != upside else "bottom")


@rc_context(STYLE)
def ptq_and_qat(
    ptq: Mapping[int, Tensor], qat: Mapping[int, Tensor], float_hits: Tensor
) -> Callable[[int, int], Figure]:
    """Accuracy against bits, and the difference to float on the same images; a function from bits and images.

    Each network is given as its hits, bool (N,): which images it gets right. ``ptq[bits]`` is there for all bits on the axis,
    ``qat[bits]`` for some. The curves end at the bits asked for, and count the first images.
    """
    widths = sorted(ptq, reverse=True)
    image = Figure((9.6, 3.9))
    left, right = image.subplots(1, 2, width_ratios=(2, 3))
    for ax in (left, right):
        ax.set(xlim=(widths[0] + 0.5, widths[-1] - 0.5), xticks=widths, xlabel=_("bits of weights and activations"))
    left.set(ylim=(0, 104), ylabel=_("right answers in %"))
    right.set(ylim=(WORST, BEST), ylabel=_("points against float"))
    right.axhline(0, color=FLOAT, linestyle="--")
    right.text(widths[-1] - 0.45, 0.15, _("float"), color=FLOAT, ha="right")
    (level,) = left.plot([widths[0] + 0.5, widths[-1] - 0.5], [0, 0], color=FLOAT, linestyle="--")
    methods = {}
    for name, hits, marker, inside, shift in ((_("QAT"), qat, "s", QUANTIZED, 0.1), (_("PTQ"), ptq, "o", PAPER, -0.1)):
        there = [width for width in widths if width in hits]
        line = "-" if hits is qat else ":"
        plots = (_Points(left, there, marker, inside, line), _Points(right, [w - shift for w in there], marker, inside))
        methods[name] = (hits, there, plots)
        image.moves(*plots[0].artists, *plots[1].artists)
        plots[0].marks.set_label(name)
    left.legend(loc="lower left")
    image.moves(level)
    image.takes_guess(right, "x")

    def draw(bits: int, images: int) -> Figure:
        base = float_hits[:images]
        level.set_ydata([_percent(base)] * 2)
        said, words = [], []
        for name, (hits, there, (accuracy, difference)) in methods.items():
            shown = [width for width in there if width >= bits]
            found = [paired(base, hits[width][:images]) for width in shown]
            shares = [_percent(hits[width][:images]) for width in shown]
            accuracy.show(shares, [(share * (100 - share) / images) ** 0.5 for share in shares], "{:.0f}".format)
            difference.show([one.difference for one in found], [one.error for one in found])
            if bits in shown:
                what = _("{name} {difference} ± {error:.1f}")
                one = found[-1]
                said.append(what.format(name=name, difference=signed(one.difference), error=one.error))
                words.append(_("{name} {now:.1f} %").format(name=name, now=shares[-1]))
        what = _("{bits} bits, {images:,} images: {said} points against float")
        image.finding = what.format(bits=bits, images=images, said=", ".join(reversed(said)))
        what = _(
            "Right answers with {bits} bits: {words}; the float network {float:.1f} %. Behind ± one standard error; bars are two: on the "
            "left of an accuracy, on the right of the difference on the same images."
        )
        image.alt = what.format(bits=bits, words=", ".join(words), float=_percent(base))
        return image

    return draw


@rc_context(STYLE)
def choice(candidates: Sequence[Candidate]) -> Callable[[float, bool, bool], Figure]:
    """Size against loss, and the smallest network that is good enough; a function from the points that may be lost, from
    whether there is data and time to train, and from whether to be sure: then the whole bar has to be good enough.
    """
    image = Figure((9.6, 4.0))
    ax = image.subplots()
    sizes = {candidate.bits: candidate.size_bytes / 1024 for candidate in candidates}
    ax.set(xlim=(0.6 * min(sizes.values()), 1.05 * max(sizes.values())), xlabel=_("network, and its weights in KiB"))
    ax.set_xticks(list(sizes.values()), [f"{bits.upper()}\n{size:.0f}" for bits, size in sizes.items()])
    ax.set(ylabel=_("points lost"), ylim=(-BEST, -WORST))
    ax.axhline(0, color=FLOAT, linestyle="--")
    ax.text(0.61 * min(sizes.values()), 0.15, _("float"), color=FLOAT)
    allowed = ax.axhspan(-BEST, 0, color=FLOAT, alpha=0.12)
    for trained, name, marker, inside in ((True, _("QAT"), "s", QUANTIZED), (False, _("PTQ"), "o", PAPER)):
        some = sorted((c for c in candidates if c.trained is trained), key=lambda candidate: -candidate.size_bytes)
        points = _Points(ax, [_place(candidate) for candidate in some], marker, inside)
        points.show([c.loss for c in some], [c.error for c in some], "{:.0f}".format)
        points.marks.set_label(name)
    ax.legend(loc="upper right")
    (chosen,) = ax.plot([], [], "o", color=QUANTIZED, markersize=20, fillstyle="none", markeredgewidth=2.5)
    image.moves(allowed, chosen)

    def draw(tolerance: float, can_train: bool, sure: bool) -> Figure:
        allowed.set_bounds(0, -BEST, 1, tolerance + BEST)
        best = smallest([c for c in candidates if can_train or not c.trained], tolerance, sure)
        how = _("with training") if can_train else _("without training")
        words = {"tolerance": tolerance, "how": how + (_(", for sure") if sure else "")}
        if best is None:
            chosen.set_data([], [])
            image.finding = _("{tolerance:.2f} points may be lost, {how}: nothing here is good enough").format(**words)
            image.alt = _("No network lies in the shaded area.")
            return image
        words |= {"name": best.name, "size": best.size_bytes / 1024, "loss": best.loss, "error": best.error}
        chosen.set_data([_place(best)], [best.loss])
        image.finding = _("{tolerance:.2f} points may be lost, {how}: take {name}").format(**words)
        image.alt = _(
            "In the shaded area lie the networks that lose at most {tolerance:.2f} points; bars are two standard errors, "
            "losses beyond the axis stand at its edge. The ring marks the smallest that is good enough: {name}, "
            "{size:.0f} KiB, {loss:.2f} ± {error:.2f} points lost."
        ).format(**words)
        return image

    return draw


def smallest(candidates: Sequence[Candidate], tolerance: float, sure: bool = False) -> Candidate | None:
    """The smallest candidate that loses at most ``tolerance`` points (of equal ones the better); None without one.

    ``sure``: its loss and two standard errors have to be below it.

    >>> some = [Candidate("w8a8", 800, 0.1, False, error=0.1), Candidate("w6a6", 600, 0.8, False, error=0.3)]
    >>> smallest(some, tolerance=1.0).bits, smallest(some, tolerance=1.0, sure=True).bits
    ('w6a6', 'w8a8')
    """
    good = [candidate for candidate in candidates if candidate.at_most(sure) <= tolerance]
    return min(good, key=lambda candidate: (candidate.size_bytes, candidate.loss), default=None)


def _place(candidate: Candidate) -> float:
    """On the axis of sizes, in KiB: PTQ and QAT of one size stand side by side."""
    return candidate.size_bytes / 1024 + (1.5 if candidate.trained else -1.5)


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())
