"""How large a network is on disk, and how much it has to multiply. (In memory: :func:`qlab.sizes.memory_bytes`.)"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from qlab.export import save
from qlab.files import write_tensors
from qlab.int8.modules import Int8Network


def file_bytes(network: nn.Module) -> int:
    """Bytes of the safetensors file that a network makes: it is written to a temporary folder and measured.

    >>> file_bytes(torch.nn.Linear(10, 5)) > 220
    True
    """
    with tempfile.TemporaryDirectory(prefix="qlab-") as folder:
        path = Path(folder) / "network.safetensors"
        if isinstance(network, Int8Network):
            save(network, path)
        else:
            write_tensors(path, network.state_dict())
        return path.stat().st_size


@torch.no_grad()
def macs(network: nn.Module, x: Tensor) -> int:
    """Multiplications, each with its addition, that convolutions and linear layers do for the batch ``x``.

    >>> macs(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 5, 5))                      # 27 for each of 8 * 9 outputs
    1944
    """
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(output.numel() * layer.weight[0].numel())

    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)
