"""shapes10: ten kinds of shapes, drawn on the spot, for a computer that has no copy of CIFAR-10.

An image is 32x32 pixels of colour, as in CIFAR-10: one shape of any size, turn and colour on a textured
ground, with scraps behind it, a bar across it and noise over it. Each shape is a signed distance field
(negative inside), which gives smooth edges without drawing at a higher resolution first (Quilez, "2D distance
functions").

The same seed gives the same images on every machine: the random numbers are PCG64's raw ones (numpy keeps
those as they are, unlike its distributions), and of floating point only operations are used that IEEE 754
rounds one way (+ - * / sqrt), one at a time: a sum over an axis or a sine would differ in a last bit between
processors. The committed networks were trained on these images: to draw others means to train again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import torch

from qlab.data.dataset import Dataset
from qlab.data.store import data_folder
from qlab.files import check_tensors, read_tensors, sha256, write_tensors

CLASSES = tuple("circle crescent cross heart hexagon ring semicircle square star triangle".split())
SIZES = {"train": 20_000, "validation": 2_000, "test": 5_000}
MEAN, STD = (0.5, 0.5, 0.5), (0.22, 0.22, 0.22)
SIDE = 32  # pixels
CHUNK = 50  # images drawn at a time: their fields stay in the processor's cache

# A turn in 256 steps; rounded to 14 bits, where every machine's cosine agrees.
COSINE = np.array([round(math.cos(math.tau * k / 256) * 2**14) / 2**14 for k in range(256)], dtype=np.float32)
ROWS, COLUMNS = np.indices((SIDE, SIDE), dtype=np.float32) - np.float32((SIDE - 1) / 2)

Field = np.ndarray  # float32 (images, 32, 32)


class Dice:
    """Random numbers that are the same everywhere, always."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def integers(self, high: int, *shape: int) -> np.ndarray:
        """int64 from 0 to high - 1 (at most 2^32)."""
        raw = self._bits.random_raw(math.prod(shape)) >> np.uint64(32)
        return ((raw * np.uint64(high)) >> np.uint64(32)).astype(np.int64).reshape(shape)

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """float32 from low to high."""
        raw = (self._bits.random_raw(math.prod(shape)) >> np.uint64(40)).astype(np.float32)
        return (raw * np.float32((high - low) / 2**24) + np.float32(low)).reshape(shape)

    def noise(self, *shape: int) -> np.ndarray:
        """float32 from -1 to 1, a triangle with its peak at 0 (standard deviation 0.41)."""
        count = math.prod(shape)
        pairs = self._bits.random_raw(-(-count // 4)).astype("<u8", copy=False).view("<u2")[:count]
        sums = ((pairs & 255) + (pairs >> 8)).astype(np.float32)  # of two bytes
        sums *= np.float32(1 / 255)
        sums -= 1
        return sums.reshape(shape)


def shapes10(split: str = "train", seed: int = 0) -> Dataset:
    """The ``split`` ("train" 20,000 images, "validation" 2,000, "test" 5,000) of shapes10, drawn now.

    Another ``seed`` gives other images of the same kind. Raises ValueError when there is no such split.

    >>> data = shapes10("validation")
    >>> data.images.shape, data.classes[data.labels[0]]
    (torch.Size([2000, 3, 32, 32]), 'circle')
    """
    if split not in SIZES:
        raise ValueError(f"split {split!r}: expected one of {', '.join(map(repr, SIZES))}")
    count = SIZES[split] // len(CLASSES)
    # Each class has dice of its own, so that it does not matter which one is drawn first.
    dice = [Dice(seed, list(SIZES).index(split), label) for label in range(len(CLASSES))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = list(pool.map(draw, range(len(CLASSES)), [count] * len(CLASSES), dice))
    together = torch.from_numpy(np.stack(images, 1).reshape(-1, 3, SIDE, SIDE))
    return _dataset(together, split, "shapes10" if seed == 0 else f"shapes10, seed {seed}")


def shapes10_kept(split: str) -> Dataset:
    """The same images as :func:`shapes10`, drawn once and kept in the data folder: each lesson starts with them.

    The file's name tells which code drew it. Where it cannot be read or written, the images are drawn once more.
    """
    file = data_folder() / f"shapes10-{split}-{sha256(__file__)[:8]}.safetensors"
    with suppress(OSError, ValueError):  # not there yet, or damaged
        tensors = read_tensors(file)[0]
        expected = torch.empty(SIZES[split], 3, SIDE, SIDE, dtype=torch.uint8, device="meta")
        check_tensors(tensors, {"images": expected}, str(file))
        return _dataset(tensors["images"], split, "shapes10")
    data = shapes10(split)
    with suppress(OSError):
        write_tensors(file, {"images": data.images})
        for outdated in file.parent.glob(f"shapes10-{split}-*.safetensors"):
            if outdated != file:
                outdated.unlink()
    return data


def _dataset(images: torch.Tensor, split: str, source: str) -> Dataset:
    """One image of each class in turn."""
    labels = torch.arange(len(CLASSES)).repeat(len(images) // len(CLASSES))
    return Dataset(images, labels, CLASSES, source, split, MEAN, STD)


def draw(label: int, count: int, dice: Dice) -> np.ndarray:
    """``count`` images of class ``label``: uint8 (count, 3, 32, 32)."""
    images = np.empty((count, 3, SIDE, SIDE), np.uint8)
    for start in range(0, count, CHUNK):
        part = images[start : start + CHUNK]
        n = len(part)
        ground = dice.uniform(40, 215, n, 3, 1, 1)
        image = ground + texture(n, dice)
        for _ in range(2):
            paint(image, scrap(n, dice), dice.uniform(0, 255, n, 3, 1, 1))
        shape, inside = place(FIELDS[CLASSES[label]], n, dice)
        paint(image, shape, another_colour(ground, n, dice) + inside)
        paint(image, bar(n, dice), dice.uniform(0, 255, n, 3, 1, 1))
        noise = dice.noise(n, 3, SIDE, SIDE)
        noise *= dice.uniform(4, 28, n, 1, 1, 1)
        image += noise
        part[...] = np.clip(image, 0, 255, out=image)  # and the fraction is dropped
    return images


def paint(image: np.ndarray, distance: Field, colour: np.ndarray) -> None:
    """Put ``colour`` where ``distance`` (in pixels) is negative; an edge pixel gets its share."""
    cover = np.clip(np.float32(0.5) - distance, 0, 1)
    n, y, x = cover.nonzero()  # most pixels are not touched
    old = image[n, :, y, x]
    new = np.broadcast_to(colour, image.shape)[n, :, y, x]
    image[n, :, y, x] = old + (new - old) * cover[n, y, x][:, None]


def another_colour(ground: np.ndarray, n: int, dice: Dice) -> np.ndarray:
    """A colour at a random distance from the ground's, from hard to see to glaring: (n, 3, 1, 1)."""
    step = dice.uniform(45, 150, n, 1, 1, 1) * dice.uniform(0.5, 1, n, 3, 1, 1)
    up = dice.integers(2, n, 3, 1, 1).astype(np.float32) * 2 - 1
    colour = ground + step * up
    return np.where((colour < 0) | (colour > 255), ground - step * up, colour)


def texture(n: int, dice: Dice, side: int = SIDE) -> np.ndarray:
    """Cloudy colours and stripes to lay over a ground: float32 (n, 3, side, side) around zero."""
    rows, columns = np.indices((side, side), dtype=np.float32) - np.float32((side - 1) / 2)
    corners = dice.uniform(-1, 1, n, 3, 6, 6)
    place = np.arange(side, dtype=np.float32) * np.float32(5 / side)
    low = place.astype(np.int64)
    share = place - low.astype(np.float32)
    across = corners[..., low] + (corners[..., low + 1] - corners[..., low]) * share
    clouds = across[:, :, low] + (across[:, :, low + 1] - across[:, :, low]) * share[:, None]
    cosine, sine = turn(n, dice)
    waves = (columns * cosine + rows * sine) * dice.uniform(0.06, 0.25, n, 1, 1)
    stripes = np.abs(waves - np.floor(waves) - np.float32(0.5)) * 4 - 1  # a triangle wave
    depth = np.maximum(dice.uniform(-25, 25, n, 1, 1, 1), 0)  # half of the images have no stripes
    clouds = clouds * dice.uniform(8, 40, n, 1, 1, 1)
    return clouds + stripes[:, None] * depth * dice.uniform(0.3, 1, n, 3, 1, 1)


def turn(n: int, dice: Dice) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of n random angles: float32 (n, 1, 1) each."""
    angle = dice.integers(256, n, 1, 1)
    return COSINE[angle], COSINE[(angle + 192) % 256]


def place(field: Callable[[Field, Field], Field], n: int, dice: Dice) -> tuple[Field, np.ndarray]:
    """A shape somewhere: its distance in pixels, and a gradient (n, 3, 32, 32) to colour its inside."""
    radius = dice.uniform(6.5, 12.5, n, 1, 1)
    cosine, sine = turn(n, dice)
    x, y = (COLUMNS - dice.uniform(-5, 5, n, 1, 1)) / radius, (ROWS - dice.uniform(-5, 5, n, 1, 1)) / radius
    u, v = x * cosine + y * sine, y * cosine - x * sine
    stretch = dice.uniform(0.85, 1.18, n, 1, 1)
    inside = u[:, None] * dice.uniform(-25, 25, n, 3, 1, 1)
    return field(u * stretch, v / stretch) * radius, inside


def scrap(n: int, dice: Dice) -> Field:
    """A small oval or a short stroke anywhere: distance in pixels."""
    cosine, sine = turn(n, dice)
    x, y = COLUMNS - dice.uniform(-16, 16, n, 1, 1), ROWS - dice.uniform(-16, 16, n, 1, 1)
    u, v = x * cosine + y * sine, y * cosine - x * sine
    u = np.maximum(np.abs(u) - dice.uniform(0, 5, n, 1, 1), 0)
    return np.sqrt(u * u + v * v) - dice.uniform(0.7, 2.5, n, 1, 1)


def bar(n: int, dice: Dice) -> Field:
    """A bar from edge to edge, 1 to 4 pixels wide, somewhere: distance in pixels."""
    cosine, sine = turn(n, dice)
    away = COLUMNS * cosine + ROWS * sine - dice.uniform(-20, 20, n, 1, 1)
    return np.abs(away) - dice.uniform(0.5, 2, n, 1, 1)


# --- the ten distance fields: x, y in units of the shape's radius


def circle(x: Field, y: Field) -> Field:
    return np.sqrt(x * x + y * y) - np.float32(0.9)


def ring(x: Field, y: Field) -> Field:
    return np.abs(np.sqrt(x * x + y * y) - np.float32(0.72)) - np.float32(0.22)


def crescent(x: Field, y: Field) -> Field:
    bite = x - np.float32(0.5)
    return np.maximum(np.sqrt(x * x + y * y) - 1, np.float32(0.8) - np.sqrt(bite * bite + y * y))


def semicircle(x: Field, y: Field) -> Field:
    y = y + np.float32(0.45)
    return np.maximum(np.sqrt(x * x + y * y) - 1, -y)


def square(x: Field, y: Field) -> Field:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.8)


def cross(x: Field, y: Field) -> Field:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 1, np.minimum(x, y) - np.float32(0.32))


def triangle(x: Field, y: Field) -> Field:
    return np.maximum(np.abs(x) * np.float32(0.866) - y * np.float32(0.5), y) - np.float32(0.55)


def hexagon(x: Field, y: Field) -> Field:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(x * np.float32(0.866) + y * np.float32(0.5), y) - np.float32(0.85)


def heart(x: Field, y: Field) -> Field:
    """A square on its corner and two half discs on its upper sides."""
    x, y = np.abs(x), np.float32(0.2) - y
    u, v = x - np.float32(0.4), y - np.float32(0.4)
    corner = (x + np.abs(y)) * np.float32(0.7071)
    return np.minimum(corner, np.sqrt(u * u + v * v)) - np.float32(0.566)


def star(x: Field, y: Field) -> Field:
    """Five half planes; a point of the star is what lies in all of them but one."""
    first = second = np.float32(-9)
    for cosine, sine in ((0.0, 1.0), (0.9511, 0.309), (0.5878, -0.809), (-0.5878, -0.809), (-0.9511, 0.309)):
        side = x * np.float32(cosine) + y * np.float32(sine)
        first, second = np.maximum(first, side), np.maximum(second, np.minimum(first, side))
    return second - np.float32(0.34)


FIELDS = {
    field.__name__: field
    for field in (circle, crescent, cross, heart, hexagon, ring, semicircle, square, star, triangle)
}
