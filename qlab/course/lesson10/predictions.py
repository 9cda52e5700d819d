"""Lesson 10: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Choices, Number

PREDICTIONS = (
    Number(
        "10a",
        _(
            "With how few bits a weight, in groups of 64, is the perplexity still less than 5 % above that of the float "
            "model?"
        ),
        between=(2, 8),
        step=1,
        unit=_("bits"),
        measured=_("with {answer:g} bits it is {enough:.1f} % above, with one bit less {fewer:.1f} %"),
    ),
    Choices(
        "10b",
        _("With 4 bits in groups of 16, how many bits does a weight take, its share of the grid counted?"),
        among=(_("4.1"), _("4.5"), _("6")),
        measured=_("{stored:g} bits are 4 of its own and a sixteenth of the {grid} that a grid takes"),
    ),
    Choices(
        "10c",
        _(
            "A layer rounded by GPTQ, beside the same one rounded to the nearest codes: what is nearer to the float layer?"
        ),
        among=(
            _("GPTQ's weights, and its outputs"),
            _("GPTQ's outputs, while its weights are further off"),
            _("GPTQ's weights, while its outputs are further off"),
        ),
        measured=_(
            "GPTQ's outputs are {outputs:.1f} % off, the rounded layer's {rounded_outputs:.1f} %; its weights are "
            "{weights:.1f} % off, the rounded layer's {rounded_weights:.1f} %"
        ),
    ),
    Choices(
        "10d",
        _("With alpha = 1 all channels of the activations are equally large. Is that the best alpha?"),
        among=(_("yes"), _("no, one about half way"), _("no, alpha = 0 is")),
        measured=_(
            "alpha {best:.2f} is best: the ordinary channels' error is {least:.1f} % there, {one:.1f} % at 1, and {zero:.1f} % "
            "at 0"
        ),
    ),
    Choices(
        "10e",
        _("What if the channels with outliers were simply left out, as if their activations were 0?"),
        among=(
            _("the model is ruined, as by W8A8"),
            _("the perplexity rises by a few percent at most"),
            _("nothing changes: they say nothing"),
        ),
        measured=_(
            "left out {gone:+.2f} %, by their int8 codes {codes:+.2f} %, by float weights {floats:+.2f} %; W8A8 alone "
            "{ruined:+.0f} %"
        ),
    ),
)
