"""A panel shows what goes wrong, controls know their values, and a browser gets what it needs."""

from __future__ import annotations

import re

import pytest
from ipywidgets import Checkbox, Dropdown

from qlab.course.figure import COLOURS, Figure
from qlab.course.registry import explorables
from qlab.course.widgets import JS, Drawn, Panel, Slider, module, thinned, values_of


def small_panel(draw) -> Panel:
    return Panel(draw, x=Slider(label="x", maximum=3))


def reciprocal(x) -> Figure:
    figure = Figure((2, 1), f"1/x = {1 / (2 - x):.2f}")
    figure.alt = "<nothing> to see"
    return figure


def test_an_error_in_a_redraw_stands_in_the_panel_until_it_is_mended():
    panel = small_panel(reciprocal)
    before = panel.image.value
    panel.controls["x"].value = 2
    assert isinstance(panel.error, ZeroDivisionError)
    assert "role='alert'" in panel.words.value and "ZeroDivisionError: division by zero" in panel.words.value
    assert panel.image.value == before
    panel.controls["x"].value = 1
    assert panel.error is None and "alert" not in panel.words.value


def test_an_error_in_the_first_view_is_the_cells_own():
    def draw(x):
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        small_panel(draw)


def test_words_are_text_and_not_markup():
    assert "&lt;nothing&gt; to see" in small_panel(reciprocal).words.value


def test_a_slider_keeps_whole_numbers_whole():
    slider = Slider(label="bits", value=8, minimum=2, maximum=8)
    slider.value = 4
    assert slider.value == 4 and isinstance(slider.value, int)
    slider.value = 0.5
    assert slider.value == 0.5


@pytest.mark.parametrize("control, values", [
    (Slider(value=8, minimum=2, maximum=4), [2, 3, 4]),
    (Slider(value=0, minimum=-0.3, maximum=0.3, step=0.1), [-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]),
    (Slider(value=0, minimum=0, maximum=9, step=4), [0, 4, 8]),
    (Dropdown(options=["a", "b"]), ["a", "b"]),
    (Dropdown(options=[("first", 1), ("second", 2)]), [1, 2]),
    (Checkbox(), [False, True]),
], ids=["whole", "decimals", "short of the end", "texts", "named", "box"])  # fmt: skip
def test_every_value_of_a_control_is_known(control, values):
    assert values_of(control) == values
    assert [type(value) for value in values_of(control)] == [type(value) for value in values]


def test_a_panel_and_an_explorable_of_the_browser_say_what_draw_can_be_asked_for():
    assert small_panel(reciprocal).choices == {"x": [0, 1, 2, 3]}
    drawn = Drawn("rounding", lambda x: reciprocal(x), {}, x=dict(label="x", value=0, minimum=0, maximum=1, step=0.5))
    assert drawn.choices == {"x": [0, 0.5, 1]}
    assert drawn.draw(x=1).finding == "1/x = 1.00"


@pytest.mark.parametrize("count, most", [(3, 9), (9, 9), (10, 9), (500, 9), (5, 2)])
def test_thinned_values_keep_both_ends(count, most):
    kept = thinned(list(range(count)), most)
    assert len(kept) == min(count, most) and (kept[0], kept[-1]) == (0, count - 1) and sorted(set(kept)) == kept


# --- what the browser draws

DRAWN = {each.name: each for each in explorables() if each.script}
EACH = pytest.mark.parametrize("name", DRAWN)


@EACH
def test_what_the_browser_needs_is_shared_with_it(name):
    drawn = DRAWN[name].small()
    state = drawn.get_state()
    assert drawn.values == state["values"] and list(drawn.values) == list(state["sliders"]) == list(drawn.choices)
    assert state["colours"] == COLOURS
    assert "export default { render };" in state["_esm"] and "import " not in state["_esm"]
    asked = set(re.findall(r"\btexts\.(\w+)", (JS / DRAWN[name].script).read_text("utf-8")))
    assert asked and asked <= set(state["texts"])
    for slider in state["sliders"].values():
        assert slider["minimum"] <= slider["value"] <= slider["maximum"] and slider["label"]


@EACH
def test_values_move_either_way(name):
    drawn = DRAWN[name].small()
    drawn.set_state({"values": {"bits": 2}})  # as the browser does
    assert drawn.values == {"bits": 2}
    drawn.values = {"bits": 3}
    assert drawn.get_state("values") == {"values": {"bits": 3}}


SCRIPTS = ("slider.js", "image.js", "predict.js", *(each.script for each in DRAWN.values()))


def test_every_file_that_the_browser_runs_belongs_to_a_widget():
    modules = [path.read_text("utf-8") for path in JS.glob("*.js")]
    used = {*SCRIPTS, *(name for text in modules for name in re.findall(r'"\./(.+)"', text))}
    assert {path.name for path in JS.iterdir()} == {*used, "explorables.css"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_two_modules_of_a_widget_use_one_name(name):
    """They share a file in the browser."""
    names = re.findall(r"^(?:export )?(?:function|const|let|class) (\w+)", module(name), re.M)
    assert "render" in names and len(names) == len(set(names))
