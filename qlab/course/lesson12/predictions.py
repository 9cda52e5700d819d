"""Lesson 12: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Choices, Number

PREDICTIONS = (
    Choices(
        "12a",
        _("How many times as fast is int8 here, on one image, with the better of two engines?"),
        among=(_("less than 1.5 times"), _("1.5 to 3 times"), _("3 times or more")),
        measured=_("{times:.1f} times as fast with {engine}"),
    ),
    Choices(
        "12b",
        _(
            "Which of the four speeds up by the largest factor, if int8 arithmetic is twice as fast and the memory gives 10 GB/s?"
        ),
        among=("VGG-16", "MobileNetV2", "ResNet-20", _("one word of a language model")),
        measured=_("{most:.1f} times as fast, the others {least:.1f} times"),
    ),
    Choices(
        "12c",
        _("What will the last row, an integer kernel, have in common with the row above it?"),
        among=(
            _("the same codes"),
            _("codes that differ by one here and there"),
            _("other codes: an integer kernel rounds in other places"),
        ),
        measured=_("of {n} codes {same} are the same, for every first input and all bits"),
    ),
    Number(
        "12d",
        _("onnxruntime and qnnpack round by the same rules. How many of their scores are the same number?"),
        between=(0, 100),
        step=5,
        unit="%",
        measured=_("{answer:.1f} %, and no two are more than {steps} steps of the grid apart"),
        within=10,
    ),
    Choices(
        "12e",
        _("Which is faster on one image: torch's kernels, captured as in lesson 5, or onnxruntime's?"),
        among=(_("torch's kernels"), _("onnxruntime's kernels")),
        measured=_("torch's {torch:.2f} ms, onnxruntime's {onnx:.2f} ms, float32 {float32:.2f} ms"),
    ),
    Choices(
        "12f",
        _("And on 32 images?"),
        among=(_("torch's kernels"), _("onnxruntime's kernels")),
        measured=_("torch's {torch:.1f} ms, onnxruntime's {onnx:.1f} ms, float32 {float32:.1f} ms"),
    ),
    Number(
        "12g",
        _("In how many of the nine mistakes is quantization the stage that loses the points?"),
        between=(0, 9),
        step=1,
        measured=_("in {answer:g} of {n}"),
    ),
)
