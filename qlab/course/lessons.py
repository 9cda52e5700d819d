"""Where a lesson is: lesson 2 is the folder ``lesson02`` with its ``exercises``, ``plots`` and ``panels``."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from qlab.course.language import _

_NAMES = [module.name for module in iter_modules([str(Path(__file__).parent)])]
LESSONS = tuple(sorted(int(name[-2:]) for name in _NAMES if re.fullmatch(r"lesson\d\d", name)))


def part(lesson: int, name: str) -> ModuleType:
    """One file of a lesson. Raises ValueError when there is no such lesson.

    >>> part(2, "panels").__name__
    'qlab.course.lesson02.panels'
    """
    if lesson not in LESSONS:
        known = ", ".join(map(str, LESSONS))
        raise ValueError(_("no lesson {lesson!r}: there are {known}").format(lesson=lesson, known=known))
    return import_module(f"qlab.course.lesson{lesson:02}.{name}")
