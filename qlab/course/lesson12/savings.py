"""What quantization saves: size, time, energy and money, estimated from a few numbers that anybody can look up.

The energies are those of M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure
1.1.9: a 45 nm chip at 0.9 V. A new chip needs less for all of them; the ratios are what matters. The time is the
roofline's (Williams et al. 2009): that of the slower of the two, memory or arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from qlab import bench

PICOJOULE = 1e-12
# One multiplication and one addition; sums of 8-bit products are added up in 32-bit integers.
MAC_JOULES = {32: (3.7 + 0.9) * PICOJOULE, 16: (1.1 + 0.4) * PICOJOULE, 8: (0.2 + 0.1) * PICOJOULE}
DRAM_JOULES = 1300 * PICOJOULE / 8  # a byte: reading 8 of them takes 1.3 to 2.6 nJ, and here the lower end counts


@dataclass(frozen=True)
class Workload:
    """A network that answers one question at a time: its weights, and its multiplications (with an addition each)."""

    name: str
    weights: int
    macs: int


def workload(name: str, network: nn.Module, size: int) -> Workload:
    """A network's weights and multiplications, counted on an image without content ("meta" tensors have none).

    ``size`` is the image's height and width. The network is moved to the meta device: make it there.

    >>> workload("small", nn.Conv2d(3, 8, 3, bias=False), 5)
    Workload(name='small', weights=216, macs=1944)
    """
    image = torch.zeros(1, 3, size, size, device="meta")
    return Workload(name, sum(p.numel() for p in network.parameters()), bench.macs(network.to("meta").eval(), image))


@dataclass(frozen=True)
class Machine:
    """What it runs on: bytes a second from memory, float multiplications a second, how many times as many in int8.

    ``dollars`` is the price of an hour, ``download`` the bits a second of the line that brings the network.
    """

    memory: float
    macs: float
    int8_speedup: float
    dollars: float
    download: float


@dataclass(frozen=True)
class Estimate:
    """What one answer takes: the longer of reading the weights and computing with them."""

    bytes: float
    download_seconds: float
    reading_seconds: float
    computing_seconds: float
    joules: float
    dollars_per_million: float

    @property
    def seconds(self) -> float:
        """Memory and arithmetic work at the same time."""
        return max(self.reading_seconds, self.computing_seconds)

    @property
    def from_memory(self) -> bool:
        """Does memory set the pace?"""
        return self.reading_seconds >= self.computing_seconds


def estimate(work: Workload, machine: Machine, bits: int) -> Estimate:
    """What an answer of ``work`` takes on ``machine``, its weights with 32, 16 or 8 bits.

    All weights are read from memory once an answer; what the layers hand on to each other, and scales and biases, are
    left out. 16-bit arithmetic counts as fast as that of 32 bits.

    >>> machine = Machine(memory=10e9, macs=50e9, int8_speedup=2, dollars=0.36, download=1e8)
    >>> found = estimate(Workload("one large layer", 100_000_000, 100_000_000), machine, 8)
    >>> found.seconds, found.from_memory, round(found.dollars_per_million, 9)
    (0.01, True, 1.0)
    """
    size = work.weights * bits / 8
    reading, computing = size / machine.memory, work.macs / machine.macs
    if bits == 8:
        computing /= machine.int8_speedup
    joules = work.macs * MAC_JOULES[bits] + size * DRAM_JOULES
    dollars = machine.dollars * max(reading, computing) * 1e6 / 3600
    return Estimate(size, 8 * size / machine.download, reading, computing, joules, dollars)
