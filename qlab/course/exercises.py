"""Exercises that check themselves: ``check``, ``hint``, ``solution``, and ``progress``.

An exercise is a function to write. What a student wrote runs on a few cases, the smallest first, beside the
solution; the first difference is shown. Well-known mistakes are kept as functions too: whoever's answers are
those of a mistake is told which one it is. Lesson 2's exercises stand in ``qlab/course/lesson02/exercises.py``.
"""

from __future__ import annotations

import ast
import copy
import inspect
import json
import math
import os
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from html import escape
from pathlib import Path

import torch
from IPython.display import HTML, Markdown

from qlab.affine import QParams
from qlab.course import lessons
from qlab.course.language import _

COLOURS = {"right": "#0072b2", "wrong": "#a0522d", "not attempted": "#5f5f5f", "cannot judge": "#5f5f5f"}


@dataclass(frozen=True)
class Exercise:
    """A function to write. ``name`` is "1.2" for the second exercise of lesson 1.

    - ``solution``: its signature and docstring are what the student gets, its answers are right.
    - ``cases``: tuples of arguments, the smallest first. ``hints``: from a nudge to almost the answer.
    - ``mistakes``: functions that make a well-known mistake; the docstring is what its author is told.
    """

    name: str
    solution: Callable
    cases: tuple[tuple, ...]
    hints: tuple[str, ...]
    mistakes: tuple[Callable, ...] = ()
    tolerance: float = 1e-6

    @property
    def source(self) -> str:
        """The solution as it stands in the solved notebook."""
        return textwrap.dedent(inspect.getsource(self.solution)).rstrip()

    @property
    def stub(self) -> str:
        """The solution's first lines and docstring, and three dots for the rest: it runs, and returns None."""
        function = ast.parse(self.source).body[0]
        lines = self.source.splitlines()[: function.body[0].end_lineno]
        return "\n".join([*lines, "    ...  # " + _("your code")])


class Kind(Enum):
    """The four answers that a check can give."""

    RIGHT = "right"
    WRONG = "wrong"
    NOT_ATTEMPTED = "not attempted"
    CANNOT_JUDGE = "cannot judge"


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
        style = f"border-left: 4px solid {COLOURS[self.kind.value]}; padding: 0.3em 0.8em"
        return f"<div role='status' style='{style}; white-space: pre-wrap'>{escape(str(self))}</div>"


def check(name: str, answer: Callable) -> Verdict:
    """Judge a student's function against exercise ``name``, and remember the verdict (see :func:`progress`)."""
    verdict = judge(exercise(name), answer)
    _remember(name, tried=verdict.kind in (Kind.RIGHT, Kind.WRONG), right=verdict.right)
    return verdict


def judge(task: Exercise, answer: Callable) -> Verdict:
    """The verdict on one answer. The arguments that it gets are copies: what it does to them harms nobody."""
    if not callable(answer):
        what = _("{name} is a {type}: give the function itself, as in check({number!r}, {function})")
        words = {"name": repr(answer), "type": type(answer).__name__, "number": task.name}
        return Verdict(Kind.CANNOT_JUDGE, what.format(**words, function=task.solution.__name__))
    for case in task.cases:
        expected = task.solution(*copy.deepcopy(case))
        try:
            found = answer(*copy.deepcopy(case))
        except NotImplementedError:
            found = None
        except Exception as error:
            what = _("for {case} it raised {type}: {error}")
            words = {"case": in_words(task, case), "type": type(error).__name__, "error": error}
            return Verdict(Kind.CANNOT_JUDGE, what.format(**words))
        if found is None or found is ...:
            what = _("it returns nothing yet. Write the body, with a return; hint({number!r}) helps")
            return Verdict(Kind.NOT_ATTEMPTED, what.format(number=task.name))
        if difference := differs(found, expected, task.tolerance):
            return Verdict(Kind.WRONG, f"{in_words(task, case)}:\n{difference}{_mistake(task, answer)}")
    return Verdict(Kind.RIGHT, _("all {n} cases agree").format(n=len(task.cases)))


def _mistake(task: Exercise, answer: Callable) -> str:
    """What to tell about a wrong answer, when its results are those of a known mistake."""
    for mistaken in task.mistakes:
        try:
            pairs = [(answer(*copy.deepcopy(case)), mistaken(*copy.deepcopy(case))) for case in task.cases]
        except Exception:  # one of the two cannot do a later case, so they are not the same
            continue
        if not any(differs(*pair, task.tolerance) for pair in pairs):
            return "\n" + _(mistaken.__doc__)
    return ""


def differs(found: object, expected: object, tolerance: float = 1e-6) -> str:
    """How a result differs from the expected one, in a line; empty when it does not.

    >>> differs(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 1.5]))
    'you give tensor([0.5000, 1.0000]), expected tensor([0.5000, 1.5000])'
    >>> differs(2, 2.0)
    ''
    """
    plain = _("you give {found}, expected {expected}").format(found=_short(found), expected=_short(expected))
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor):
            return plain
        if found.shape != expected.shape:
            shapes = {"found": tuple(found.shape), "expected": tuple(expected.shape)}
            return _("you give a tensor of shape {found}, expected {expected}").format(**shapes)
        if found.is_floating_point() != expected.is_floating_point():
            types = {"found": found.dtype, "expected": expected.dtype}
            return _("you give a tensor of {found}, expected {expected}").format(**types)
        close = torch.isclose(found.double(), expected.double(), tolerance, tolerance, equal_nan=True)
        return "" if bool(close.all()) else plain
    if isinstance(expected, (tuple, list)):
        if not isinstance(found, (tuple, list)) or len(found) != len(expected):
            return plain
        return next(filter(None, (differs(f, e, tolerance) for f, e in zip(found, expected))), "")
    if isinstance(expected, (bool, str, QParams)):
        return "" if found == expected else plain
    try:
        return "" if math.isclose(float(found), expected, rel_tol=tolerance, abs_tol=tolerance) else plain
    except (TypeError, ValueError, RuntimeError):
        return plain


def in_words(task: Exercise, case: tuple) -> str:
    """The arguments of a case, by name."""
    names = inspect.signature(task.solution).parameters
    return ", ".join(f"{name} = {_short(value)}" for name, value in zip(names, case))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


# --- hints, solutions, progress


def hint(name: str) -> Markdown:
    """The next hint for an exercise: each call gives one more."""
    hints = exercise(name).hints
    number = min(_remember(name, hints=1)["hints"], len(hints))
    more = _("one more with hint({name!r})") if number < len(hints) else _("the last one; solution({name!r}) shows all")
    return Markdown(f"**{number}/{len(hints)}** {hints[number - 1]} *({more.format(name=name)})*")


def solution(name: str) -> Markdown:
    """One right answer to an exercise."""
    _remember(name, solution=True)
    return Markdown(f"```python\n{exercise(name).source}\n```")


def progress() -> HTML:
    """What has been solved so far, lesson by lesson."""
    done = _read(progress_file())
    rows = []
    for lesson in lessons.LESSONS:
        marks = "".join("●" if done.get(task.name, {}).get("right") else "○" for task in of_lesson(lesson))
        solved = _("{done} of {all}").format(done=marks.count("●"), all=len(marks))
        rows.append(f"<tr><td>{_('Lesson')} {lesson}</td><td aria-hidden='true'>{marks}</td><td>{solved}</td></tr>")
    return HTML(f"<table>{''.join(rows)}</table>")


def collect(files: Iterable[str | Path]) -> list[dict]:
    """For a teacher: one row a student's progress file, with what was solved, the tries and the hints taken.

    The student's name is that of the file. Raises ValueError for a file that is none.
    """
    rows = []
    for path in map(Path, files):
        done = _read(path, missing_is_empty=False)
        count = {key: sum(entry[key] for entry in done.values()) for key in ("right", "tries", "hints", "solution")}
        rows.append({"student": path.stem, "solved": count["right"], **count, "exercises": sorted(done)})
        del rows[-1]["right"]
    return rows


def progress_file() -> Path:
    """Where the verdicts are kept: QLAB_PROGRESS, or progress.json beside the notebooks."""
    return Path(os.environ.get("QLAB_PROGRESS", "progress.json"))


def _read(path: Path, missing_is_empty: bool = True) -> dict[str, dict]:
    if missing_is_empty and not path.exists():
        return {}
    try:
        done = json.loads(path.read_text("utf-8"))
        assert all({"right", "tries", "hints", "solution"} <= set(entry) for entry in done.values())
        return done
    except (OSError, ValueError, AttributeError, TypeError, AssertionError) as error:
        what = _("{path} is no progress file ({error}): delete it, or give another one")
        raise ValueError(what.format(path=path, error=error or type(error).__name__)) from error


def _remember(name: str, tried: bool = False, right: bool = False, hints: int = 0, solution: bool = False) -> dict:
    """Add to what is known of an exercise, and write it down atomically; its entry."""
    path = progress_file()
    done = _read(path)
    entry = done.setdefault(name, {"right": False, "tries": 0, "hints": 0, "solution": False})
    entry["tries"] += tried
    entry["hints"] += hints
    entry["right"] |= right
    entry["solution"] |= solution
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n", "utf-8")
    part.replace(path)
    return entry


# --- where they are


@cache
def of_lesson(lesson: int) -> tuple[Exercise, ...]:
    """The exercises of a lesson, in order."""
    return tuple(lessons.part(lesson, "exercises").EXERCISES)


def exercise(name: str) -> Exercise:
    """The exercise of that name. Raises ValueError when there is none."""
    known = {task.name: task for lesson in lessons.LESSONS for task in of_lesson(lesson)}
    if name not in known:
        raise ValueError(_("no exercise {name!r}: there are {known}").format(name=name, known=", ".join(known)))
    return known[name]
