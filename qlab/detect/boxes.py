"""Boxes: overlap, anchors, what a detector learns from them, and how good it is.

Sources: Liu et al., "SSD: Single Shot MultiBox Detector" (ECCV 2016), sections 2.2 (anchors, matching, loss);
Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective" (IJCV 2015), section 4.2 (AP).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qlab.detect.scene import Boxes

VARIANCES = (0.1, 0.2)  # what offsets and log sizes are divided by, so that both are about as large (SSD's code)
IOU_MATCH = 0.5  # an anchor that overlaps a box by this much has to find it
NEGATIVES = 3  # anchors on the ground that count in the loss, for each that found a box (SSD, section 2.2)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of ``a`` (n, 4) with every box of ``b`` (m, 4): (n, m), 0 to 1.

    >>> iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 1], [3, 3, 4, 4]]))
    tensor([[0.5000, 0.0000]])
    """
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clamp(min=1e-9)


def anchors(side: int, strides: Sequence[int], sizes: Sequence[Sequence[float]]) -> Tensor:
    """The boxes that a network starts from: squares of each of ``sizes[k]`` at every place of map k, (n, 4) xyxy.

    In the order of :func:`rows`: the first size of all maps, then the second; in a map row by row.
    """
    maps = []
    for stride, squares in zip(strides, sizes):
        centre = (torch.arange(-(-side // stride)) + 0.5) * stride
        half, y, x = torch.meshgrid(torch.tensor(squares) / 2, centre, centre, indexing="ij")
        maps.append(torch.stack([x - half, y - half, x + half, y + half], 3).flatten(1, 2))
    return torch.cat(maps, 1).flatten(0, 1)


def rows(output: Tensor) -> Tensor:
    """A network's output (N, sizes, values, places) with one row an anchor: (N, sizes * places, values)."""
    return output.transpose(2, 3).flatten(1, 2)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """What a network has to say at ``anchors`` to mean ``boxes``: shift in anchor sizes, log of the size's ratio."""
    size, wanted = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2 / size
    return torch.cat([shift / VARIANCES[0], (wanted / size).log() / VARIANCES[1]], -1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """The boxes that a network means: the inverse of :func:`encode`."""
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + offsets[..., :2] * VARIANCES[0] * size
    half = size * (offsets[..., 2:] * VARIANCES[1]).clamp(max=4).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def match(anchors: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Which class (0: the ground) and which box each anchor should find, given truth rows (label, xyxy).

    An anchor finds the box that it overlaps most, if by at least 0.5; and each box is found by its best anchor.
    """
    truth = truth[truth[:, 0] >= 0]
    if not len(truth):
        return torch.zeros(len(anchors), dtype=torch.long, device=anchors.device), anchors
    overlap = iou(anchors, truth[:, 1:])
    best, which = overlap.max(1)
    favourite = overlap.argmax(0)
    best[favourite], which[favourite] = 1.0, torch.arange(len(truth), device=truth.device)
    labels = torch.where(best >= IOU_MATCH, truth[which, 0].long() + 1, 0)
    return labels, truth[which, 1:]


class MultiboxLoss:
    """``loss(x, output, y)``: cross-entropy of the classes plus the distance of the boxes (SSD, equation 1).

    Most anchors lie on the ground. Only the hardest of them count, three for each that found a box.
    """

    def __init__(self, anchors: Tensor) -> None:
        self.anchors = anchors

    def __call__(self, x: Tensor, output: Tensor, truths: Tensor) -> Tensor:
        offsets, logits = rows(output).split([4, output.shape[2] - 4], 2)
        self.anchors = self.anchors.to(output.device)
        matched = [match(self.anchors, truth) for truth in truths]
        labels, boxes = torch.stack([m[0] for m in matched]), torch.stack([m[1] for m in matched])
        positive = labels > 0
        distance = F.smooth_l1_loss(offsets[positive], encode(boxes, self.anchors)[positive], reduction="sum")
        cost = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        with torch.no_grad():
            ground = cost.masked_fill(positive, 0.0)
            rank = ground.argsort(1, descending=True).argsort(1)
            counted = positive | (rank < NEGATIVES * positive.sum(1, keepdim=True))
        return (distance + cost[counted].sum()) / positive.sum().clamp(min=1)


def nms(boxes: Tensor, scores: Tensor, threshold: float = 0.5) -> Tensor:
    """Non-maximum suppression: indices of the boxes to keep, the surest first.

    A box goes when it overlaps a surer one that stays by more than ``threshold``.
    """
    order = scores.argsort(descending=True)
    covers = (iou(boxes[order], boxes[order]) > threshold).tolist()
    kept: list[int] = []
    for place in range(len(order)):
        if not any(covers[place][other] for other in kept):
            kept.append(place)
    return order[kept]


def average_precision(found: Sequence[Boxes], truths: Sequence[Boxes], label: int, threshold: float = 0.5) -> float:
    """AP of one class: the area under precision against recall, 0 to 1; NaN when no image shows the class.

    All found boxes take their turn, the surest first. One is right when it overlaps a box of its image, of its
    class and not yet found, by at least ``threshold``. Precision at a recall is the best at that recall or above.
    """
    right, sure, total = [], [], 0
    for boxes, truth in zip(found, truths, strict=True):
        mine, there = boxes.labels == label, truth.xyxy[truth.labels == label]
        total += len(there)
        order = boxes.scores[mine].argsort(descending=True)
        sure.append(boxes.scores[mine][order])
        right.append(hits(iou(boxes.xyxy[mine][order], there), threshold))
    if not total:
        return float("nan")
    order = torch.cat(sure).argsort(descending=True, stable=True)
    counted = torch.cat(right)[order].double()
    recall = counted.cumsum(0) / total
    precision = counted.cumsum(0) / torch.arange(1, len(counted) + 1)
    best = precision.flip(0).cummax(0).values.flip(0)
    return float((best * recall.diff(prepend=torch.zeros(1))).sum())


def hits(overlap: Tensor, threshold: float) -> Tensor:
    """For found boxes (rows, surest first) and true ones (columns): which are right. Each true one counts once."""
    found = torch.zeros(len(overlap), dtype=torch.bool)
    free = torch.ones(overlap.shape[1], dtype=torch.bool)
    for number, row in enumerate(overlap):
        row = row * free
        if len(row) and row.max() >= threshold:
            found[number] = True
            free[row.argmax()] = False
    return found


def finds(found: Boxes, truth: Boxes, threshold: float = 0.5) -> Tensor:
    """Which of the found boxes (the surest first) find a shape of their class that no surer one has found; bool (n,).

    >>> there = Boxes(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([3]), torch.ones(1))
    >>> finds(there.at(torch.tensor([0, 0])), there)                # the same box twice: the second is a double
    tensor([ True, False])
    """
    return hits(iou(found.xyxy, truth.xyxy) * (found.labels[:, None] == truth.labels), threshold)


def mean_average_precision(
    found: Sequence[Boxes], truths: Sequence[Boxes], thresholds: Sequence[float] = (0.5,)
) -> float:
    """mAP in percent: AP averaged over the classes that are to be seen, and over the overlaps ``thresholds``."""
    labels = sorted({int(label) for truth in truths for label in truth.labels})
    if not labels:
        raise ValueError("there is no box to find in these images: mAP needs at least one")
    scores = [average_precision(found, truths, label, t) for label in labels for t in thresholds]
    return 100 * sum(scores) / len(scores)
