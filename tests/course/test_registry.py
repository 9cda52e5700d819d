"""Every explorable of the course, driven in plain Python over its whole range; and none is left out of the registry."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from itertools import pairwise
from math import prod
from pathlib import Path

import pytest
from matplotlib.text import Text

from qlab.course import registry
from qlab.course.lessons import LESSONS
from qlab.course.registry import FEWEST, FRAMES, beforehand, explorable, explorables
from qlab.course.widgets import Drawn, Panel, thinned

MOST = 9  # values of a control: of a long slider an even choice
SOURCES = sorted((Path(__file__).parents[2] / "notebooks" / "source").glob("*.py"))
EACH = pytest.mark.parametrize("each", explorables(), ids=lambda each: f"{each.lesson}-{each.name}")


def start_of(panel: Panel | Drawn) -> dict:
    """The values of a panel's controls, by name."""
    return dict(panel.values) if isinstance(panel, Drawn) else {n: c.value for n, c in panel.controls.items()}


def move(panel: Panel | Drawn, **values) -> bytes:
    """The picture after these controls were moved, one after the other."""
    if isinstance(panel, Drawn):
        panel.values = {**panel.values, **values}
        panel.draw(**panel.values)
        return panel.figure.frame()
    for name, value in values.items():
        panel.controls[name].value = value
        assert panel.error is None, (name, value)
        assert panel.image.alt == panel.figure.finding
    return panel.image.value


# --- each of them


def walk(panel: Panel | Drawn, name: str, values: list) -> set[bytes]:
    """The pictures of one control's values, the others left where they are."""
    seen = set()
    for value in values:
        seen.add(move(panel, **{name: value}))
        assert panel.figure.finding and len(panel.figure.alt) > 30, (name, value)
    return seen


@EACH
def test_every_value_of_every_control_is_drawn_and_said_whichever_way_it_was_reached(each):
    panel = each.small()
    start, ends = start_of(panel), {name: values[-1] for name, values in panel.choices.items()}
    first, last = move(panel), move(panel, **ends)
    for name, values in panel.choices.items():
        assert start[name] in values
        from_the_ends = walk(panel, name, [values[0], values[-1]])
        assert move(panel) == last and move(panel, **dict(reversed(start.items()))) == first
        from_the_start = walk(panel, name, thinned(values, MOST))
        assert max(len(from_the_ends), len(from_the_start)) > 1, f"{name} moves nothing"
        assert move(panel, **start) == first and move(panel, **dict(reversed(ends.items()))) == last


@EACH
def test_a_frame_depends_on_nothing_that_was_left_out_of_what_moves(each):
    """What stands still is drawn once. Drawn anew for other values, it has to be the same."""
    panel = each.small()
    start = start_of(panel)
    fast = move(panel, **{name: vs[0 if start[name] == vs[-1] else -1] for name, vs in panel.choices.items()})
    panel.figure._background = None
    assert panel.figure.frame() == fast


@EACH
def test_no_word_leaves_its_figure(each):
    panel = each.small()
    for end in (0, -1):
        figure = panel.draw(**{name: values[end] for name, values in panel.choices.items()})
        figure.frame()
        for text in figure.findobj(Text):
            if text.get_visible() and text.get_text().strip() and not text.get_clip_on():
                box = text.get_window_extent()
                inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
                assert inside, text.get_text()


@EACH
def test_it_is_saved_with_a_still_picture_and_its_words_for_readers_without_a_kernel(each):
    panel = each.small()
    data, metadata = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["image/jpeg"].startswith(b"\xff\xd8")
    assert data["text/plain"] == metadata["image/jpeg"]["alt"] == f"{panel.figure.finding}. {panel.figure.alt}"


# --- all of them


def used(source: Path) -> Iterator[tuple[int, str]]:
    """(lesson, name) of each panel that a lesson's source shows."""
    tree = ast.parse(source.read_text("utf-8"))
    (lesson,) = {
        int(node.module.removeprefix("qlab.course.lesson")) for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and "panels" in {alias.name for alias in node.names}
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "panels":
            yield lesson, node.attr


def test_the_registry_holds_the_panels_that_the_lessons_show_and_no_others():
    assert sorted({pair for source in SOURCES for pair in used(source)}) == sorted(
        (each.lesson, each.name) for each in explorables()
    )


def test_a_lesson_shows_its_own_panels():
    assert [int(source.name[:2]) for source in SOURCES] == list(LESSONS)
    for source in SOURCES:
        assert {lesson for lesson, _name in used(source)} == {int(source.name[:2])}


def test_they_come_lesson_by_lesson_and_know_their_controls_their_still_picture_and_their_script():
    assert all(one.lesson <= other.lesson for one, other in pairwise(explorables()))
    by_name = {each.name: each for each in explorables()}
    assert by_name["ptq_and_qat"].controls["images"] == [100, 200] and by_name["ptq_and_qat"].script is None
    assert by_name["clipping"].script == "clipping.js" and list(by_name["clipping"].controls) == ["bits", "limit"]
    data, _metadata = by_name["clipping"].still
    assert data["text/plain"].startswith("4 bits, limit ") and data == by_name["clipping"].still[0]


# --- where there is no kernel


@EACH
def test_what_is_drawn_beforehand_is_little_and_begins_as_the_panel_does(each):
    panel = each.small()
    kept = beforehand(panel)
    assert (kept is None) == (each.script is not None)
    if kept:
        assert prod(map(len, kept.values())) <= FRAMES
        assert kept.keys() == panel.controls.keys()
        assert all(control.value in kept[name] for name, control in panel.controls.items())
        moving = {name: values for name, values in kept.items() if len(values) > 1}
        assert moving and all(
            len(set(values)) >= min(FEWEST, len(panel.choices[name])) for name, values in moving.items()
        )


# --- a new one


def a_panel(module: str) -> Callable:
    def clipping(values):
        """Another panel of a name that is taken."""

    clipping.__module__ = module
    return clipping


def test_two_lessons_have_no_panels_of_one_name():
    with pytest.raises(ValueError, match="lessons 2 and 5 both have a panel 'clipping': rename one of them"):
        explorable()(a_panel("qlab.course.lesson05.panels"))


def test_a_panel_stands_in_a_lessons_panels():
    with pytest.raises(ValueError, match="'clipping' stands in somewhere: expected .*qlab.course.lesson02.panels"):
        explorable()(a_panel("somewhere"))


def test_a_module_that_is_loaded_again_takes_its_own_place(monkeypatch):
    monkeypatch.setattr(registry, "_FOUND", dict(registry._FOUND))
    names = [each.name for each in explorables()]
    again = a_panel("qlab.course.lesson02.panels")
    assert explorable()(again) is again
    assert [each.name for each in explorables()] == names
    assert next(each for each in explorables() if each.name == "clipping").panel is again
