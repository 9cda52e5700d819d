"""Lesson 99: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Choices

PREDICTIONS = (
    Choices(
        "99a",
        _("How does this attempt stand to the line, the shipped W2A2, within the budget?"),
        among=(
            _("it beats the line by more than two standard errors"),
            _("the difference may be chance"),
            _("it is worse by more than two standard errors"),
        ),
        measured=_("{gain:+.1f} ± {error:.1f} points against the line, with {kib:.1f} KiB"),
    ),
    Choices(
        "99b",
        _("Its activations are not in the file. Leave them in float instead of 8 bits: what do you get?"),
        among=(
            _("over two standard errors more right answers, and it stays within the time"),
            _("over two standard errors more right answers, but it is too slow"),
            _("no more right answers than chance explains, and it is too slow"),
            _("no more right answers than chance explains, and it stays within the time"),
        ),
        measured=_(
            "{gain:+.1f} ± {error:.1f} points against the attempt with 8 bits, and {time:.1f} times the line's time"
        ),
    ),
    Choices(
        "99c",
        _("Which of these five layers takes 2 bits best?"),
        among=("layer3.0.conv2", "layer3.1.conv1", "layer3.1.conv2", "layer3.2.conv1", "layer3.2.conv2"),
        measured=_("it changes {best:+.1f} points, the worst of them {worst:+.1f}"),
    ),
    Choices(
        "99d",
        _("This network was chosen on the exam. By how much does it beat the line on the test images?"),
        among=(
            _("by more than two standard errors, and within chance by as much as on the exam"),
            _("by more than two standard errors, but clearly by less than on the exam"),
            _("by no more than two standard errors: it was luck"),
        ),
        measured=_("{gain:+.1f} ± {error:.1f} points on {n:,} test images, {exam:+.1f} on the exam"),
    ),
)
