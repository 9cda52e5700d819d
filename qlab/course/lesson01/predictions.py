"""Lesson 1: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Choices

PREDICTIONS = (
    Choices(
        "1a",
        _("Two of the formats have 16 bits. Which is nearer to 0.3?"),
        among=(
            _("bfloat16, which has more exponent"),
            _("float16, which has more fraction"),
            _("both are equally near"),
        ),
        measured=_("bfloat16 is off by {bfloat16:.1e}, float16 by {float16:.1e}; exact: {exact}"),
    ),
    Choices(
        "1b",
        _("How much smaller is the largest error with 4 bits than with 3?"),
        among=(_("about a quarter smaller, as 3 is to 4"), _("about half as large"), _("about a quarter as large")),
        measured=_("it is {three:.3f} with 3 bits and {four:.3f} with 4"),
    ),
    Choices(
        "1c",
        _("Which errors are the most common, with 8 bits?"),
        among=(
            _("small ones: most weights are near a rung"),
            _("large ones, near half a step"),
            _("none, all sizes are about equally common"),
        ),
        measured=_("{near:.0f} % of the errors are nearer to 0 than to half a step"),
    ),
)
