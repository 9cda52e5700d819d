"""A question covers its answer until there is a guess; then the guess stands beside what was measured."""

from __future__ import annotations

import re

import pytest

from qlab.course import predict as module
from qlab.course.figure import Figure
from qlab.course.lessons import LESSONS
from qlab.course.predict import SHOWN, Choices, Number, of_lesson, predict
from qlab.course.widgets import Drawn, Panel, Slider

ALL = [asked for lesson in LESSONS for asked in of_lesson(lesson)]
WHICH = Choices("1a", "Which <way>?", among=("up", "down", "neither"), measured="by {percent:.0f} %")
HOW_MANY = Number("1b", "How many bits?", between=(2, 8), unit="bits", measured="{answer:g} bits are enough", within=1)


@pytest.fixture(autouse=True)
def remembered(monkeypatch):
    """Two questions that are nobody's, and what is remembered of them."""
    kept: dict[str, dict] = {}
    monkeypatch.setattr(module.progress, "remember_prediction", lambda name, entry: kept.update({name: entry}) or "")
    monkeypatch.setattr(module, "prediction", {"1a": WHICH, "1b": HOW_MANY}.__getitem__)
    monkeypatch.delenv("QLAB_PREDICT", raising=False)
    return kept


def bits_on_an_axis(bits) -> Figure:
    figure = Figure((3, 2), f"{bits} bits")
    axes = figure.add_subplot(xlim=(1, 9), xlabel="bits")
    figure.takes_guess(axes, "x")
    figure.alt = "an axis"
    return figure


def panel() -> Panel:
    figure = bits_on_an_axis(8)
    return Panel(lambda bits: figure, bits=Slider(label="bits", value=8, minimum=2, maximum=8))


# --- the questions of the lessons


@pytest.mark.parametrize("asked", ALL, ids=lambda asked: asked.name)
def test_a_question_can_be_read_and_answered(asked):
    assert asked.question.endswith("?") and not asked.measured.endswith((".", "?"))
    if isinstance(asked, Choices):
        assert 2 <= len(set(asked.among)) == len(asked.among) <= 6
    else:
        least, most = asked.between
        assert least < most and asked.step > 0 and ((most - least) / asked.step) % 1 < 1e-6


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lessons_questions_are_named_in_order(lesson):
    assert [asked.name for asked in of_lesson(lesson)] == [
        f"{lesson}{'abcdefghijkl'[n]}" for n in range(len(of_lesson(lesson)))
    ]


# --- a guess


def test_a_choice_stands_beside_what_was_measured(remembered):
    asked = predict("1a", "up: 3", answer=1, percent=12.3)
    assert asked.measured == "down: by 12 %" and asked.said == "" and remembered == {}
    asked.question.guess = 0
    assert asked.said == "up"
    assert remembered == {
        "1a": {"question": "Which <way>?", "guess": "up", "measured": "down: by 12 %", "right": False}
    }


@pytest.mark.parametrize("guess, right", [(4, True), (5, True), (6, False), (2, False)])
def test_a_number_is_right_when_it_is_near_enough(remembered, guess, right):
    asked = predict("1b", answer=4)
    asked.question.guess = guess
    assert remembered["1b"]["guess"] == f"{guess} bits" and remembered["1b"]["right"] is right
    assert remembered["1b"]["measured"] == "4 bits are enough"


def test_to_be_shown_is_no_guess(remembered):
    asked = predict("1a", answer=1, percent=1.0)
    asked.question.guess = SHOWN
    assert asked.said == "" and remembered["1a"]["guess"] is None and remembered["1a"]["right"] is None


def test_a_guess_is_marked_in_the_picture_of_a_panel_and_of_a_figure():
    figure, moving = bits_on_an_axis(3), panel()
    asked = predict("1b", figure, moving, answer=4)
    before = [asked.children[1].children[0].children[0].value, moving.image.value]
    asked.question.guess = 6
    marked = [asked.children[1].children[0].children[0].value, moving.image.value]
    assert marked[0] != before[0] and marked[1] != before[1]
    assert [text.get_text() for text in figure.axes[0].texts] == ["you said 6 bits"]
    moving.controls["bits"].value = 5
    assert moving.error is None and moving.figure.axes[0].lines


def test_a_browsers_panel_gets_the_guess_without_the_kernel():
    drawn = Drawn("rounding", bits_on_an_axis, {}, bits=dict(label="bits", value=3, minimum=2, maximum=8))
    asked = predict("1b", drawn, answer=4)
    (link,) = asked.links
    assert link.source == (asked.question, "guess") and link.target == (drawn, "guess")


def test_what_cannot_be_written_down_is_said(monkeypatch):
    monkeypatch.setattr(module.progress, "remember_prediction", lambda name, entry: "progress is not kept: no room")
    asked = predict("1a", answer=1, percent=1.0)
    asked.question.guess = 1
    assert asked.question.measured.endswith("(progress is not kept: no room)")


def test_a_teacher_switches_it_off(monkeypatch, remembered):
    monkeypatch.setenv("QLAB_PREDICT", "off")
    asked = predict("1a", answer=1, percent=1.0)
    assert asked.question.guess == SHOWN and remembered == {}


def test_a_reader_without_a_kernel_opens_the_answer():
    data = predict("1a", panel(), "a <table>", answer=1, percent=12.3)._repr_mimebundle_()
    before, after = data["text/html"].split("<details>")
    assert (
        "Which &lt;way&gt;?" in before and "<li>down</li>" in before and "12 %" not in before and "<img" not in before
    )
    assert "down: by 12 %" in after and "<pre>a &lt;table&gt;</pre>" in after
    assert re.search(r'<img src="data:image/jpeg;base64,[^"]+" alt="8 bits. an axis" width="300" height="200">', after)
    assert data["text/plain"] == "Which <way>?" and "image/jpeg" not in data


# --- what a lesson's author gets wrong


@pytest.mark.parametrize(
    "numbers, words",
    [
        ({"answer": 3, "percent": 1.0}, "prediction 1a: answer=3 is none of 3 choices"),
        ({"answer": -1, "percent": 1.0}, "prediction 1a: answer=-1 is none of 3 choices"),
        ({"answer": 1}, "prediction 1a says 'by {percent:.0f} %': give percent=..."),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(numbers, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        predict("1a", **numbers)


def test_an_unknown_question_is_refused(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no prediction '1z': there are"):
        predict("1z", answer=0)
