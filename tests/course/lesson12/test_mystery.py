"""Lesson 12's mystery networks: one part is wrong, the measurements show which, and making it anew mends the app."""

from __future__ import annotations

import re

import pytest
import torch
from stripes import stripes
from torch import nn

from qlab.course.lesson12 import mystery as mysteries
from qlab.course.lesson12.exercises import diagnose
from qlab.course.lesson12.mystery import ASKED, MISTAKES, NONE, App, deploy, draw, mystery, right
from qlab.course.mystery import Box

NAMES = [mistake.name for mistake in MISTAKES]
EACH = pytest.mark.parametrize("mistake", MISTAKES, ids=NAMES)
CALIBRATION = stripes(64)


@pytest.fixture(scope="module")
def good() -> App:
    """Two convolutions that know stripes that stand from stripes that lie, and an app without a mistake."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    return deploy(network, CALIBRATION, stripes(96, "validation"), NONE)


def parts(app: App, good: App) -> dict[str, bool]:
    """Which parts of an app differ from those of the good one."""
    x = next(good.feed.batches(32))[0]
    with torch.inference_mode():
        return {
            "preprocessing": not torch.equal(next(app.feed.batches(32))[0], x),
            "quantization": not torch.equal(app.prepared(x), good.prepared(x)),
            "conversion": not torch.equal(app.reference(x), good.reference(x)),
            "engine": type(app.running._engine) is not NONE.engine,
        }


@EACH
def test_one_stage_is_spoiled_and_no_other(mistake, good):
    spoiled = {
        stage
        for stage, changed in parts(deploy(good.network, CALIBRATION, good.feed, mistake), good).items()
        if changed
    }
    inherits = {"conversion"} if mistake.stage == "quantization" else set()  # integers of other grids are others
    assert spoiled == {mistake.stage} | inherits


@EACH
def test_what_is_taken_from_a_good_app_gives_the_same_app(mistake, good):
    alone, like = (deploy(good.network, CALIBRATION, good.feed, mistake, other) for other in (None, good))
    x = next(alone.feed.batches(32))[0]
    with torch.inference_mode():
        assert torch.equal(alone.running(x), like.running(x)) and torch.equal(alone.prepared(x), like.prepared(x))


def test_a_good_app_stays_as_it_is_whatever_is_spoiled(good):
    x = next(good.feed.batches(32))[0]
    with torch.inference_mode():
        before = good.running(x), good.reference(x)
        for mistake in MISTAKES:
            deploy(good.network, CALIBRATION, good.feed, mistake, good)
        assert torch.equal(before[0], good.running(x)) and torch.equal(before[1], good.reference(x))


def test_there_are_at_least_seven_and_of_each_stage_two():
    stages = [mistake.stage for mistake in MISTAKES]
    assert len(set(NAMES)) == len(MISTAKES) >= 7
    assert all(stages.count(stage) >= 2 for stage in ("preprocessing", "quantization", "conversion", "engine"))


def test_seeds_in_a_row_give_all_mistakes_in_an_order_that_changes():
    orders = [[draw(seed).name for seed in range(start, start + len(MISTAKES))] for start in (0, 9, 18)]
    assert all(sorted(order) == sorted(NAMES) for order in orders) and orders[0] != orders[1] != orders[2]


def test_the_right_part_made_anew_mends_the_app_and_no_other_does(good):
    whole = right(good.running, good.feed)
    fields = {"preprocessing": "images", "quantization": "calibrate", "conversion": "convert", "engine": "engine"}
    for seed in range(len(MISTAKES)):
        case = mystery(good, CALIBRATION, seed)
        case.diagnose(NAMES[0])
        broken = float(re.search(r"right on ([\d.]+) %", case.story)[1])
        for name in case.repairs:
            now = float(re.search(r"right on ([\d.]+) %", case.repair(name))[1])
            mends = fields[draw(seed).stage] in name
            assert now == pytest.approx(whole if mends else broken, abs=0.06), (draw(seed).name, name)


def test_five_measurements_and_no_more(good):
    case = mystery(good, CALIBRATION, 0)
    names = list(case.measurements)
    for name in (*names[:ASKED], names[0]):  # to look again at one costs nothing
        assert case.measure(name)
    with pytest.raises(ValueError, match="all 5 measurements are used up"):
        case.measure(names[ASKED])
    with pytest.raises(ValueError, match="no measurement 'time'"):
        case.measure("time")


# --- what the measurements show


def text_of(name: str, mistake: str, good: App) -> str:
    chosen = next(each for each in MISTAKES if each.name == mistake) if mistake else NONE
    app = deploy(good.network, CALIBRATION, good.feed, chosen, good)
    return mysteries._measurements(app, good.feed)[name]()


def numbers(text: str, pattern: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, text)]


def test_the_images_show_what_was_done_to_them(good):
    mean, step = r"mean ([+-][\d.]+)", r"to the next ([\d.]+)"
    raw = text_of("what the images are like", "pixels from 0 to 1, not normalized", good)
    assert raw.splitlines()[0] != raw.splitlines()[1] and numbers(raw, mean)[0] > 0
    same = text_of("what the images are like", "", good)
    assert numbers(same, step)[0] == numbers(same, step)[1]


def test_the_grids_show_a_wrong_calibration(good):
    cut, used = r"([\d.]+) % beyond", r"use +(\d+) of"
    noise = text_of("what the grids cut off", "calibrated on noise", good)
    broken = text_of("what the grids cut off", "one broken image among those that calibrate", good)
    healthy = text_of("what the grids cut off", "", good)
    assert numbers(noise, cut)[0] > 20 > 1 > numbers(healthy, cut)[0]
    assert numbers(broken, used)[0] < 10 < 100 < numbers(healthy, used)[0]


def test_the_file_shows_what_was_written_wrongly(good):
    for name, mistake in (
        ("weights in the file", "scales of the channels in another order"), ("biases in the file", "biases of 8 bits")
    ):  # fmt: skip
        wrong, healthy = (numbers(text_of(name, each, good), r"(-?\d+) dB") for each in (mistake, ""))
        assert min(wrong) < 20 < 100 < min(healthy), name


def test_one_layer_on_both_engines_tells_the_engines_apart(good):
    share = r"(\d+) % of the outputs"
    signed, shifts, healthy = (
        numbers(text_of("one layer on both engines", name, good), share)
        for name in ("bytes read as signed", "multipliers rounded to powers of two", "")
    )
    assert healthy == [0, 0] and signed[0] == 0 < 50 < signed[1] and min(shifts) > 10


def test_the_box_tells_that_no_measurement_is_left(good):
    box = Box(lambda seed: mystery(good, CALIBRATION, seed), seed=0)
    for button in box.measuring:
        button.click()
    assert len(box.mystery.asked) == ASKED and "measurements are used up" in box.said.value


def test_the_table_of_stages_blames_none_of_a_good_app(good):
    assert diagnose(*good.rights(), right(good.network, good.feed)) is None
