"""A labelled set of small images, and how a network is fed from it.

Images stay uint8 (as they are on disk, 3 kB each); only a batch at a time becomes normalized float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False, repr=False)  # tensors have no single truth value, and too many numbers to show
class Dataset:
    """Images with their labels.

    - ``images``: uint8 (N, 3, 32, 32), red, green, blue. ``labels``: int64 (N,), an index into ``classes``.
    - ``source``: which copy of the data this is, in words; every accuracy is said with it.
    - ``mean``, ``std``: a channel's mean and standard deviation over the training split, pixels from 0 to 1.

    >>> images, labels = torch.full((6, 3, 32, 32), 128, dtype=torch.uint8), torch.tensor([0, 1] * 3)
    >>> data = Dataset(images, labels, ("cat", "dog"), "grey squares", "test", (0.5,) * 3, (0.25,) * 3)
    >>> data
    Dataset(grey squares, test split: 6 images of 32x32 in 2 classes)
    >>> [(tuple(x.shape), y.tolist()) for x, y in data.batches(4)]
    [((4, 3, 32, 32), [0, 1, 0, 1]), ((2, 3, 32, 32), [0, 1])]
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str
    split: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images are {self.images.dtype} {tuple(self.images.shape)}: expected uint8 (N, 3, H, W)")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels are {self.labels.dtype} {tuple(self.labels.shape)}: "
                f"expected int64 ({len(self.images)},), one an image"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise ValueError(
                f"labels from {self.labels.min()} to {self.labels.max()}: "
                f"expected 0 to {len(self.classes) - 1}, an index into the {len(self.classes)} classes"
            )

    def __repr__(self) -> str:
        size = "x".join(map(str, self.images.shape[2:]))
        what = f"{len(self):,} images of {size} in {len(self.classes)} classes"
        return f"Dataset({self.source}, {self.split} split: {what})"

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: str) -> Dataset:
        """The same images on another device, where their batches are then made too."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> float32, zero mean and unit variance a channel, channels_last."""
        scale = torch.tensor([1 / (255 * s) for s in self.std]).view(1, 3, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std)]).view(1, 3, 1, 1)
        scale, shift = (tensor.to(images.device, non_blocking=True) for tensor in (scale, shift))
        return torch.addcmul(shift, images.float(), scale).contiguous(memory_format=torch.channels_last)

    def batches(
        self, size: int, *, shuffle: bool = False, seed: int = 0, augment: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (x, y): x float32 (size, 3, 32, 32) normalized and channels_last, y int64 (size,).

        The last batch may be smaller. ``augment`` shifts each image by up to 4 pixels, and mirrors half.
        """
        if size < 1:
            raise ValueError(f"batch size {size}: expected 1 or more")
        if len(self) == 0:
            raise ValueError(f"the {self.split} split of {self.source} is empty: there is nothing to make batches of")
        return self._batches(size, shuffle, torch.Generator().manual_seed(seed), augment)

    def _batches(
        self, size: int, shuffle: bool, generator: torch.Generator, augment: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Apart from :meth:`batches`, so that a wrong size is an error at once and not at the first batch."""
        order = torch.randperm(len(self), generator=generator) if shuffle else torch.arange(len(self))
        for index in order.to(self.images.device).split(size):
            images = self.images[index]
            if augment:
                images = shift_and_mirror(images, generator)
            yield self.normalize(images), self.labels[index]

    def sample(self, count: int, seed: int = 0) -> Dataset:
        """``count`` images, none of them twice, as even over the classes as possible, in random order."""
        if not 0 < count <= len(self):
            raise ValueError(f"sample({count}): expected 1 to {len(self)}, the size of this split")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator)
        # How many of its class came before each image: the lowest ranks first takes all classes in turn.
        rank = torch.empty_like(order)
        for label in range(len(self.classes)):
            where = (self.labels[order] == label).nonzero()[:, 0]
            rank[where] = torch.arange(len(where))
        chosen = order[rank.argsort(stable=True)[:count]]
        return self.subset(chosen[torch.randperm(count, generator=generator)])

    def subset(self, index: Tensor | slice) -> Dataset:
        """The images that ``index`` names."""
        return replace(self, images=self.images[index], labels=self.labels[index])


def shift_and_mirror(images: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Each image moved by up to ``pad`` pixels (border mirrored inwards), half flipped left to right."""
    count, _, height, width = images.shape
    padded = F.pad(images.float(), (pad,) * 4, mode="reflect").to(torch.uint8)
    top, left = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    picked = padded.permute(0, 2, 3, 1)[tuple(each.to(images.device, non_blocking=True) for each in index)]
    return picked.permute(0, 3, 1, 2)
