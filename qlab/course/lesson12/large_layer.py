"""A linear layer that waits for its weights: half of the largest one of VGG-16, in float and in int8, one image at a time."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from qlab import bench
from qlab.affine import QParams, choose_qparams
from qlab.bench import Comparison
from qlab.granularity import PerChannel
from qlab.int8 import engines


class LargeLayer:
    """Weights (outputs, inputs) as int8 codes and as the floats that they stand for, and one image's input.

    >>> layer = LargeLayer(16, 8)
    >>> list(layer.compare("reference", rounds=1))
    ['float32', 'int8 reference']
    """

    def __init__(self, inputs: int = 25_088, outputs: int = 2_048) -> None:
        generator = torch.Generator().manual_seed(0)
        self.codes = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=generator)
        zero_points = torch.zeros(outputs, dtype=torch.int32)
        step = 0.016 / inputs**0.5  # so that the outputs lie between -4 and 4
        self.grid = QParams(torch.full((outputs,), step), zero_points, signed=True, granularity=PerChannel(0))
        self.weights = self.codes.float().mul_(step)
        self.row = torch.rand(1, inputs, generator=generator)

    def compare(self, name: str, rounds: int = 7) -> Comparison:
        """Times in float and on an engine, taking turns on one thread; the answers are compared before."""
        engine = engines.get(name)
        reads, gives = choose_qparams(0.0, 1.0, bits=7), choose_qparams(-4.0, 4.0, bits=8)
        kernel = engine.linear(self.codes, None, self.grid, reads, gives)
        q, to_floats = engine.quantize(reads)(self.row), engine.dequantize(gives)
        calls = {"float32": lambda: F.linear(self.row, self.weights), f"int8 {name}": lambda: to_floats(kernel(q))}
        with engine.running():
            return bench.compare_calls(calls, 1, threads=1, rounds=rounds, progress=False)

    def gigabytes_per_second(self, compared: Comparison) -> tuple[float, float]:
        """What comes from memory in float and in int8."""
        float32, int8 = (self.codes.numel() * size / 1e6 / each.ms for size, each in zip((4, 1), compared.values()))
        return float32, int8


def usable(names: tuple[str, ...] = ("fbgemm", "qnnpack", "onednn_plain", "reference"), most: int = 2) -> list[str]:
    """The first of these engines that work on this machine."""
    return [name for name in names if engines.availability(name).usable][:most]
