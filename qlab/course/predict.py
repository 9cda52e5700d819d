"""Predict first: a question, and what answers it, covered until a guess is made.

A lesson's questions stand in its ``predictions.py``. Its notebook shows one with :func:`predict`, gives it what to cover (a
panel, a figure, a table in plain text) and the measured answer; no answer stands in a text. The browser uncovers it without
asking the kernel, so that it works on a slow line and in a saved notebook. The kernel remembers the guess
(:func:`qlab.course.progress.remember_prediction`) and marks it in the figure.

With ``QLAB_PREDICT=off`` nothing is covered: for a teacher who shows a lesson.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from functools import cache
from html import escape

import anywidget
import ipywidgets
import traitlets

from qlab.course import lessons, progress
from qlab.course.figure import Figure
from qlab.course.language import _
from qlab.course.widgets import JS, Drawn, Image, Panel, module

SHOWN = "shown"  # what stands in for a guess when the answer was asked for without one


@dataclass(frozen=True)
class Choices:
    """A question with a few answers, ``among``. ``measured`` is a format string for what the lesson's cell measured."""

    name: str
    question: str
    among: tuple[str, ...]
    measured: str

    def said(self, guess: int) -> str:
        """A guess, or the answer, in words."""
        return self.among[guess]

    def answered(self, answer: int, numbers: dict[str, object]) -> str:
        """The measured answer in words. Raises ValueError when it is none of the choices."""
        if not 0 <= answer < len(self.among):
            raise ValueError(f"prediction {self.name}: answer={answer} is none of {len(self.among)} choices (from 0)")
        return f"{self.said(answer)}: {self.measured.format(answer=self.said(answer), **numbers)}"

    def right(self, guess: int, answer: int) -> bool:
        """Was it the measured one?"""
        return guess == answer


@dataclass(frozen=True)
class Number:
    """A question for a number or a place on an axis, ``between`` two ends; right is what lies ``within`` of the answer."""

    name: str
    question: str
    between: tuple[float, float]
    step: float = 1
    unit: str = ""
    measured: str = "{answer:g} {unit}"
    within: float = 0

    def said(self, guess: float) -> str:
        """A guess in words."""
        return f"{guess:g} {self.unit}".strip()

    def answered(self, answer: float, numbers: dict[str, object]) -> str:
        """The measured answer in words. It may lie beyond the ends: then nobody can have said it."""
        return self.measured.format(answer=answer, unit=self.unit, **numbers).strip()

    def right(self, guess: float, answer: float) -> bool:
        """Was it near enough?"""
        return abs(guess - answer) <= self.within + 1e-9


class Question(anywidget.AnyWidget):
    """The question itself: its choices or a slider, and below them, once there is a guess, what was measured."""

    _esm = module("predict.js")
    _css = JS / "explorables.css"
    question = traitlets.Unicode().tag(sync=True)
    among = traitlets.List(traitlets.Unicode()).tag(sync=True)
    slider = traitlets.Dict().tag(sync=True)
    measured = traitlets.Unicode().tag(sync=True)
    texts = traitlets.Dict().tag(sync=True)
    guess = traitlets.Any(None, allow_none=True).tag(sync=True)  # None: not yet; SHOWN; else the guess


class Prediction(ipywidgets.VBox):
    """A question above what it covers. ``said`` is what a student has guessed so far, in words."""

    def __init__(self, asked: Choices | Number, shown: tuple, answer: float, measured: str) -> None:
        self.asked, self.shown, self.answer, self.measured = asked, shown, answer, measured
        self.question = Question(question=asked.question, measured=measured, texts=_texts(), **_form(asked))
        covered = ipywidgets.VBox([_widget(each) for each in shown])
        covered.add_class("qlab-covered")
        super().__init__([self.question, covered])
        self.add_class("qlab-predict")
        self.links = [
            ipywidgets.jslink((self.question, "guess"), (each, "guess")) for each in shown if isinstance(each, Drawn)
        ]
        self.question.observe(self._guessed, "guess")
        if os.environ.get("QLAB_PREDICT") == "off":
            self.question.guess = SHOWN

    @property
    def said(self) -> str:
        """The guess in words; empty where there is none."""
        return "" if self.question.guess in (None, SHOWN) else self.asked.said(self.question.guess)

    def _guessed(self, change: dict) -> None:
        """Remember the guess and mark it in the figures; what cannot be written down is said below it."""
        if change.new is None or os.environ.get("QLAB_PREDICT") == "off":
            return
        right = self.asked.right(change.new, self.answer) if self.said else None
        entry = {
            "question": self.asked.question, "guess": self.said or None, "measured": self.measured, "right": right,
        }  # fmt: skip
        lost = progress.remember_prediction(self.asked.name, entry)
        if lost:
            self.question.measured = f"{self.measured} ({lost})"
        if self.said and isinstance(self.asked, Number):
            for each, widget in zip(self.shown, self.children[1].children):
                _mark(each, widget, change.new, _("you said {guess}").format(guess=self.said))

    def _repr_mimebundle_(self, **options) -> dict:
        """The widget; and for a reader without a kernel the question, with what answers it folded."""
        widget = super()._repr_mimebundle_(**options)
        choices = "".join(f"<li>{escape(choice)}</li>" for choice in getattr(self.asked, "among", ()))
        inside = "".join(_html(each) for each in self.shown)
        html = (
            f"<p><strong>{_('Predict.')}</strong> {escape(self.asked.question)}</p>{choices and f'<ul>{choices}</ul>'}"
            f"<details><summary>{_('The measured answer, and the first view')}</summary>"
            f"<p>{escape(self.measured)}</p>{inside}</details>"
        )
        return {
            **(widget[0] if isinstance(widget, tuple) else widget),
            "text/html": html,
            "text/plain": self.asked.question,
        }


def predict(name: str, *shown: Panel | Drawn | Figure | str, answer: float, **numbers: object) -> Prediction:
    """Ask prediction ``name``; ``shown`` stays covered until there is a guess, or "show me" is pressed.

    Args:
        name: as in the lesson's ``predictions.py``, such as "2a".
        shown: panels, figures, or plain text such as a table.
        answer: the measured one: for :class:`Choices` the place of the right one, from 0.
        numbers: what ``measured`` says beside it.

    Returns:
        The widget, for the end of a cell.

    Raises:
        ValueError: There is no such prediction, its answer is none of the choices, or a number is missing.

    >>> asked = predict("2a", "a table", answer=2, percent=61.0)
    >>> asked.question.guess = 0  # as the browser does
    >>> asked.said
    'with the limit at the largest value, so that nothing is clipped'
    """
    asked = prediction(name)
    try:
        measured = asked.answered(answer, numbers)
    except KeyError as error:
        raise ValueError(f"prediction {name} says {asked.measured!r}: give {error.args[0]}=...") from error
    return Prediction(asked, shown, answer, measured)


@cache
def of_lesson(lesson: int) -> tuple[Choices | Number, ...]:
    """The predictions of a lesson, in order."""
    return tuple(lessons.part(lesson, "predictions").PREDICTIONS)


def prediction(name: str) -> Choices | Number:
    """The prediction of that name. Raises ValueError when there is none."""
    known = {asked.name: asked for lesson in lessons.LESSONS for asked in of_lesson(lesson)}
    if name not in known:
        raise ValueError(f"no prediction {name!r}: there are {', '.join(known)}")
    return known[name]


def _texts() -> dict[str, str]:
    return {
        "predict": _("Predict."), "commit": _("That is my guess"), "show": _("Show me"),
        "covered": _("What is measured appears below when you have made a guess."),
        "said": _("You said: {guess}."), "measured": _("Measured: {measured}."), "slider": _("your guess"),
        "unmoved": _("move the slider"),
    }  # fmt: skip


def _form(asked: Choices | Number) -> dict:
    if isinstance(asked, Choices):
        return {"among": list(asked.among)}
    ends = dict(zip(("minimum", "maximum"), asked.between))
    return {"slider": {**ends, "step": asked.step, "unit": asked.unit}}


def _widget(each: Panel | Drawn | Figure | str) -> ipywidgets.DOMWidget:
    """What shows it inside the cover."""
    if isinstance(each, Figure):
        words = ipywidgets.HTML(f"<em>{escape(each.alt)}</em>")
        return ipywidgets.VBox([Image.of(each), words])
    if isinstance(each, str):
        return ipywidgets.HTML(f"<pre>{escape(each)}</pre>")
    return each


def _mark(each: Panel | Drawn | Figure | str, widget: ipywidgets.DOMWidget, guess: float, words: str) -> None:
    """The guess, in a figure that has an axis for it."""
    if isinstance(each, Panel):
        each.mark(guess, words)
    elif isinstance(each, Figure):
        each.mark(guess, words)
        widget.children[0].show(each)


def _html(each: Panel | Drawn | Figure | str) -> str:
    """What a reader without a kernel sees of it."""
    if isinstance(each, str):
        return f"<pre>{escape(each)}</pre>"
    data, metadata = (each if isinstance(each, Figure) else each.figure).still()
    return still(base64.b64encode(data["image/jpeg"]).decode(), metadata["image/jpeg"])


def still(jpeg: str, shown: dict) -> str:
    """A JPEG in base64 as HTML, with its {alt, width, height}."""
    size = f'width="{shown["width"]}" height="{shown["height"]}"'
    return f'<img src="data:image/jpeg;base64,{jpeg}" alt="{escape(shown["alt"])}" {size}>'
