"""How many bytes grids of few values take."""

from __future__ import annotations

import math

from qlab.analysis import weight_bytes
from qlab.graph.prepare import Prepared
from qlab.qconfig import KMeans

FLOAT32 = 4  # bytes of an entry of a table, and of a scale


def of_codebook(weights: int, bits: int, tables: int = 1) -> tuple[int, int]:
    """(bytes of the indices, bytes of the tables) of so many weights.

    >>> of_codebook(1000, bits=4)
    (500, 64)
    """
    return math.ceil(weights * bits / 8), FLOAT32 * tables * 2**bits


def bytes_of(prepared: Prepared) -> int:
    """Bytes of all weights: packed codes, and 4 for each value of a table or for each scale.

    >>> import qlab, torch
    >>> network = torch.nn.Sequential(torch.nn.Linear(8, 2))
    >>> qconfig = qlab.QConfig.preset("w4a32", first_last=None)
    >>> bytes_of(qlab.prepare(network, qconfig, torch.zeros(1, 8)))  # 16 codes of half a byte, 2 scales
    16
    """
    beside = 0
    for _name, layer in prepared.weighted():
        spec = layer.weight_quantizer.spec
        beside += 2**spec.bits if isinstance(spec, KMeans) else len(layer.weight)
    return weight_bytes(prepared) + FLOAT32 * beside
