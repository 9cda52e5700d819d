"""Two networks on the same images: what counts is where they differ.

Two networks that come from the same weights agree on nearly every image, right or wrong. Those images say nothing
about which is better, so the error of the difference is far below that of either accuracy (McNemar, 1947).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qlab.data import Dataset
from qlab.modes import in_eval_mode


@dataclass(frozen=True)
class Paired:
    """The second network's accuracy minus the first's, in points of a percent, and the difference's standard error.

    ``changed`` is the number of images on which one is right and the other wrong.
    """

    difference: float
    error: float
    changed: int

    def __str__(self) -> str:
        return f"{self.difference:+.2f} ± {self.error:.2f} points ({self.changed} images changed)"


def paired(first: Tensor, second: Tensor) -> Paired:
    """Is the second network better? The difference of two accuracies on the same images, with its standard error.

    An image where the second alone is right counts 1, where the first alone is right -1, all others 0. The difference
    is the mean of these numbers, and its standard error their standard deviation divided by the root of N.

    Args:
        first: Which images the first network got right: bool (N,), as :func:`hits` gives it.
        second: The same for the second network, the images in the same order.

    Raises:
        ValueError: One of them is not bool (N,), their lengths differ, or N is 0.

    >>> first = torch.tensor([True] * 88 + [False] * 12)
    >>> second = first.clone()
    >>> second[:2] = False  # two right answers are lost ...
    >>> second[99] = True  # ... and one is won
    >>> print(paired(first, second))
    -1.00 ± 1.73 points (3 images changed)
    """
    for name, right in (("first", first), ("second", second)):
        if not isinstance(right, Tensor) or right.dtype != torch.bool or right.dim() != 1 or not len(right):
            found = f"{right.dtype} {tuple(right.shape)}" if isinstance(right, Tensor) else type(right).__name__
            raise ValueError(f"{name} is {found}: expected bool (N,), one a picture, as qlab.analysis.hits gives it")
    if len(first) != len(second):
        raise ValueError(f"{len(first)} images and {len(second)}: pair what two networks say of the same images")
    each = second.double() - first.double()
    error = float(each.std(correction=0)) / math.sqrt(len(each))
    return Paired(100 * float(each.mean()), 100 * error, int((first != second).sum()))


@torch.inference_mode()
def hits(network: nn.Module, data: Dataset, *, batch_size: int = 64) -> Tensor:
    """Which images a network gets right: bool (N,), in the data set's order; the mean of it is the top-1 accuracy.

    Args:
        network: Float, prepared or int8; it gives one number a class.
        data: The images and their labels.
        batch_size: Images at once.

    Raises:
        ValueError: An output is NaN, which an arg max would hide.

    >>> import qlab
    >>> images, labels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 0, 0, 1])
    >>> data = qlab.data.Dataset(images, labels, ("cat", "dog"), "black squares", "test", (0.5,) * 3, (0.25,) * 3)
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))
    >>> network[1].bias.data = torch.tensor([1e6, 0.0])  # always says cat
    >>> hits(network, data)
    tensor([ True,  True,  True, False])
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    found = []
    with in_eval_mode(network):
        for x, y in data.batches(batch_size):
            logits = network(x.to(device))
            if logits.isnan().any():
                raise ValueError("the network gave NaN: look for a layer whose weights or ranges are not finite")
            found.append(logits.argmax(1).cpu() == y)
    return torch.cat(found)
