"""A table reads in a terminal and in a notebook."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from qlab.tables import Shown, Table


@dataclass(frozen=True)
class Line:
    layer: str
    size_bytes: int
    sqnr: float | None = None
    because: str = ""


ROWS = [Line("conv1", 1200, 31.456), Line("<fc>", 7)]


def test_words_stand_at_the_left_and_numbers_at_the_right():
    assert str(Table("two layers", ROWS)).splitlines() == [
        "two layers",
        "",
        "layer  size bytes   sqnr",
        "-----  ----------  -----",
        "conv1       1,200  31.46",
        "<fc>            7",
    ]


def test_a_column_of_nothing_is_not_shown():
    assert "because" not in str(Table("", ROWS))
    assert "because" in str(Table("", [*ROWS, Line("last", 1, because="no kernel")]))


def test_a_notebook_shows_the_same_cells_escaped():
    html = Table("two <layers>", ROWS)._repr_html_()
    assert html.count("<tr>") == 3 and "two &lt;layers&gt;" in html and "&lt;fc&gt;" in html
    assert "<td style='text-align:right'>1,200</td>" in html and "<th style='text-align:left'>layer</th>" in html


def test_a_remark_stands_below():
    class Remarked(Shown):
        def _layout(self):
            return "one", [["a"], ["1"]], {0}, "mind & the noise"

    assert str(Remarked()).splitlines()[-1] == "mind & the noise"
    assert Remarked()._repr_html_().endswith("<p>mind &amp; the noise</p>")
    with pytest.raises(NotImplementedError):
        str(Shown())


def test_a_table_is_a_sequence_of_its_rows_under_any_headline():
    table = Table("first", ROWS)
    other = table.under("second")
    assert list(other) == list(table) == ROWS and len(other) == 2 and other[0] is ROWS[0]
    assert (table.headline, other.headline) == ("first", "second")


def test_a_table_without_rows_is_its_headline():
    assert str(Table("nothing found", [])).strip() == "nothing found"
