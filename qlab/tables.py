"""Tables that read in a terminal and in a notebook."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import fields
from html import escape
from typing import TypeVar

Some = TypeVar("Some", bound="Table")


class Shown:
    """What is shown as a table: ``print`` it, or let a notebook show it. A subclass says its layout."""

    def _layout(self) -> tuple[str, Sequence[Sequence[str]], Collection[int], str]:
        """What :func:`text` and :func:`html` take: headline, cells, columns of numbers, remark."""
        raise NotImplementedError

    def __str__(self) -> str:
        return text(*self._layout())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html(*self._layout())


class Table(Shown, Sequence):
    """Rows of one dataclass, and a headline: a sequence of its rows.

    A column in which every cell is empty or None is not shown; numbers stand at the right, the others at the left.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Row:
    ...     layer: str
    ...     bits: int
    >>> print(Table("widths", [Row("conv1", 8), Row("fc", 4)]))
    widths
    <BLANKLINE>
    layer  bits
    -----  ----
    conv1     8
    fc        4
    """

    def __init__(self, headline: str, rows: Sequence) -> None:
        self.headline = headline
        self.rows = tuple(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def under(self: Some, headline: str) -> Some:
        """The same rows under another headline."""
        table = copy.copy(self)
        table.headline = headline
        return table

    def _layout(self) -> tuple[str, list[list[str]], set[int], str]:
        names = [field.name for field in fields(self.rows[0])] if self.rows else []
        columns = {name: [getattr(row, name) for row in self.rows] for name in names}
        columns = {name: values for name, values in columns.items() if any(value not in ("", None) for value in values)}
        numbers = {place for place, values in enumerate(columns.values()) if all(map(_is_number, values))}
        body = [list(map(_in_words, row)) for row in zip(*columns.values())]
        return self.headline, [[name.replace("_", " ") for name in columns], *body], numbers, ""


def text(headline: str, cells: Sequence[Sequence[str]], right: Collection[int] = (), remark: str = "") -> str:
    """A table for a terminal: ``cells`` row by row, the names of the columns first; the columns ``right`` (by their
    places) stand at the right, and a ``remark`` below.

    >>> print(text("sizes", [["network", "KiB"], ["float", "1072"], ["int8", "280"]], right={1}))
    sizes
    <BLANKLINE>
    network   KiB
    -------  ----
    float    1072
    int8      280
    """
    widths = [max(map(len, column)) for column in zip(*cells)]
    sides = [str.rjust if place in right else str.ljust for place in range(len(widths))]
    head, *body = [
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths)).rstrip() for row in cells
    ]
    lines = [headline, "", head, "  ".join("-" * width for width in widths), *body]
    return "\n".join([*lines, remark] if remark else lines)


def html(headline: str, cells: Sequence[Sequence[str]], right: Collection[int] = (), remark: str = "") -> str:
    """:func:`text` for a notebook."""

    def line(row: Sequence[str], tag: str) -> str:
        sides = ["right" if place in right else "left" for place in range(len(row))]
        cells = (f"<{tag} style='text-align:{side}'>{escape(cell)}</{tag}>" for side, cell in zip(sides, row))
        return f"<tr>{''.join(cells)}</tr>"

    head, *body = cells
    rows = "".join(line(row, "td") for row in body)
    table = f"<table><thead>{line(head, 'th')}</thead><tbody>{rows}</tbody></table>"
    return f"<p>{escape(headline)}</p>{table}" + (f"<p>{escape(remark)}</p>" if remark else "")


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _in_words(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
