"""Every checker knows the right answer from wrong ones, says what is wrong, and never fails on what students write."""

from __future__ import annotations

import json
import math
import re
from html import unescape

import pytest
import torch

import qlab
from qlab.course import exercises
from qlab.course.exercises import Exercise, Kind, check, collect, hint, judge, progress, solution
from qlab.course.lessons import LESSONS
from qlab.course.quiz import quiz

TASKS = [task for lesson in LESSONS for task in exercises.of_lesson(lesson)]
EACH = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """Nobody has solved anything yet."""
    path = tmp_path / "progress.json"
    monkeypatch.setenv("QLAB_PROGRESS", str(path))
    return path


# --- every exercise


@EACH
def test_the_solution_is_right(task):
    assert judge(task, task.solution).right


@EACH
def test_at_least_three_mistakes_are_wrong_and_each_is_told_apart(task):
    assert len(task.mistakes) >= 3
    for mistaken in task.mistakes:
        verdict = judge(task, mistaken)
        assert verdict.kind is Kind.WRONG, mistaken.__name__
        assert verdict.message.endswith(mistaken.__doc__)


@EACH
def test_the_stub_runs_and_is_not_attempted(task):
    space = {"torch": torch}
    exec(task.stub, space)
    assert judge(task, space[task.solution.__name__]).kind is Kind.NOT_ATTEMPTED


@EACH
def test_the_source_stands_alone(task):
    """What the solved notebook shows must run there: it may use torch and math, nothing else of its file."""
    space = {"torch": torch, "math": math}
    exec(task.source, space)
    assert judge(task, space[task.solution.__name__]).right


@EACH
def test_hints_come_one_at_a_time(task):
    assert len(task.hints) >= 2
    said = [hint(task.name).data for _ in range(len(task.hints) + 1)]
    assert all(text in said[number] for number, text in enumerate(task.hints))
    assert said[-1] == said[-2] and "solution" in said[-1]


@EACH
def test_names_and_docstrings_tell_what_to_write(task):
    assert task.solution.__doc__ and task.solution.__doc__ in task.stub
    assert "return" not in task.stub.replace(task.solution.__doc__, "")


# --- what students do


def double(x):
    """Twice x."""
    return x * 2


TASK = Exercise("1.1", double, cases=((1.0,), (torch.tensor([1.0, 2.0]),)), hints=("add", "x + x"))


def changes_its_argument(x):
    x *= 2
    return x


def not_yet(x):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (lambda x: x + x, Kind.RIGHT, "all 2 cases agree"),
        (changes_its_argument, Kind.RIGHT, "all 2 cases agree"),
        (lambda x: x + 1, Kind.WRONG, r"x = tensor\(\[1., 2.\]\):\nyou give tensor\(\[2., 3.\]\), expected"),
        (lambda x: 2, Kind.WRONG, "you give 2, expected tensor"),
        (lambda x: float("nan"), Kind.WRONG, "you give nan, expected 2.0"),
        (lambda x: "2", Kind.WRONG, "you give '2', expected tensor"),
        (lambda x: None, Kind.NOT_ATTEMPTED, "returns nothing yet"),
        (lambda x: ..., Kind.NOT_ATTEMPTED, "returns nothing yet"),
        (not_yet, Kind.NOT_ATTEMPTED, "returns nothing yet"),
        (lambda x: x / 0, Kind.CANNOT_JUDGE, "for x = 1.0 it raised ZeroDivisionError"),
        (lambda: 2, Kind.CANNOT_JUDGE, "it raised TypeError"),
        (2.0, Kind.CANNOT_JUDGE, "2.0 is a float: give the function itself, as in check"),
    ],
)
def test_each_kind_of_answer_gets_its_verdict(answer, kind, words):
    verdict = judge(TASK, answer)
    assert verdict.kind is kind
    assert re.search(words, verdict.message)
    assert str(verdict).startswith(kind.value) and kind.value in verdict._repr_html_()


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        (torch.zeros(2), torch.zeros(3), r"shape \(2,\), expected \(3,\)"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), "torch.float32, expected torch.int64"),
        ((1.0, 2.0), (1.0, 3.0), "you give 2.0, expected 3.0"),
        ((1.0,), (1.0, 3.0), "expected"),
        (3, (1.0, 3.0), "expected"),
        (qlab.QParams(1.0, 0), qlab.QParams(2.0, 0), "expected QParams"),
        ("a", "b", "you give 'a', expected 'b'"),
        (torch.zeros(2), 0.0, "expected 0.0"),
        (False, True, "you give False, expected True"),
    ],
)
def test_a_difference_is_named(found, expected, words):
    assert re.search(words, exercises.differs(found, expected))
    assert exercises.differs(expected, expected) == ""


def test_words_of_students_are_text_and_not_markup():
    assert "&lt;b&gt;" in judge(TASK, lambda x: "<b>")._repr_html_()


# --- progress


def test_progress_counts_what_was_solved_and_survives(fresh):
    assert "0 of 5" in progress().data
    check("1.1", lambda lo, hi, bits: 0.0)
    check("1.1", exercises.exercise("1.1").solution)
    check("1.1", lambda lo, hi, bits: None)
    assert "1 of 5" in progress().data
    hint("1.2")
    assert "return" in solution("1.2").data
    assert json.loads(fresh.read_text()) == {
        "1.1": {"right": True, "tries": 2, "hints": 0, "solution": False},
        "1.2": {"right": False, "tries": 0, "hints": 1, "solution": True},
    }
    assert list(fresh.parent.iterdir()) == [fresh]


def test_a_teacher_collects_progress_files_into_one_table(fresh, tmp_path):
    check("1.1", exercises.exercise("1.1").solution)
    (tmp_path / "ada.json").write_text(fresh.read_text())
    (tmp_path / "bob.json").write_text("{}")
    rows = collect(sorted(tmp_path.glob("???.json")))
    assert [(row["student"], row["solved"], row["tries"]) for row in rows] == [("ada", 1, 1), ("bob", 0, 0)]


@pytest.mark.parametrize("content", ["{", "[]", '{"1.1": {}}', '{"1.1": 3}'])
def test_a_damaged_progress_file_is_named(fresh, content):
    fresh.write_text(content)
    with pytest.raises(ValueError, match="progress.json is no progress file .*delete it"):
        progress()
    with pytest.raises(ValueError, match="nobody.json is no progress file"):
        collect([fresh.with_name("nobody.json")])


def test_an_unknown_exercise_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no exercise '9.9': there are 0.1, 0.2"):
        check("9.9", double)


def test_a_lesson_that_is_not_there_has_no_questions_and_those_there_are_are_named():
    with pytest.raises(ValueError, match="no lesson 13: there are 0, 1, 2, .*, 12, 99"):
        quiz(13)


# --- the questions


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
