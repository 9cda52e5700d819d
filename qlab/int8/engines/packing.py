"""What both families of torch's kernels need: plain numbers, bare operators, and a kernel for each shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qlab.affine import QParams
from qlab.int8.reference import Kernel, check_activation


def as_numbers(qp: QParams) -> tuple[float, int]:
    """Scale and zero point as plain numbers, after a check that the grid is one for activations."""
    check_activation(qp)
    return float(qp.scale), int(qp.zero_point)


def direct(op: Callable) -> Callable:
    """The C++ function of an operator, without the Python around it, which costs 3 us a call."""
    return getattr(op, "_op", op)


def by_shape(make: Callable[..., Kernel]) -> Kernel:
    """A kernel that is ``make(*shapes)`` for each new shape of its inputs (and number of threads).

    So weights are packed, and shapes compared, once a shape and not once a call. oneDNN prepares a layer for the first
    shape it sees and keeps that with the packed weights. Every other shape is prepared anew in each call, at 0.05 ms:
    on one image twice as slow as it could be.
    """
    kernels: dict[tuple, Kernel] = {}
    get_num_threads = torch.get_num_threads

    def find(*inputs: Tensor) -> Kernel:
        if torch.jit.is_tracing():  # numbers of shapes are tensors then, and what is recorded is not for others
            return make(*(torch.Size(map(int, x.shape)) for x in inputs))
        found = make(*(x.shape for x in inputs))
        if len(kernels) == 8:  # batches of ever new sizes must not fill the memory
            kernels.clear()
        kernels[(*(x.shape for x in inputs), get_num_threads())] = found
        return found

    def kernel(q: Tensor, other: Tensor | None = None) -> Tensor:
        if other is None:
            return (kernels.get((q.shape, get_num_threads())) or find(q))(q)
        return (kernels.get((q.shape, other.shape, get_num_threads())) or find(q, other))(q, other)

    return kernel
