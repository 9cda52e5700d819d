"""A student's answer gets a fair verdict: right numbers are right, a wrong one has its place, a known mistake its words."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
import torch

import qlab
from qlab.course.exercises import Exercise
from qlab.course.judging import Kind, differs, judge


def double(x):
    """Twice x."""
    return x * 2


def squares(x):
    """Twice x is not its square."""
    return x**2


def appends(x):
    """A number has no append."""
    return x.append(x)


TASK = Exercise(
    "1.1", double, cases=((1.0,), (torch.tensor([1.0, 3.0]),)), hints=("add", "x + x"), mistakes=(squares, appends)
)


def changes_its_argument(x):
    x *= 2
    return x


def stub(x):
    """Twice x."""
    ...  # noqa: PIE790


def passes(x):
    pass


def documented(x):
    """Twice x."""


def forgets_the_return(x):
    x * 2


def forgets_one_return(x):  # noqa: RET503
    if isinstance(x, float):
        return 2 * x


def of_torch(x):
    return torch.nn.Module()(x)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (lambda x: x + x, Kind.RIGHT, "all 2 cases agree"),
        (changes_its_argument, Kind.RIGHT, "all 2 cases agree"),
        (
            lambda x: x + 1,
            Kind.WRONG,
            r"x = tensor\(\[1., 3.\]\):\nyou give tensor\(\[2., 4.\]\), expected tensor\(\[2., 6",
        ),
        (lambda x: 2, Kind.WRONG, r"you give the shape \(\), expected \(2,\)"),
        (lambda x: float("nan"), Kind.WRONG, "you give nan, expected 2.0"),
        (lambda x: "2", Kind.WRONG, "you give '2', expected 2.0"),
        (stub, Kind.NOT_ATTEMPTED, "the body is still empty"),
        (passes, Kind.NOT_ATTEMPTED, "the body is still empty"),
        (documented, Kind.NOT_ATTEMPTED, "the body is still empty"),
        (lambda x: None, Kind.NOT_ATTEMPTED, "the body is still empty"),
        (lambda x: ..., Kind.NOT_ATTEMPTED, "the body is still empty"),
        (functools.wraps(stub)(lambda *x: stub(*x)), Kind.NOT_ATTEMPTED, "the body is still empty"),
        (forgets_the_return, Kind.WRONG, r"gives nothing \(None\), expected 2.0: does every way .+ end with a return"),
        (forgets_one_return, Kind.WRONG, r"x = tensor.+\nit gives nothing \(None\), expected tensor"),
        (of_torch, Kind.CANNOT_JUDGE, "it raised NotImplementedError: .+forward"),
        (lambda x: x / 0, Kind.CANNOT_JUDGE, "for x = 1.0 it raised ZeroDivisionError"),
        (lambda: 2, Kind.CANNOT_JUDGE, "it raised TypeError"),
        (2.0, Kind.CANNOT_JUDGE, "2.0 is a float: give the function itself, as in check"),
        (print, Kind.WRONG, "gives nothing"),
    ],
)
def test_each_kind_of_answer_gets_its_verdict(answer, kind, words):
    verdict = judge(TASK, answer)
    assert verdict.kind is kind
    assert re.search(words, verdict.message)
    assert str(verdict).startswith(kind.value) and kind.value in verdict._repr_html_()


def first_even(numbers):
    """The first even one of the numbers, None where there is none."""
    return next((n for n in numbers if n % 2 == 0), None)


def test_none_is_an_answer_where_it_is_the_answer():
    task = Exercise("1.1", first_even, cases=(([1],), ([1, 2],)), hints=())
    assert judge(task, first_even).right
    assert judge(task, lambda numbers: numbers[-1]).message == "numbers = [1]:\nyou give 1, expected None"
    assert judge(task, lambda numbers: (numbers, None)[1]).message.startswith("numbers = [1, 2]:\nit gives nothing")


def test_a_number_for_a_list_of_one_is_judged_by_the_other_cases():
    task = Exercise("1.1", lambda n: [1.0] * n, cases=((1,), (2,)), hints=())
    assert judge(task, lambda n: 1.0).message.startswith("n = 2:")


# --- a known mistake gets its words


def test_a_known_mistake_is_told():
    assert judge(TASK, lambda x: x * x).message.endswith("\nTwice x is not its square.")


def test_a_known_mistake_that_crashes_is_told_and_counts_as_wrong():
    verdict = judge(TASK, lambda x: x.append(2 * x))
    assert verdict.kind is Kind.WRONG
    assert re.search("it raised AttributeError: .+\nA number has no append.$", verdict.message)


def test_another_crash_of_the_same_type_is_not_that_mistake():
    verdict = judge(TASK, lambda x: x.no_such_name)
    assert verdict.kind is Kind.CANNOT_JUDGE and "append" not in verdict.message


def mixes_rows(x):
    """The second dimension is that of the columns."""
    return x * 2 if isinstance(x, float) else x + torch.ones(5)


def test_a_crash_in_a_later_case_is_the_mistake_that_crashes_there_in_whatever_words():
    task = Exercise("1.1", double, TASK.cases, hints=(), mistakes=(squares, mixes_rows))
    verdict = judge(task, lambda x: 2 * x if isinstance(x, float) else torch.ones(7) + x)
    assert verdict.kind is Kind.WRONG and verdict.message.endswith(mixes_rows.__doc__)


def test_what_a_wrong_answer_prints_is_printed_once(capsys):
    judge(TASK, lambda x: print("x is", x) or x * x)
    assert capsys.readouterr().out == "x is 1.0\n"


# --- the form of an answer


def test_where_the_lesson_computes_on_with_a_tensor_right_numbers_in_another_form_are_almost_right():
    task = Exercise("1.1", double, TASK.cases, hints=(), needs_tensor=True)
    verdict = judge(task, lambda x: np.asarray(x) * 2)
    assert verdict.kind is Kind.ALMOST and "the numbers are right; return a tensor" in verdict.message
    assert judge(task, lambda x: np.asarray(x) * 3).kind is Kind.WRONG and judge(task, double).right


T = torch.tensor


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (np.array([1.0, 2.0]), T([1.0, 2.0])),
        (np.arange(3), torch.arange(3)),
        (np.ones(2, ">f4"), torch.ones(2)),
        (np.ones(2, np.uint16), torch.ones(2)),
        (np.array([True, False]), T([True, False])),
        (T([1, 0], dtype=torch.int8), T([True, False])),
        (T([1.0, 2.0]), T([1, 2])),
        (T([1, 2]), T([1.0, 2.0])),
        (T([1 / 3], dtype=torch.bfloat16), T([1 / 3])),
        (np.array([1 / 3], np.float16), T([1 / 3])),
        (T([1.0], requires_grad=True), T([1.0])),
        ([1, 2.0], T([1.0, 2.0])),
        (((1, 2), (3, 4)), T([[1.0, 2.0], [3.0, 4.0]])),
        ([T(1.0), np.float32(2)], T([1.0, 2.0])),
        ([T([1.0, 2.0]), [3, 4]], T([[1.0, 2.0], [3.0, 4.0]])),
        (T([[1.0], [2.0]]), T([1.0, 2.0])),
        (T([[1.0, 2.0]]), T([1.0, 2.0])),
        (2.0, T([2.0])),
        ([[2.0]], T([2.0])),
        ([], torch.zeros(0)),
        (np.float32(0.5), 0.5),
        (np.array(0.5), 0.5),
        (T([[0.5]]), 0.5),
        ([0.5], 0.5),
        (3.0, 3),
        (np.True_, True),
        (T(True), True),
        (1, True),
        (np.array([[2, 4]]), [2, 4]),
        (T([[2.0], [4.0]]), [2, 4]),
        (3, [3]),
        (np.array([[1.0, 2.0], [3.0, 4.0]]), [(1.0, 2.0), (3.0, 4.0)]),
        ([np.int64(1), np.array([2.0])], (1, T([2.0]))),
        (np.array(["a", "b"]), ("a", "b")),
        (np.str_("a"), "a"),
        (float("nan"), float("nan")),
        (T([float("nan"), float("inf")]), T([float("nan"), float("inf")])),
        (10**18, 10**18),
        (1e-9, 0.0),
    ],
)
def test_right_numbers_are_right_in_whatever_form_they_come(found, expected):
    assert differs(found, expected) == ""


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        (torch.zeros(2), torch.zeros(3), r"the shape \(2,\), expected \(3,\)"),
        (np.zeros(3), torch.zeros(2), r"the shape \(3,\), expected \(2,\)"),
        (T([1.0, 3.0]), T([1.0, 2.0]), r"^you give tensor.+, expected tensor.+\n.+ is \[1\]: you give 3, expected 2$"),
        ([[1, 2], [3, 5]], T([[1.0, 2.0], [3.0, 4.0]]), r"differs is \[1, 1\]: you give 5, expected 4$"),
        (T([[1.0], [3.0]]), T([1.0, 2.0]), r"differs is \[1\]: you give 3, expected 2$"),
        ((1.0, 2.0), (1.0, 3.0), r"differs is \[1\]: you give 2.0, expected 3.0$"),
        ((T([1.0]), T([1.0, 2.0])), (T([1.0]), T([1.0, 4.0])), r"differs is \[1\]\[1\]: you give 2, expected 4$"),
        ([(1, 2), (3, 5)], [(1, 2), (3, 4)], r"differs is \[1\]\[1\]: you give 5, expected 4$"),
        ((1.0, None), (1.0, 3.0), r"differs is \[1\]: it gives nothing"),
        (T([0.333, 1.0]), T([0.3333, 1.0]), r"you give 0.333, expected 0.3333$"),
        (T([1.00002, 1.0]), T([1.0, 1.0]), r"you give 1.00002, expected 1$"),
        (T([[1.0, 2.0], [3.0, 4.0]]), T([[1.0, 2.0]]), r"the shape \(2, 2\), expected \(1, 2\)"),
        ((1.0,), (1.0, 3.0), "you give 1 entries, expected 2"),
        (3, (1.0, 3.0), "you give 3, expected"),
        ([1, 2], {1, 2}, "expected {1, 2}"),
        (qlab.QParams(1.0, 0), qlab.QParams(2.0, 0), "expected QParams"),
        ("a", "b", "you give 'a', expected 'b'"),
        (torch.zeros(2), 0.0, "expected 0.0"),
        (False, True, "you give False, expected True"),
        (np.array([True, True]), True, "expected True"),
        (np.array([1.0, 2.0]), "yes", "expected 'yes'"),
        (1073741825, 1073741824, "you give 1073741825, expected 1073741824"),
        (T([100001]), T([100000]), "expected"),
        (1e-9, 2e-5, "expected 2e-05"),
        (1j, 1.0, "expected 1.0"),
        (10**400, 1.0, "you give 1000.*, expected 1.0"),
        pytest.param(10**5000, 1.0, r"you give int that cannot be shown \(ValueError\), expected 1.0", id="no-digits"),
    ],
)
def test_a_difference_is_named_with_its_place(found, expected, words):
    assert re.search(words, differs(found, expected))
    assert differs(expected, expected) == ""


def test_a_number_in_place_of_a_function_is_told_however_long_it_is():
    assert "int that cannot be shown (ValueError) is a int: give the function" in judge(TASK, 10**5000).message


def test_what_cannot_be_compared_is_not_called_wrong():
    verdict = judge(TASK, lambda x: torch.ones(2).to_sparse() if isinstance(x, torch.Tensor) else 2.0)
    assert verdict.kind is Kind.CANNOT_JUDGE and "returned a Tensor that cannot be compared" in verdict.message


def test_words_of_students_are_text_and_not_markup():
    assert "&lt;b&gt;" in judge(TASK, lambda x: "<b>")._repr_html_()


def test_a_number_alone_stands_for_a_list_of_one_and_a_longer_one_is_asked_for():
    task = Exercise("1.1", lambda n: [n] * n, cases=((1,), (2,)), hints=())
    assert judge(task, lambda n: n * n).message.startswith("n = 2:\nyou give 4, expected [2, 2]")
