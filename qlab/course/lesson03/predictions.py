"""Lesson 3: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Choices, Number

PREDICTIONS = (
    Choices(
        "3a",
        _("In the second 20 of the 40 batches, which limit travels farthest, ups and downs together?"),
        among=(_("min-max"), _("the moving average, with momentum 0.1"), _("percentile"), _("MSE")),
        measured=_(
            "min-max travels {minmax:.2f}, the moving average {moving_average:.2f}, percentile {percentile:.2f}, MSE {mse:.2f}"
        ),
    ),
    Number(
        "3b",
        _("Forty batches in random order: how many of them set a record, on average?"),
        between=(1, 40),
        step=1,
        unit=_("records"),
        within=1,
        measured=_(
            "{answer:.1f} records on average; in the order of this lesson there are {here}, which {luck:.0f} % of all orders reach"
        ),
    ),
    Number(
        "3c",
        _("How much of the range of 1,024 images do 16 of them show, on average over the layers?"),
        between=(0, 100),
        step=1,
        unit=_("%"),
        within=10,
        measured=_("{answer:.0f} % with the first drawing of 16 images; {low:.0f} to {high:.0f} % in ten drawings"),
    ),
    Choices(
        "3d",
        _("With 8 bits, what does it cost to calibrate with one image instead of 256?"),
        among=(
            _("no more than chance could do"),
            _("more than that, but less than 3 points of accuracy"),
            _("3 points or more"),
        ),
        measured=_("one image instead of 256 changes the accuracy by {difference:+.2f} ± {error:.2f} points"),
    ),
    Choices(
        "3e",
        _("With 4 bits and min-max, what do 256 calibration images do, compared with 16?"),
        among=(
            _("they help, by more than two standard errors"),
            _("nothing that could not be chance"),
            _("they harm, by more than two standard errors"),
        ),
        measured=_("256 images instead of 16 change the accuracy by {difference:+.2f} ± {error:.2f} points"),
    ),
    Choices(
        "3f",
        _("Where is another observer better than min-max, by more than two standard errors?"),
        among=(_("nowhere"), _("with 8 bits only"), _("with 4 bits only"), _("with 8 and with 4 bits")),
        measured=_("with 8 bits {eight} of the other four are better than min-max, with 4 bits {four}"),
    ),
    Choices(
        "3g",
        _("Which calibration images cost the most?"),
        among=(
            _("images of one class only"),
            _("random noise"),
            _("plain grey images"),
            _("images that are not normalized"),
        ),
        measured=_("the table shows them all, with the difference from 64 proper images"),
    ),
)
