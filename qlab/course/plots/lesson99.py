"""Lesson 99: the Pareto front of size and accuracy, and your point on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib import rc_context

from qlab.course.challenge import Score, front
from qlab.course.language import _
from qlab.course.plots.figure import CLIPPED, FLOAT, INK, QUANTIZED, STYLE, Figure


@rc_context(STYLE)
def pareto(scores: Sequence[Score], yours: Score) -> Callable[[float], Figure]:
    """Right answers against size, the front of the best, and where ``yours`` lies; a function from the KiB allowed.

    ``yours`` may be one of the ``scores`` or not.
    """
    others = [score for score in scores if score != yours]
    points = [*others, yours]
    picture = Figure((9, 4.2))
    ax = picture.subplots()
    largest = 1.2 * max(score.kib for score in points)
    lowest = min(score.accuracy for score in points)
    highest = max(score.accuracy + score.lost for score in points)
    room = 0.08 * max(5, highest - lowest)
    ax.set(xlim=(0, largest), xlabel=_("size in KiB"), ylabel=_("right answers in %"))
    ax.set_ylim(lowest - room, highest + room)
    ax.axhline(highest, color=FLOAT, linestyle="--", linewidth=1)
    ax.text(largest * 0.01, highest + room / 8, _("float"), color=FLOAT, va="bottom")
    best = front(points)
    ax.plot(
        [score.kib for score in best], [score.accuracy for score in best], drawstyle="steps-post", color=QUANTIZED,
        linewidth=1,
    )  # fmt: skip
    ax.plot([s.kib for s in others], [s.accuracy for s in others], "o", color=QUANTIZED, markersize=8)
    for score in others:
        ax.annotate(
            score.name,
            (score.kib, score.accuracy),
            (7, -5),
            textcoords="offset points",
            va="top",
            color=CLIPPED,
            size=9,
        )
    ax.plot([yours.kib], [yours.accuracy], "*", color=INK, markersize=18)
    ax.annotate(
        _("yours"),
        (yours.kib, yours.accuracy),
        (-11, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        weight="bold",
    )
    too_large = ax.axvspan(0, largest, color=CLIPPED, alpha=0.15)
    (ring,) = ax.plot([], [], "o", color=QUANTIZED, markersize=24, fillstyle="none", markeredgewidth=2.5)
    picture.moves(too_large, ring)
    beaten_by = [score for score in best if score.dominates(yours)]

    def draw(kib: float) -> Figure:
        too_large.set_bounds(kib, 0, largest, 1)
        fits = [score for score in points if score.kib <= kib]
        words = {"kib": kib, "accuracy": yours.accuracy, "size": yours.kib}
        if beaten_by:
            place = _("yours is beaten by {name}").format(name=beaten_by[0].name)
        else:
            place = _("yours is on the front")
        if not fits:
            ring.set_data([], [])
            picture.finding = _("{kib:.0f} KiB: nothing fits; {place}").format(**words, place=place)
        else:
            winner = max(fits, key=lambda score: (score.accuracy, -score.kib))
            ring.set_data([winner.kib], [winner.accuracy])
            words |= {"name": winner.name, "best": winner.accuracy}
            picture.finding = _("{kib:.0f} KiB: {name} is best, {best:.1f} %; {place}").format(**words, place=place)
        picture.alt = _(
            "Yours, the star: {accuracy:.1f} % with {size:.1f} KiB. The line is the front; what lies in the grey area is "
            "too large. The ring marks the best that fits."
        ).format(**words)
        return picture

    return draw
