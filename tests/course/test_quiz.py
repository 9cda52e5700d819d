"""Every lesson's questions have one right choice each, and explain each choice."""

from __future__ import annotations

from html import unescape

import pytest

from qlab.course.lessons import LESSONS
from qlab.course.quiz import quiz


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_quiz_has_three_questions_with_one_right_choice_each_and_explains_every_choice(lesson):
    shown = quiz(lesson)
    assert len(shown.questions) == 3
    for question, box in zip(shown.questions, shown.children):
        assert sum(choice.right for choice in question.choices) == 1 and len(question.choices) >= 3
        title, buttons, said = box.children
        assert question.text in unescape(title.value) and buttons.value is None
        for index, choice in enumerate(question.choices):
            buttons.value = index
            assert choice.because in unescape(said.value)
            assert ("Right." in said.value) is choice.right


def test_the_right_choice_is_not_always_at_the_same_place():
    places = [[c.right for c in q.choices].index(True) for n in LESSONS for q in quiz(n).questions]
    assert len(set(places)) > 1


def test_a_reader_without_a_kernel_sees_the_questions():
    html = quiz(1)._repr_mimebundle_()["text/html"]
    assert html.count("<li>") == 3 + sum(len(question.choices) for question in quiz(1).questions)


def test_a_lesson_that_is_not_there_has_no_questions_and_those_there_are_are_named():
    with pytest.raises(ValueError, match="no lesson 13: there are 0, 1, 2, .*, 12, 99"):
        quiz(13)
