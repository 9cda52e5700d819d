"""Exercises that check themselves: ``check``, ``hint``, ``solution``, and ``progress``.

An exercise is a function to write. Lesson 2's stand in ``qlab/course/lesson02/exercises.py``; how an answer is judged
stands in ``judging``, what is kept of it in ``progress``.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from IPython.display import Markdown

from qlab.course import lessons
from qlab.course.judging import TOLERANCE, Kind, Verdict, judge
from qlab.course.language import _
from qlab.course.progress import collect, progress, remember_exercise

__all__ = ["Exercise", "check", "hint", "solution", "progress", "collect", "exercise", "of_lesson"]


@dataclass(frozen=True)
class Exercise:
    """A function to write. ``name`` is "1.2" for the second exercise of lesson 1.

    - ``solution``: its signature and docstring are what the student gets, its answers are right.
    - ``cases``: tuples of arguments, the smallest first. ``hints``: from a nudge to almost the answer.
    - ``mistakes``: functions that make a well-known mistake; the docstring is what its author is told.
    - ``needs_tensor``: does the lesson compute on with the answer, so that a list or an array will not do?
    """

    name: str
    solution: Callable
    cases: tuple[tuple, ...]
    hints: tuple[str, ...]
    mistakes: tuple[Callable, ...] = ()
    tolerance: float = TOLERANCE
    needs_tensor: bool = False

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


def check(name: str, answer: Callable) -> Verdict:
    """Judge a student's function against exercise ``name``, and remember the verdict (see :func:`progress`).

    Where it cannot be written down, the verdict says so.
    """
    verdict = judge(exercise(name), answer)
    tried = verdict.kind in (Kind.RIGHT, Kind.ALMOST, Kind.WRONG)
    _entry, lost = remember_exercise(name, tries=int(tried), right=verdict.right)
    return replace(verdict, message="\n".join(filter(None, (verdict.message, lost))))


def hint(name: str) -> Markdown:
    """The next hint for an exercise: each call gives one more."""
    hints = exercise(name).hints
    entry, lost = remember_exercise(name, hints=1)
    number = min(entry["hints"], len(hints))
    more = _("one more with hint({name!r})") if number < len(hints) else _("the last one; solution({name!r}) shows all")
    return _markdown(f"**{number}/{len(hints)}** {hints[number - 1]} *({more.format(name=name)})*", lost)


def solution(name: str) -> Markdown:
    """One right answer to an exercise."""
    _entry, lost = remember_exercise(name, solution=True)
    return _markdown(f"```python\n{exercise(name).source}\n```", lost)


def _markdown(text: str, lost: str) -> Markdown:
    return Markdown(f"{text}\n\n*{lost}*" if lost else text)


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
