"""Scenes for a detector: shapes of eight kinds move, turn and cover each other on a textured ground.

They are drawn on the spot from a seed, by the same fields and dice as shapes10, so that every machine sees the same
ones. A scene is a function of time: whoever is late asks for a later frame, nothing has to be drawn in between.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from qlab.data.shapes import COSINE, FIELDS, MEAN, STD, Dice, another_colour, paint, texture

CLASSES = tuple("circle crescent cross heart ring square star triangle".split())
SIDES = range(96, 321)
SIDE = 160  # pixels
MOST = 7  # shapes in a scene
SPLITS = {"train": 0, "validation": 1, "test": 2}
SCALE = torch.tensor([1 / (255 * s) for s in STD]).view(1, 3, 1, 1)
SHIFT = torch.tensor([-m / s for m, s in zip(MEAN, STD)]).view(1, 3, 1, 1)
LEAST_VISIBLE = 0.4  # a shape of which less is to be seen counts as hidden


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image: ``xyxy`` float32 (n, 4) in pixels (left, top, right, bottom), ``labels`` int64 (n,).

    ``scores`` float32 (n,) says how sure a detector is; 1 for the truth.
    """

    xyxy: Tensor
    labels: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def above(self, threshold: float) -> Boxes:
        """Those whose score is at least ``threshold``."""
        return self.at(self.scores >= threshold)

    def at(self, index: Tensor) -> Boxes:
        """Those that ``index`` names."""
        return Boxes(self.xyxy[index], self.labels[index], self.scores[index])


class Scene:
    """``Scene(seed)(time)`` is the image at ``time`` (seconds) and its truth.

    Three to seven shapes bounce between the edges. Raises ValueError when ``side`` is not 96 to 320 pixels.

    >>> image, truth = Scene(seed=0)(time=1.5)
    >>> image.shape, image.dtype, truth.xyxy.shape[1]
    (torch.Size([3, 160, 160]), torch.uint8, 4)
    """

    def __init__(self, seed: int, side: int = SIDE, split: str = "test") -> None:
        if side not in SIDES:
            raise ValueError(f"side={side}: expected {SIDES[0]} to {SIDES[-1]} pixels")
        if split not in SPLITS:
            raise ValueError(f"split {split!r}: expected one of {', '.join(map(repr, SPLITS))}")
        self.side, self.seed = side, (11, SPLITS[split], seed)
        dice = Dice(*self.seed)
        unit = np.float32(side / SIDE)
        ground = dice.uniform(40, 215, 1, 3, 1, 1)
        self.ground = ground + texture(1, dice, side)
        self.noise = dice.uniform(3, 16, 1)[0]
        self.count = n = 3 + int(dice.integers(MOST - 2, 1)[0])
        self.labels = dice.integers(len(CLASSES), n)
        self.radius = dice.uniform(12, 38, n) * dice.uniform(0.7, 1, n) * unit
        self.stretch = dice.uniform(0.88, 1.14, n)
        self.colours = another_colour(np.repeat(ground, n, 0), n, dice)
        self.shades = dice.uniform(-25, 25, n, 3, 1, 1)
        self.start = dice.uniform(0, 2, n, 2)  # where on the way to and fro
        self.speed = dice.uniform(0.05, 0.3, n, 2)
        self.angle, self.turns = dice.uniform(0, 256, n), dice.uniform(-80, 80, n)  # of 256 steps, a second

    def __call__(self, time: float = 0.0) -> tuple[Tensor, Boxes]:
        """The image, uint8 (3, side, side), and what is to be found in it."""
        canvas = self.ground.copy()
        owner = np.zeros((self.side, self.side), np.int8)  # whose pixel it is
        found = [self._put(number, np.float32(time), canvas, owner) for number in range(self.count)]
        dice = Dice(*self.seed, 1 + int(time * 1000))
        canvas += dice.noise(1, 3, self.side, self.side) * self.noise
        visible = np.bincount(owner.ravel(), minlength=self.count + 1)[1:]
        kept = [n for n, (box, area) in enumerate(found) if visible[n] > LEAST_VISIBLE * area]
        boxes = torch.tensor([found[n][0] for n in kept], dtype=torch.float32).reshape(-1, 4)
        labels = torch.from_numpy(self.labels[kept])
        image = np.clip(canvas[0], 0, 255).astype(np.uint8)
        return torch.from_numpy(image), Boxes(boxes, labels, torch.ones(len(kept)))

    def _put(self, number: int, time: np.float32, canvas: np.ndarray, owner: np.ndarray) -> tuple[tuple, float]:
        """Paint one shape; its box, and how many pixels it has."""
        radius = self.radius[number]
        way = (self.start[number] + self.speed[number] * time) % np.float32(2)
        margin = np.float32(0.7) * radius
        x, y = margin + np.minimum(way, 2 - way) * (self.side - 1 - 2 * margin)  # to and fro
        turn = int(self.angle[number] + self.turns[number] * time) % 256
        reach = int(radius * np.float32(1.5)) + 2
        left, top = max(int(x) - reach, 0), max(int(y) - reach, 0)
        window = np.s_[top : int(y) + reach + 1, left : int(x) + reach + 1]
        rows, columns = np.indices(owner[window].shape, dtype=np.float32)
        u, v = (columns + np.float32(left) - x) / radius, (rows + np.float32(top) - y) / radius
        cosine, sine = COSINE[turn], COSINE[(turn + 192) % 256]
        u, v = u * cosine + v * sine, v * cosine - u * sine
        stretch = self.stretch[number]
        distance = FIELDS[CLASSES[self.labels[number]]](u * stretch, v / stretch) * radius
        inside = distance < 0
        paint(
            canvas[(np.s_[:], np.s_[:], *window)], distance[None], self.colours[number] + u * self.shades[number][None]
        )
        owner[window][inside] = number + 1
        rows, columns = inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
        box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
        return tuple(map(float, box)), float(inside.sum())


@dataclass(frozen=True)
class Scenes:
    """Images with their truth: images uint8 (N, 3, side, side), truths (N, 7, 5) float32.

    A row of a truth is (label, left, top, right, bottom), with label -1 where there is no shape.
    """

    images: Tensor
    truths: Tensor
    split: str

    def __len__(self) -> int:
        return len(self.images)

    def boxes(self, number: int) -> Boxes:
        """The truth of one image."""
        rows = self.truths[number]
        rows = rows[rows[:, 0] >= 0]
        return Boxes(rows[:, 1:], rows[:, 0].long(), torch.ones(len(rows)))

    def batches(
        self, size: int, *, shuffle: bool = False, seed: int = 0, augment: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (x, y): x normalized and channels_last, y the truths. ``augment`` mirrors half of the images, and swaps the
        rows and columns of half: shapes are turned anyhow.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator) if shuffle else torch.arange(len(self))
        for index in order.split(size):
            images, truths = self.images[index], self.truths[index]
            if augment:
                images, truths = mirror(images, truths, torch.rand(len(index), generator=generator) < 0.5)
                images, truths = transpose(images, truths, torch.rand(len(index), generator=generator) < 0.5)
            yield normalize(images), truths

    def subset(self, index: Tensor | slice) -> Scenes:
        """The images that ``index`` names."""
        return replace(self, images=self.images[index], truths=self.truths[index])


def scenes(split: str = "train", count: int = 256, side: int = SIDE) -> Scenes:
    """The first ``count`` images of a split, each of a scene of its own. No scene is in two splits.

    >>> scenes("test", 2).images.shape
    torch.Size([2, 3, 160, 160])
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = list(pool.map(partial(_first, side=side, split=split), range(count)))
    truths = torch.full((count, MOST, 5), -1.0)
    for row, (_image, truth) in zip(truths, drawn):
        row[: len(truth), 0], row[: len(truth), 1:] = truth.labels, truth.xyxy
    return Scenes(torch.stack([image for image, _truth in drawn]), truths, split)


def _first(seed: int, side: int, split: str) -> tuple[Tensor, Boxes]:
    return Scene(seed, side, split)()


def mirror(images: Tensor, truths: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """The images of ``which`` flipped left to right, and their boxes with them. A mirrored shape keeps its class."""
    images, truths = images.clone(), truths.clone()
    images[which] = images[which].flip(3)
    real = which[:, None] & (truths[..., 0] >= 0)
    right = images.shape[3] - truths[..., [3, 1]]
    truths[..., [1, 3]] = torch.where(real[..., None], right, truths[..., [1, 3]])
    return images, truths


def transpose(images: Tensor, truths: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """The (square) images of ``which`` with rows and columns swapped, and their boxes with them."""
    images, truths = images.clone(), truths.clone()
    images[which] = images[which].transpose(2, 3)
    truths[which] = truths[which][..., [0, 2, 1, 4, 3]]
    return images, truths


def normalize(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> float32 around 0, as the backbone was trained, channels_last."""
    return torch.addcmul(SHIFT, images.float(), SCALE).contiguous(memory_format=torch.channels_last)
