"""What a loop over batches sees, whoever made them: inputs alone, or pairs with their labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

Batches = Iterable["Tensor | tuple[Tensor, Tensor]"]  # x, or (x, label)


def inputs(batches: Batches) -> Iterator[Tensor]:
    """The inputs x of ``batches``, which yield x or pairs (x, label), one after the other.

    Raises ValueError for a single tensor, whose rows are no batches, and for what is no batch.

    >>> import torch
    >>> [x.shape for x in inputs([torch.zeros(4, 3), (torch.zeros(2, 3), torch.zeros(2))])]
    [torch.Size([4, 3]), torch.Size([2, 3])]
    """
    if isinstance(batches, Tensor):
        raise ValueError(f"one tensor of shape {tuple(batches.shape)} is no list of batches: give [x]")
    for batch in batches:
        x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(x, Tensor):
            raise ValueError(f"a batch is {type(batch).__name__}: expected a tensor x, or a pair (x, label)")
        yield x


def pairs(batches: Batches) -> list[tuple[Tensor, Tensor | None]]:
    """(x, y) of each batch, y None where there is no label; a Dataset gives batches of 64.

    Raises ValueError when there is no batch.

    >>> import torch
    >>> [(len(x), y) for x, y in pairs([torch.zeros(4, 3)])]
    [(4, None)]
    """
    batches = list(batches.batches(64) if hasattr(batches, "batches") else batches)
    found = [(x, batch[1] if isinstance(batch, (tuple, list)) else None) for x, batch in zip(inputs(batches), batches)]
    if not found:
        raise ValueError("got no batch: give it at least one, for instance data.sample(256).batches(64)")
    return found
