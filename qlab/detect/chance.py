"""How sure is an mAP? Other images would give another one: images drawn anew, again and again, show by how much.

The bootstrap (Efron 1979): as many images as there are, drawn with replacement, stand for other images of the same kind.
Two detectors are compared on the same draws, since most of the chance lies in the images and is common to both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qlab.detect.boxes import hits, iou
from qlab.detect.scene import Boxes


def resampled(
    found: Sequence[Boxes], truths: Sequence[Boxes], draws: int = 200, seed: int = 0, threshold: float = 0.5
) -> Tensor:
    """The mAP in percent for each of ``draws`` draws of the images, float64 (draws,). The same ``seed`` draws the same.

    Their standard deviation is the standard error of the mAP; that of the difference of two detectors' draws is the
    standard error of their difference.

    >>> box = Boxes(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0]), torch.ones(1))
    >>> resampled([box, box], [box, box], draws=3)
    tensor([100., 100., 100.], dtype=torch.float64)

    Raises ValueError when there is nothing to find.
    """
    times = torch.randint(len(truths), (draws, len(truths)), generator=torch.Generator().manual_seed(seed))
    return mean_of_weighted(found, truths, torch.nn.functional.one_hot(times, len(truths)).sum(1), threshold)


def mean_of_weighted(found: Sequence[Boxes], truths: Sequence[Boxes], times: Tensor, threshold: float = 0.5) -> Tensor:
    """The mAP in percent where image k counts ``times[:, k]`` times: times (draws, images) -> (draws,).

    With ones it is :func:`qlab.detect.mean_average_precision`.
    """
    labels = sorted({int(label) for truth in truths for label in truth.labels})
    if not labels:
        raise ValueError("there is no box to find in these images: mAP needs at least one")
    scores = torch.stack([_average_precision(found, truths, times.double(), label, threshold) for label in labels])
    return 100 * scores.nanmean(0)


def _average_precision(
    found: Sequence[Boxes], truths: Sequence[Boxes], times: Tensor, label: int, threshold: float
) -> Tensor:
    """AP of one class for each row of ``times``; NaN where no image that counts shows the class."""
    right, sure, image, there = [], [], [], []
    for number, (boxes, truth) in enumerate(zip(found, truths, strict=True)):
        mine, shapes = boxes.labels == label, truth.xyxy[truth.labels == label]
        order = boxes.scores[mine].argsort(descending=True)
        sure.append(boxes.scores[mine][order])
        right.append(hits(iou(boxes.xyxy[mine][order], shapes), threshold))
        image.append(torch.full((len(order),), number))
        there.append(len(shapes))
    order = torch.cat(sure).argsort(descending=True, stable=True)
    counted = times[:, torch.cat(image)[order]]
    found_so_far = (counted * torch.cat(right)[order]).cumsum(1)
    recall = found_so_far / (times @ torch.tensor(there).double())[:, None]
    precision = found_so_far / counted.cumsum(1).clamp(min=1)
    best = precision.flip(1).cummax(1).values.flip(1)
    return (best * recall.diff(prepend=torch.zeros(len(times), 1))).sum(1)
