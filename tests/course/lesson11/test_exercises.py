"""Lesson 11's exercises compute what the package computes, take right answers however written, and refuse slips."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qlab import detect
from qlab.course.exercises import exercise, of_lesson
from qlab.course.judging import Kind, judge
from qlab.course.lesson11 import exercises


def test_the_exercises_agree_with_the_package():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(12, 2, generator=generator) * 40
    rows = torch.cat([corners, corners + 5 + 20 * torch.rand(12, 2, generator=generator)], 1)
    overlaps = detect.iou(rows, rows)
    for i, a in enumerate(rows.tolist()):
        for j, b in enumerate(rows.tolist()):
            assert exercises.overlap(a, b) == pytest.approx(float(overlaps[i, j]), abs=1e-6)
    scores = torch.rand(12, generator=generator)
    assert exercises.suppress(overlaps.tolist(), scores.tolist(), 0.3) == detect.nms(rows, scores, 0.3).tolist()
    anchor, offsets = torch.tensor([[10.0, 20, 30, 40]]), torch.tensor([[1.0, -2, 0.5, 1.5]])
    expected = detect.decode(offsets, anchor)[0].tolist()
    assert exercises.decode(offsets[0].tolist(), (20.0, 30.0), 20.0) == pytest.approx(expected, rel=1e-5)
    there = torch.tensor([[10.0, 10, 50, 50], [80, 80, 120, 120]])
    found = detect.Boxes(there[[0, 0, 1, 1]], torch.zeros(4, dtype=torch.long), torch.tensor([0.9, 0.8, 0.5, 0.2]))
    truth = detect.Boxes(there, torch.zeros(2, dtype=torch.long), torch.ones(2))
    expected = detect.average_precision([found], [truth], 0)
    assert exercises.average_precision([True, False, True, False], 2) == pytest.approx(expected)


# --- right, and written another way


def overlap_in_numpy(a, b):
    a, b = np.array(a), np.array(b)
    sides = np.maximum(0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]))
    areas = [np.prod(box[2:] - box[:2]) for box in (a, b)]
    return sides.prod() / (areas[0] + areas[1] - sides.prod())


def overlap_in_torch(a, b):
    return detect.iou(torch.tensor([a]), torch.tensor([b]))


def overlap_by_cases(a, b):
    if a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]:
        return 0
    shared = (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
    return shared / sum(((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]), -shared))


def decode_in_numpy(offsets, centre, size):
    shift, stretch = np.array(offsets[:2]), np.array(offsets[2:])
    middle, half = np.array(centre) + 0.1 * size * shift, size * np.exp(stretch / 5) / 2
    return np.concatenate([middle - half, middle + half])


def decode_in_torch(offsets, centre, size):
    anchor = torch.tensor([[*(c - size / 2 for c in centre), *(c + size / 2 for c in centre)]])
    return detect.decode(torch.tensor([offsets]), anchor)


def decode_as_a_list(offsets, centre, size):
    x, y = (c + size * d / 10 for c, d in zip(centre, offsets))
    w, h = (size * math.e ** (0.2 * d) for d in offsets[2:])
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def suppress_in_numpy(overlaps, scores, allowed):
    overlaps, left, kept = np.array(overlaps), np.argsort(-np.array(scores)), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[overlaps[best, left] <= allowed]
    return np.array(kept)


def suppress_in_torch(overlaps, scores, allowed):
    overlaps, gone = torch.tensor(overlaps), set()
    order = torch.tensor(scores).argsort(descending=True).tolist()
    for place, box in enumerate(order):
        gone |= {other for other in order[place + 1 :] if box not in gone and overlaps[box, other] > allowed}
    return torch.tensor([box for box in order if box not in gone])


def precision_in_numpy(hits, shapes):
    right = np.cumsum(hits)
    best = np.maximum.accumulate((right / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return (np.diff(right / shapes, prepend=0) * best).sum()


def precision_in_plain_python(hits, shapes):
    precisions = [sum(hits[:n]) / n for n in range(1, len(hits) + 1)]
    return sum(max(precisions[place:]) for place, hit in enumerate(hits) if hit) / shapes


@pytest.mark.parametrize("name, answer", [
    ("11.1", overlap_in_numpy), ("11.1", overlap_in_torch), ("11.1", overlap_by_cases),
    ("11.2", decode_in_numpy), ("11.2", decode_in_torch), ("11.2", decode_as_a_list),
    ("11.3", suppress_in_numpy), ("11.3", suppress_in_torch),
    ("11.4", precision_in_numpy), ("11.4", precision_in_plain_python),
])  # fmt: skip
def test_right_answers_are_right_however_they_are_written(name, answer):
    verdict = judge(exercise(name), answer)
    assert verdict.right, verdict


# --- wrong


def dice(a, b):
    shared = exercises.overlap(a, b)
    return 2 * shared / (1 + shared)


def mirrored(offsets, centre, size):
    left, top, right, bottom = exercises.decode((offsets[0], -offsets[1], *offsets[2:]), centre, size)
    return (left, top, right, bottom)


def by_twos(offsets, centre, size):
    return exercises.decode((*offsets[:2], *(d * math.log(2) for d in offsets[2:])), centre, size)


def in_another_order(offsets, centre, size):
    left, top, right, bottom = exercises.decode(offsets, centre, size)
    return (left, right, top, bottom)


def keeps_at_most_two(overlaps, scores, allowed):
    return exercises.suppress(overlaps, scores, allowed)[:2]


def scores_instead(overlaps, scores, allowed):
    return [scores[box] for box in exercises.suppress(overlaps, scores, allowed)]


def by_eleven_points(hits, shapes):
    right = [sum(hits[: n + 1]) for n in range(len(hits))]
    points = [max((r / (n + 1) for n, r in enumerate(right) if r / shapes >= t / 10), default=0) for t in range(11)]
    return sum(points) / 11


@pytest.mark.parametrize("name, answer, words", [
    ("11.1", exercises.of_the_box_around_both, "box around both"),
    ("11.1", dice, "expected"),
    ("11.2", mirrored, "the first that differs is [1]"),
    ("11.2", by_twos, "expected"),
    ("11.2", in_another_order, "the first that differs is [1]"),
    ("11.3", exercises.last_kept_only, "not with the last one alone"),
    ("11.3", exercises.less_than_allowed, "Compare with <="),
    ("11.3", keeps_at_most_two, "expected"),
    ("11.3", scores_instead, "the first that differs is [0]"),
    ("11.4", by_eleven_points, "expected"),
])  # fmt: skip
def test_slips_are_refused_with_words(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG and words in verdict.message, verdict


def test_what_teachers_are_told_is_the_common_mistake_has_its_words():
    """The ghosts of 11.3."""
    assert "must not take others along" in judge(exercise("11.3"), exercises.afraid_of_ghosts).message


def test_each_exercise_has_thought_of_five_slips():
    assert all(len(task.mistakes) >= 5 for task in of_lesson(11))
