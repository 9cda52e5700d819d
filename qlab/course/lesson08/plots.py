"""Lesson 8: what post-training quantization loses, what training brings back, and which network to take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from matplotlib import rc_context

from qlab.course.figure import FLOAT, PAPER, QUANTIZED, STYLE, Figure
from qlab.course.language import _, signed


class Candidate(NamedTuple):
    """A quantized network: its bits ("w4a4"), the bytes of its weights, the points that it loses, was it trained?"""

    bits: str
    size_bytes: float
    loss: float
    trained: bool

    @property
    def name(self) -> str:
        """What it is called in a figure."""
        return f"{self.bits.upper()} {_('by QAT') if self.trained else _('by PTQ')}"


@rc_context(STYLE)
def ptq_and_qat(ptq: Mapping[int, float], qat: Mapping[int, float], float_accuracy: float) -> Callable[[int], Figure]:
    """Accuracy in percent against bits, without training and with it; a function from bits to the figure.

    ``ptq[bits]`` is there for all bits on the axis, ``qat[bits]`` for some. The curves end at the bits asked for.
    """
    widths = sorted(ptq, reverse=True)
    image = Figure((9, 3.6))
    ax = image.subplots()
    ax.set(xlim=(widths[0] + 0.4, widths[-1] - 0.4), xticks=widths, xlabel=_("bits of weights and activations"))
    ax.set(ylim=(0, 103), ylabel=_("right answers in %"))
    ax.axhline(float_accuracy, color=FLOAT, linestyle="--")
    ax.text(widths[0] + 0.35, float_accuracy - 2, _("float"), color=FLOAT, va="top")
    curves = {}
    for name, data, style, inside in ((_("QAT"), qat, "s-", QUANTIZED), (_("PTQ"), ptq, "o:", PAPER)):
        curves[name] = (data, ax.plot([], [], style, color=QUANTIZED, mfc=inside, markersize=8, label=name)[0])
    ax.legend(loc="lower left")
    image.moves(*(curve for _data, curve in curves.values()))

    def draw(bits: int) -> Figure:
        for data, curve in curves.values():
            shown = [width for width in widths if width >= bits and width in data]
            curve.set_data(shown, [data[width] for width in shown])
        what = _("{bits} bits against float: PTQ {ptq} points")
        if bits in qat:
            what = _("{bits} bits against float: PTQ {ptq} points, QAT {qat}")
        changes = {name: signed(of.get(bits, 0.0) - float_accuracy) for name, of in (("ptq", ptq), ("qat", qat))}
        image.finding = what.format(bits=bits, **changes)
        words = [_("{name} {now:.1f} %").format(name=n, now=d[bits]) for n, (d, _c) in curves.items() if bits in d]
        what = _("Right answers with {bits} bits: {words}; the float network {float:.1f} %.")
        image.alt = what.format(bits=bits, words=", ".join(words), float=float_accuracy)
        return image

    return draw


@rc_context(STYLE)
def choice(candidates: Sequence[Candidate]) -> Callable[[float, bool], Figure]:
    """Size against loss, and the smallest network that is good enough; a function from the points that may be lost,
    and from whether there is data and time to train.

    Losses above 20 points are drawn at the upper edge.
    """
    most, least = 20.0, min(0.0, *(candidate.loss for candidate in candidates)) - 1
    image = Figure((9, 3.8))
    ax = image.subplots()
    sizes = {candidate.bits: candidate.size_bytes / 1024 for candidate in candidates}
    ax.set(xlim=(0, 1.06 * max(sizes.values())), xlabel=_("network, and its weights in KiB"))
    ax.set_xticks(list(sizes.values()), [f"{bits.upper()}\n{size:.0f}" for bits, size in sizes.items()])
    ax.set(ylabel=_("points lost"), ylim=(least, most + 1.5))
    allowed = ax.axhspan(least, 0, color=FLOAT, alpha=0.12)
    for trained, name, style in ((True, _("QAT"), {"marker": "s"}), (False, _("PTQ"), {"marker": "o", "mfc": PAPER})):
        some = [candidate for candidate in candidates if candidate.trained is trained]
        x, y = [c.size_bytes / 1024 for c in some], [min(c.loss, most) for c in some]
        ax.plot(x, y, linestyle="none", color=QUANTIZED, markersize=8, label=name, **style)
    ax.legend(loc="upper right")
    (chosen,) = ax.plot([], [], "o", color=QUANTIZED, markersize=20, fillstyle="none", markeredgewidth=2.5)
    image.moves(allowed, chosen)

    def draw(tolerance: float, can_train: bool) -> Figure:
        allowed.set_bounds(0, least, 1, tolerance - least)
        best = smallest([c for c in candidates if can_train or not c.trained], tolerance)
        words = {"tolerance": tolerance, "how": _("with training") if can_train else _("without training")}
        if best is None:
            chosen.set_data([], [])
            image.finding = _("{tolerance:.1f} points may be lost, {how}: nothing here is good enough").format(**words)
            image.alt = _("No network lies in the shaded area.")
            return image
        words |= {"name": best.name, "size": best.size_bytes / 1024, "change": signed(-best.loss)}
        chosen.set_data([best.size_bytes / 1024], [min(best.loss, most)])
        image.finding = _("{tolerance:.1f} points may be lost, {how}: take {name}").format(**words)
        image.alt = _(
            "In the shaded area lie the networks that lose at most {tolerance:.1f} points. The ring marks the smallest "
            "of them: {name}, {size:.0f} KiB, {change} points against float."
        ).format(**words)
        return image

    return draw


def smallest(candidates: Sequence[Candidate], tolerance: float) -> Candidate | None:
    """The smallest candidate that loses at most ``tolerance`` points (of equal ones the better); None without one.

    >>> smallest([Candidate("w8a8", 800, 0.1, False), Candidate("w4a4", 400, 2.5, False)], tolerance=1.0).bits
    'w8a8'
    """
    good = [candidate for candidate in candidates if candidate.loss <= tolerance]
    return min(good, key=lambda candidate: (candidate.size_bytes, candidate.loss), default=None)
