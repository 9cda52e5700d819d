"""Lesson 99: the Pareto front of size and accuracy, and your point on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes

from qlab.course.challenge import Score, front
from qlab.course.language import _
from qlab.course.plots.figure import CLIPPED, FLOAT, INK, QUANTIZED, STYLE, Figure

CHARACTER, LINE = 0.009, 0.05  # about the width and height of 9 point letters, in shares of the axes


@rc_context(STYLE)
def pareto(scores: Sequence[Score], yours: Score) -> Callable[[float], Figure]:
    """Right answers against size, the front of the best, and where ``yours`` lies; a function from the KiB allowed.

    ``yours`` may be one of the ``scores`` or not.
    """
    points = [*(score for score in scores if score != yours), yours]
    picture = Figure((9, 4.2))
    ax = picture.subplots()
    _points(ax, points)
    largest = ax.get_xlim()[1]
    too_large = ax.axvspan(0, largest, color=CLIPPED, alpha=0.15)
    (ring,) = ax.plot([], [], "o", color=QUANTIZED, markersize=24, fillstyle="none", markeredgewidth=2.5)
    picture.moves(too_large, ring)
    beaten_by = [score for score in front(points) if score.dominates(yours)]
    place = _("yours is beaten by {name}").format(name=beaten_by[0].name) if beaten_by else _("yours is on the front")

    def draw(kib: float) -> Figure:
        too_large.set_bounds(kib, 0, largest, 1)
        winner = max((s for s in points if s.kib <= kib), key=lambda s: (s.accuracy, -s.kib), default=None)
        ring.set_data([winner.kib] if winner else [], [winner.accuracy] if winner else [])
        if winner:
            says = _("{kib:.0f} KiB: {name} is best, {best:.1f} %; {place}")
            picture.finding = says.format(kib=kib, name=winner.name, best=winner.accuracy, place=place)
        else:
            picture.finding = _("{kib:.0f} KiB: nothing fits; {place}").format(kib=kib, place=place)
        picture.alt = _(
            "Yours, the star: {accuracy:.1f} % with {size:.1f} KiB. The line is the front; what lies in the grey area is "
            "too large. The ring marks the best that fits."
        ).format(accuracy=yours.accuracy, size=yours.kib)
        return picture

    return draw


def _points(ax: Axes, points: Sequence[Score]) -> None:
    """The networks with their names, the last of them as a star; their front; and the float network's accuracy."""
    *others, yours = points
    best = front(points)
    highest = max(score.accuracy + score.lost for score in points)
    lowest = min(score.accuracy for score in points)
    room = 0.08 * max(5, highest - lowest)
    ax.set(xlim=(0, 1.2 * max(score.kib for score in points)), ylim=(lowest - room, highest + room))
    ax.set(xlabel=_("size in KiB"), ylabel=_("right answers in %"))
    ax.axhline(highest, color=FLOAT, linestyle="--", linewidth=1)
    ax.annotate(_("float"), (0, highest), (4, 2), textcoords="offset points", color=FLOAT)
    x, y = [score.kib for score in best], [score.accuracy for score in best]
    ax.plot(x, y, drawstyle="steps-post", color=QUANTIZED, linewidth=1)
    ax.plot([score.kib for score in others], [score.accuracy for score in others], "o", color=QUANTIZED, markersize=8)
    ax.plot([yours.kib], [yours.accuracy], "*", color=INK, markersize=18)
    _name(ax, [*((score.name, score) for score in others), (_("yours"), yours)])


def _name(ax: Axes, named: Sequence[tuple[str, Score]]) -> None:
    """Write each name at that corner of its point where it hides no other name and no point.

    Boxes are (left, right, bottom, top) in shares of the axes.
    """
    to_shares = ax.transData + ax.transAxes.inverted()
    places = [to_shares.transform((score.kib, score.accuracy)) for name, score in named]
    taken = [(x - 0.012, x + 0.012, y - 0.02, y + 0.02) for x, y in places]
    for (x, y), (name, score) in zip(places, named):
        width = CHARACTER * len(name)
        corners = [(right, up) for right in (1, -1) for up in (-1, 1)]
        boxes = []
        for right, up in corners:
            left, bottom = (x + 0.012 if right > 0 else x - 0.012 - width), (y + 0.01 if up > 0 else y - 0.01 - LINE)
            boxes.append((left, left + width, bottom, bottom + LINE))
        best = min(range(4), key=lambda corner: sum(_overlap(boxes[corner], other) for other in taken))
        taken.append(boxes[best])
        right, up = corners[best]
        ax.annotate(
            name, (score.kib, score.accuracy), (7 * right, 4 * up), textcoords="offset points", size=9, color=CLIPPED,
            ha="left" if right > 0 else "right", va="bottom" if up > 0 else "top",
        )  # fmt: skip


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """The area that two boxes share."""
    return max(0, min(a[1], b[1]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[2], b[2]))
