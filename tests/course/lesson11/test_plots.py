"""Lesson 11's figures say what the boxes say; the live panel starts, stops, shows its errors and leaves nothing behind."""

from __future__ import annotations

import asyncio
import re
import threading

import pytest
import torch

from qlab import detect
from qlab.course import explorables, live, plots
from qlab.course.lessons import lesson11
from qlab.detect import Boxes, Frame, Meter, Seen
from qlab.detect.video import SceneSource, Source

CLASSES = ("ring", "star")
IMAGE = torch.full((3, 160, 160), 128, dtype=torch.uint8)


def boxes(*rows, labels, scores) -> Boxes:
    return Boxes(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels), torch.tensor(scores))


TRUTH = boxes((10, 10, 50, 50), (80, 80, 120, 120), labels=[0, 1], scores=[1.0, 1.0])
CANDIDATES = boxes(
    (10, 10, 50, 50), (12, 10, 52, 50), (80, 80, 120, 118), (60, 10, 90, 40), labels=[0, 0, 1, 1],
    scores=[0.9, 0.8, 0.5, 0.2],
)  # fmt: skip


def suppression():
    return explorables.suppression(IMAGE, CANDIDATES, TRUTH, CLASSES)


@pytest.mark.parametrize("score, overlap, finding", [
    (5, 95, "From 5 % up: 4 boxes become 4; 2 of 2 shapes found, 2 wrong or double"),
    (5, 45, "From 5 % up: 4 boxes become 3; 2 of 2 shapes found, 1 wrong or double"),
    (30, 45, "From 30 % up: 3 boxes become 2; 2 of 2 shapes found, 0 wrong or double"),
    (60, 45, "From 60 % up: 2 boxes become 1; 1 of 2 shapes found, 0 wrong or double"),
    (95, 45, "From 95 % up: 0 boxes become 0; 0 of 2 shapes found, 0 wrong or double"),
])  # fmt: skip
def test_the_title_counts_what_is_left_and_right(score, overlap, finding):
    figure = plots.suppression(IMAGE, CANDIDATES, TRUTH, CLASSES)(score, overlap)
    assert figure.finding == finding
    before, kept = (int(number) for number in re.findall(r"(\d+) boxes become (\d+)", finding)[0])
    drawn = [
        len(c.get_paths()) for c in figure.axes[1].collections[1::2]
    ]  # each box has a white line and a coloured one
    assert sum(drawn) == kept and len(figure.axes[0].collections[1].get_paths()) == before
    assert f"scores of at least {score} %" in figure.alt


def test_every_value_of_every_control_is_drawn_the_same_whichever_way_it_was_reached():
    moved, seen = suppression(), set()
    for name, control in moved.controls.items():
        for value in range(5, 100, 10):
            control.value = value
            assert moved.error is None, (name, value)
            seen.add(moved.image.value)
    fresh = suppression()
    for name, control in moved.controls.items():
        fresh.controls[name].value = control.value
    assert fresh.image.value == moved.image.value and len(seen) > 4


def seen(truth=TRUTH) -> Seen:
    found = {"float": CANDIDATES, "int8": CANDIDATES.at(torch.tensor([0, 3]))}
    return Seen(Frame(IMAGE, 7, truth), found, {"float": 0.02, "int8": 0.01})


def meters() -> dict[str, Meter]:
    both = {"float": Meter(), "int8": Meter()}
    for name, seconds in (("float", 0.04), ("int8", 0.02)):
        both[name].add(seconds)
    return both


def test_side_by_side_says_how_fast_and_how_many():
    draw = plots.side_by_side(("float", "int8"), CLASSES, {"float": 90.0, "int8": 89.5}, 160)
    figure = draw(seen(), meters(), 30, 12)
    assert figure.finding == "float 25 frames/s, int8 50 frames/s"
    assert "Frame 7, scores of at least 30 %: float finds 3, int8 finds 1 of 2 shapes. 12 frames" in figure.alt
    assert [ax.get_title(loc="left") for ax in figure.axes[1:]] == ["float: mAP 90.0 %", "int8: mAP 89.5 %"]
    assert [text.get_text() for text in figure.axes[1].texts if text.get_visible()] == ["ring", "ring", "star"]
    assert "of 2 shapes" not in draw(seen(truth=None), meters(), 30, 12).alt
    first = draw(seen(), meters(), 30, 12).frame()
    draw(seen(), meters(), 90, 13).frame()
    assert draw(seen(), meters(), 30, 12).frame() == first


def test_a_frame_depends_on_what_was_seen():
    draw = plots.side_by_side(("float", "int8"), CLASSES, {"float": 90.0, "int8": 89.5}, 160)
    frames = {draw(seen(), meters(), score, 0).frame() for score in (5, 60, 95)}
    assert len(frames) == 3


# --- the live panel


class Fixed:
    """A detector that always says the same."""

    classes = detect.CLASSES

    def __init__(self, found=CANDIDATES, fails_at=None):
        self.found, self.calls, self.fails_at = found, 0, fails_at

    def __call__(self, image):
        self.calls += 1
        if self.calls == self.fails_at:
            raise ValueError("out of order")
        return self.found


def panel(length=None, closed=None, detectors=None, **options) -> live.Live:
    def open_source() -> Source:
        source = SceneSource(live=False)
        if length is not None:
            plain = source.frame
            source.frame = lambda number: plain(number) if number < length else None
        if closed is not None:
            source.close = lambda: closed.append(True)
        return source

    detectors = detectors or {"float": Fixed(), "int8": Fixed()}
    return live.Live(open_source, detectors, {"float": 90.0, "int8": 89.0}, **options)


def states(panel: live.Live) -> tuple[bool, bool]:
    return panel.buttons["start"].disabled, panel.buttons["stop"].disabled


def test_a_new_panel_shows_some_frames_and_waits():
    closed = []
    shown = panel(closed=closed, first=3)
    assert shown.seen.frame.number == 2 and closed == [True] and not shown.running
    assert states(shown) == (False, True) and len(shown.meters["int8"].seconds) == 3
    assert "image/jpeg" in shown._repr_mimebundle_()[0]


def test_the_slider_filters_what_was_seen_last():
    shown = panel()
    before = shown.image.value
    shown.controls["score"].value = 95
    assert "float finds 0, int8 finds 0" in shown.figure.alt and shown.image.value != before
    assert shown.detectors["float"].calls == 3  # nothing was looked at again


def test_start_runs_until_stop_and_leaves_nothing_behind():
    closed, threads = [], threading.active_count()
    shown = panel(closed=closed)

    async def use() -> None:
        shown.buttons["start"].click()
        task = shown.task
        assert shown.running and states(shown) == (True, False)
        shown.buttons["start"].click()
        assert shown.task is task  # one run at a time
        while len(shown.meters["float"].seconds) < 6:
            await asyncio.sleep(0.01)
        shown.buttons["stop"].click()
        await asyncio.sleep(0.05)
        assert not shown.running and states(shown) == (False, True)
        frames = len(shown.meters["float"].seconds)
        await asyncio.sleep(0.05)
        assert len(shown.meters["float"].seconds) == frames
        assert asyncio.all_tasks() == {asyncio.current_task()}
        shown.stop()  # a second time does no harm

    asyncio.run(use())
    assert shown.error is None and closed == [True, True] and threading.active_count() == threads


@pytest.mark.parametrize("options", [{"length": 5}, {"longest": 0.0}], ids=["the video ends", "time is up"])
def test_a_run_ends_by_itself(options):
    shown = panel(**options)

    async def use() -> None:
        shown.start()
        await asyncio.wait_for(shown.task, 20)

    asyncio.run(use())
    assert not shown.running and states(shown) == (False, True) and shown.error is None
    assert shown.seen.frame.number == (4 if "length" in options else 0)


def test_what_goes_wrong_stands_in_the_panel_and_ends_the_run():
    closed = []
    shown = panel(closed=closed, detectors={"float": Fixed(fails_at=5), "int8": Fixed()})

    async def use() -> None:
        shown.start()
        await asyncio.wait_for(shown.task, 20)

    asyncio.run(use())
    assert "role='alert'" in shown.words.value and "ValueError: out of order" in shown.words.value
    assert closed == [True, True] and states(shown) == (False, True)


def test_outside_of_a_notebook_start_says_so():
    shown = panel()
    shown.start()
    assert isinstance(shown.error, RuntimeError) and "alert" in shown.words.value and not shown.running


def test_networks_become_detectors_with_a_low_threshold():
    net = detect.load()
    shown = live.live_detection(
        lambda: SceneSource(live=False), {"float": net, "int8": net}, {"float": 1, "int8": 1}, first=1
    )
    assert {detector.threshold for detector in shown.detectors.values()} == {0.05}
    assert shown.detectors["float"].network is net


# --- the exercises compute what the package computes


def test_the_exercises_agree_with_the_package():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(12, 2, generator=generator) * 40
    rows = torch.cat([corners, corners + 5 + 20 * torch.rand(12, 2, generator=generator)], 1)
    overlaps = detect.iou(rows, rows)
    for i, a in enumerate(rows.tolist()):
        for j, b in enumerate(rows.tolist()):
            assert lesson11.overlap(a, b) == pytest.approx(float(overlaps[i, j]), abs=1e-6)
    scores = torch.rand(12, generator=generator)
    assert lesson11.suppress(overlaps.tolist(), scores.tolist(), 0.3) == detect.nms(rows, scores, 0.3).tolist()
    anchor, offsets = torch.tensor([[10.0, 20, 30, 40]]), torch.tensor([[1.0, -2, 0.5, 1.5]])
    expected = detect.decode(offsets, anchor)[0].tolist()
    assert lesson11.decode(offsets[0].tolist(), (20.0, 30.0), 20.0) == pytest.approx(expected, rel=1e-5)
    found = [Boxes(CANDIDATES.xyxy, torch.zeros(4, dtype=torch.long), CANDIDATES.scores)]
    truth = [Boxes(TRUTH.xyxy, torch.zeros(2, dtype=torch.long), TRUTH.scores)]
    expected = detect.average_precision(found, truth, 0)
    assert lesson11.average_precision([True, False, True, False], 2) == pytest.approx(expected)
