"""The challenge: the judge counts every byte, refuses what is no submission, and its figure is the Pareto front."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stripes import stripes
from torch import nn

import qlab
from qlab import PerGroup, QConfig, QuantSpec, qconfig
from qlab.course import challenge, explorables, plots
from qlab.course.challenge import Budget, Judge, Score, front, stored_kib
from qlab.course.lessons import lesson99

BUDGET = Budget(kib=100, time=1.5)


def a_score(name: str, accuracy: float, kib: float, time: float | None = 1.0) -> Score:
    return Score(name, accuracy, 90 - accuracy, kib, time, BUDGET)


SCORES = [a_score("large", 89.0, 270), a_score("middle", 86.0, 140), a_score("small", 80.0, 75)]


def small_network() -> nn.Module:
    torch.manual_seed(5)
    conv = nn.Conv2d(3, 8, 3, stride=4)
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(small_network(), stripes(96, "validation"), stripes(64), BUDGET)


def calibrated(qconfig: QConfig) -> qlab.graph.prepare.Prepared:
    return qlab.calibrate(qlab.prepare(small_network(), qconfig), stripes(64).batches(32), progress=False)


# --- what it weighs


def test_every_number_of_the_file_is_counted():
    prepared = calibrated(QConfig.preset("w4a8", first_last=None))
    codes = (8 * 27 * 4 + 8 * 2 * 4) / 8
    grids = [q for _, q in prepared.quantizers()]
    others = sum(2 * q.scale.numel() for q in grids) + 8 + 2  # scales and zero points, biases
    assert stored_kib(prepared) == (codes + 4 * others) / 1024


def test_a_scale_for_every_few_weights_is_paid_for():
    by_channel = calibrated(QConfig.preset("w4a8", first_last=None))
    spec = QuantSpec(2, signed=True, symmetric=True, granularity=PerGroup(2))
    by_pair = calibrated(QConfig(weight=spec, first_last=None, overrides={nn.Conv2d: QConfig.w4a8()}))
    by_pair_codes = qlab.analysis.weight_bytes(by_pair)
    assert by_pair_codes < qlab.analysis.weight_bytes(by_channel)
    assert stored_kib(by_pair) > stored_kib(by_channel)


def test_a_layer_in_float_weighs_four_bytes_a_weight():
    whole, part = calibrated(QConfig.w8a8()), calibrated(QConfig.w8a8(overrides={"4": None}))
    assert stored_kib(part) > stored_kib(whole)
    assert any(key.endswith("weight") and tensor.shape == (2, 8) for key, tensor in part.network.state_dict().items())


# --- the judge


def test_a_submission_is_measured_as_integers(judge):
    score = judge.score("plain", calibrated(QConfig.w8a8(reduce_range=True)))
    assert score.name == "plain" and score.time > 0
    assert score.accuracy == pytest.approx(qlab.evaluate(judge.pace, judge.exam), abs=3)
    assert score.lost == judge.float_accuracy - score.accuracy
    assert f"{score.accuracy:.1f} % right" in str(score) and "KiB" in score._repr_html_()


def test_what_no_kernel_runs_is_judged_without_a_time_and_does_not_count(judge):
    score = judge.score("codes", calibrated(QConfig.w8a8(weight=qconfig.KMeans(bits=2), first_last=None)))
    assert score.time is None
    assert score.objections == ["no integer kernel runs it, so it has no time"]
    assert "time -" in str(score)


def test_only_a_prepared_and_calibrated_network_is_judged(judge):
    with pytest.raises(TypeError, match="a Sequential was submitted; expected the network that qlab.prepare gave"):
        judge.score("float", small_network())
    with pytest.raises(RuntimeError, match="has not been calibrated"):
        judge.score("bare", qlab.prepare(small_network()))


def test_a_disturbance_that_hits_both_hits_neither(judge, monkeypatch):
    seconds = {"plain": (1.0, 9.0, 1.0, 1.0, 1.0), "submitted": (2.0, 18.0, 2.0, 2.0, 7.0)}
    monkeypatch.setattr(challenge.bench, "interleave", lambda calls, progress: seconds)
    assert judge._time(judge.pace) == 2.0


def test_the_two_are_timed_on_the_same_images(judge, monkeypatch):
    def interleave(calls, progress):
        assert [call().shape for call in calls.values()] == [(32, 2), (32, 2)]
        return dict.fromkeys(calls, (1.0,))

    monkeypatch.setattr(challenge.bench, "interleave", interleave)
    assert judge._time(judge.pace) == 1.0


@pytest.mark.parametrize("kib, time, said", [
    (100, 1.5, []),
    (100.5, 1.0, ["100.5 KiB are 0.5 over the budget of 100"]),
    (90, 1.6, ["1.60 times the plain 8-bit network's time; the budget is 1.5"]),
])  # fmt: skip
def test_what_is_over_the_budget_is_said(kib, time, said):
    score = a_score("mine", 80.0, kib, time)
    assert score.objections == said
    assert str(score).endswith("; ".join(said) or "within the budget")


# --- the front


NUMBERS = st.tuples(st.integers(0, 6), st.integers(1, 6))


@given(st.lists(NUMBERS, min_size=1, max_size=12, unique=True))
def test_nobody_dominates_the_front_and_somebody_on_it_dominates_every_other(pairs):
    scores = [a_score(str(pair), *pair) for pair in pairs]
    best = front(scores)
    for score in scores:
        assert (score in best) is not any(other.dominates(score) for other in scores)
        assert score in best or any(other.dominates(score) for other in best)
    assert [score.kib for score in best] == sorted(score.kib for score in best)
    assert [(s.accuracy, s.kib) for s in best] == lesson99.pareto_front(pairs)


@given(NUMBERS, NUMBERS)
def test_the_exercise_and_the_judge_mean_the_same_by_dominating(a, b):
    assert a_score("a", *a).dominates(a_score("b", *b)) is lesson99.dominates(a, b)


# --- the figure


@pytest.mark.parametrize("kib, name", [(300, "large"), (200, "middle"), (100, "yours"), (75, "small"), (60, None)])
def test_the_ring_marks_the_best_that_fits(kib, name):
    figure = plots.pareto(SCORES, a_score("yours", 85.0, 100))(kib)
    expected = f"{kib} KiB: {name} is best" if name else f"{kib} KiB: nothing fits"
    assert figure.finding.startswith(expected)
    assert figure.finding.endswith("yours is on the front")
    assert "Yours, the star: 85.0 % with 100.0 KiB" in figure.alt


def test_who_beats_yours_is_named():
    figure = plots.pareto(SCORES, a_score("yours", 79.0, 100))(300)
    assert figure.finding.endswith("yours is beaten by small")


def test_two_networks_of_nearly_one_size_and_accuracy_have_names_that_can_be_read():
    scores = [a_score("W4A4 by PTQ", 87.0, 142), a_score("W4A4 by QAT", 88.0, 142), a_score("W8A8", 89.6, 274)]
    figure = plots.pareto(scores, a_score("mine", 61.0, 100))(300)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_the_strokes_from_names_to_points_do_not_cross():
    networks = {"W8A8 by PTQ": (89.4, 274), "W4A4 by PTQ": (87.4, 142), "W4A4 by QAT": (88.8, 142.5)}
    networks |= {"W3A3 by QAT": (89.2, 109.5), "W2A2 by QAT": (88.4, 76.6)}
    scores = [replace(a_score(name, *place), lost=89.4 - place[0]) for name, place in networks.items()]
    figure = plots.pareto(scores, replace(a_score("mixed", 59.4, 99.7), lost=30.0))(284)
    figure.draw_without_rendering()
    left = {text.get_text(): text.get_window_extent().x0 for text in figure.axes[0].texts}
    assert left["W2A2 by QAT"] < left["W3A3 by QAT"], "as their points do"


def test_yours_may_be_among_the_scores():
    line = plots.pareto(SCORES, SCORES[1])(300).axes[0].lines[1]
    assert list(line.get_xdata()) == [75, 140, 270]


def test_the_panel_shows_every_size():
    panel = explorables.pareto(SCORES, a_score("yours", 85.0, 100))
    slider, seen = panel.controls["kib"], set()
    for kib in range(round(slider.minimum), round(slider.maximum) + 1, 5):
        slider.value = kib
        assert panel.error is None
        seen.add(panel.image.value)
    assert len(seen) > 20
    assert slider.minimum < 75 and slider.maximum > 270


def test_all_that_the_judge_says_can_be_translated(monkeypatch):
    monkeypatch.setattr(challenge, "_", lambda text: f"<{text}>")
    assert a_score("mine", 80.0, 101).objections == ["<101.0 KiB are 1.0 over the budget of 100>"]
