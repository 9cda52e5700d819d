"""One layer on one engine: the codes that it gives, and how long it takes.

It is what ``qlab.int8`` does for a whole network, for one layer alone.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab import bench
from qlab.affine import QParams, choose_qparams, fake_quantize, quantize
from qlab.course.lesson05.plots import LayerSpeed
from qlab.int8 import engines
from qlab.int8.modules import Int8Conv2d, Int8Network
from qlab.int8.reference import Engine

ROUNDS = 9


class Probe:
    """A convolution in the middle of an integer network, and what it reads: the same codes for every engine.

    ``step`` is what a code of its output is worth.
    """

    def __init__(self, int8: Int8Network, network: nn.Module, name: str, images: Tensor) -> None:
        number = [layer.name for layer in int8.layers].index(name)
        self.layer: Int8Conv2d = int8.layers[number]
        step = next(step for step in int8.program.steps if step.layer == number)
        self.x_grid, self.y_grid = (int8.program.grids[value] for value in (step.inputs[0], step.output))
        self.step = float(self.y_grid.scale)
        seen: list[Tensor] = []
        hook = network.get_submodule(name).register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
        with torch.inference_mode():
            network(images)
            self.x = fake_quantize(seen[0], self.x_grid)
        hook.remove()

    @torch.inference_mode()
    def codes(self, name: str) -> Tensor:
        """The codes that the layer gives on the engine of that name, int32."""
        engine = engines.get(name)
        kernel = self.layer.kernel(engine, [self.x_grid], self.y_grid)
        with engine.running():
            y = engine.dequantize(self.y_grid)(kernel(engine.quantize(self.x_grid)(self.x)))
        return torch.round(y / self.y_grid.scale).int()

    @torch.inference_mode()
    def exact(self) -> Tensor:
        """What the layer gives before it is rounded to a code, in steps of the output: float64."""
        options = {
            key: self.layer.options[key]
            for key in ("stride", "padding", "dilation", "groups")
            if key in self.layer.options
        }
        integers = quantize(self.x, self.x_grid).double() - float(self.x_grid.zero_point)
        worth = (self.x_grid.scale.double() * self.layer.scale.double() / self.y_grid.scale.double()).reshape(-1, 1, 1)
        y = F.conv2d(integers, self.layer.weight.double(), None, **options) * worth
        return (
            y
            if self.layer.bias is None
            else y + (self.layer.bias.double() / self.y_grid.scale.double()).reshape(-1, 1, 1)
        )


def as_rows(images: Tensor, layer: nn.Conv2d, count: int) -> tuple[Tensor, Tensor]:
    """A convolution as the dot products that it is: ``count`` of the pieces that it looks at, and its weights, as rows.

    images: (N, C, H, W). Returns (count, K) and (outputs, K), the channels innermost, as kernels walk through them.

    >>> pieces, weights = as_rows(torch.ones(1, 3, 4, 4), nn.Conv2d(3, 8, 3, padding=1), 5)
    >>> pieces.shape, weights.shape
    (torch.Size([5, 27]), torch.Size([8, 27]))
    """
    every = F.unfold(images, layer.kernel_size, padding=layer.padding)  # (N, C * places of the window, windows)
    every = every.unflatten(1, (images.shape[1], -1)).permute(0, 3, 2, 1).flatten(2).flatten(0, 1)
    some = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:count]
    return every[some], layer.weight.detach().permute(0, 2, 3, 1).flatten(1)


def far_from_a_tie(y: Tensor) -> Tensor:
    """How far numbers lie from the middle between two codes, in steps: 0 in the middle, a half on a code.

    >>> far_from_a_tie(torch.tensor([2.0, 2.5, 2.75]))
    tensor([0.5000, 0.0000, 0.2500])
    """
    return (y - y.floor() - 0.5).abs()


def layer_speed(name: str, layer: nn.Linear | nn.Conv2d, x: Tensor, engine: Engine) -> LayerSpeed:
    """Time a layer in float and on an engine, on the same input. A convolution has stride 1."""
    kernel, x_grid, _y_grid, y = _kernel(layer, x, engine)
    with torch.inference_mode(), engine.running():
        q = engine.quantize(x_grid)(x)
        seconds = _medians({"float": lambda: layer(x), "int8": lambda: kernel(q)})
    operations = 2 * layer.weight.numel() * (y.numel() // layer.weight.shape[0])
    numbers = x.numel() + layer.weight.numel() + y.numel()
    return LayerSpeed(name, operations, 4 * numbers, numbers, seconds["float"], seconds["int8"])


def alone_among_floats(layer: nn.Linear | nn.Conv2d, x: Tensor, engine: Engine) -> dict[str, float]:
    """The seconds of each call when one layer is int8 and its neighbours are float: what is around it counts too."""
    kernel, x_grid, y_grid, _y = _kernel(layer, x, engine)
    with torch.inference_mode(), engine.running():
        to_codes, to_floats = engine.quantize(x_grid), engine.dequantize(y_grid)
        q = to_codes(x)
        codes = kernel(q)
        return _medians({
            "float layer": lambda: layer(x), "quantize": lambda: to_codes(x), "int8 layer": lambda: kernel(q),
            "dequantize": lambda: to_floats(codes),
        })  # fmt: skip


def _kernel(layer: nn.Linear | nn.Conv2d, x: Tensor, engine: Engine) -> tuple[Callable, QParams, QParams, Tensor]:
    """A layer's kernel with 7-bit weights, its grids, and what it gives in float."""
    with torch.inference_mode():
        y = layer(x)
        x_grid, y_grid = (choose_qparams(float(t.min()), float(t.max())) for t in (x, y))
        largest = float(layer.weight.abs().max())
        w_grid = choose_qparams(-largest, largest, 7, signed=True, symmetric=True, narrow_range=True)
        make, options = (
            (engine.linear, {}) if isinstance(layer, nn.Linear) else (engine.conv2d, {"padding": layer.padding})
        )
        return make(quantize(layer.weight, w_grid), layer.bias, w_grid, x_grid, y_grid, **options), x_grid, y_grid, y


def _medians(calls: dict[str, Callable]) -> dict[str, float]:
    return {name: median(times) for name, times in bench.interleave(calls, rounds=ROUNDS, progress=False).items()}
