"""Lesson 11's figures say what the boxes say."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from qlab import detect
from qlab.course.lesson11 import plots
from qlab.detect import Boxes, Frame, Meter, Seen

CLASSES = ("ring", "star")
IMAGE = torch.full((3, 160, 160), 128, dtype=torch.uint8)


def boxes(*rows, labels, scores) -> Boxes:
    return Boxes(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels), torch.tensor(scores))


TRUTH = boxes((10, 10, 50, 50), (80, 80, 120, 120), labels=[0, 1], scores=[1.0, 1.0])
CANDIDATES = boxes(
    (10, 10, 50, 50), (12, 10, 52, 50), (80, 80, 120, 118), (60, 10, 90, 40), labels=[0, 0, 1, 1],
    scores=[0.9, 0.8, 0.5, 0.2],
)  # fmt: skip


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


def test_the_anchors_drawn_are_those_that_have_to_find_a_shape():
    truth = boxes((60, 60, 96, 96), (10, 10, 28, 28), labels=[0, 1], scores=[1.0, 1.0])
    figure = plots.anchors(IMAGE, truth)
    overlap = detect.iou(detect.ANCHORS, truth.xyxy)
    finding = (overlap >= 0.5).any(1)
    finding[overlap.argmax(0)] = True
    assert figure.finding == (
        f"{int(finding.sum())} of 1,050 anchors have to find one of the 2 shapes, all others the ground"
    )
    drawn = [len(ax.collections[3].get_paths()) for ax in figure.axes]
    assert sum(drawn) == int(finding.sum()) and drawn[2] == 0, "no large anchor fits a small shape"
    assert [len(ax.lines[0].get_xdata()) for ax in figure.axes] == [400, 100, 25]
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[0].startswith("20x20 places, squares of 18 and 26:") and f"{drawn[0]} anchors" in titles[0]


def test_every_layer_of_the_detector_has_a_name_to_read():
    layers = {name: layer for name, layer in detect.load().named_modules() if isinstance(layer, nn.Conv2d)}
    names = [plots.readable(name, layer) for name, layer in layers.items()]
    assert len(set(names)) == len(names) and not any("." in name for name in names)
    assert "block 10, depthwise 3x3" in names and "classes of the 20x20 map, depthwise 3x3" in names


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
