"""Lesson 7: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Choices, Number

PREDICTIONS = (
    Number(
        "7a",
        _("The weight starts at -1, the target is 1.3, the learning rate 0.1. Where is the weight after 60 steps?"),
        between=(-1, 3),
        step=0.1,
        within=0.15,
        measured=_(
            "at {answer:.1f}, beside the threshold 1.5; over the last 40 steps the network used {mean:.2f} on average"
        ),
    ),
    Number(
        "7b",
        _("With 3 bits, where does LSQ's scale come to rest, in % of the scale that clips nothing?"),
        between=(5, 100),
        unit="%",
        within=10,
        measured=_("at {answer:.0f} %; the error is least at {best:.0f} %"),
    ),
    Choices(
        "7c",
        _("And with 8 bits, where does it come to rest?"),
        among=(
            _("below half of the scale that clips nothing"),
            _("between 50 and 90 % of it"),
            _("above 90 % of it"),
        ),
        measured=_("at {percent:.0f} %"),
    ),
    Choices(
        "7d",
        _("The layer trains through the rounding. Where do its weights gather?"),
        among=(
            _("on the rungs -1, 0 and 1"),
            _("at the thresholds, half-way between two rungs"),
            _("nowhere: there are as many at the thresholds as on the rungs"),
        ),
        measured=_("{thresholds:.0%} are at most a tenth of a step from a threshold, {rungs:.0%} from a rung"),
    ),
    Number(
        "7e",
        _("The same training, but it rounds first and clamps then. How many weights have the gradient 0 at its end?"),
        between=(0, 100),
        unit="%",
        within=10,
        measured=_("{answer:.0f} %; where it clamps first, {other:.0f} %"),
    ),
    Number(
        "7f",
        _("Training looks once at each of 1,280 images. How much of what rounding has cost comes back?"),
        between=(0, 100),
        unit="%",
        within=15,
        measured=_("{answer:.0f} %: {gain} of {loss:.0f} points"),
    ),
    Number(
        "7g",
        _("Then the network is made of integers. How many of 100 answers change?"),
        between=(0, 100),
        within=3,
        measured=_("{answer:.1f} of 100; right are {before:.1f} % before and {after:.1f} % in integers"),
    ),
)
