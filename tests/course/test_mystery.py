"""A mystery keeps its secret until a diagnosis is committed, and the box around it does the same with buttons."""

from __future__ import annotations

import pytest

from qlab.course.figure import Figure
from qlab.course.mystery import Box, Mystery


def picture() -> Figure:
    figure = Figure((2, 1), "two bars")
    figure.alt = "the second bar is lower"
    return figure


def mystery(seed: int = 0) -> Mystery:
    """Of two layers the one that the seed names has too few bits."""
    layers = ("conv", "fc")
    return Mystery(
        story="One of two layers is broken.",
        measurements={"SQNR": lambda: f"a table of {seed}", "bars": picture, "fails": lambda: 1 / 0},
        questions={"layer": layers, "what": ("weights", "input")},
        truth=(layers[seed % 2], "weights"),
        repairs={"8 bits": lambda layer, what: f"{what} of {layer}: 8 bits"},
        because=f"{layers[seed % 2]} had 2 bits.",
    )


def texts(box: Box) -> str:
    """All that stands in a box."""
    found, left = [], [box]
    while left:
        widget = left.pop()
        left += reversed(getattr(widget, "children", ()))
        found.append(str(getattr(widget, "value", "")) + str(getattr(widget, "description", "")))
    return "\n".join(found)


def test_a_repair_is_made_where_the_diagnosis_says_and_the_truth_comes_with_it():
    case = mystery(1)
    assert case.measure("SQNR") == "a table of 1" and case.asked == ["SQNR"]
    case.diagnose("conv", "weights")
    assert case.repair("8 bits") == (
        "weights of conv: 8 bits\nYou said: conv, weights. It was: fc, weights. fc had 2 bits."
    )
    right = mystery(1)
    right.diagnose("fc", "weights")
    assert right.repair("8 bits").endswith("You said: fc, weights. That is it. fc had 2 bits.")


@pytest.mark.parametrize(("do", "words"), [
    (lambda case: case.repair("8 bits"), "commit a diagnosis first"),
    (lambda case: case.measure("time"), "no measurement 'time': there are SQNR, bars"),
    (lambda case: case.repair("glue"), "no repair 'glue': there are 8 bits"),
    (lambda case: case.diagnose("conv"), "1 answers: expected one for each of layer, what"),
    (lambda case: case.diagnose("relu", "weights"), "layer: 'relu' is no choice, expected one of conv, fc"),
    (lambda case: [case.diagnose("conv", "input") for _ in range(2)], "the diagnosis is made: conv, input"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_and_said(do, words):
    with pytest.raises(ValueError, match=words):
        do(mystery())


def test_a_truth_that_nobody_can_say_is_refused():
    with pytest.raises(ValueError, match="layer: 'relu' is no choice"):
        Mystery("", {}, {"layer": ("conv",)}, ("relu",), {}, "")


def test_the_box_goes_from_measuring_to_the_diagnosis_to_the_repair():
    box = Box(mystery, seed=1)
    assert box.commit.disabled and all(button.disabled for button in (*box.repairing, box.another))
    sqnr, bars, _fails = box.measuring
    sqnr.click()
    bars.click()
    assert sqnr.disabled and "a table of 1" in texts(box) and "the second bar is lower" in texts(box)
    box.answers[0].value = "fc"
    assert box.commit.disabled, "one question is open"
    box.answers[1].value = "weights"
    assert "fc had 2 bits" not in texts(box)
    box.commit.click()
    assert "You say: fc, weights, after 2 measurements" in box.said.value and box.answers[0].disabled
    assert "fc had 2 bits" not in texts(box), "the repair tells"
    box.repairing[0].click()
    assert "weights of fc: 8 bits" in box.said.value and "That is it. fc had 2 bits." in box.said.value
    box.another.click()
    assert box.seed == 2 and not box.mystery.asked and "a table of" not in texts(box)


def test_an_error_stands_in_the_box():
    box = Box(mystery, seed=0)
    box.measuring[2].click()
    assert "ZeroDivisionError" in box.said.value


def test_a_saved_notebook_shows_what_there_is_to_do_and_not_what_is_broken():
    bundles = [Box(mystery, seed)._repr_mimebundle_() for seed in (0, 1)]
    first, second = (bundle["text/html"] for bundle in bundles)
    assert {bundle["text/plain"] for bundle in bundles} == {"One of two layers is broken."}
    assert first == second and "SQNR, bars" in first and "had 2 bits" not in first


def test_without_a_seed_one_is_drawn():
    assert len({Box(mystery).seed for _ in range(4)}) > 1
