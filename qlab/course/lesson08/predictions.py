"""Lesson 8: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Number

PREDICTIONS = (
    Number(
        "8a",
        _("On how many of the first 500 images is one of the two right and the other wrong: float, and W8A8 by PTQ?"),
        between=(0, 50),
        unit=_("images"),
        within=3,
        measured=_("on {answer:g} {unit} of 500; the accuracies differ by {difference:+.1f} points"),
    ),
    Number(
        "8b",
        _("From 8 bits down: at how many bits does PTQ begin to lose more than two standard errors of the difference?"),
        between=(2, 8),
        unit=_("bits"),
        measured=_("at {answer:g} {unit}, by {loss:.1f} points with a standard error of {error:.2f}"),
    ),
    Number(
        "8c",
        _(
            "At how many bits do the trained networks (there are 8, 4, 3 and 2) begin to lose more than two standard errors?"
        ),
        between=(2, 8),
        unit=_("bits"),
        measured=_("at {answer:g} {unit}, by {loss:.1f} points with a standard error of {error:.2f}"),
    ),
    Number(
        "8d",
        _(
            "You may lose 1 point. How large is the smallest network if you may train, in percent of the smallest without training?"
        ),
        between=(0, 100),
        step=5,
        unit="%",
        within=10,
        measured=_("{answer:.0f} {unit}: {without} without training, {trained} with it"),
    ),
)
