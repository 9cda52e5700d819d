"""Every explorable of the course, in the order of the lessons.

Each is a function in its lesson's ``panels.py``, and is put in here by the line above it::

    @explorable(example=lambda: (normal(500).relu(),))
    def clipping(values: Tensor) -> Drawn:
        ...

``example`` gives the function's arguments for a small panel: cheap to make, and the same each time. With it a test drives
every panel over its values, and an edition of the course without a kernel can draw them beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from qlab.course import lessons
from qlab.course.widgets import Drawn, Panel, thinned

FRAMES = 200  # pictures of one panel that an edition without a kernel holds, at most
FEWEST = 4  # stops that a slider keeps there: with fewer it would not be worth moving


@dataclass(frozen=True)
class Explorable:
    """One explorable: the function that makes its panel, and ``example``, which gives arguments for a small one."""

    panel: Callable[..., Panel | Drawn]
    example: Callable[[], tuple]

    @property
    def name(self) -> str:
        """Its function's name; no other explorable has it."""
        return self.panel.__name__

    @property
    def lesson(self) -> int:
        """The lesson in whose ``panels.py`` it stands. Raises ValueError when it stands elsewhere."""
        place = re.fullmatch(r"qlab\.course\.lesson(\d\d)\.panels", self.panel.__module__)
        if not place:
            where = f"the panel {self.name!r} stands in {self.panel.__module__}"
            raise ValueError(f"{where}: expected a lesson's panels, such as qlab.course.lesson02.panels")
        return int(place[1])

    def small(self) -> Panel | Drawn:
        """A new panel with the example's data."""
        return self.panel(*self.example())

    @property
    def controls(self) -> dict[str, list]:
        """Every value of each of the small panel's controls, by name."""
        return self.small().choices

    @property
    def still(self) -> tuple[dict, dict]:
        """(data, metadata) of the small panel's figure before anything is moved: a JPEG, and its words."""
        return self.small().figure.still()

    @property
    def script(self) -> str | None:
        """The module of ``js/`` that computes and draws it in the browser; None when the kernel draws it."""
        panel = self.small()
        return f"{panel.name}.js" if isinstance(panel, Drawn) else None


_FOUND: dict[str, Explorable] = {}


def explorable(example: Callable[[], tuple] = tuple) -> Callable[[Callable], Callable]:
    """Put the panel below this line into the registry. A panel without arguments needs no ``example``.

    Raises ValueError for a panel outside a lesson's ``panels.py``, and for a name that another lesson's panel has.
    """

    def register(panel: Callable[..., Panel | Drawn]) -> Callable[..., Panel | Drawn]:
        new = Explorable(panel, example)
        known = _FOUND.get(new.name, new)
        if known.lesson != new.lesson:
            raise ValueError(
                f"lessons {known.lesson} and {new.lesson} both have a panel {new.name!r}: rename one of them"
            )
        _FOUND[new.name] = new
        return panel

    return register


def explorables() -> tuple[Explorable, ...]:
    """All explorables, lesson by lesson."""
    for lesson in lessons.LESSONS:
        lessons.part(lesson, "panels")
    return tuple(sorted(_FOUND.values(), key=lambda each: each.lesson))


def beforehand(panel: Panel | Drawn, most: int = FRAMES) -> dict[str, list] | None:
    """Which values of each control are drawn beforehand for an edition without a kernel; None when the browser draws them.

    All of them together make at most ``most`` pictures: the longest sliders are thinned first. Where that would leave a
    slider fewer than FEWEST stops, the last controls stand still. The value that a control begins with is always there.

    >>> from qlab.course.lesson07 import panels
    >>> {name: len(values) for name, values in beforehand(panels.one_weight()).items()}
    {'start': 4, 'steps': 5, 'lr': 5, 'falling': 2}
    """
    if isinstance(panel, Drawn):
        return None
    kept = dict(panel.choices)
    while len(kept) > 1 and prod(min(len(values), FEWEST) for values in kept.values()) > most:
        kept.popitem()
    counts = {name: len(values) for name, values in kept.items()}
    while prod(counts.values()) > most:
        counts[max(counts, key=counts.__getitem__)] -= 1
    starts = {name: control.value for name, control in panel.controls.items()}
    return {
        name: _with(starts[name], thinned(kept[name], counts[name])) if name in kept else [starts[name]]
        for name in starts
    }


def _with(start: object, values: list) -> list:
    """The values, the one nearest to ``start`` replaced by it when it isn't among them."""
    if start in values:
        return values
    nearest = min(range(len(values)), key=lambda place: abs(values[place] - start))
    return [start if place == nearest else value for place, value in enumerate(values)]


def normal(*shape: int) -> Tensor:
    """For examples: normally distributed numbers, the same each time.

    >>> normal(2).allclose(normal(2))
    True
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
