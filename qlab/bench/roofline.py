"""What this processor can do at most: the roof over every layer's speed (Williams et al. 2009)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qlab.affine import QParams
from qlab.bench.conditions import using_threads
from qlab.bench.timing import interleave
from qlab.int8 import engines


@dataclass(frozen=True)
class Roof:
    """What a processor can do at most, measured: operations a second in float32 and in int8, bytes a second of memory.

    A layer that does ``n`` operations for each byte it moves cannot do more than the smaller of its operations a second
    and ``n * bandwidth`` (the roofline model; Williams et al. 2009).
    """

    float_operations: float
    int8_operations: float
    bandwidth: float


def roof(engine: str = "auto", *, threads: int = 1, rounds: int = 7) -> Roof:
    """Measure this processor's roof: the best time of a product of 512x512 matrices, in float32 and on ``engine``'s
    int8 kernels, and of a copy of 64 MB, which fits into no cache. A multiplication and an addition are two operations.

    >>> here = roof(rounds=2)
    >>> min(here.float_operations, here.int8_operations, here.bandwidth) > 1e6
    True
    """
    size, chosen = 512, engines.get(engine)
    x_qp, w_qp, y_qp = QParams(1 / 127, 0, 7), QParams(1 / 127, 0, signed=True), QParams(4.0, 64, 7)
    codes = torch.randint(-127, 128, (size, size), dtype=torch.int8)
    x, weight, source = torch.rand(size, size), codes / 127, torch.zeros(2**24)
    with using_threads(threads), torch.inference_mode(), chosen.running():
        kernel, q, target = chosen.linear(codes, None, w_qp, x_qp, y_qp), chosen.quantize(x_qp)(x), source.clone()
        calls = {"float": lambda: x @ weight, "int8": lambda: kernel(q), "copy": lambda: target.copy_(source)}
        best = {name: min(times) for name, times in interleave(calls, rounds=rounds, progress=False).items()}
    moved = 2 * source.nbytes  # read and written
    return Roof(2 * size**3 / best["float"], 2 * size**3 / best["int8"], moved / best["copy"])
