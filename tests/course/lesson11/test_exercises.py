"""Lesson 11's exercises compute what the package computes."""

from __future__ import annotations

import pytest
import torch

from qlab import detect
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
