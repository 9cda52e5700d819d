"""Batches as the methods take them: x, or (x, y) whose label is not looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

Batches = Iterable[Tensor | tuple[Tensor, Tensor]]


def inputs(batches: Batches) -> Iterator[Tensor]:
    """The x of each batch.

    >>> import torch
    >>> [x.shape for x in inputs([torch.zeros(4, 3), (torch.zeros(2, 3), torch.zeros(2))])]
    [torch.Size([4, 3]), torch.Size([2, 3])]
    """
    return (batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches)


def pairs(batches: Batches) -> list[tuple[Tensor, Tensor | None]]:
    """(x, y) of each batch, y None where there is no label; a Dataset gives batches of 64. ValueError for no batch.

    >>> import torch
    >>> [(len(x), y) for x, y in pairs([torch.zeros(4, 3)])]
    [(4, None)]
    """
    batches = batches.batches(64) if hasattr(batches, "batches") else batches
    found = [tuple(batch) if isinstance(batch, (tuple, list)) else (batch, None) for batch in batches]
    if not found:
        raise ValueError("got no batch: give it at least one, for instance data.sample(256).batches(64)")
    return found
