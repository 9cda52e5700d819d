"""Lesson 0: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Choices, Number

PREDICTIONS = (
    Choices(
        "0a",
        _("On how many of 1,000 images does the int8 network give another answer than the float network?"),
        among=(_("on none"), _("on 1 to 30"), _("on 31 to 100"), _("on more than 100")),
        measured=_("the answers differ on {count} of 1,000 images"),
    ),
    Number(
        "0b",
        _("How many bits does this network need to lose less than 2 points against float?"),
        between=(2, 8),
        step=1,
        unit=_("bits"),
        measured=_("{answer:g} bits are enough: {at}; with {less} bits {below}"),
    ),
)
