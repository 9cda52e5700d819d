"""docs/layers.md says what becomes of each layer and operation: it is made by trying them, and goes stale with none."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from torch import nn

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    yield importlib.import_module("layer_table")
    sys.modules.pop("layer_table", None)


def test_the_page_is_what_comes_out_today(table):
    found, expected = table.page().splitlines(), table.FILE.read_text("utf-8").splitlines()
    assert found == expected, "run python tools/layer_table.py and look at what has changed"


def test_a_row_says_what_becomes_of_a_layer(table):
    assert table.row("x", nn.ReLU, table.one, True) == table.Row("x", "int8")
    assert table.row("x", nn.SiLU, table.one, True) == table.Row("x", "float", "no integer kernel for SiLU")
    assert table.row("x", nn.Dropout, table.one, True).becomes == "gone"
    refused = table.row("x", table.branches, table.one, False)
    assert refused.becomes == "refused" and "layer_table.py: `if y.sum() > 0:`" in refused.why


def test_a_wrong_answer_is_no_row(table, monkeypatch):
    """Whoever breaks an operation does not get it into the table as one that works."""
    monkeypatch.setattr(table, "ENOUGH", 200.0)
    with pytest.raises(AssertionError, match="x: .* dB are left of it in integers"):
        table.row("x", nn.SiLU, table.one, True)


def test_it_says_what_has_changed(table, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(table, "SECTIONS", {"Some": {"ReLU": (nn.ReLU, table.one)}})
    monkeypatch.setattr(table, "LAYERS", table.SECTIONS["Some"])
    monkeypatch.setattr(table, "FILE", tmp_path / "docs" / "layers.md")
    assert table.main(["--check"]) == 1 and "| `ReLU` | **int8** |" in capsys.readouterr().out
    assert table.main([]) == 0 and table.main(["--check"]) == 0
    assert table.FILE.read_text() == table.page()
