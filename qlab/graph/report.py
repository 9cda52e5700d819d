"""What was quantized and what was not: one row a layer, in a table that reads in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from html import escape


@dataclass(frozen=True)
class Row:
    """One layer. ``weight`` and ``input`` say bits and granularity; ``float_because`` is empty when it is quantized."""

    layer: str
    kind: str
    weight: str = ""
    input: str = ""
    observer: str = ""
    float_because: str = ""


class Report(Sequence):
    """The rows in the order in which the network runs, and a headline. ``print`` it, or let a notebook show it."""

    def __init__(self, headline: str, rows: Sequence[Row]) -> None:
        self.headline = headline
        self.rows = tuple(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    @property
    def in_float(self) -> tuple[str, ...]:
        """The names of the layers that stay in float."""
        return tuple(row.layer for row in self.rows if row.float_because)

    def _columns(self) -> list[str]:
        names = [field.name for field in fields(Row)]
        return [name for name in names if name != "float_because" or self.in_float]

    def __str__(self) -> str:
        columns = self._columns()
        table = [[name.replace("_", " ") for name in columns]]
        table += [[getattr(row, name) for name in columns] for row in self.rows]
        widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table]
        return "\n".join([self.headline, "", lines[0], "  ".join("-" * width for width in widths), *lines[1:]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        columns = self._columns()
        head = "".join(f"<th style='text-align:left'>{name.replace('_', ' ')}</th>" for name in columns)
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{escape(getattr(row, c))}</td>" for c in columns) + "</tr>"
            for row in self.rows
        )
        return f"<p>{escape(self.headline)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
