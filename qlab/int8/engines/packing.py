"""What both families of torch's kernels need: grids as plain numbers, bare operators, weights packed once a shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qlab.affine import QParams
from qlab.int8.reference import check_activation


def as_numbers(qp: QParams) -> tuple[float, int]:
    """Scale and zero point as plain numbers, after a check that the grid is one for activations."""
    check_activation(qp)
    return float(qp.scale), int(qp.zero_point)


def direct(op: Callable) -> Callable:
    """The C++ function of an operator, without the Python around it, which costs 3 us a call."""
    return getattr(op, "_op", op)


def by_shape(pack: Callable[[Sequence[int] | None], object]) -> Callable[[Tensor], object]:
    """Packed weights for each shape of input (and number of threads).

    oneDNN prepares a layer for the first shape it sees and keeps that with the packed weights. Every other
    shape is prepared anew in each call, at 0.05 ms: on one image twice as slow as it could be.
    """
    pack(None)  # so that an error comes when the kernel is made
    packs: dict[tuple, object] = {}
    get_num_threads = torch.get_num_threads

    def packed(q: Tensor) -> object:
        key = (q.shape, get_num_threads())
        found = packs.get(key)
        if found is None:
            if len(packs) == 8:  # batches of ever new sizes must not fill the memory
                packs.clear()
            found = packs[key] = pack(q.shape)
        return found

    return packed
