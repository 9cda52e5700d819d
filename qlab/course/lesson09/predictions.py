"""Lesson 9: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Choices, Number

PREDICTIONS = (
    Choices(
        "9a",
        _(
            "Before the first iteration: is the error of the codebook's even start smaller than that of the best equal steps?"
        ),
        among=(_("smaller"), _("the same"), _("larger")),
        measured=_("with 3 bits {start:.1%} with the even start, {even:.1%} with the best equal steps"),
    ),
    Choices(
        "9b",
        _("After 40 iterations with 3 bits, where do the centroids stand closest together?"),
        among=(_("near 0"), _("half-way between 0 and the largest weight"), _("at the ends")),
        measured=_("the closest two are {least:.3f} apart, the two at an end {most:.3f}"),
    ),
    Choices(
        "9c",
        _("With 3 bits, which network gives more right answers, and is that more than chance?"),
        among=(
            _("the one with codebooks"),
            _("the one with equal steps"),
            _("the difference is within two standard errors"),
        ),
        measured=_("codebooks {codebook:.1f} % right, equal steps {even:.1f} %; difference {difference}"),
    ),
    Choices(
        "9d",
        _("Equal steps that clip nothing have a much larger error. What do they give with 3 bits?"),
        among=(
            _("fewer right answers than the equal steps with the least error"),
            _("more right answers than those"),
            _("the difference is within two standard errors"),
        ),
        measured=_("{wide:.1f} % right; the difference is {difference}"),
    ),
    Number(
        "9e",
        _("Of what rounding to 2 bits has destroyed, how much does training on the grid bring back?"),
        between=(0, 100),
        step=5,
        unit="%",
        within=10,
        measured=_("{answer:.0f} %: {rounded:.1f} % right when only rounded, {trained:.1f} % after training"),
    ),
    Number(
        "9f",
        _("Ternary weights have one value more than binary ones, the 0. How much of the error does that take away?"),
        between=(0, 100),
        step=5,
        unit="%",
        within=10,
        measured=_(
            "{answer:.0f} %: the error is {binary:.0%} with two values, and with three {least:.0%} at its least"
        ),
    ),
    Choices(
        "9g",
        _("Which of the three has the least error on these weights?"),
        among=("int8", "e4m3", "e5m2"),
        measured=_("{decibels}"),
    ),
    Number(
        "9h",
        _("One weight becomes 10**n times as large as the largest. From which n on is e4m3 no better than e5m2?"),
        between=(0, 8),
        step=0.5,
        within=0.5,
        measured=_("from n = {answer:g} on; int8 is worse than e4m3 from n = {int8:g} on"),
    ),
)
