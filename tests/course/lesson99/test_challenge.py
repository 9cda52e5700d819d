"""The challenge: the board counts every byte, compares on the same images, and refuses what is no attempt."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stripes import stripes
from torch import nn

import qlab
from qlab import PerGroup, QConfig, QuantSpec, qconfig
from qlab.analysis import Paired
from qlab.course.lesson99 import challenge, exercises
from qlab.course.lesson99.challenge import Board, Budget, Score, front, start_from, stored_kib

BUDGET = Budget(kib=100, time=1.5)


def a_score(name: str, accuracy: float, kib: float, time: float | None = 1.0, error: float = 0.5) -> Score:
    return Score(name, accuracy, Paired(accuracy - 80, error, 50), kib, time, BUDGET)


def small_network() -> nn.Module:
    torch.manual_seed(5)
    conv = nn.Conv2d(3, 8, 3, stride=4)
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()


def calibrated(qconfig: QConfig) -> qlab.graph.prepare.Prepared:
    return qlab.calibrate(qlab.prepare(small_network(), qconfig), stripes(64).batches(32), progress=False)


@pytest.fixture(scope="module")
def board() -> Board:
    return Board(calibrated(QConfig.w8a8(reduce_range=True)), stripes(96, "validation"), BUDGET)


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


# --- the board


def test_an_attempt_is_measured_as_integers_and_against_the_line_on_the_same_images(board):
    score = board.enter("four bits", calibrated(QConfig.w4a4()))
    right = qlab.analysis.hits(qlab.convert(calibrated(QConfig.w4a4())), board.exam)
    line = qlab.analysis.hits(board.pace, board.exam)
    assert score.accuracy == pytest.approx(100 * float(right.float().mean())) and score.time > 0
    assert score.gain == qlab.analysis.paired(line, right)
    assert board.accuracy + score.gain.difference == pytest.approx(score.accuracy)
    assert f"{score.accuracy:.1f} % right" in str(score) and "KiB" in score._repr_html_()


def test_the_line_does_not_differ_from_itself(board):
    score = board.enter("the line", board.line)
    assert (score.gain.difference, score.gain.error, score.gain.changed) == (0, 0, 0) and not score.beats
    if not score.objections:  # a disturbance may have hit one of the two
        assert score.verdict == "within the budget, and right on the same images as the line"


def test_a_second_attempt_of_a_name_takes_the_place_of_the_first_and_two_can_be_compared(board):
    first, second = (board.enter("mine", calibrated(QConfig.preset(preset))) for preset in ("w2a2", "w8a8"))
    assert first not in board.scores and board.scores.count(second) == 1
    assert board.compare("mine", "mine").changed == 0


def test_what_no_kernel_runs_is_judged_without_a_time_and_does_not_count(board):
    score = board.enter("codes", calibrated(QConfig.w8a8(weight=qconfig.KMeans(bits=2), first_last=None)))
    assert score.time is None
    assert score.objections == ["no integer kernel runs it, so it has no time"]
    assert "time -" in str(score)


def test_only_a_prepared_and_calibrated_network_is_entered(board):
    with pytest.raises(TypeError, match="a Sequential was entered; expected the network that qlab.prepare gave"):
        board.enter("float", small_network())
    with pytest.raises(RuntimeError, match="has not been calibrated"):
        board.enter("bare", qlab.prepare(small_network()))


def test_a_disturbance_that_hits_both_hits_neither(board, monkeypatch):
    seconds = {"line": (1.0, 9.0, 1.0, 1.0, 1.0), "entered": (2.0, 18.0, 2.0, 2.0, 7.0)}
    monkeypatch.setattr(challenge.bench, "interleave", lambda calls, progress: seconds)
    assert board._time(board.pace) == 2.0


def test_the_board_and_the_exercise_mean_the_same_ratio(board, monkeypatch):
    seconds = {"line": (1.0, 1.1, 1.0, 3.3, 3.0), "entered": (2.0, 2.2, 6.0, 6.6, 6.3)}
    monkeypatch.setattr(challenge.bench, "interleave", lambda calls, progress: seconds)
    assert board._time(board.pace) == exercises.times_as_long(seconds["entered"], seconds["line"])


def test_the_two_are_timed_on_the_same_images(board, monkeypatch):
    def interleave(calls, progress):
        assert [call().shape for call in calls.values()] == [(32, 2), (32, 2)]
        return dict.fromkeys(calls, (1.0,))

    monkeypatch.setattr(challenge.bench, "interleave", interleave)
    assert board._time(board.pace) == 1.0


@pytest.mark.parametrize("gain, error, beats, words", [
    (2.0, 0.9, True, "it beats the line"),
    (2.0, 1.1, False, "may be chance"),
    (-2.0, 1.1, False, "may be chance"),
    (-2.0, 0.9, False, "worse than the line"),
])  # fmt: skip
def test_the_line_is_beaten_by_more_than_two_standard_errors(gain, error, beats, words):
    score = a_score("mine", 80 + gain, 90, error=error)
    assert score.beats is beats and words in score.verdict
    assert not a_score("large", 80 + gain, 101, error=error).beats


@pytest.mark.parametrize("kib, time, said", [
    (100, 1.5, []),
    (100.5, 1.0, ["100.5 KiB are 0.5 over the budget of 100"]),
    (90, 1.6, ["1.60 times the time of the line to beat; the budget is 1.5"]),
])  # fmt: skip
def test_what_is_over_the_budget_is_said(kib, time, said):
    score = a_score("mine", 80.0, kib, time)
    assert score.objections == said
    assert str(score).endswith("; ".join(said) or "may be chance")


# --- a start from a trained network


def test_what_keeps_its_bits_keeps_what_it_learned_and_the_rest_is_chosen_anew():
    trained = calibrated(QConfig.preset("w3a8", first_last=None))
    for _name, quantizer in trained.quantizers():
        quantizer.scale.mul_(1.25)  # as if it had been learned
    changed = QConfig.preset("w3a8", first_last=None, overrides={"4": QConfig.preset("w2a8", first_last=None)})
    images = [x for x, _y in stripes(64).batches(32)]
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    after = start_from(small_network(), trained, changed, images).state_dict()
    assert after.keys() == before.keys()
    differ = {name for name in before if not torch.equal(before[name], after[name])}
    assert differ == {"network.4.weight_quantizer.scale"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


def test_weights_of_another_training_are_taken_over():
    trained = calibrated(QConfig.w8a8())
    dict(trained.weighted())["4"].weight.data.mul_(2)
    started = start_from(small_network(), trained, QConfig.w4a8(), stripes(64).batches(32))
    assert torch.equal(dict(started.weighted())["4"].weight, dict(trained.weighted())["4"].weight)


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
def test_the_exercise_and_the_board_mean_the_same_by_dominating(a, b):
    assert a_score("a", *a).dominates(a_score("b", *b)) is exercises.dominates(a, b)


def test_all_that_the_board_says_can_be_translated(monkeypatch):
    monkeypatch.setattr(challenge, "_", lambda text: f"<{text}>")
    assert a_score("mine", 80.0, 101).objections == ["<101.0 KiB are 1.0 over the budget of 100>"]
