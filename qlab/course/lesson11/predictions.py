"""Lesson 11: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Choices, Number

PREDICTIONS = (
    Choices(
        "11a",
        _("What is lost when boxes of one class may overlap by 5 % only, and not by 45 %?"),
        among=(
            _("nothing: each shape keeps one box either way"),
            _("a few of the shapes that were found"),
            _("more than half of the shapes that were found"),
        ),
        measured=_(
            "of {all} shapes {usual} are found with 45 % and {little} with 5 %; with 95 % it is {much}, but {doubles} boxes "
            "are wrong or double"
        ),
    ),
    Number(
        "11b",
        _("With 4-bit weights and one scale for all weights of a layer, how many points of mAP are lost?"),
        between=(0, 40),
        step=1,
        unit=_("points"),
        measured=_(
            "{answer:.1f} points (± {chance:.1f}) with one scale a layer, {channel:.1f} with one a channel; with 8 bits "
            "{eight:.1f} and {eight_channel:.1f}"
        ),
        within=3,
    ),
    Number(
        "11c",
        _(
            "The table above says how many times as fast int8 makes the network. How many times as fast is the whole way "
            "from a frame to its boxes?"
        ),
        between=(1, 6),
        step=0.1,
        unit=_("times"),
        measured=_(
            "{answer:.1f} times, the network alone {alone:.1f}; in milliseconds, float and int8: normalizing {normalizing}, "
            "the network {network}, decoding and suppression {decoding}"
        ),
        within=0.3,
    ),
    Number(
        "11d",
        _(
            "A detector needs 50 ms a frame and takes every frame in turn. How old is the frame that is shown after ten "
            "seconds, in seconds?"
        ),
        between=(0, 10),
        step=0.5,
        unit=_("seconds"),
        measured=_("{answer:.2f} seconds if frames queue up, {dropped:.2f} if they are dropped"),
        within=0.5,
    ),
    Choices(
        "11e",
        _("Where will float and int8 differ most: on boxes that the float network is sure of, or on others?"),
        among=(_("on sure boxes"), _("on unsure ones"), _("on both alike")),
        measured=_(
            "int8 misses {sure:.1f} % of the boxes with a score of 0.7 or more, and {unsure:.1f} % of the others"
        ),
    ),
)
