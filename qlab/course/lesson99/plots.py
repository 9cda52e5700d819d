"""Lesson 99: the board of attempts, and the Pareto front of size and accuracy with your point on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from matplotlib import rc_context
from matplotlib.axes import Axes

from qlab.course.figure import CLIPPED, FLOAT, INK, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.course.lesson99.challenge import Score, front

Place = tuple[float, float]
Box = tuple[float, float, float, float]
CHARACTER, LINE, AROUND = 0.0098, 0.05, 0.024  # a 9 point letter and half a ring, about, in shares of the axes


@rc_context(STYLE)
def board(scores: Sequence[Score]) -> Callable[[int], Figure]:
    """Every attempt's difference to the line to beat, on the same images; a function from the standard errors drawn.

    What is over the budget is hollow, and says by how much.
    """
    image = Figure((9, 1.2 + 0.42 * len(scores)))
    ax = image.subplots()
    gains = [score.gain.difference for score in scores]
    widest = 3 * max(score.gain.error for score in scores)
    ends = min(0, *gains) - widest, max(0, *gains) + widest
    rows = range(len(scores))
    ax.set(xlim=ends, ylim=(len(scores) - 0.4, -0.6), xlabel=_("right answers, points above the line to beat"))
    ax.set_yticks(rows, [score.name for score in scores])
    ax.grid(axis="y", visible=False)
    ax.axvline(0, color=FLOAT, linestyle="--", linewidth=1)
    for row, score in enumerate(scores):
        ax.plot(score.gain.difference, row, "o", color=QUANTIZED, markersize=9, fillstyle=_fill(score))
    notes = ax.twinx()
    notes.set_ylim(ax.get_ylim())
    notes.set_yticks(rows, map(_measures, scores), size=8)
    notes.tick_params(length=0)
    notes.grid(False)
    for note, score in zip(notes.get_yticklabels(), scores):
        note.set_color(CLIPPED if score.objections else INK)
    bars = ax.hlines(rows, 0, 0, color=QUANTIZED)
    image.moves(bars)

    def draw(errors: int) -> Figure:
        reach = [errors * score.gain.error for score in scores]
        bars.set_segments([[(g - r, row), (g + r, row)] for row, (g, r) in enumerate(zip(gains, reach))])
        image.finding = _board_finding(scores, errors)
        image.alt = _(
            "Each row is an attempt: a point at its difference to the line, and {errors} standard errors to both sides. "
            "Hollow points are over the budget: {over}."
        ).format(errors=errors, over=", ".join(score.name for score in scores if score.objections) or _("none"))
        return image

    return draw


def _board_finding(scores: Sequence[Score], errors: int) -> str:
    within = [score for score in scores if not score.objections]
    best = max(within, key=lambda score: score.gain.difference, default=None)
    if best is None:
        return _("No attempt is within the budget")
    words = {"name": best.name, "gain": best.gain.difference, "error": best.gain.error, "errors": errors}
    if best.gain.difference > errors * best.gain.error:
        return _("{name} beats the line by {gain:+.1f} ± {error:.1f}: more than {errors} standard errors").format(
            **words
        )
    return _("Within the budget nothing beats the line by more than {errors} standard errors").format(**words)


def _fill(score: Score) -> str:
    return "none" if score.objections else "full"


def _measures(score: Score) -> str:
    time = "-" if score.time is None else f"{score.time:.2f}"
    words = {"kib": score.kib, "time": time}
    if score.kib > score.budget.kib:
        return _("{kib:.1f} KiB: too large").format(**words)
    if score.time is None or score.time > score.budget.time:
        return _("time {time}: too slow").format(**words)
    return _("{kib:.1f} KiB, time {time}").format(**words)


@rc_context(STYLE)
def pareto(scores: Sequence[Score], yours: Score) -> Callable[[float], Figure]:
    """Right answers against size, the front of the best, and where ``yours`` lies; a function from the KiB allowed.

    ``yours`` may be one of the ``scores`` or not.
    """
    points = [*(score for score in scores if score != yours), yours]
    image = Figure((9, 4.2))
    ax = image.subplots()
    _points(ax, points)
    largest = ax.get_xlim()[1]
    too_large = ax.axvspan(0, largest, color=CLIPPED, alpha=0.15)
    (ring,) = ax.plot([], [], "o", color=QUANTIZED, markersize=24, fillstyle="none", markeredgewidth=2.5)
    image.moves(too_large, ring)
    beaten_by = [score for score in front(points) if score.dominates(yours)]
    place = _("yours is beaten by {name}").format(name=beaten_by[0].name) if beaten_by else _("yours is on the front")

    def draw(kib: float) -> Figure:
        too_large.set_bounds(kib, 0, largest, 1)
        winner = max((s for s in points if s.kib <= kib), key=lambda s: (s.accuracy, -s.kib), default=None)
        ring.set_data([winner.kib] if winner else [], [winner.accuracy] if winner else [])
        if winner:
            says = _("{kib:.0f} KiB: {name} is best, {best:.1f} %; {place}")
            image.finding = says.format(kib=kib, name=winner.name, best=winner.accuracy, place=place)
        else:
            image.finding = _("{kib:.0f} KiB: nothing fits; {place}").format(kib=kib, place=place)
        image.alt = _(
            "Yours, the star: {accuracy:.1f} % with {size:.1f} KiB. The line is the front; what lies in the grey area is "
            "too large. The ring marks the best that fits."
        ).format(accuracy=yours.accuracy, size=yours.kib)
        return image

    return draw


def _points(ax: Axes, points: Sequence[Score]) -> None:
    """The networks with their names and errors, the last of them as a star; their front; and the line to beat."""
    *others, yours = points
    best = front(points)
    line = points[0].accuracy - points[0].gain.difference  # all have been compared with it
    highest = max(line, *(score.accuracy + score.gain.error for score in points))
    lowest = min(score.accuracy - score.gain.error for score in points)
    room = 0.08 * max(5, highest - lowest)
    ax.set(xlim=(0, 1.2 * max(score.kib for score in points)), ylim=(lowest - room, highest + room))
    ax.set(xlabel=_("size in KiB"), ylabel=_("right answers in %"))
    ax.axhline(line, color=FLOAT, linestyle="--", linewidth=1)
    ax.annotate(_("the line to beat"), (0, line), (4, 2), textcoords="offset points", color=FLOAT)
    ends = [[score.accuracy + side * score.gain.error for score in points] for side in (-1, 1)]
    ax.vlines([score.kib for score in points], *ends, color=CLIPPED, linewidth=1)
    x, y = [score.kib for score in best], [score.accuracy for score in best]
    ax.plot(x, y, drawstyle="steps-post", color=QUANTIZED, linewidth=1)
    ax.plot([score.kib for score in others], [score.accuracy for score in others], "o", color=QUANTIZED, markersize=8)
    ax.plot([yours.kib], [yours.accuracy], "*", color=INK, markersize=18)
    _name(ax, [*((score.name, score) for score in others), (_("yours"), yours)], line)


def _name(ax: Axes, named: Sequence[tuple[str, Score]], line_accuracy: float) -> None:
    """Write each name beside its point, as near as it hides no other name, no point with its ring, nor the line to beat,
    and so that the strokes from names to points do not cross.

    Boxes are (left, right, bottom, top) in shares of the axes.
    """
    named = sorted(named, key=lambda each: -each[1].accuracy)  # the upper of two points gets the upper place
    to_shares = ax.transData + ax.transAxes.inverted()
    places = [to_shares.transform((score.kib, score.accuracy)) for name, score in named]
    taken = [(x - AROUND, x + AROUND, y - LINE, y + LINE) for x, y in places]
    line = to_shares.transform((0, line_accuracy))[1]
    taken.append((0, 1, line - 0.005, line + 0.005))
    steps = [to_shares.transform((score.kib, score.accuracy)) for score in front([score for name, score in named])]
    taken += [(x, u, y - 0.005, y + 0.005) for (x, y), (u, v) in pairwise(steps)]  # the front's level strokes
    taken += [(-1, 0, 0, 1), (1, 2, 0, 1), (-1, 2, 1, 2), (-1, 2, -1, 0)]  # outside
    strokes: list[tuple[Place, Place]] = []
    for (x, y), (name, score) in zip(places, named):
        width = CHARACTER * len(name)
        boxes = []
        for rows in (0, -1, 1, -2, 2, -3, 3):
            bottom = y + rows * LINE - LINE / 2
            for left in (x + AROUND, x - AROUND - width):
                boxes.append((left, left + width, bottom, bottom + LINE))

        def fault(box: Box, point: Place = (x, y)) -> float:
            crossings = sum(_cross((point, _middle(box)), stroke) for stroke in strokes)
            return sum(_overlap(box, other) for other in taken) + 0.002 * crossings  # a name has an area of about 0.005

        best = min(boxes, key=fault)
        taken.append(best)
        strokes.append(((x, y), _middle(best)))
        away = abs(best[2] + LINE / 2 - y) > 1.5 * LINE
        ax.annotate(
            name, (score.kib, score.accuracy), (best[0], best[2] + LINE / 2), textcoords="axes fraction", size=9,
            color=CLIPPED, ha="left", va="center",
            arrowprops=dict(arrowstyle="-", color=CLIPPED, linewidth=0.6) if away else None,
        )  # fmt: skip


def _middle(box: Box) -> Place:
    return (box[0] + box[1]) / 2, (box[2] + box[3]) / 2


def _cross(a: tuple[Place, Place], b: tuple[Place, Place]) -> bool:
    """Do two strokes cross? Then each one's ends lie on different sides of the other."""

    def side(stroke: tuple[Place, Place], point: Place) -> bool:
        (x, y), (u, v) = stroke
        return (u - x) * (point[1] - y) > (v - y) * (point[0] - x)

    return side(a, b[0]) != side(a, b[1]) and side(b, a[0]) != side(b, a[1])


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0, min(a[1], b[1]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[2], b[2]))
