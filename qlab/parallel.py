"""Training in several processes, each on its share of every batch.

`torchrun --standalone --nproc-per-node 2 -m qlab train resnet20 --qat w4a4` starts two; `train.py` asks here how many
there are. They hold the same weights, and after each step they average their gradients (data parallelism; Li et al.,
"PyTorch distributed: experiences on accelerating data parallel training", 2020). A BatchNorm sees its own share alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def processes(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, if it did; gives the device of this one ("cuda" becomes "cuda:1")."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def place() -> tuple[int, int]:
    """(the number of this process, how many there are).

    >>> place()
    (0, 1)
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def together(network: nn.Module) -> nn.Module:
    """``network``, whose gradients are averaged over the processes in every backward pass; alone, itself."""
    return network if place()[1] == 1 else DistributedDataParallel(network)


def total(number: float, device: str | torch.device = "cpu") -> float:
    """The sum of every process's ``number``. All of them have to ask."""
    if place()[1] == 1:
        return number
    numbers = torch.tensor(number, dtype=torch.float64, device=device)
    distributed.all_reduce(numbers)
    return float(numbers)


def share(*tensors: Tensor) -> tuple[Tensor, ...]:
    """This process's part of each tensor: every n-th row."""
    number, count = place()
    return tensors if count == 1 else tuple(tensor[number::count] for tensor in tensors)


def wait() -> None:
    """Go on when every process is here: what the first one wrote can be read then."""
    if place()[1] > 1:
        distributed.barrier()
