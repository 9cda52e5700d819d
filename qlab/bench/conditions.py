"""Under which conditions a time was measured: the processor, its threads, torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qlab.int8 import engines


def setting(threads: int, device: str = "cpu") -> str:
    """Under which conditions a time was measured: threads and processor, or which GPU; torch."""
    where = f"{threads} thread{'s' * (threads > 1)}, {processor()}" if device == "cpu" else device
    return f"{where}, torch {torch.__version__}"


def processor() -> str:
    """The processor in words: its model, and the instructions that decide how fast integers are."""
    cpu = engines.cpu()
    if cpu.is_arm:
        int8 = "int8 dot product" if cpu.dot_product else "no int8 dot product"
    else:
        int8 = "AMX" if cpu.amx else "VNNI" if cpu.vnni else "no VNNI"
    return f"{cpu.model}, {cpu.capability}, {int8}"


@contextmanager
def using_threads(count: int | None) -> Iterator[int]:
    """Let torch use ``count`` threads, then as many as before."""
    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise ValueError(f"threads={count}: expected 1 or more, or None for torch's number ({before})")
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
