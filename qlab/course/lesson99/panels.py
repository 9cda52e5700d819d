"""Lesson 99's panels."""

from __future__ import annotations

from collections.abc import Sequence

from qlab.analysis.paired import Paired
from qlab.course.language import _
from qlab.course.lesson99 import plots
from qlab.course.lesson99.challenge import SURE, Budget, Score
from qlab.course.registry import explorable
from qlab.course.widgets import Panel, Slider


def _scores() -> tuple[list[Score], Score]:
    rows = ("large", 89.0, 270.0), ("small", 80.0, 75.0), ("yours", 85.0, 100.0)
    budget = Budget(100, 1.5)
    *known, yours = [Score(name, right, Paired(right - 80, 0.6, 90), kib, 1.0, budget) for name, right, kib in rows]
    return known, yours


def _attempts() -> tuple[list[Score]]:
    known, yours = _scores()
    return ([*known, yours],)


@explorable(example=_attempts)
def board(scores: Sequence[Score]) -> Panel:
    """Your attempts beside the line to beat, with as many standard errors as you want to be sure by."""
    slider = Slider(label=_("standard errors"), value=SURE, minimum=1, maximum=3)
    return Panel(plots.board(scores), errors=slider)


@explorable(example=_scores)
def pareto(scores: Sequence[Score], yours: Score) -> Panel:
    """Drag the size that is allowed: the best network that fits, and where ``yours`` lies. Arguments as in ``plots``."""
    sizes = [score.kib for score in (*scores, yours)]
    least, most = int(min(sizes)) - 5, int(max(sizes)) + 10
    slider = Slider(label=_("KiB allowed"), value=most, minimum=least, maximum=most)
    return Panel(plots.pareto(scores, yours), kib=slider)
