"""The live panel starts, stops, shows its errors and leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from qlab.course.lesson11 import panels
from qlab.course.lesson11.live import Live
from qlab.detect.network import load
from qlab.detect.scene import CLASSES, Boxes
from qlab.detect.video import SceneSource, Source

CORNERS = torch.tensor([[10.0, 10, 50, 50], [80, 80, 120, 118], [60, 10, 90, 40]])
FOUND = Boxes(CORNERS, torch.tensor([0, 1, 1]), torch.tensor([0.9, 0.8, 0.5]))


class Fixed:
    """A detector that always says the same."""

    classes = CLASSES

    def __init__(self, found=FOUND, fails_at=None):
        self.found, self.calls, self.fails_at = found, 0, fails_at

    def __call__(self, image):
        self.calls += 1
        if self.calls == self.fails_at:
            raise ValueError("out of order")
        return self.found


def panel(length=None, closed=None, detectors=None, **options) -> Live:
    def open_source() -> Source:
        source = SceneSource(live=False)
        if length is not None:
            plain = source.frame
            source.frame = lambda number: plain(number) if number < length else None
        if closed is not None:
            source.close = lambda: closed.append(True)
        return source

    detectors = detectors or {"float": Fixed(), "int8": Fixed()}
    return Live(open_source, detectors, {"float": 90.0, "int8": 89.0}, **options)


def states(panel: Live) -> tuple[bool, bool]:
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
    net = load()
    shown = panels.live_detection(
        lambda: SceneSource(live=False), {"float": net, "int8": net}, {"float": 1, "int8": 1}, first=1
    )
    assert {detector.threshold for detector in shown.detectors.values()} == {0.05}
    assert shown.detectors["float"].network is net
