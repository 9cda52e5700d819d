"""Every exercise knows the right answer in whatever form it comes, and tells each likely mistake apart."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch

import qlab
from qlab.course import exercises
from qlab.course.exercises import check, hint
from qlab.course.judging import Kind, judge
from qlab.course.lessons import LESSONS

TASKS = [task for lesson in LESSONS for task in exercises.of_lesson(lesson)]
EACH = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)

MISTAKES = 5  # so many likely slips has each exercise thought of


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """Nobody has solved anything yet."""
    monkeypatch.setenv("QLAB_PROGRESS", str(tmp_path / "progress.json"))


@EACH
def test_the_solution_is_right(task):
    assert judge(task, task.solution).right


def as_numpy(value):
    """Arrays, and NumPy's numbers."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, list | tuple):
        return type(value)(map(as_numpy, value))
    return np.array(value)[()] if isinstance(value, bool | int | float) else value


def as_lists(value):
    """Lists of Python's numbers, nested as the dimensions are."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return list(map(as_lists, value)) if isinstance(value, list | tuple) else value


def as_tuples(value):
    """As lists, but tuples."""
    value = as_lists(value)
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def as_float64(value):
    """Whole numbers too."""
    if isinstance(value, torch.Tensor):
        return value.double()
    if isinstance(value, list | tuple):
        return type(value)(map(as_float64, value))
    return float(value) if isinstance(value, bool | int | float) else value


def as_tensors(value):
    """Numbers as tensors of no dimension, lists of them as tensors of one."""
    if isinstance(value, bool | int | float):
        return torch.tensor(value, dtype=None if isinstance(value, bool) else torch.float64)
    if isinstance(value, list | tuple):
        parts = list(map(as_tensors, value))
        return (
            torch.stack(parts) if value and all(isinstance(p, torch.Tensor) and p.ndim == 0 for p in parts) else parts
        )
    return value


def as_column(value):
    """One dimension more, as keepdim leaves it."""
    if isinstance(value, torch.Tensor):
        return value[..., None]
    if isinstance(value, list | tuple):
        return type(value)(map(as_column, value))
    return torch.tensor([[value]], dtype=torch.float64) if isinstance(value, int | float) else value


@pytest.mark.parametrize("form", [as_numpy, as_lists, as_tuples, as_float64, as_tensors, as_column])
@EACH
def test_right_numbers_are_right_in_every_form(task, form):
    verdict = judge(task, lambda *arguments: form(task.solution(*arguments)))
    lacks_tensors = task.needs_tensor and form in (as_numpy, as_lists, as_tuples)
    assert verdict.kind is (Kind.ALMOST if lacks_tensors else Kind.RIGHT), verdict


@EACH
def test_likely_mistakes_are_wrong_and_each_is_told_apart(task):
    assert len(task.mistakes) >= MISTAKES
    for mistaken in task.mistakes:
        verdict = judge(task, mistaken)
        assert verdict.kind is Kind.WRONG, mistaken.__name__
        assert verdict.message.endswith(inspect.getdoc(mistaken)), mistaken.__name__


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
    [torch.ones(2), np.ones(3)], qlab.QParams(1.0, 0), float, None, ..., [[], [1]], [[[]]], np.zeros((0, 3)), np.datetime64("now"),
]  # fmt: skip


@EACH
def test_whatever_is_returned_gets_a_verdict(task):
    for number, strange in enumerate(STRANGE):
        verdict = judge(task, lambda *arguments, answer=strange: answer)
        assert verdict.kind not in (Kind.RIGHT, Kind.ALMOST), number
        assert str(verdict)


def test_an_unknown_exercise_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no exercise '9.9': there are 0.1, 0.2"):
        check("9.9", abs)
