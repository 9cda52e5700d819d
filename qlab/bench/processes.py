"""What a network does in processes of its own: images a second when several work at once, and memory at its peak."""

from __future__ import annotations

import ctypes
import os
import queue
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, multiprocessing, nn

from qlab.export import load, save
from qlab.int8.modules import Int8Network

RESET_PEAK = Path("/proc/self/clear_refs")  # writing 5 into it starts VmHWM anew (proc_pid_clear_refs(5))


def throughput(network: nn.Module, x: Tensor, *, workers: int = 1, seconds: float = 2.0) -> float:
    """Images a second of ``workers`` processes, each with the network on one thread and a core of its own.

    A server that answers many users is measured like this. Every process goes through the batch ``x`` again and
    again; they start together when all are warm. A script needs ``if __name__ == "__main__":`` around the call.
    Raises ValueError for fewer than 1 worker or more than there are cores.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not 1 <= workers <= len(cores):
        raise ValueError(f"workers={workers}: expected 1 to {len(cores)}, the cores that this process may use")
    return sum(_in_processes(_images_a_second, network, x, cores[:workers], seconds))


def peak_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes that a call with the batch ``x`` takes at its peak beside the network itself: activations, scratch space.

    Measured in a warm process of its own on one thread, as the growth of what it holds in memory. A script needs
    ``if __name__ == "__main__":`` around the call. Raises OSError where the system does not count that (Linux does).
    """
    if not RESET_PEAK.exists():
        raise OSError(f"no {RESET_PEAK} on this system, so the peak of one call cannot be measured: it takes Linux")
    (core, *_others) = sorted(os.sched_getaffinity(0))
    return _in_processes(_growth, network, x, [core])[0]


def _in_processes(measure: Callable, network: nn.Module, x: Tensor, cores: Sequence[int], *options) -> list:
    """What ``measure(network, x, *options)`` gives in a process on each of the cores, all at the same time."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="qlab-") as folder:
        given: object = network
        if isinstance(network, Int8Network):
            given = (str(save(network, Path(folder) / "network.safetensors")), network.engine)
        results = spawn.Queue()
        shared = given, x, spawn.Barrier(len(cores)), results
        processes = [
            spawn.Process(target=_work, args=(core, measure, *shared, *options), daemon=True) for core in cores
        ]
        for process in processes:
            process.start()
        found = [_result(results, processes) for _ in processes]
        for process in processes:
            process.join()
    return found


def _work(core: int, measure: Callable, given, x: Tensor, start, results, *options) -> None:
    """One process of :func:`_in_processes`: what it measures goes into ``results``."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the process that asked has seen them
        network = load(*given) if isinstance(given, tuple) else given
        for _ in range(3):
            network(x)
        start.wait()
        results.put(measure(network, x, *options))


def _images_a_second(network: nn.Module, x: Tensor, seconds: float) -> float:
    began, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        network(x)
        done += len(x)
    return done / passed


def _growth(network: nn.Module, x: Tensor) -> int:
    """Bytes by which this process grows at most during one call."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory for later, which would hide the growth
    RESET_PEAK.write_text("5")
    before = _held("VmRSS")
    network(x)
    return max(0, _held("VmHWM") - before)


def _held(what: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most (proc_pid_status(5))."""
    return 1024 * int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def _result(counts, processes):
    """The next process's result. Raises RuntimeError when one ended without any."""
    while True:
        try:
            return counts.get(timeout=0.5)
        except queue.Empty:
            if any(process.exitcode for process in processes):
                for process in processes:
                    process.terminate()
                raise RuntimeError("a process of the measurement failed; its own message stands above") from None
