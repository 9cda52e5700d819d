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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from html import escape
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from IPython.display import HTML, Markdown

from qlab.affine import QParams
from qlab.course import lessons
from qlab.course.language import _
from qlab.files import whole

PROGRESS = "progress.json"
LOCK_SECONDS = 5  # so long another notebook may write
NOTHING = {"right": False, "tries": 0, "hints": 0, "solution": False}  # what is known of an exercise at first
_UNKEPT: dict[Path, dict[str, dict]] = {}  # what could not be written to a file so far
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
    """Judge a student's function against exercise ``name``, and remember the verdict (see :func:`progress`).

    Where it cannot be written down, the verdict says so.
    """
    verdict = judge(exercise(name), answer)
    _, lost = _remember(name, tries=int(verdict.kind in (Kind.RIGHT, Kind.WRONG)), right=verdict.right)
    return replace(verdict, message="\n".join(filter(None, (verdict.message, lost))))


def judge(task: Exercise, answer: Callable) -> Verdict:
    """The verdict on one answer. The arguments that it gets are copies: what it does to them harms nobody."""
    if not callable(answer):
        what = _("{name} is a {type}: give the function itself, as in check({number!r}, {function})")
        words = {"name": _short(answer), "type": type(answer).__name__, "number": task.name}
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
        try:
            difference = differs(found, expected, task.tolerance)
        except Exception as error:
            what = _("for {case} it returned a {type} that cannot be compared: {error}")
            words = {"case": in_words(task, case), "type": type(found).__name__, "error": error}
            return Verdict(Kind.CANNOT_JUDGE, what.format(**words))
        if difference:
            return Verdict(Kind.WRONG, f"{in_words(task, case)}:\n{difference}{_mistake(task, answer)}")
    return Verdict(Kind.RIGHT, _("all {n} cases agree").format(n=len(task.cases)))


def _mistake(task: Exercise, answer: Callable) -> str:
    """What to tell about a wrong answer, when its results are those of a known mistake."""
    for mistaken in task.mistakes:
        try:
            pairs = [(answer(*copy.deepcopy(case)), mistaken(*copy.deepcopy(case))) for case in task.cases]
            other = any(differs(*pair, task.tolerance) for pair in pairs)
        except Exception:  # one of the two cannot do a later case, so they are not the same
            continue
        if not other:
            return "\n" + _(mistaken.__doc__)
    return ""


def differs(found: object, expected: object, tolerance: float = 1e-6) -> str:
    """How a result differs from the expected one, in a line; empty when it does not.

    >>> differs(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 1.5]))
    'you give tensor([0.5000, 1.0000]), expected tensor([0.5000, 1.5000])'
    >>> differs(2, 2.0)
    ''

    NumPy's arrays and numbers count as the tensors and numbers that they hold.
    """
    found = _of_numpy(found)
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
    try:
        if isinstance(expected, (bool, str, QParams)):
            return "" if found == expected else plain
        return "" if math.isclose(float(found), expected, rel_tol=tolerance, abs_tol=tolerance) else plain
    except (TypeError, ValueError, RuntimeError, OverflowError):  # 10**400 is no float
        return plain


def _of_numpy(value: object) -> object:
    """What a NumPy array or number holds, as a tensor (of words: a list) or a number; all else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def in_words(task: Exercise, case: tuple) -> str:
    """The arguments of a case, by name."""
    names = inspect.signature(task.solution).parameters
    return ", ".join(f"{name} = {_short(value)}" for name, value in zip(names, case))


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # of a number with more than 4,300 digits, too
        text = _("{type} that cannot be shown ({error})").format(type=type(value).__name__, error=type(error).__name__)
    return text if len(text) <= 120 else text[:117] + "..."


# --- hints, solutions, progress


def hint(name: str) -> Markdown:
    """The next hint for an exercise: each call gives one more."""
    hints = exercise(name).hints
    entry, lost = _remember(name, hints=1)
    number = min(entry["hints"], len(hints))
    more = _("one more with hint({name!r})") if number < len(hints) else _("the last one; solution({name!r}) shows all")
    return _markdown(f"**{number}/{len(hints)}** {hints[number - 1]} *({more.format(name=name)})*", lost)


def solution(name: str) -> Markdown:
    """One right answer to an exercise."""
    _, lost = _remember(name, solution=True)
    return _markdown(f"```python\n{exercise(name).source}\n```", lost)


def _markdown(text: str, lost: str) -> Markdown:
    return Markdown(f"{text}\n\n*{lost}*" if lost else text)


def progress() -> HTML:
    """What has been solved so far, lesson by lesson."""
    done = _with(_read(progress_file()), _UNKEPT.get(progress_file(), {}))
    rows = []
    for lesson in lessons.LESSONS:
        marks = "".join("●" if done.get(task.name, {}).get("right") else "○" for task in of_lesson(lesson))
        solved = _("{done} of {all}").format(done=marks.count("●"), all=len(marks))
        rows.append(f"<tr><td>{_('Lesson')} {lesson}</td><td aria-hidden='true'>{marks}</td><td>{solved}</td></tr>")
    return HTML(f"<table>{''.join(rows)}</table>")


def collect(files: Iterable[str | Path]) -> list[dict]:
    """For a teacher: one row a student's progress file, with what was solved, the tries and the hints taken.

    The student's name is that of the file, or, where it is still called progress.json, that of its folder. Of a file that
    cannot be read the row says why, under ``problem``, and the others count all the same.
    """
    rows = []
    for path in map(Path, files):
        done, problem = {}, ""
        try:
            done = _read(path, missing_is_empty=False)
        except ValueError as error:
            problem = str(error)
        count = {key: sum(entry[key] for entry in done.values()) for key in NOTHING}
        student = path.resolve().parent.name if path.name == PROGRESS else path.stem
        row = {"student": student, "solved": count.pop("right"), **count, "exercises": sorted(done)}
        rows.append({**row, "file": str(path), "problem": problem})
    return rows


def progress_file() -> Path:
    """Where the verdicts are kept: QLAB_PROGRESS, or progress.json beside the notebooks."""
    return Path(os.environ.get("QLAB_PROGRESS", PROGRESS))


def _read(path: Path, missing_is_empty: bool = True) -> dict[str, dict]:
    if missing_is_empty and not path.exists():
        return {}
    try:
        done = json.loads(path.read_text("utf-8"))
        if not all(isinstance(entry.get(key), int) for entry in done.values() for key in NOTHING):
            raise TypeError(_("an exercise in it has no {keys}").format(keys=", ".join(NOTHING)))
        return done
    except (OSError, ValueError, AttributeError, TypeError) as error:
        what = _("{path} is no progress file ({error}): delete it, or give another one")
        raise ValueError(what.format(path=path, error=error)) from error


def _remember(name: str, **news: int) -> tuple[dict, str]:
    """Add ``news`` to what is known of an exercise: its entry, and why that is not written down, where it is not.

    One process at a time reads and writes. What could not be written is kept here, for the next time.
    """
    path = progress_file()
    unkept = _UNKEPT[path] = _with(_UNKEPT.get(path, {}), {name: NOTHING | news})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS):
            done = _with(_read(path), unkept)
            with whole(path) as part:
                part.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n", "utf-8")
    except (OSError, ValueError) as error:
        what = _("progress is not kept: {error}. QLAB_PROGRESS may name a file in another folder")
        return unkept[name], what.format(error=error)
    del _UNKEPT[path]
    return done[name], ""


def _with(done: Mapping[str, dict], more: Mapping[str, dict]) -> dict[str, dict]:
    """What is known from two sources together: tries and hints add up, what was solved or shown stays so."""
    both = dict(done)
    for name, entry in more.items():
        old = both.get(name, NOTHING)
        add = {key: max if isinstance(none, bool) else sum for key, none in NOTHING.items()}
        both[name] = {key: add[key]((old[key], entry[key])) for key in NOTHING}
    return both


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
