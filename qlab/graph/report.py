"""What was quantized, and what not: a line for each layer."""

from __future__ import annotations

from dataclasses import dataclass

from qlab.tables import Table


@dataclass(frozen=True)
class Row:
    """One layer. ``weight`` and ``input`` say bits and granularity; quantized: no ``float_because``."""

    layer: str
    kind: str
    weight: str = ""
    input: str = ""
    observer: str = ""
    float_because: str = ""


class Report(Table):
    """One :class:`Row` a layer, in the order in which the network runs."""

    @property
    def in_float(self) -> tuple[str, ...]:
        """The names of the layers that stay in float."""
        return tuple(row.layer for row in self.rows if row.float_because)
