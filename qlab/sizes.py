"""How many bytes numbers take: those of a network in memory, and codes of a few bits when they are packed."""

from __future__ import annotations

from torch import nn


def memory_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers; of an integer network, of its weights, scales and biases.

    What two layers share counts once. A layer whose kernel keeps weights for itself says how many as ``packed_bytes``.

    >>> memory_bytes(nn.Linear(10, 5))
    220
    """
    tensors = {id(tensor): tensor for tensor in network.state_dict(keep_vars=True).values()}
    packed = sum(getattr(module, "packed_bytes", 0) for module in network.modules())
    return packed + sum(tensor.nbytes for tensor in tensors.values())


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` codes of so many bits, one behind the other.

    >>> packed_bytes(3, 3)
    2
    """
    return (count * bits + 7) // 8
