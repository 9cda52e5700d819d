"""The challenge: the judge counts every byte, and refuses what is no submission."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stripes import stripes
from torch import nn

import qlab
from qlab import PerGroup, QConfig, QuantSpec, qconfig
from qlab.course.lesson99 import challenge, exercises
from qlab.course.lesson99.challenge import Budget, Judge, Score, front, stored_kib

BUDGET = Budget(kib=100, time=1.5)


def a_score(name: str, accuracy: float, kib: float, time: float | None = 1.0) -> Score:
    return Score(name, accuracy, 90 - accuracy, kib, time, BUDGET)


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
        return {name: (1.0,) for name in calls}

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
    assert [(s.accuracy, s.kib) for s in best] == exercises.pareto_front(pairs)


@given(NUMBERS, NUMBERS)
def test_the_exercise_and_the_judge_mean_the_same_by_dominating(a, b):
    assert a_score("a", *a).dominates(a_score("b", *b)) is exercises.dominates(a, b)


def test_all_that_the_judge_says_can_be_translated(monkeypatch):
    monkeypatch.setattr(challenge, "_", lambda text: f"<{text}>")
    assert a_score("mine", 80.0, 101).objections == ["<101.0 KiB are 1.0 over the budget of 100>"]
