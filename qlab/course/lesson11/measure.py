"""What lesson 11 measures of two detectors: how long each part takes, and which boxes both find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qlab.bench import interleave
from qlab.detect.boxes import iou
from qlab.detect.network import Detector, read
from qlab.detect.scene import Boxes, normalize


def times_of_parts(
    networks: Mapping[str, nn.Module], image: Tensor, rounds: int = 15, threshold: float = 0.3
) -> dict[tuple[str, str], float]:
    """Milliseconds from a frame to its boxes: {(part, name of the network): the fastest of ``rounds``}.

    The parts are "normalizing", "network" and "decoding" (with its suppression), and all three as "whole". ``image`` is uint8
    (3, 160, 160). All take turns; the fastest time is the one in which nothing else was running.
    """
    parts = {}
    with torch.inference_mode():
        x = normalize(image[None])
        for name, network in networks.items():
            said, whole = network(x), Detector(network, threshold)
            parts["normalizing", name] = lambda: normalize(image[None])
            parts["network", name] = lambda network=network: network(x)
            parts["decoding", name] = lambda said=said: read(said, threshold)
            parts["whole", name] = lambda whole=whole: whole(image)
        times = interleave(parts, rounds=rounds, progress=False)
    return {part: 1000 * min(seconds) for part, seconds in times.items()}


def found_too(found: Sequence[Boxes], other: Sequence[Boxes], overlap: float = 0.5) -> tuple[Tensor, Tensor]:
    """Of every box in ``found``: its score, and whether ``other`` has one of its class that overlaps it by more.

    >>> box = Boxes(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0]), torch.tensor([0.8]))
    >>> found_too([box], [box])
    (tensor([0.8000]), tensor([True]))
    """
    scores, twins = [], []
    for mine, its in zip(found, other, strict=True):
        same = iou(mine.xyxy, its.xyxy) * (mine.labels[:, None] == its.labels)
        scores.append(mine.scores)
        twins.append((same > overlap).any(1))
    return torch.cat(scores), torch.cat(twins)
