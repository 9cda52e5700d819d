"""What a page of the site is told of a panel."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import ipywidgets
import pytest

from qlab.course.registry import beforehand, explorables
from qlab.course.widgets import Slider

TOOL = Path(__file__).resolve().parents[2] / "tools" / "site_panels.py"
FRAMED = [each for each in explorables() if each.script is None]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("site_panels", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("each", FRAMED, ids=lambda each: each.name)
def test_every_control_of_every_panel_has_a_label_and_words_for_its_values(tool, each):
    panel = each.small()
    for name, values in beforehand(panel).items():
        control = tool.describe(panel.controls[name], values)
        assert control["label"] and not control["label"].endswith(":")
        assert len(control["said"]) == len(set(control["said"])) == len(values)
        assert values[control["start"]] == panel.controls[name].value


def test_a_control_says_its_values_as_it_does_in_jupyter(tool):
    slider = Slider(label="bits", value=4, minimum=2, maximum=8)
    named = ipywidgets.Dropdown(options=[("weights", 1), ("both", 2)], value=2, description="quantized:")
    plain = ipywidgets.Dropdown(options=["a", "b"], description="which")
    box = ipywidgets.Checkbox(description="falling")
    assert tool.describe(slider, [2, 4]) == {"kind": "slider", "label": "bits", "said": ["2", "4"], "start": 1}
    assert tool.describe(named, [1, 2]) == {
        "kind": "choice", "label": "quantized", "said": ["weights", "both"], "start": 1,
    }  # fmt: skip
    assert tool.describe(plain, ["a", "b"])["said"] == ["a", "b"]
    assert tool.describe(box, [False, True])["kind"] == "box"


def test_only_what_a_panel_shows_is_taken_from_a_cell(tool):
    names = {}
    assert tool.value_of("x = 2", names) is None
    assert tool.value_of("y = x\ny + 1", names) == 3


def test_what_no_page_can_show_is_an_error(tool, tmp_path):
    with pytest.raises(TypeError, match="the cell 1a shows a int: expected a panel, a prediction or a quiz"):
        tool.specify(3, tmp_path, "1a")
