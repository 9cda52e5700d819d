"""SSDLite (Sandler et al. 2018, section 6.2) on a MobileNetV2 of half width: a detector of 366,000 weights.

All convolutions and additions become integers. The views and concatenations at the end stay in float, so that every
head has a grid of its own; and what the network says becomes boxes in float too (:class:`Detector`): exponentials,
sorting, non-maximum suppression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from qlab import models, qat
from qlab.detect.boxes import anchors, decode, mean_average_precision, nms, rows
from qlab.detect.scene import CLASSES, SIDE, Boxes, Scenes, normalize
from qlab.graph.prepare import Prepared, prepare
from qlab.modes import in_eval_mode

# As in qlab.models.mobilenet (expansion, channels before the width is halved, repeats, stride), with the stem's and one
# more halving: 160 pixels become maps of 20, 10 and 5 places a side, behind the stages of 64, 96 and 160 channels.
STAGES = [[1, 16, 1, 2], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 1], [6, 96, 3, 2], [6, 160, 3, 2]]
TAPS = (10, 13, 16)  # the last block of each of the three
STRIDES = (8, 16, 32)
SIZES = ((18.0, 26.0), (36.0, 50.0), (64.0, 84.0))  # the anchors' sides in pixels
ANCHORS = anchors(SIDE, STRIDES, SIZES)
CHECKPOINTS = Path(__file__).parent / "checkpoints"
OVERLAP = 0.45  # of two boxes of one class that overlap more, the surer one stays
MOST = 100  # candidates that non-maximum suppression looks at


class SSDLite(nn.Module):
    """Images (N, 3, 160, 160) in, (N, 2, 4 + 1 + classes, 525) out.

    At each of 525 places there are two anchors. For each of them come four offsets, then the scores before softmax, that
    of the ground first.
    """

    def __init__(self, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.features = models.mobilenet_v2(stages=STAGES).features[:-1]
        self.features[0][0].stride = (2, 2)
        channels, width = [self.features[tap].out_channels for tap in TAPS], len(SIZES[0])
        self.boxes = nn.ModuleList(_head(c, 4 * width) for c in channels)
        self.classes = nn.ModuleList(_head(c, (1 + classes) * width) for c in channels)
        for head, values in ((self.boxes, 4), (self.classes, 1 + classes)):
            for layers in head:  # (N, width * values, rows, columns) -> (N, width, values, places)
                layers.extend([nn.Unflatten(1, (width, values)), nn.Flatten(3)])

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for number, block in enumerate(self.features):
            x = block(x)
            if number in TAPS:
                maps.append(x)
        offsets = torch.cat([head(y) for head, y in zip(self.boxes, maps)], 3)
        scores = torch.cat([head(y) for head, y in zip(self.classes, maps)], 3)
        return torch.cat([offsets, scores], 2)


def _head(inputs: int, outputs: int) -> nn.Sequential:
    """SSDLite's head: a depthwise convolution, then one of 1x1."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU6(),
        nn.Conv2d(inputs, outputs, 1),
    )


def load() -> SSDLite:
    """The trained float detector, in eval mode and channels_last. Raises ValueError as qlab.models.load does."""
    return models.trained(SSDLite, "ssdlite-scenes", CHECKPOINTS)


def load_qat(preset: str = "w8a8") -> Prepared:
    """The detector trained with the rounding of ``preset``, in eval mode, ready for qlab.convert.

    There is one, with 8-bit weights and 7-bit activations. Raises ValueError as qlab.qat.load does.
    """

    def make() -> Prepared:
        return prepare(SSDLite(), qat.qconfig(preset), torch.zeros(1, 3, SIDE, SIDE))

    return models.trained(make, f"ssdlite-scenes-{preset}", CHECKPOINTS)


@dataclass
class Detector:
    """``detector(image)``: the boxes in an image, surest first, by a float, prepared or int8 ``network``.

    ``threshold`` is the least score of a box that is given out. An image of another size is resized for the network,
    and its boxes are given in its own pixels.
    """

    network: nn.Module
    threshold: float = 0.3
    classes: Sequence[str] = CLASSES

    def __call__(self, image: Tensor) -> Boxes:
        """Boxes in ``image``, uint8 (3, side, side)."""
        side = image.shape[-1]
        x = image[None]
        if side != SIDE:
            x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        with torch.inference_mode():
            boxes = read(self.network(normalize(x)), self.threshold)[0]
        return Boxes(boxes.xyxy * (side / SIDE), boxes.labels, boxes.scores)


def read(output: Tensor, threshold: float, overlap: float = OVERLAP) -> list[Boxes]:
    """What a network's output means: decoding and non-maximum suppression, for each image, in float."""
    return [_read(row[:, :4], row[:, 4:].softmax(1)[:, 1:], threshold, overlap) for row in rows(output)]


def _read(offsets: Tensor, chances: Tensor, threshold: float, overlap: float) -> Boxes:
    number, labels = (chances >= threshold).nonzero(as_tuple=True)
    scores, order = chances[number, labels].topk(min(MOST, len(labels)))
    number, labels = number[order], labels[order]
    boxes = decode(offsets[number], ANCHORS[number]).clamp(0, SIDE)
    keep = nms(boxes + labels[:, None] * 2 * SIDE, scores, overlap)  # moved apart: classes do not suppress each other
    return Boxes(boxes[keep], labels[keep], scores[keep])


def find(network: nn.Module, scenes: Scenes, threshold: float = 0.01, batch_size: int = 16) -> list[Boxes]:
    """The boxes that ``network`` finds in each of the images; a bar shows when it takes over 2 seconds.

    Raises ValueError when an output is not finite: sorting would hide it.
    """
    found: list[Boxes] = []
    bar = tqdm(total=len(scenes), desc=f"{scenes.split} scenes", unit="img", leave=False, delay=2)
    with torch.inference_mode(), in_eval_mode(network), bar:
        for x, _y in scenes.batches(batch_size):
            output = network(x)
            if not output.isfinite().all():
                raise ValueError("the network gave NaN or infinity: look for a layer whose weights are not finite")
            found += read(output, threshold)
            bar.update(len(x))
    return found


def evaluate(network: nn.Module, scenes: Scenes, thresholds: Sequence[float] = (0.5,)) -> float:
    """mAP of ``network`` in percent on all images of ``scenes``: see :func:`mean_average_precision`."""
    truths = [scenes.boxes(number) for number in range(len(scenes))]
    return mean_average_precision(find(network, scenes), truths, thresholds)
