"""Is a student's answer right? One that is gets told so in whatever form its numbers come.

What a student wrote runs on the cases of an exercise, the smallest first, beside the solution. Right numbers are right: a
list, a NumPy array, a tensor of another type or with a dimension of one more count as the numbers that they hold. A wrong
one is named with its place, and whoever's answers are those of a well-known mistake is told which one it is.
"""

from __future__ import annotations

import copy
import dis
import inspect
import io
import math
import numbers
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from enum import Enum
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qlab.course.language import _

if TYPE_CHECKING:
    from qlab.course.exercises import Exercise

TOLERANCE = 1e-5  # float32 has 1e-7; a sum in another order may lose a digit or two
WHOLE = 1e-6  # so far from a whole number, or from 0, is still that number
ZERO = 1e-8  # what is smaller is a 0 that was computed in float


class Kind(Enum):
    """The five answers that a check can give."""

    RIGHT = "right"
    ALMOST = "almost"  # the right numbers, but not a tensor where the lesson computes on with one
    WRONG = "wrong"
    NOT_ATTEMPTED = "not attempted"
    CANNOT_JUDGE = "cannot judge"


COLOURS = {Kind.RIGHT: "#0072b2", Kind.WRONG: "#a0522d", Kind.ALMOST: "#a0522d"}


@dataclass(frozen=True, repr=False)
class Verdict:
    """What ``check`` says. A notebook shows it as a line; ``right`` is what a test asks for."""

    kind: Kind
    message: str

    @property
    def right(self) -> bool:
        """Was the answer right?"""
        return self.kind is Kind.RIGHT

    def __str__(self) -> str:
        return f"{_(self.kind.value)}: {self.message}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        style = f"border-left: 4px solid {COLOURS.get(self.kind, '#767676')}; padding: 0.3em 0.8em"
        return f"<div role='status' style='{style}; white-space: pre-wrap'>{escape(str(self))}</div>"


def judge(task: Exercise, answer: Callable) -> Verdict:
    """The verdict on one answer. The arguments that it gets are copies: what it does to them harms nobody."""
    if not callable(answer):
        what = _("{name} is a {type}: give the function itself, as in check({number!r}, {function})")
        words = {"name": _short(answer), "type": type(answer).__name__, "number": task.name}
        return Verdict(Kind.CANNOT_JUDGE, what.format(**words, function=task.solution.__name__))
    if is_empty(answer):
        what = _("the body is still empty. Write it, with a return; hint({number!r}) helps")
        return Verdict(Kind.NOT_ATTEMPTED, what.format(number=task.name))
    tensors = True
    for case in task.cases:
        expected, (found, error) = task.solution(*copy.deepcopy(case)), _run(answer, case)
        if error is not None:
            what = _("for {case} it raised {type}: {error}")
            said = what.format(case=in_words(task, case), type=type(error).__name__, error=error)
            known = _mistake(task, answer)
            return Verdict(Kind.WRONG, f"{said}\n{known}") if known else Verdict(Kind.CANNOT_JUDGE, said)
        try:
            difference = differs(found, expected, task.tolerance)
        except Exception as trouble:
            what = _("for {case} it returned a {type} that cannot be compared: {error}")
            words = {"case": in_words(task, case), "type": type(found).__name__, "error": trouble}
            return Verdict(Kind.CANNOT_JUDGE, what.format(**words))
        if difference:
            lines = (f"{in_words(task, case)}:", difference, _mistake(task, answer))
            return Verdict(Kind.WRONG, "\n".join(filter(None, lines)))
        tensors = tensors and _has_tensors(found, expected)
    if task.needs_tensor and not tensors:
        what = _("the numbers are right; return a tensor (torch.as_tensor makes one): the lesson computes on with it")
        return Verdict(Kind.ALMOST, what)
    return Verdict(Kind.RIGHT, _("all {n} cases agree").format(n=len(task.cases)))


def is_empty(answer: Callable) -> bool:
    """Is there nothing in the body of a function but ``...``, ``pass`` or a docstring?

    >>> def stub(x):
    ...     '''Twice x.'''
    ...     ...
    >>> is_empty(stub), is_empty(lambda x: 2 * x)
    (True, False)
    """
    code = getattr(inspect.unwrap(answer), "__code__", None)
    if code is None:
        return False
    known = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE"}
    steps = list(dis.get_instructions(code))
    return all(step.opname in known and ("CONST" not in step.opname or step.argval in (None, ...)) for step in steps)


def _run(answer: Callable, case: tuple) -> tuple[object, Exception | None]:
    """What an answer gives for a case, or what it raises."""
    try:
        return answer(*copy.deepcopy(case)), None
    except Exception as error:
        return None, error


def _mistake(task: Exercise, answer: Callable) -> str:
    """What to tell about a wrong answer, when it does in each case what a known mistake does: gives it, or raises it."""
    with redirect_stdout(io.StringIO()):  # what it prints has been seen once
        mine = [_run(answer, case) for case in task.cases]
    for mistaken in task.mistakes:
        its = [_run(mistaken, case) for case in task.cases]
        fails = all(error is not None for _found, error in its)  # everywhere: then for this reason if in these words
        same = all(_same(*pair, task.tolerance) for pair in zip(mine, its))
        if same and (not fails or str(mine[0][1]) == str(its[0][1])):
            return _(inspect.getdoc(mistaken))
    return ""


def _same(one: tuple, other: tuple, tolerance: float) -> bool:
    (found, error), (known, its_error) = one, other
    if error is not None or its_error is not None:
        return type(error) is type(its_error)
    try:
        return not differs(found, known, tolerance)
    except Exception:
        return False


# --- comparing


def differs(found: object, expected: object, tolerance: float = TOLERANCE) -> str:
    """How a result differs from the expected one, and where it first does so; empty when it does not.

    >>> print(differs(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 1.5])))
    you give tensor([0.5000, 1.0000]), expected tensor([0.5000, 1.5000])
    the first that differs is [1]: you give 1, expected 1.5

    What counts are the numbers: arrays, lists and tuples are equal when their numbers are, whatever their type, and with
    dimensions of one more or less.

    >>> differs([[2, 3]], torch.tensor([2.0, 3.0])), differs(np.float32(2), 2)
    ('', '')
    """
    place, words = _differs(found, expected, tolerance)
    if not place:
        return words
    plain = _both(found, expected)
    return plain + "\n" + _("the first that differs is {place}: {words}").format(place=place, words=words)


def _differs(found: object, expected: object, tolerance: float) -> tuple[str, str]:
    """(place, words) of the first difference: the place as Python writes it, "[1][0, 2]", or empty where it is the whole."""
    plain = _both(found, expected)
    if found is None and expected is not None:
        what = _("it gives nothing (None), expected {expected}: does every way through the body end with a return?")
        return "", what.format(expected=_short(expected))
    if isinstance(expected, Tensor):
        return _differs_in_numbers(found, expected, tolerance, plain)
    if isinstance(expected, tuple | list):
        return _differs_in_parts(found, expected, tolerance, plain)
    found = _alone(found)
    if isinstance(expected, numbers.Real) and not isinstance(expected, bool):
        return "", "" if _close(found, expected, tolerance) else plain
    try:
        return "", "" if bool(found == expected) else plain
    except Exception:
        return "", plain


def _differs_in_numbers(found: object, expected: Tensor, tolerance: float, plain: str) -> tuple[str, str]:
    """For a tensor of expected numbers: the same numbers, in a shape that is the same without its ones."""
    values = _numbers(found)
    if values is None:
        return "", plain
    shapes = [[n for n in shape if n != 1] for shape in (values.shape, expected.shape)]
    if shapes[0] != shapes[1]:
        words = _("you give the shape {found}, expected {expected}")
        return "", words.format(found=tuple(values.shape), expected=tuple(expected.shape))
    values = values.reshape(expected.shape)
    if isinstance(found, Tensor | np.ndarray) and str(found.dtype).endswith("float16"):  # bfloat16 too
        tolerance = max(tolerance, 2.0**-7 if "bfloat16" in str(found.dtype) else 2.0**-10)
    exact, near = expected.double(), tolerance if expected.is_floating_point() else 0.0
    size = exact[exact.isfinite()].abs().max().item() if exact.isfinite().any() else 0.0
    close = torch.isclose(values, exact, near, near * size or WHOLE, equal_nan=True)  # a small one may have cancelled
    if bool(close.all()):
        return "", ""
    if expected.numel() == 1:
        return "", plain
    first = tuple((~close).nonzero()[0].tolist())
    words = _("you give {found}, expected {expected}").format(
        **_told_apart(values[first].item(), expected[first].item())
    )
    return str(list(first)), words


def _differs_in_parts(found: object, expected: tuple | list, tolerance: float, plain: str) -> tuple[str, str]:
    """For a list or tuple: as many parts, each of them the same."""
    alone, found = found, _as_list(found)
    if found is None and len(expected) == 1 and _number(alone) is not None:
        found = [alone]
    while found is not None and len(found) == 1 != len(expected) and (inner := _as_list(found[0])) is not None:
        found = inner  # [[2, 4]] for [2, 4]
    if found is None:
        return "", plain
    if len(found) != len(expected):
        words = _("you give {found} entries, expected {expected}").format(found=len(found), expected=len(expected))
        return "", f"{plain}\n{words}"
    for number, pair in enumerate(zip(found, expected)):
        place, words = _differs(*pair, tolerance)
        if words:
            return f"[{number}]{place}", words
    return "", ""


def _numbers(value: object) -> Tensor | None:
    """All numbers of a tensor, an array, a number, or lists of these, as float64; None when there is something else."""
    if isinstance(value, Tensor):
        return None if value.is_complex() else value.detach().cpu().double()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value, np.float64))
    parts = _as_list(value)
    if parts is not None:
        inner = [_numbers(part) for part in parts]
        if any(part is None or part.shape != inner[0].shape for part in inner):
            return None
        return torch.stack(inner) if inner else torch.zeros(0, dtype=torch.float64)
    number = _number(value)
    return None if number is None else torch.tensor(number, dtype=torch.float64)


def _as_list(value: object) -> list | None:
    """The entries of a list, a tuple, an array or a tensor; None for what has none."""
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist() if value.ndim else None
    return list(value) if isinstance(value, tuple | list) else None


def _alone(value: object) -> object:
    """What stands alone in lists, arrays or tensors of one entry, as Python's own; all else as it is."""
    while (parts := _as_list(value)) is not None and len(parts) == 1:
        value = parts[0]
    alone = isinstance(value, np.generic) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0)
    return value.item() if alone else value


def _number(value: object) -> float | None:
    """A number as a float; None for what is none, or too large to be one."""
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return float(value) if isinstance(value, numbers.Real) else None
    except OverflowError:
        return None


def _close(found: object, expected: float, tolerance: float) -> bool:
    number = _number(found)
    if number is None or math.isnan(number):
        return number is not None and math.isnan(expected)
    if isinstance(expected, numbers.Integral) or abs(expected) < ZERO:
        return abs(number - expected) <= WHOLE
    return math.isclose(number, expected, rel_tol=tolerance)


def _has_tensors(found: object, expected: object) -> bool:
    """Is there a tensor wherever one is expected?"""
    if isinstance(expected, Tensor):
        return isinstance(found, Tensor)
    if not isinstance(expected, tuple | list):
        return True
    parts = [found] if _as_list(found) is None else found  # a number may stand for a list of one
    return all(map(_has_tensors, parts, expected))


# --- in words


def in_words(task: Exercise, case: tuple) -> str:
    """The arguments of a case, by name."""
    names = inspect.signature(task.solution).parameters
    return ", ".join(f"{name} = {_short(value)}" for name, value in zip(names, case))


def _told_apart(found: float, expected: float) -> dict[str, str]:
    """Two numbers with as few digits as show that they differ."""
    pairs = ((f"{found:.{digits}g}", f"{expected:.{digits}g}") for digits in (5, 8, 17))
    mine, right = next(pair for pair in pairs if pair[0] != pair[1])
    return {"found": mine, "expected": right}


def _both(found: object, expected: object) -> str:
    """The two beside each other; where six digits do not tell them apart, with all their digits."""
    short = [_short(found), _short(expected)]
    if short[0] == short[1]:
        short = [repr(found)[:120], repr(expected)[:120]]
    return _("you give {found}, expected {expected}").format(found=short[0], expected=short[1])


def _short(value: object) -> str:
    """A value in a line; a number with what six digits hold of it, NumPy's as Python's."""
    try:
        if isinstance(value, np.generic):
            value = value.item()
        text = f"{value:.6g}" if isinstance(value, float) and value % 1 else repr(value)
    except Exception as error:  # of a number with more than 4,300 digits, too
        text = _("{type} that cannot be shown ({error})").format(type=type(value).__name__, error=type(error).__name__)
    return text if len(text) <= 120 else text[:117] + "..."
