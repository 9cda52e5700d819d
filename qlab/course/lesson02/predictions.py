"""Lesson 2: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Choices

PREDICTIONS = (
    Choices(
        "2a",
        _("With 4 bits, where is the sum of the two errors smallest?"),
        among=(
            _("with the limit at the largest value, so that nothing is clipped"),
            _("a little below it, at 80 % or more"),
            _("far below it, at less than 80 %"),
        ),
        measured=_("the error is least with the limit at {percent:.0f} % of the largest value"),
    ),
    Choices(
        "2b",
        _("Which of the four observers choose another limit when the number of bits changes?"),
        among=(_("all four"), _("min-max and percentile"), _("entropy and MSE"), _("MSE only")),
        measured=_(
            "from 8 to 3 bits the limit of min-max moves by {minmax:.2f}, of percentile by {percentile:.2f}, of entropy by "
            "{entropy:.2f}, of MSE by {mse:.2f}"
        ),
    ),
    Choices(
        "2c",
        _("One value becomes 1,000. With 8 bits, which observers keep their limit below 10?"),
        among=(
            _("all but min-max"),
            _("percentile and MSE"),
            _("percentile and entropy"),
            _("percentile only"),
        ),
        measured=_(
            "min-max has its limit at {minmax:.2f}, percentile at {percentile:.2f}, entropy at {entropy:.2f}, MSE at {mse:.2f}"
        ),
    ),
)
