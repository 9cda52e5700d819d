"""Every panel, driven in plain Python over its whole range: the image follows, what goes wrong is shown."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from qlab.course import explorables, plots
from qlab.data import shapes10


@pytest.fixture
def fewer_bits():
    ten = shapes10("validation").sample(10)
    said = {bits: (ten.labels + (torch.arange(10) >= bits)) % 10 for bits in range(2, 9)}
    return explorables.fewer_bits(ten, said, {bits: 10.0 * bits for bits in range(2, 9)}, 90.0)


def test_the_image_follows_the_slider(fewer_bits):
    slider = fewer_bits.controls["bits"]
    assert (slider.minimum, slider.value, slider.maximum, slider.step) == (2, 8, 8, 1)
    frames = {fewer_bits.image.value}
    for bits in (7, 6, 5, 4, 3, 2):
        slider.value = bits
        assert fewer_bits.figure.finding.startswith(f"{bits} bits: {10 * bits}.0 % right")
        assert fewer_bits.figure.alt in fewer_bits.words.value
        assert fewer_bits.image.alt == fewer_bits.figure.finding
        frames.add(fewer_bits.image.value)
    assert len(frames) == 7
    slider.value = 8
    assert fewer_bits.image.value in frames
    assert fewer_bits.error is None


@pytest.mark.parametrize("panel", [
    lambda: explorables.rounding_errors(torch.randn(500)), lambda: explorables.chosen_limits(torch.randn(500).relu()),
], ids=["rounding_errors", "chosen_limits"])  # fmt: skip
def test_every_value_of_every_control_is_drawn_and_said(panel):
    panel = panel()
    seen = {panel.image.value}
    for name, slider in panel.controls.items():
        steps = round((slider.maximum - slider.minimum) / slider.step)
        for place in range(0, steps + 1, max(1, steps // 8)):
            slider.value = slider.minimum + place * slider.step if name != "bits" else round(slider.minimum) + place
            assert panel.error is None, (name, slider.value)
            assert panel.figure.finding and panel.figure.alt
            seen.add(panel.image.value)
    assert len(seen) > 6


def small_panel(draw) -> explorables.Panel:
    return explorables.Panel(draw, x=explorables.Slider(label="x", maximum=3))


def reciprocal(x) -> plots.Figure:
    figure = plots.Figure((2, 1), f"1/x = {1 / (2 - x):.2f}")
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
    slider = explorables.Slider(label="bits", value=8, minimum=2, maximum=8)
    slider.value = 4
    assert slider.value == 4 and isinstance(slider.value, int)
    slider.value = 0.5
    assert slider.value == 0.5


def test_a_panel_is_saved_with_a_still_figure_for_readers_without_a_kernel(fewer_bits):
    data, metadata = fewer_bits._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["image/jpeg"].startswith(b"\xff\xd8")
    assert data["text/plain"].startswith("8 bits: 80.0 % right")
    assert metadata["image/jpeg"]["alt"] == data["text/plain"]


# --- what the browser draws

DRAWN = {
    "rounding": (explorables.rounding, {"bits": 3, "shift": 0}),
    "formats": (explorables.formats, {"number": 0.3}),
    "clipping": (lambda: explorables.clipping(torch.rand(500)), {"bits": 4, "limit": 100}),
}
EACH = pytest.mark.parametrize("name", DRAWN)


@EACH
def test_what_the_browser_needs_is_shared_with_it(name):
    make, values = DRAWN[name]
    drawn = make()
    state = drawn.get_state()
    assert (drawn.values, state["values"], list(state["sliders"])) == (values, values, list(values))
    assert state["colours"] == plots.COLOURS
    assert "export default { render };" in state["_esm"] and "import " not in state["_esm"]
    asked = set(re.findall(r"\btexts\.(\w+)", (explorables.JS / f"{name}.js").read_text("utf-8")))
    assert asked and asked <= set(state["texts"])
    for slider in state["sliders"].values():
        assert slider["minimum"] <= slider["value"] <= slider["maximum"] and slider["label"]


@EACH
def test_values_move_either_way(name):
    drawn = DRAWN[name][0]()
    drawn.set_state({"values": {"bits": 2}})  # as the browser does
    assert drawn.values == {"bits": 2}
    drawn.values = {"bits": 3}
    assert drawn.get_state("values") == {"values": {"bits": 3}}


@EACH
def test_a_drawn_explorable_is_saved_with_the_figure_of_its_first_values(name):
    make, _ = DRAWN[name]
    torch.manual_seed(0)
    drawn = make()
    data, metadata = drawn._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["image/jpeg"].startswith(b"\xff\xd8")
    assert data["text/plain"] == metadata["image/jpeg"]["alt"] == f"{drawn.figure.finding}. {drawn.figure.alt}"
    assert data == {**data, **drawn.figure.still()[0]}


def test_the_browser_gets_the_values_that_python_computes_with():
    values = torch.rand(70_000)
    sent = np.frombuffer(explorables.clipping(values).data, "float32")
    assert sent[0] == values.max() and len(sent) <= 50_000
    assert (sent == plots.enough_of(values)).all()


def test_every_file_that_the_browser_runs_belongs_to_a_widget():
    source = Path(explorables.__file__).read_text("utf-8")
    modules = [path.read_text("utf-8") for path in explorables.JS.glob("*.js")]
    widgets = [name for name in ("slider", "image", *DRAWN) if f'"{name}' in source]
    used = {f"{name}.js" for name in widgets} | {name for text in modules for name in re.findall(r'"\./(.+)"', text)}
    assert {path.name for path in explorables.JS.iterdir()} == {*used, "explorables.css"}


def test_no_two_modules_of_a_widget_use_one_name():
    """They share a file in the browser."""
    for name in ("slider", "image", *DRAWN):
        names = re.findall(r"^(?:export )?(?:function|const|let|class) (\w+)", explorables.module(f"{name}.js"), re.M)
        assert "render" in names and len(names) == len(set(names))
