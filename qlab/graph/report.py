"""Tables that read in a terminal and in a notebook; and the one that says what was quantized, what not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from html import escape


@dataclass(frozen=True)
class Row:
    """One layer. ``weight`` and ``input`` say bits and granularity; quantized: no ``float_because``."""

    layer: str
    kind: str
    weight: str = ""
    input: str = ""
    observer: str = ""
    float_because: str = ""


class Table(Sequence):
    """Rows of one dataclass, and a headline. ``print`` it, or let a notebook show it; it is a sequence of its
    rows.

    A column in which every cell is empty or None is not shown.
    """

    def __init__(self, headline: str, rows: Sequence) -> None:
        self.headline = headline
        self.rows = tuple(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def _cells(self) -> list[list[str]]:
        """The names of the columns, then the rows, in words."""
        names = [field.name for field in fields(self.rows[0])] if self.rows else []
        names = [name for name in names if any(getattr(row, name) not in ("", None) for row in self.rows)]
        table = [[_in_words(getattr(row, name)) for name in names] for row in self.rows]
        return [[name.replace("_", " ") for name in names], *table]

    def __str__(self) -> str:
        table = self._cells()
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table]
        return "\n".join([self.headline, "", lines[0], "  ".join("-" * width for width in widths), *lines[1:]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in head)
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"<p>{escape(self.headline)}</p>{table}"


class Report(Table):
    """One :class:`Row` a layer, in the order in which the network runs."""

    @property
    def in_float(self) -> tuple[str, ...]:
        """The names of the layers that stay in float."""
        return tuple(row.layer for row in self.rows if row.float_because)


def _in_words(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
