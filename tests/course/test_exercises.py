"""Every checker knows the right answer from wrong ones, says what is wrong, and never fails on what students write."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import subprocess
import sys
from html import unescape

import numpy as np
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


class Stubborn:
    """Nothing can be done with it."""

    def _refuse(self, *others):
        raise ArithmeticError("no")

    __eq__ = __float__ = __repr__ = __len__ = __bool__ = _refuse
    __hash__ = None


STRANGE = [
    10**400, 10**5000, -(10**400), 1j, "", b"1", {}, [], (), set(), object(), Stubborn(), [Stubborn()] * 3, float("inf"),
    np.float32(0.5), np.int64(3), np.True_, np.array(2.0), np.zeros(3), np.zeros((2, 2)), np.ones(4, ">i4"), np.array(["a", "b"]),
    np.array([None, 1]), torch.zeros(0), torch.ones(3), torch.ones(2, 2, dtype=torch.int8), torch.ones(3, dtype=torch.complex64),
    torch.eye(3).to_sparse(), torch.tensor(True), torch.ones(1, requires_grad=True),
    [torch.ones(2), np.ones(3)], qlab.QParams(1.0, 0), float, None,
]  # fmt: skip


@EACH
def test_whatever_is_returned_gets_a_verdict(task):
    for number, strange in enumerate(STRANGE):
        verdict = judge(task, lambda *arguments, answer=strange: answer)
        assert verdict.kind is not Kind.RIGHT, number
        assert str(verdict)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])),
        (np.arange(3), torch.arange(3)),
        (np.ones(2, ">f4"), torch.ones(2)),
        (np.array([True, False]), torch.tensor([True, False])),
        (np.float32(0.5), 0.5),
        (np.array(0.5), 0.5),
        (np.True_, True),
        ([np.int64(1), np.array([2.0])], (1, torch.tensor([2.0]))),
        (np.array(["a", "b"]), ("a", "b")),
    ],
)
def test_numpys_arrays_and_numbers_count_as_what_they_hold(found, expected):
    assert exercises.differs(found, expected) == ""


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        (np.array([1.0, 3.0]), torch.tensor([1.0, 2.0]), "you give tensor"),
        (np.zeros(3), torch.zeros(2), r"shape \(3,\), expected \(2,\)"),
        (np.array([True, True]), True, "expected True"),
        (np.array([1.0, 2.0]), "yes", "expected 'yes'"),
        (10**400, 1.0, "you give 1000.*, expected 1.0"),
        pytest.param(10**5000, 1.0, r"you give int that cannot be shown \(ValueError\), expected 1.0", id="no-digits"),
    ],
)
def test_strange_answers_are_wrong_and_told(found, expected, words):
    assert re.search(words, exercises.differs(found, expected))


def test_a_number_in_place_of_a_function_is_told_however_long_it_is():
    assert "int that cannot be shown (ValueError) is a int: give the function" in judge(TASK, 10**5000).message


def test_what_cannot_be_compared_is_not_called_wrong():
    verdict = judge(TASK, lambda x: torch.ones(2).to_sparse() if isinstance(x, torch.Tensor) else 2.0)
    assert verdict.kind is Kind.CANNOT_JUDGE and "returned a Tensor that cannot be compared" in verdict.message


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
    assert {path.name for path in fresh.parent.iterdir()} == {"progress.json", ".progress.json.lock"}


def test_a_teacher_collects_progress_files_into_one_table(fresh, tmp_path):
    check("1.1", exercises.exercise("1.1").solution)
    (tmp_path / "ada.json").write_text(fresh.read_text())
    (tmp_path / "bob.json").write_text("{}")
    rows = collect(sorted(tmp_path.glob("???.json")))
    assert [(row["student"], row["solved"], row["tries"]) for row in rows] == [("ada", 1, 1), ("bob", 0, 0)]


@pytest.mark.parametrize("content", ["{", "[]", '{"1.1": {}}', '{"1.1": 3}'])
def test_a_damaged_progress_file_is_named(fresh, content):
    fresh.write_text(content)
    with pytest.raises(ValueError, match=r"progress.json is no progress file \(.+\): delete it"):
        progress()
    assert "is no progress file" in collect([fresh])[0]["problem"]
    verdict = check("1.1", exercises.exercise("1.1").solution)
    assert verdict.right and "progress is not kept" in verdict.message and "delete it" in verdict.message
    assert fresh.read_text() == content, "a damaged file is not written over"


def test_one_bad_file_does_not_keep_a_teacher_from_the_others(fresh, tmp_path):
    check("1.1", exercises.exercise("1.1").solution)
    (tmp_path / "bad.json").write_text('{"1.1": {"right": true, "tries": "many", "hints": 0, "solution": false}}')
    bad, nobody, good = collect([tmp_path / "bad.json", tmp_path / "nobody.json", fresh])
    assert (
        "bad.json is no progress file (an exercise in it has no right, tries" in bad["problem"] and bad["solved"] == 0
    )
    assert "nobody.json is no progress file" in nobody["problem"] and bad.keys() == nobody.keys() == good.keys()
    assert good["problem"] == "" and good["solved"] == 1


def test_files_that_kept_their_name_are_told_apart_by_their_folders(fresh, tmp_path):
    check("1.1", exercises.exercise("1.1").solution)
    for name in ("ada", "bob"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.json").write_text(fresh.read_text())
    assert [row["student"] for row in collect(sorted(tmp_path.glob("*/progress.json")))] == ["ada", "bob"]


@pytest.fixture(params=["full", "read-only", "no folder"])
def unwritable(request, fresh, monkeypatch, tmp_path):
    """Progress cannot be written, until ``unwritable()`` is called."""
    if request.param == "no folder":
        (tmp_path / "file").touch()
        monkeypatch.setenv("QLAB_PROGRESS", str(tmp_path / "file" / "progress.json"))
    number, name = {"full": (errno.ENOSPC, "whole"), "read-only": (errno.EACCES, "FileLock")}.get(
        request.param, (0, "")
    )

    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number), "progress.json")

    if name:
        monkeypatch.setattr(exercises, name, fail)
    yield monkeypatch.undo
    exercises._UNKEPT.clear()


def test_where_progress_cannot_be_written_the_answer_comes_all_the_same(unwritable, fresh):
    right, wrong = exercises.exercise("1.1").solution, lambda lo, hi, bits: 0.0
    assert check("1.1", right).right and check("1.1", wrong).kind is Kind.WRONG
    said = [check("1.1", right).message, hint("1.1").data, hint("1.1").data, solution("1.1").data]
    assert all("progress is not kept: " in text and "QLAB_PROGRESS may name" in text for text in said)
    assert "**1/" in said[1] and "**2/" in said[2] and "return" in said[3]
    assert not fresh.exists() and "1 of 5" in progress().data


def test_what_could_not_be_written_is_written_later(unwritable, fresh, monkeypatch):
    check("1.1", exercises.exercise("1.1").solution)
    unkept = exercises._UNKEPT.pop(exercises.progress_file())
    unwritable()
    monkeypatch.setenv("QLAB_PROGRESS", str(fresh))
    exercises._UNKEPT[fresh] = unkept
    assert "progress" not in hint("1.2").data
    assert {name: entry["right"] for name, entry in json.loads(fresh.read_text()).items()} == {
        "1.1": True,
        "1.2": False,
    }
    assert exercises._UNKEPT == {}


def test_two_notebooks_at_once_lose_nothing(fresh):
    code = "from qlab.course.exercises import hint; print(flush=True); input(); [hint('1.1') for _ in range(30)]"
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {**os.environ, "QLAB_PROGRESS": str(fresh)}}
    both = [subprocess.Popen([sys.executable, "-c", code], **options) for _ in range(2)]
    for process in both:
        process.stdout.readline()  # it is ready
    for process in both:
        process.stdin.write(b"\n")
        process.stdin.close()
    assert [process.wait(120) for process in both] == [0, 0]
    for process in both:
        process.stdout.close()
    assert json.loads(fresh.read_text())["1.1"]["hints"] == 60


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
