"""How sure an mAP is: images that count once give the mAP, and draws spread as draws of images do."""

from __future__ import annotations

import pytest
import torch

from qlab import detect
from qlab.detect import Boxes
from qlab.detect.chance import mean_of_weighted


def scene_boxes(count: int = 40) -> tuple[list[Boxes], list[Boxes]]:
    """Found boxes, some of them off, and the truth."""
    draw, truths, found = torch.Generator().manual_seed(0), [], []
    for _image in range(count):
        corners = torch.rand(3, 2, generator=draw) * 100
        truth = Boxes(torch.cat([corners, corners + 20], 1), torch.randint(0, 3, (3,), generator=draw), torch.ones(3))
        off = truth.xyxy + torch.randn(3, 1, generator=draw) * 6
        both = torch.cat([truth.xyxy[:1], off])
        scores = torch.rand(4, generator=draw).sort(descending=True).values
        truths.append(truth)
        found.append(Boxes(both, torch.cat([truth.labels[:1], truth.labels]), scores))
    return found, truths


def test_where_every_image_counts_once_it_is_the_map():
    found, truths = scene_boxes()
    once = mean_of_weighted(found, truths, torch.ones(1, len(found)))
    assert float(once) == pytest.approx(detect.mean_average_precision(found, truths))


def test_an_image_that_counts_twice_is_that_image_twice_and_one_that_does_not_is_not_there():
    found, truths = scene_boxes(6)
    times = torch.tensor([[2, 1, 0, 1, 0, 3]])
    picked = [k for k, count in enumerate(times[0].tolist()) for _again in range(count)]
    expected = detect.mean_average_precision([found[k] for k in picked], [truths[k] for k in picked])
    assert float(mean_of_weighted(found, truths, times)) == pytest.approx(expected, abs=1.0)  # ties within an image


def test_the_standard_error_falls_with_the_root_of_the_images():
    few, many = (detect.resampled(*scene_boxes(count), draws=400).std() for count in (20, 180))
    assert 1.5 < few / many < 6  # 3, if all images were alike


def test_the_same_seed_draws_the_same_images():
    found, truths = scene_boxes()
    same = [detect.resampled(found, truths, draws=5, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
    assert float((same[0] - same[1]).std()) == 0, "a detector does not differ from itself"


def test_without_a_box_to_find_there_is_no_map():
    nothing = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    with pytest.raises(ValueError, match="no box to find"):
        detect.resampled([nothing], [nothing])


def test_a_double_finds_nothing_and_another_class_does_not_either():
    truth = Boxes(torch.tensor([[0.0, 0, 10, 10], [30, 30, 50, 50]]), torch.tensor([0, 1]), torch.ones(2))
    found = truth.at(torch.tensor([0, 0, 1]))
    assert detect.finds(found, truth).tolist() == [True, False, True]
    other = Boxes(truth.xyxy, torch.tensor([1, 1]), torch.ones(2))
    assert detect.finds(other, truth).tolist() == [False, True]
