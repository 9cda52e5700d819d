"""Random small layers on every engine that works here, against the plain formula in 64 bits: who computes what wrong?

    OMP_NUM_THREADS=1 python tools/fuzz_kernels.py --seconds 60 --seed 1
    python tools/fuzz_kernels.py --engine onednn --layer 1234 --seed 1     # one layer again

Kernels of torch go wrong where few people look: outputs one pixel wide, taps that see only padding, a group of one
channel. So sizes are small, and strides, paddings and dilations large. The reference must be within half a code of the
real value, the other engines within one code of it rounded. Exit status 1 and one line for each wrong layer otherwise.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qlab.affine import QParams
from qlab.granularity import PerChannel
from qlab.int8 import engines


@dataclass
class Layer:
    """One kernel to make, ``op(*arguments, **options)``, and sizes to call it with."""

    op: str
    arguments: tuple
    options: dict
    inputs: list[tuple[Tensor, ...]]  # codes, a tuple for each call
    grids: tuple[QParams, ...]  # of the inputs
    real: Callable[..., Tensor]  # codes, int64 -> what the output codes are before rounding, float64
    out_qp: QParams
    groups: int = 1
    layout: str = "channels last"  # in which order the values lie that become the inputs' codes

    def __str__(self) -> str:
        arguments = [tuple(a.shape) if isinstance(a, Tensor) else f"z={a.zero_point.tolist()} {a.bits} bits"
                     for a in self.arguments if isinstance(a, (Tensor, QParams))]  # fmt: skip
        sizes = [[tuple(q.shape) for q in call] for call in self.inputs]
        return f"{self.op} {arguments} {self.options} on {sizes}, {self.layout}"


# --- drawing


def grid(draw: random.Random, scale: float | None = None, bits: int | None = None) -> QParams:
    bits = bits or draw.choice([8, 8, 8, 7, 4, 2])
    top = 2**bits - 1
    zero_point = draw.choice([0, 0, top // 2, top, draw.randint(0, top)])
    return QParams(scale or 10 ** draw.uniform(-3, 0.5), zero_point, bits)


def numbers(draw: random.Random, shape: Sequence[int], qp: QParams) -> Tensor:
    """Random codes; one time in four only the lowest and the highest."""
    few = draw.random() < 0.25
    q = torch.randint(0, 2, tuple(shape)) * qp.qmax if few else torch.randint(0, qp.qmax + 1, tuple(shape))
    return q.to(torch.uint8)


def weights(draw: random.Random, shape: Sequence[int]) -> tuple[Tensor, QParams]:
    limit = draw.choice([127, 127, 127, 7, 1])
    weight = torch.randint(-limit - 1, limit + 1, tuple(shape))
    if draw.random() < 0.3:
        weight = torch.where(weight < 0, -limit, limit)
    if draw.random() < 0.5:
        return weight.to(torch.int8), QParams(0.03, 0, signed=True)
    scale = torch.rand(shape[0]) * 0.1 + 0.001
    return weight.to(torch.int8), QParams(
        scale, torch.zeros(shape[0], dtype=torch.int32), signed=True, granularity=PerChannel(0)
    )


def output(draw: random.Random, weight: Tensor, weight_qp: QParams, x_qp: QParams) -> tuple[QParams, Tensor | None]:
    """A grid on which the sums show, not finer than their own, to which qnnpack rounds the bias; and a bias."""
    step_of_sums = (weight_qp.scale * x_qp.scale).expand(len(weight))
    spread = (weight.float().flatten(1).square().sum(1).sqrt() * step_of_sums).max() * x_qp.qmax
    out_qp = grid(draw, 1.0)
    step = max(float(spread) / draw.choice([1, 1, 3]) / out_qp.qmax, float(step_of_sums.max()), 1e-12)
    bias = None if draw.random() < 0.3 else torch.randn(len(weight)) * step * out_qp.qmax * draw.choice([0.1, 1])
    return QParams(step, out_qp.zero_point, out_qp.bits), bias


def image(draw: random.Random, channels: int, least: Sequence[int]) -> tuple[int, ...]:
    """A batch that is at least so large that a window fits, and often no larger."""
    extra = (draw.choice([0, 0, 1, 2, 3, 7, 12]) for _ in range(2))
    return (draw.choice([1, 1, 2, 8]), channels, *(max(1, low) + more for low, more in zip(least, extra)))


def window(draw: random.Random) -> tuple[dict, list[int], list[int]]:
    """(stride, padding, dilation), the kernel, and the smallest image for it."""
    kernel = [draw.choice([1, 1, 2, 3, 3, 5, 7]) for _ in range(2)] if draw.random() < 0.6 else [3, 3]
    stride, dilation = ([draw.choice([1, 1, 2, 3]) for _ in range(2)] for _ in range(2))
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    padding = [draw.choice([0, 0, 1, 1, 2, e // 2, e]) for e in extent]
    options = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    return options, kernel, [e - 2 * p for e, p in zip(extent, padding)]


def convolution(draw: random.Random) -> Layer:
    """conv2d or conv2d_add, dense, in groups or depthwise."""
    options, kernel, least = window(draw)
    groups = draw.choice([1, 1, 1, 1, 2, 3, 4])
    inputs = draw.choice([1, 1, 2, 3, 4, 8, 16, 17])
    outputs = draw.choice([1, 2, 3, 4, 8, 16, 17, 32])
    if draw.random() < 0.2:
        groups, inputs, outputs = draw.choice([1, 2, 3, 8, 16, 33, 64]), 1, draw.choice([1, 1, 2])
    weight, weight_qp = weights(draw, (groups * outputs, inputs, *kernel))
    x_qp, options["groups"], options["relu"] = grid(draw), groups, draw.random() < 0.3
    out_qp, bias = output(draw, weight, weight_qp, x_qp)
    sizes = [image(draw, groups * inputs, least) for _ in range(2)]
    arguments, grids = (weight, bias, weight_qp, x_qp), (x_qp,)
    calls = [(numbers(draw, size, x_qp),) for size in sizes]
    adds = draw.random() < 0.4
    if adds:
        other_qp = grid(draw, float(out_qp.scale) * 10 ** draw.uniform(-1, 0.3))
        shapes = [sums64(x.long(), weight, options).shape for (x,) in calls]
        calls = [(x, numbers(draw, shape, other_qp)) for (x,), shape in zip(calls, shapes)]
        arguments, grids = (*arguments, other_qp), (x_qp, other_qp)

    def real(x: Tensor, other: Tensor | None = None) -> Tensor:
        step = (x_qp.scale.double() * weight_qp.scale.double()).expand(len(weight)) / out_qp.scale.double()
        total = sums64(x - int(x_qp.zero_point), weight, options) * step[:, None, None]
        total += 0 if bias is None else (bias.double() / out_qp.scale.double())[:, None, None]
        return total if other is None else total + rescaled(other, grids[1], out_qp)

    op = "conv2d_add" if adds else "conv2d"
    return Layer(op, (*arguments, out_qp), options, calls, grids, real, out_qp, groups)


def linear(draw: random.Random) -> Layer:
    weight, weight_qp = weights(draw, (draw.choice([1, 2, 10, 16, 33]), draw.choice([1, 2, 7, 16, 64, 100])))
    x_qp = grid(draw)
    out_qp, bias = output(draw, weight, weight_qp, x_qp)
    sizes = [(*draw.choice([(1,), (2,), (7,), (2, 3)]), weight.shape[1]) for _ in range(2)]

    def real(x: Tensor) -> Tensor:
        step = (x_qp.scale.double() * weight_qp.scale.double()).expand(len(weight)) / out_qp.scale.double()
        total = ((x - int(x_qp.zero_point)) @ weight.long().T) * step
        return total if bias is None else total + bias.double() / out_qp.scale.double()

    calls = [(numbers(draw, size, x_qp),) for size in sizes]
    options = {"relu": draw.random() < 0.3}
    return Layer("linear", (weight, bias, weight_qp, x_qp, out_qp), options, calls, (x_qp,), real, out_qp)


def pooling(draw: random.Random) -> Layer:
    """Largest or mean value of a window."""
    kernel = [draw.choice([1, 2, 2, 3, 3, 4]) for _ in range(2)]
    dilation = [draw.choice([1, 1, 2, 3]) for _ in range(2)]
    options = {"kernel_size": tuple(kernel), "padding": tuple(draw.randint(0, k // 2) for k in kernel)}
    options |= {"stride": draw.choice([None, 1, 2, (1, 2), (3, 1)]), "ceil_mode": draw.random() < 0.4}
    x_qp, mean = grid(draw), draw.random() < 0.5
    if mean:
        out_qp = draw.choice([x_qp, grid(draw, float(x_qp.scale) * draw.uniform(0.3, 2))])
        options["count_include_pad"], dilation = draw.random() < 0.5, [1, 1]
    else:
        out_qp, options["dilation"] = x_qp, tuple(dilation)
    least = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, options["padding"])]
    calls = [(numbers(draw, image(draw, draw.choice([1, 3, 8, 17, 64]), least), x_qp),) for _ in range(2)]
    pool = F.avg_pool2d if mean else F.max_pool2d

    def real(x: Tensor) -> Tensor:
        return rescaled(pool(x.double() - int(x_qp.zero_point), **options), x_qp, out_qp, shifted=True)

    op, arguments = ("avg_pool2d", (x_qp, out_qp)) if mean else ("max_pool2d", (x_qp,))
    return Layer(op, arguments, options, calls, (x_qp,), real, out_qp)


def cells(draw: random.Random) -> Layer:
    """The mean over adaptive cells."""
    x_qp = grid(draw)
    out_qp = draw.choice([x_qp, grid(draw, float(x_qp.scale) * draw.uniform(0.3, 2))])
    options = {"output_size": draw.choice([1, (1, 1), 2, (2, 3)])}
    calls = [(numbers(draw, image(draw, draw.choice([1, 3, 8, 17, 64]), (1, 1)), x_qp),) for _ in range(2)]

    def real(x: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(x.double() - int(x_qp.zero_point), **options)
        return rescaled(means, x_qp, out_qp, shifted=True)

    return Layer("adaptive_avg_pool2d", (x_qp, out_qp), options, calls, (x_qp,), real, out_qp)


def addition(draw: random.Random) -> Layer:
    a_qp, relu = grid(draw), draw.random() < 0.3
    b_qp, out_qp = (grid(draw, float(a_qp.scale) * 10 ** draw.uniform(-1.5, 1)) for _ in range(2))
    sizes = [image(draw, draw.choice([1, 3, 8, 17]), (1, 1)) for _ in range(2)]
    calls = [(numbers(draw, size, a_qp), numbers(draw, size, b_qp)) for size in sizes]

    def real(a: Tensor, b: Tensor) -> Tensor:
        return rescaled(a, a_qp, out_qp) + rescaled(b, b_qp, out_qp)

    return Layer("add", (a_qp, b_qp, out_qp), {"relu": relu}, calls, (a_qp, b_qp), real, out_qp)


# --- the plain formula


def sums64(x: Tensor, weight: Tensor, options: dict) -> Tensor:
    """The convolution of integers in int64, one tap of the kernel after the other."""
    (down, across), (height, width), (n, c) = options["padding"], weight.shape[2:], x.shape[:2]
    groups, stride, dilation = options["groups"], options["stride"], options["dilation"]
    x = F.pad(x, (across, across, down, down))
    rows, columns = (
        (length - d * (k - 1) - 1) // s + 1 for length, d, k, s in zip(x.shape[2:], dilation, (height, width), stride)
    )
    total = torch.zeros(n, groups, len(weight) // groups, rows * columns, dtype=torch.int64)
    taps = weight.long().reshape(groups, len(weight) // groups, c // groups, height, width)
    for i in range(height):
        for j in range(width):
            top, left = i * dilation[0], j * dilation[1]
            seen = x[:, :, top : top + (rows - 1) * stride[0] + 1 : stride[0]]
            seen = seen[..., left : left + (columns - 1) * stride[1] + 1 : stride[1]]
            total += taps[..., i, j] @ seen.reshape(n, groups, c // groups, rows * columns)
    return total.reshape(n, len(weight), rows, columns)


def rescaled(q: Tensor, qp: QParams, out_qp: QParams, shifted: bool = False) -> Tensor:
    """Values of one grid in steps of another."""
    return (q.double() - (0 if shifted else int(qp.zero_point))) * (qp.scale.double() / out_qp.scale.double())


# --- who is wrong


def layer(seed: int, number: int) -> Layer:
    """Random layer ``number`` of a seed, the same on every run."""
    draw = random.Random(f"{seed}/{number}")
    torch.manual_seed(draw.randrange(2**31))
    kinds = [convolution] * 8 + [linear, pooling, pooling, cells, addition]
    made = draw.choice(kinds)(draw)
    made.layout = draw.choice(LAYOUTS)
    return made


LAYOUTS = "channels last", "channels last", "rows", "part of a larger tensor", "codes in rows"


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values, in another order in memory."""
    if x.ndim != 4:
        return x
    if layout != "part of a larger tensor":
        return x.contiguous(memory_format=torch.channels_last if layout == "channels last" else torch.contiguous_format)
    larger = torch.zeros([n + 1 for n in x.shape]).contiguous(memory_format=torch.channels_last)
    larger[1:, 1:, 1:, 1:] = x
    return larger[1:, 1:, 1:, 1:]


def wrong(layer: Layer, engine: engines.Engine) -> str:
    """In what way an engine computes a layer wrong; nothing if it is right."""
    try:
        return _wrong(layer, engine)
    except (RuntimeError, ValueError) as error:
        return f"refused, {str(error).splitlines()[0]}"


def _wrong(layer: Layer, engine: engines.Engine) -> str:
    kernel = getattr(engine, layer.op)(*layer.arguments, **layer.options)
    exact = engine.name == "reference"
    low = int(layer.out_qp.zero_point) if layer.options.get("relu") else layer.out_qp.qmin
    for call in (*layer.inputs, layer.inputs[0]):
        real = layer.real(*(q.long() for q in call)) + int(layer.out_qp.zero_point)
        real = real.clamp(low, layer.out_qp.qmax)
        values = [
            laid_out((q.float() - int(qp.zero_point)) * qp.scale, layer.layout) for q, qp in zip(call, layer.grids)
        ]
        with torch.no_grad(), engine.running():
            inputs = [engine.quantize(qp)(x) for x, qp in zip(values, layer.grids)]
            q = kernel(*(q.contiguous() if layer.layout == "codes in rows" else q for q in inputs))
            got = engine.dequantize(layer.out_qp)(q).double() / layer.out_qp.scale.double()
        got = got.round() + int(layer.out_qp.zero_point)
        if got.shape != real.shape:
            return f"its outputs are {tuple(got.shape)}, expected {tuple(real.shape)}"
        far = (got - (real if exact else real.round())).abs().max()
        if far > (0.501 if exact else 1):
            return f"wrong by {far:.3g} codes"
    return ""


def failures(seed: int, numbers: Iterator[int], names: Sequence[str]) -> Iterator[str]:
    """One line for each layer that an engine computes wrong, or nothing where all is right."""
    made = {name: engines.get(name) for name in names}
    for number in numbers:
        drawn = layer(seed, number)
        for name, engine in made.items():
            saturates = engines.availability(name).saturates_in(drawn.groups) and drawn.grids[0].bits == 8
            fuses = drawn.op != "conv2d_add" or engine.fuses_add
            if fuses and not saturates and (words := wrong(drawn, engine)):
                yield f"layer {number} on {name}: {words}: {drawn}"


def until(seconds: float) -> Iterator[int]:
    """0, 1, 2, ... for so long."""
    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        yield number
        number += 1
    print(f"{number} layers")


def main() -> int:
    usable = [name for name, found in engines.available().items() if found.usable]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--layer", type=int, help="only this one of the seed's layers")
    parser.add_argument("--engine", nargs="+", choices=usable, default=usable, help="default: all that work here")
    arguments = parser.parse_args()
    numbers = until(arguments.seconds) if arguments.layer is None else iter([arguments.layer])
    found = 0
    for line in failures(arguments.seed, numbers, arguments.engine):
        print(line, flush=True)
        found += 1
    return bool(found)


if __name__ == "__main__":
    raise SystemExit(main())
