"""Three questions at the end of a lesson: a choice, and why it is right or wrong."""

from __future__ import annotations

from html import escape

import ipywidgets

from qlab.course import lessons
from qlab.course.language import _


class Choice:
    """One of the answers to a question, and what to say to whoever chooses it."""

    def __init__(self, text: str, because: str, right: bool = False) -> None:
        self.text, self.because, self.right = text, because, right


class Question:
    """A question with its choices, exactly one of them right."""

    def __init__(self, text: str, *choices: Choice) -> None:
        self.text, self.choices = text, choices


class Quiz(ipywidgets.VBox):
    """A lesson's questions, each with its choices as radio buttons; the explanation appears below the choice."""

    def __init__(self, questions: tuple[Question, ...]) -> None:
        self.questions = questions
        super().__init__([self._ask(number, question) for number, question in enumerate(questions, 1)])

    def _ask(self, number: int, question: Question) -> ipywidgets.VBox:
        title = ipywidgets.HTML(f"<strong>{number}. {escape(question.text)}</strong>")
        options = [(choice.text, index) for index, choice in enumerate(question.choices)]
        buttons = ipywidgets.RadioButtons(options=options, index=None, layout={"width": "auto"})
        said = ipywidgets.HTML()

        def answer(change) -> None:
            choice = question.choices[change.new]
            verdict = _("Right.") if choice.right else _("Not quite.")
            said.value = f"<span role='status'><strong>{verdict}</strong> {escape(choice.because)}</span>"

        buttons.observe(answer, "value")
        return ipywidgets.VBox([title, buttons, said])

    def _repr_mimebundle_(self, **options) -> dict:
        """The quiz, and for a reader without a kernel its questions."""
        items = ""
        for question in self.questions:
            choices = "".join(f"<li>{escape(choice.text)}</li>" for choice in question.choices)
            items += f"<li>{escape(question.text)}<ul>{choices}</ul></li>"
        return {**super()._repr_mimebundle_(**options), "text/html": f"<ol>{items}</ol>"}


def quiz(lesson: int) -> Quiz:
    """The questions of a lesson."""
    return Quiz(lessons.part(lesson, "exercises").QUIZ)
