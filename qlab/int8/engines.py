"""Fast engines: the int8 kernels of torch, behind the interface of :class:`qlab.int8.reference.Engine`.

This is the one file that touches them, since upstream is taking them away. There are two families:

- the historical ``torch.ops.quantized``, on tensors of the type quint8 that carry their scale with them, as
  **fbgemm** (Khudia et al., "FBGEMM: enabling high-performance low-precision deep learning inference", 2021),
  **qnnpack** (made for ARM), **onednn**, and **x86**, which takes the first or the third by layer;
- **onednn_plain**: the operators that torch's compiler uses, on plain uint8 tensors.

All stay within one code of the reference; they multiply their int32 sums by a float, where it takes a
fixed-point number. The exception has a physical cause. Without VNNI instructions (2019 and later) an x86
processor adds up u8 * s8 products in pairs of 16 bits, and ``255 * 127 * 2`` does not fit: it *saturates* at
32767. (fbgemm's kernel for depthwise layers does so even with them.) This file tries that out. Seven bits for
weights (``reduce_range=True``) or for activations make every pair fit.
"""

from __future__ import annotations

import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab.affine import QParams, round_rows
from qlab.int8.reference import (
    Engine,
    Kernel,
    channels_last,
    check_activation,
    check_weighted,
    finite,
    floats,
    pair,
    ratio,
    same_grid,
    sum_bound,
)  # fmt: skip

HISTORICAL = ("onednn", "x86", "fbgemm", "qnnpack")
NAMES = ("reference", *HISTORICAL, "onednn_plain")


# --- The two families


class Historical(Engine):
    """torch.ops.quantized: activations are quint8 tensors, which know their scale and zero point.

    The kernels of a packed layer belong to the engine that packed it. The others (add, pooling) look at the
    global ``torch.backends.quantized.engine`` each time, so :meth:`running` sets it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.fuses_add = name == "onednn"
        self._used: list[object] | None = None  # the packed weights that a program reads, while it is captured

    @contextmanager
    def running(self) -> Iterator[None]:
        # Every argument of an operator is asked for __torch_function__. Packed weights answer by an
        # exception, at 15 us: more than a small convolution takes.
        with _selected(self.name), torch._C.DisableTorchFunctionSubclass():
            yield

    def capture(self, program: Kernel, layers: nn.Module, x: Tensor) -> Kernel:
        x = channels_last(x)  # so that nothing is recorded for other orders: `run` sees to them
        try:
            with self.running():
                captured = self._traced(program, layers, x)
                same = all(torch.equal(captured(other), program(other)) for other in (x, -3 * x))
        except RuntimeError as error:
            raise ValueError(
                f"engine {self.name!r}: torch.jit cannot capture this network, which runs as before: {error}"
            ) from error
        if not same:
            raise ValueError(f"engine {self.name!r}: what was captured gives other scores, so it is not used")

        def run(x: Tensor) -> Tensor:
            x = finite(channels_last(x))
            if torch.backends.quantized.engine == self.name:
                return captured(x)
            with _selected(self.name):
                return captured(x)

        return run

    def _traced(self, program: Kernel, layers: nn.Module, x: Tensor) -> Kernel:
        """``program`` as torch.jit records it, which knows only what belongs to a module."""
        self._used = []
        try:
            program(x)
            packs = self._used
        finally:
            self._used = None

        class Captured(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return program(x)

        module = Captured().eval()
        module.layers = layers
        for number, pack in enumerate(packs):
            setattr(module, f"pack_{number}", pack)
        with warnings.catch_warnings():
            # torch.jit is deprecated, like the kernels; and it says that the check for NaN is left out.
            warnings.filterwarnings("ignore", message=".*torch.jit.*")
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            captured = torch.jit.freeze(torch.jit.trace(module, x, check_trace=False))
        for _ in range(3):  # torch.jit watches two calls before it settles
            captured(x)
        return captured.forward  # as the module does, but without asking for hooks first

    def quantize(self, qp: QParams) -> Kernel:
        (scale, zero_point), quantize, quint8 = _grid(qp), torch.quantize_per_tensor, torch.quint8

        def kernel(x: Tensor) -> Tensor:
            return quantize(finite(floats(x)), scale, zero_point, quint8)

        return self._clamped(kernel, qp)

    def dequantize(self, qp: QParams) -> Kernel:
        check_activation(qp)
        return lambda q: q.dequantize()

    def conv2d(
        self, weight, bias, weight_qp, x_qp, out_qp, *, stride=1, padding=0, dilation=1, groups=1, relu=False
    ):  # fmt: skip
        window = (*([*pair(value)] for value in (stride, padding, dilation)), groups)
        bias, x_qp, window, eased = self._eased(weight, bias, weight_qp, x_qp, window)
        ops = torch.ops.quantized
        packed = self._packed(ops.conv2d_prepack, weight, bias, weight_qp, x_qp, out_qp, window)
        op = _direct((ops.conv2d_relu if relu else ops.conv2d).new)
        scale, zero_point = _grid(out_qp)
        return self._clamped(eased(lambda q: op(q, packed(q), scale, zero_point)), out_qp)

    def conv2d_add(
        self, weight, bias, weight_qp, x_qp, other_qp, out_qp, *, stride=1, padding=0, dilation=1, groups=1,
        relu=False, overwrite_other=False,
    ):  # fmt: skip
        if not self.fuses_add:
            raise ValueError(
                f"engine {self.name!r} has no conv2d_add: of torch's engines only onednn fuses convolution "
                "and addition; use engine='onednn', or conv2d and then add"
            )
        window = (*([*pair(value)] for value in (stride, padding, dilation)), groups)
        bias, x_qp, window, eased = self._eased(weight, bias, weight_qp, x_qp, window)
        ops = torch.ops.quantized
        packed = self._packed(ops.conv2d_prepack, weight, bias, weight_qp, x_qp, out_qp, window)
        op = _direct((ops.conv2d_add_relu if relu else ops.conv2d_add).default)
        (scale, zero_point), other_grid = _grid(out_qp), _grid(other_qp)

        def kernel(q: Tensor, other: Tensor) -> Tensor:
            if not overwrite_other or other is q:  # the operator leaves the result in the memory of `other`
                other = _wrap(_codes(other).clone(), *other_grid)
            if torch.backends.quantized.engine == "onednn":
                return op(q, other, packed(q), scale, zero_point)
            with _selected("onednn"):
                return op(q, other, packed(q), scale, zero_point)

        return self._clamped(eased(kernel), out_qp)

    def linear(self, weight, bias, weight_qp, x_qp, out_qp, *, relu=False):
        ops = torch.ops.quantized
        packed = self._packed(ops.linear_prepack, weight, bias, weight_qp, x_qp, out_qp, ())
        op = _direct((ops.linear_relu if relu else ops.linear).default)
        scale, zero_point = _grid(out_qp)
        return self._clamped(lambda q: op(q, packed(q), scale, zero_point), out_qp)

    def add(self, a_qp, b_qp, out_qp, *, relu=False):
        scale, zero_point = _grid(out_qp)
        ratios = float(ratio(a_qp, out_qp)), float(ratio(b_qp, out_qp))
        if min(ratios) < 2**-14 or max(ratios) > 2**7 or (relu and zero_point == 255):
            return self._on_codes(super().add(a_qp, b_qp, out_qp, relu=relu), out_qp)  # qnnpack refuses these
        op = _direct((torch.ops.quantized.add_relu if relu else torch.ops.quantized.add).default)
        return self._clamped(lambda a, b: op(a, b, scale, zero_point), out_qp)

    def max_pool2d(self, qp, *, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
        check_activation(qp)
        kernel_size, padding, dilation = pair(kernel_size), pair(padding), pair(dilation)
        stride = kernel_size if stride is None else pair(stride)
        if dilation != (1, 1):  # qnnpack takes the wrong elements
            window = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
            return self._on_codes(super().max_pool2d(qp, **window, ceil_mode=ceil_mode), qp)
        return lambda q: torch.max_pool2d(q, kernel_size, stride, padding, dilation, ceil_mode)

    def avg_pool2d(self, x_qp, out_qp, **window):
        return self._in_float(lambda x: F.avg_pool2d(x, **window), x_qp, out_qp)

    def adaptive_avg_pool2d(self, x_qp, out_qp, *, output_size):
        if same_grid(x_qp, out_qp):  # torch's integer kernel knows no other
            return lambda q: F.adaptive_avg_pool2d(q, output_size)
        return self._in_float(lambda x: F.adaptive_avg_pool2d(x, output_size), x_qp, out_qp)

    def cat(self, qps, out_qp, *, dim=1):
        moves, grid, join = [self.requantize(qp, out_qp) for qp in qps], _grid(out_qp), torch.ops.quantized.cat
        return lambda parts: join([move(q) for move, q in zip(moves, parts, strict=True)], dim, *grid)

    def requantize(self, x_qp, out_qp, *, relu=False):
        if same_grid(check_activation(x_qp), out_qp):
            return torch.relu if relu else lambda q: q
        return self._in_float(torch.relu_ if relu else lambda x: x, x_qp, out_qp)

    def _clamped(self, kernel: Kernel, out_qp: QParams) -> Kernel:
        """The kernel for a grid of fewer than 8 bits: torch's kernels clamp to 0 and 255 only."""
        if out_qp.bits == 8:
            return kernel
        if self.name == "qnnpack":  # its own clamp takes the elements in another order

            def in_place(*inputs: Tensor) -> Tensor:
                if torch.jit.is_tracing():  # it would record the codes of one image
                    words = "qnnpack clamps to fewer than 8 bits where the codes lie, which cannot be recorded"
                    raise RuntimeError(words)
                q = kernel(*inputs)
                _codes(q).clamp_(max=out_qp.qmax)
                return q

            return in_place
        (scale, zero_point), clamp = _grid(out_qp), torch.clamp
        lowest, highest = -zero_point * scale, (out_qp.qmax - zero_point) * scale  # values, not codes
        return lambda *inputs: clamp(kernel(*inputs), lowest, highest)

    def _in_float(self, change: Callable[[Tensor], Tensor], x_qp: QParams, out_qp: QParams) -> Kernel:
        """Where torch has no integer kernel: dequantize, change, quantize; rounded once all the same."""
        check_activation(x_qp)
        (scale, zero_point), quantize, quint8 = _grid(out_qp), torch.quantize_per_tensor, torch.quint8
        return self._clamped(lambda q: quantize(change(q.dequantize()), scale, zero_point, quint8), out_qp)

    def _on_codes(self, kernel: Kernel, out_qp: QParams) -> Kernel:
        """A kernel of the reference (it takes and gives uint8) for quint8 tensors, without a copy."""
        grid = _grid(out_qp)
        return lambda *inputs: _wrap(kernel(*map(_codes, inputs)), *grid)

    def _eased(self, weight, bias, weight_qp, x_qp, window):
        if self.name not in ("onednn", "x86"):
            return bias, x_qp, window, lambda kernel: kernel
        scale = float(x_qp.scale)

        def moved(q: Tensor, pads: list[int]) -> Tensor:
            if torch.jit.is_tracing():  # it would record the codes of one image
                raise RuntimeError(f"{self.name} takes this layer's codes for others, which cannot be recorded")
            return _wrap(_codes(F.pad(q, pads) if any(pads) else q), scale, 0)

        return _ease_onednn(weight, bias, weight_qp, x_qp, window, moved, zero=0)

    def _packed(self, prepack, weight, bias, weight_qp, x_qp, out_qp, window) -> Callable[[Tensor], object]:
        """The function "input -> packed weights"; see :func:`_by_shape` for why it depends on the input."""
        check_weighted(weight, weight_qp, x_qp, out_qp)
        scale = weight_qp.scale.to(torch.float64).expand(weight.shape[0])
        if self.name == "qnnpack" and bias is not None:
            weight, scale = room_for_bias(weight, scale, bias, x_qp)
        zero_point = torch.zeros(weight.shape[0], dtype=torch.int64)
        codes = torch._make_per_channel_quantized_tensor(weight, scale.contiguous(), zero_point, 0)
        bias = None if bias is None else bias.detach().to(torch.float32)

        def pack(shape: Sequence[int] | None = None) -> object:
            with _selected(self.name):
                return prepack(codes, bias, *window)

        if self.name in ("onednn", "x86"):
            find = _by_shape(pack)
        else:
            only = pack()
            find = lambda q: only  # noqa: E731

        def packed(q: Tensor) -> object:
            found = find(q)
            if self._used is not None:
                self._used.append(found)
            return found

        return packed


class PlainOnednn(Engine):
    """torch.ops.onednn: oneDNN's kernels on plain uint8 tensors; scales are given with each call."""

    name = "onednn_plain"

    @contextmanager
    def running(self) -> Iterator[None]:
        with torch._C.DisableTorchFunctionSubclass():  # saves asking 17 arguments, see Historical.running
            yield

    def conv2d(
        self, weight, bias, weight_qp, x_qp, out_qp, *, stride=1, padding=0, dilation=1, groups=1, relu=False
    ):  # fmt: skip
        window = (*([*pair(value)] for value in (stride, padding, dilation)), groups)
        bias, x_qp, window, eased = self._eased(weight, bias, weight_qp, x_qp, window)
        packed, scales, bias = self._packed(weight, bias, weight_qp, x_qp, out_qp, window)
        op, x_grid = _direct(torch.ops.onednn.qconv2d_pointwise.default), _grid(x_qp)
        rest = (*scales, bias, *window, *_grid(out_qp), torch.uint8, "relu" if relu else "none", [], "")
        return _clamped(eased(lambda q: op(q, *x_grid, packed(q), *rest)), out_qp)

    def conv2d_add(
        self, weight, bias, weight_qp, x_qp, other_qp, out_qp, *, stride=1, padding=0, dilation=1, groups=1,
        relu=False, overwrite_other=False,
    ):  # fmt: skip
        window = (*([*pair(value)] for value in (stride, padding, dilation)), groups)
        bias, x_qp, window, eased = self._eased(weight, bias, weight_qp, x_qp, window)
        packed, scales, bias = self._packed(weight, bias, weight_qp, x_qp, out_qp, window)
        op, x_grid = _direct(torch.ops.onednn.qconv2d_pointwise.binary), _grid(x_qp)
        rest = (bias, *window, *_grid(out_qp), torch.uint8, *_grid(other_qp), "sum", 1.0)
        rest += ("relu" if relu else "none", [], "")

        def kernel(q: Tensor, other: Tensor) -> Tensor:
            if not overwrite_other or other is q:  # the operator makes the sum in the memory of `other`
                other = other.clone(memory_format=torch.channels_last)
            return op(q, *x_grid, packed(q), *scales, other, *rest)

        return _clamped(eased(kernel), out_qp)

    def linear(self, weight, bias, weight_qp, x_qp, out_qp, *, relu=False):
        packed, scales, bias = self._packed(weight, bias, weight_qp, x_qp, out_qp, None)
        op, x_grid = _direct(torch.ops.onednn.qlinear_pointwise.default), _grid(x_qp)
        rest = (*scales, bias, *_grid(out_qp), torch.uint8, "relu" if relu else "none", [], "")
        return _clamped(lambda q: op(q, *x_grid, packed(q), *rest), out_qp)

    def add(self, a_qp, b_qp, out_qp, *, relu=False):
        return _rescaled_in_float([a_qp, b_qp], out_qp, relu)  # torch.ops.onednn.qadd takes ten times as long

    def avg_pool2d(self, x_qp, out_qp, **window):
        return _rescaled_in_float([x_qp], out_qp, change=lambda x: F.avg_pool2d(x, **window))

    def adaptive_avg_pool2d(self, x_qp, out_qp, *, output_size):
        return _rescaled_in_float([x_qp], out_qp, change=lambda x: F.adaptive_avg_pool2d(x, output_size))

    def requantize(self, x_qp, out_qp, *, relu=False):
        if same_grid(x_qp, out_qp):
            return super().requantize(x_qp, out_qp, relu=relu)
        return _rescaled_in_float([x_qp], out_qp, relu)

    def _eased(self, weight, bias, weight_qp, x_qp, window):
        zero = int(x_qp.zero_point)

        def moved(q: Tensor, pads: list[int]) -> Tensor:
            return F.pad(q, pads, value=zero) if any(pads) else q

        return _ease_onednn(weight, bias, weight_qp, x_qp, window, moved, zero)

    def _packed(self, weight, bias, weight_qp, x_qp, out_qp, window):
        """The function "input -> packed weights" (linear if window is None), scales and zero points, bias."""
        check_weighted(weight, weight_qp, x_qp, out_qp)
        scale = weight_qp.scale.to(torch.float32).expand(weight.shape[0]).contiguous()

        def pack(shape: Sequence[int] | None = None) -> Tensor:
            if window is None:
                return torch.ops.onednn.qlinear_prepack(weight, shape)
            return torch.ops.onednn.qconv_prepack(weight, scale, *_grid(x_qp), *window, shape)

        zeros = torch.zeros(weight.shape[0], dtype=torch.int32)
        return _by_shape(pack), (scale, zeros), None if bias is None else bias.detach().to(torch.float32)


def _ease_onednn(weight, bias, weight_qp, x_qp, window, moved: Callable[[Tensor, list[int]], Tensor], zero: int):
    """Bias, input grid and window for oneDNN's kernel, and what makes of it a kernel for the layer's own inputs.

    ``moved(q, pads)`` gives padded inputs on the grid that starts at 0; ``zero`` is what to pad others with.
    """
    bias, kernel_qp, window, pads = _spare_onednn(weight, bias, weight_qp, x_qp, window)

    def eased(kernel: Kernel) -> Kernel:
        kernel = _two_wide(kernel, weight, window, zero)
        return kernel if pads is None else lambda q, *other: kernel(moved(q, pads), *other)

    return bias, kernel_qp, window, eased


def _spare_onednn(weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams, window: tuple) -> tuple:
    """A convolution without what oneDNN computes wrong: its bias, input grid and window; what to pad before, or None.

    oneDNN 3.x adds up what an input's zero point z does to the sums, and takes it off. With AVX512 and AMX it takes off
    what belongs to others: in groups (but not in depthwise layers), and under kernels one pixel wide. There the bias
    takes it off, ``sum((q - z) w) = sum(q w) - z sum(w)``, on a grid that starts at 0. Outputs that see nothing but
    padding are wrong as well. So in all these layers the inputs get their padding before. The usual ones come back as
    they are: padding costs time.
    """
    check_weighted(weight, weight_qp, x_qp)
    stride, padding, dilation, groups = window
    kernel, zero_point = weight.shape[2:], int(x_qp.zero_point)
    extents = [d * (size - 1) + 1 for d, size in zip(dilation, kernel)]
    unseen = any(pad >= extent for pad, extent in zip(padding, extents))
    depthwise = groups == weight.shape[0] and weight.shape[1] == 1
    unusual = kernel.numel() > 1 and not depthwise and (groups > 1 or kernel[1] == 1)
    if not unseen and not (unusual and zero_point):
        return bias, x_qp, window, None
    sums = weight.flatten(1).sum(1, dtype=torch.float64)
    offset = (zero_point * x_qp.scale.double() * weight_qp.scale.double() * sums).float()
    bias = -offset if bias is None else bias.detach() - offset
    (height, width), from_zero = padding, QParams(x_qp.scale, 0, x_qp.bits)
    return bias, from_zero, (stride, [0, 0], dilation, groups), [width, width, height, height]


def _two_wide(kernel: Kernel, weight: Tensor, window: tuple, zero: int) -> Kernel:
    """A convolution of oneDNN whose outputs are never one pixel wide: with AMX those of long strided windows are wrong.

    Where they would be, the inputs get as many columns more as the window moves, and of two outputs the second goes.
    """
    stride, padding, dilation = (value[1] for value in window[:3])
    extent = dilation * (weight.shape[3] - 1) + 1
    if stride == 1 or extent < 5:
        return kernel
    least = extent + stride - 2 * padding  # columns that give two outputs

    def wide(q: Tensor, *other: Tensor) -> Tensor:
        if q.shape[3] >= least:
            return kernel(q, *other)
        more = kernel(F.pad(q, (0, stride), value=zero), *(F.pad(each, (0, 1)) for each in other))
        return more[..., :1].contiguous(memory_format=torch.channels_last)

    return wide


def _grid(qp: QParams) -> tuple[float, int]:
    """Scale and zero point as plain numbers, after a check that the grid is one for activations."""
    check_activation(qp)
    return float(qp.scale), int(qp.zero_point)


def _codes(q: Tensor) -> Tensor:
    """The uint8 codes of a quint8 tensor, in its memory (``int_repr`` copies, and slowly)."""
    empty = torch.empty(0, dtype=torch.uint8)
    return empty.set_(q.untyped_storage(), q.storage_offset(), q.size(), q.stride())


def _wrap(codes: Tensor, scale: float, zero_point: int) -> Tensor:
    """A quint8 tensor in the memory of uint8 codes."""
    empty = torch._empty_affine_quantized([0], scale=scale, zero_point=zero_point, dtype=torch.quint8)
    return empty.set_(codes.untyped_storage(), codes.storage_offset(), codes.size(), codes.stride())


def _clamped(kernel: Kernel, out_qp: QParams) -> Kernel:
    """The kernel for a grid of fewer than 8 bits: torch's kernels clamp to 0 and 255 only."""
    highest = out_qp.qmax
    if out_qp.bits == 8:
        return kernel
    return lambda *inputs: kernel(*inputs).clamp_(max=highest)  # in new memory, so it may be changed in place


def _direct(op: Callable) -> Callable:
    """The C++ function of an operator, without the Python around it, which costs 3 us a call."""
    return getattr(op, "_op", op)


@contextmanager
def _selected(name: str) -> Iterator[None]:
    """torch's global engine for quantized tensors, for a while."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def _by_shape(pack: Callable[[Sequence[int] | None], object]) -> Callable[[Tensor], object]:
    """Packed weights for each shape of input (and number of threads).

    oneDNN prepares a layer for the first shape it sees and keeps that with the packed weights. Every other
    shape is prepared anew in each call, at 0.05 ms: on one image twice as slow as it could be.
    """
    pack(None)  # so that an error comes when the kernel is made
    packs: dict[tuple, object] = {}
    get_num_threads = torch.get_num_threads

    def packed(q: Tensor) -> object:
        key = (q.shape, get_num_threads())
        found = packs.get(key)
        if found is None:
            if len(packs) == 8:  # batches of ever new sizes must not fill the memory
                packs.clear()
            found = packs[key] = pack(q.shape)
        return found

    return packed


def room_for_bias(
    weight: Tensor, scale: Tensor, bias: Tensor, x_qp: QParams, most: int = 127
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same weights as codes and scales (one a channel) on which a bias of int32 is as exact as can be.

    qnnpack, and runtimes that read ONNX, round the bias to a step of the sum, ``s_x * s_w``. The reference does not
    (:mod:`qlab.int8.reference`): with few bits that step is several of the output's. So codes are multiplied by a power
    of two, as large as ``most`` lets them be, and the scale is divided by it. Codes of 8 bits have no room: there the
    bias is off by up to half a step of the sum, which in a depthwise layer is a good part of an output step.

    Two kinds of channel need another scale. Where all codes are 0 any scale will do: one that makes the bias fine. And
    where the bias would not fit 32 bits, the weights are next to nothing beside it: they become coarser.
    """
    by_channel = (-1, *[1] * (weight.ndim - 1))
    scale, bias = scale.double().expand(weight.shape[0]), bias.detach().double()
    largest = weight.flatten(1).double().abs().amax(1)  # of int8, abs(-128) would be -128
    factor = 2.0 ** torch.floor(torch.log2(most / largest.clamp(min=1))).clamp(min=0)
    fine = bias.abs().amax().clamp(min=2.0**-20) / (float(x_qp.scale) * 2**23)
    scale = torch.where(largest == 0, fine, scale / factor)
    coarser = (bias.abs() / (float(x_qp.scale) * scale * 2**30)).clamp(min=1)
    return (weight * (factor / coarser).reshape(by_channel)).round().to(torch.int8), scale * coarser


def _rescaled_in_float(
    qps: Sequence[QParams], out_qp: QParams, relu: bool = False, change: Callable | None = None
) -> Kernel:
    """The sum of tensors of codes, each from its grid (changed, if asked), as codes of out_qp.

    It computes in units of out_qp's step; float32 is exact enough for 8 bits.
    """
    factors = [float(ratio(qp, out_qp)) for qp in qps]
    offset = -sum(factor * int(qp.zero_point) for factor, qp in zip(factors, qps))
    zero_point, highest = int(out_qp.zero_point), out_qp.qmax
    low = zero_point if relu else out_qp.qmin

    def kernel(*parts: Tensor) -> Tensor:
        total = parts[0].to(torch.float32).mul_(factors[0]).add_(offset)
        for part, factor in zip(parts[1:], factors[1:]):
            total.add_(part, alpha=factor)
        if change is not None:
            total = change(total)
        return total.round_().add_(zero_point).clamp_(low, highest).to(torch.int32).to(torch.uint8)

    return kernel


# --- Matrix products of language models: integer weights alone, or inputs that are rounded token by token


def int8_weight_product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """``x @ (codes * scale).T``: bfloat16 inputs (tokens, K), int8 codes (N, K), a bfloat16 scale for each row."""
    return torch.ops.aten._weight_int8pack_mm(x, codes, scale)


def pack_int4(codes: Tensor) -> Tensor:
    """Codes from 0 to 15, (N, K) -> two a byte, in the order that :func:`int4_weight_product` reads them."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)


def int4_weight_product(x: Tensor, packed: Tensor, group_size: int, scales_and_offsets: Tensor) -> Tensor:
    """``x @ w.T`` with ``w = (code - 8) * scale + offset`` in groups: bfloat16 inputs (tokens, K).

    ``scales_and_offsets``: bfloat16, (groups a row, N, 2).
    """
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group_size, scales_and_offsets)


@cache
def has_weight_products() -> bool:
    """Whether the two products above work here, tried on a small layer.

    >>> has_weight_products() in (True, False)
    True
    """
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (32, 64), generator=draw)
    x = torch.randn(2, 64, generator=draw).to(torch.bfloat16)
    scale = torch.full((32,), 0.5, dtype=torch.bfloat16)
    pairs = torch.stack([scale, 2 * scale], 1)[None].contiguous()
    try:
        eight = int8_weight_product(x, codes.to(torch.int8), scale)
        four = int4_weight_product(x, pack_int4(codes), 64, pairs)
    except (RuntimeError, AttributeError):  # no such operator in this torch, or no such kernel for this processor
        return False
    expected = x.float() @ codes.float().T * 0.5, x.float() @ ((codes.float() - 8) * 0.5 + 1).T
    return all(torch.allclose(y.float(), z, rtol=0.02, atol=0.5) for y, z in zip((eight, four), expected))


def dynamic_linear(weight: Tensor, scale: Tensor) -> Callable[[Tensor], Tensor]:
    """A function of float inputs (tokens, K) that rounds each token to 8 bits and multiplies integers: W8A8.

    ``weight``: int8 codes (N, K) from -127 to 127; ``scale``: (N,). The codes of a token are symmetric, with a scale
    of its own (Yao et al., "ZeroQuant", 2022); 7 bits where pairs of products would saturate. The result is float32.
    """
    scale = scale.to(torch.float32).contiguous()
    if not availability("onednn_plain").usable:  # int32 sums by torch itself: exact, and slow on most processors
        transposed = weight.t()

        def kernel(x: Tensor) -> Tensor:
            codes, step = round_rows(x, 127)
            return torch._int_mm(codes.to(torch.int8), transposed).to(torch.float32).mul_(step).mul_(scale)

        return kernel
    middle = 64 if availability("onednn_plain").saturates else 128
    packed = torch.ops.onednn.qlinear_prepack(
        weight, None
    )  # once: a copy for each length of prompt takes too much memory
    op, zeros = _direct(torch.ops.onednn.qlinear_pointwise.default), torch.zeros(len(scale), dtype=torch.int32)

    def kernel(x: Tensor) -> Tensor:
        codes, step = round_rows(x, middle - 1)
        q = codes.add_(middle).to(torch.uint8)
        return op(q, 1.0, middle, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], "").mul_(step)

    return kernel


# --- Which of them work here


@dataclass(frozen=True)
class Availability:
    """Whether an engine works on this machine, why not, and whether its sums of two products saturate.

    ``saturates`` says so of all layers, ``depthwise_saturates`` of those with groups: fbgemm's kernel for them, which
    x86 takes too when there are many, adds up in 16 bits even where there is VNNI.
    """

    name: str
    usable: bool
    reason: str
    saturates: bool = False
    depthwise_saturates: bool = False

    def saturates_in(self, groups: int) -> bool:
        """In a layer of so many groups?"""
        return self.saturates or self.depthwise_saturates and groups > 1


def available() -> dict[str, Availability]:
    """Every engine, really tried: {name: :class:`Availability`}. The first call takes about half a second.

    >>> available()["reference"]
    Availability(name='reference', usable=True, reason='works', saturates=False, depthwise_saturates=False)
    """
    return {name: availability(name) for name in NAMES}


@cache
def availability(name: str) -> Availability:
    """One engine, tried with small layers: does it compute what the reference does, and does it saturate?

    >>> availability("reference").usable
    True

    Raises ValueError for a name that is none.
    """
    engine = _make(name)
    if name in HISTORICAL and name not in torch.backends.quantized.supported_engines:
        has = ", ".join(other for other in torch.backends.quantized.supported_engines if other != "none")
        why = f"this torch has no {name} kernels for {platform.machine()} (it has: {has or 'none'})"
        return Availability(name, False, why)
    with warnings.catch_warnings():
        # torch says once a process that quint8 is deprecated. That is known here, and nobody else need know.
        warnings.filterwarnings("ignore", message=".*deprecated.*", category=UserWarning)
        try:
            moderate, dense, depthwise = (
                _disagreement(engine, bits, groups) for bits, groups in ((7, (1, 16, 128)), (8, (1,)), (8, (16, 128)))
            )
        except (RuntimeError, AttributeError) as error:  # no such kernel, no such operator
            return Availability(name, False, str(error).strip().splitlines()[0][:200])
    if moderate > 1:
        return Availability(name, False, f"its results are wrong by {moderate} codes on small layers")
    return Availability(name, True, "works", saturates=dense > 1, depthwise_saturates=depthwise > 1)


def saturates_on(name: str, network: nn.Module) -> bool:
    """Can 8-bit codes saturate in a convolution or linear layer of this float network, on this engine?

    >>> saturates_on("reference", nn.Linear(2, 2))
    False
    """
    groups = [getattr(layer, "groups", 1) for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    return any(map(availability(name).saturates_in, groups))


def _disagreement(engine: Engine, bits: int, groups: Sequence[int]) -> int:
    """By how many codes an engine and the reference differ at most, with numbers as large as can be."""
    expected = _extreme_layers(Engine(), bits, groups)
    return max(int((a - b).abs().max()) for a, b in zip(_extreme_layers(engine, bits, groups), expected))


def _extreme_layers(engine: Engine, bits: int, groups: Sequence[int]) -> list[Tensor]:
    """What small layers give (in codes) when all inputs are the largest and all weights 127 or -127.

    More than 100 groups are another kernel of torch's x86.
    """
    x_qp, weight_qp, outputs = QParams(1.0, 0, bits), QParams(0.01, 0, signed=True), []
    for sign, count in product((127, -127), groups):
        channels = max(16, count)
        x, bias = torch.full((1, channels, 4, 4), float(x_qp.qmax)), torch.ones(channels)
        weight = torch.full((channels, channels // count, 3, 3), sign, dtype=torch.int8)
        for weight in (weight,) if count > 1 else (weight, weight[:, :, :1, :1], weight[:, :, 0, 0]):
            out_qp = QParams(sum_bound(weight, x_qp) * 0.01 / 100, 128)  # no sum may leave the grid
            if weight.ndim == 4:
                kernel = engine.conv2d(weight, bias, weight_qp, x_qp, out_qp, padding=1, groups=count)
            else:
                kernel = engine.linear(weight, bias, weight_qp, x_qp, out_qp)
            with engine.running(), torch.no_grad():
                q = kernel(engine.quantize(x_qp)(x if weight.ndim == 4 else x[:, :, 0, 0]))
                outputs.append(engine.dequantize(out_qp)(q).div(out_qp.scale).round())
    return outputs


@cache
def choose() -> tuple[str, str]:
    """What engine="auto" means on this machine: the name, and a sentence that says why.

    >>> name, why = choose()
    >>> availability(name).usable
    True
    """
    arm = cpu().is_arm
    order = ("qnnpack", "onednn") if arm else ("onednn", "x86", "fbgemm", "onednn_plain", "qnnpack")
    name = next((name for name in order if availability(name).usable), "reference")
    why = {
        "qnnpack": "the kernels made for ARM" if arm else "the one engine that works here",
        "onednn": "convolution, addition and relu in one kernel, the fastest on one image and on many",
        "x86": "fbgemm's and oneDNN's kernels, whichever suits the layer",
        "fbgemm": "the fastest engine that works here",
        "onednn_plain": "oneDNN's kernels on plain uint8 tensors; this torch has no quantized tensors",
        "reference": "none of torch's int8 kernels works here; plain torch computes the same integers slowly",
    }[name]
    if availability(name).saturates:
        why += (
            ". This processor has no VNNI, so pairs of large products saturate at 16 bits: quantize with "
            "reduce_range=True (7-bit weights), with which no pair of products overflows"
        )
    return name, why


def get(engine: str | Engine) -> Engine:
    """The engine of that name ("auto": the one :func:`choose` picks); an Engine is given back as it is.

    >>> get("reference").name
    'reference'

    Raises ValueError for a name that is none, and for an engine that does not work here; the error says which
    does.
    """
    if isinstance(engine, Engine):
        return engine
    name = choose()[0] if engine == "auto" else engine
    made = _make(name)
    if not availability(name).usable:
        raise ValueError(
            f"engine={name!r} does not work here: {availability(name).reason}. engine={choose()[0]!r} does"
        )
    return made


def _make(name: str) -> Engine:
    """The engine of that name, whether it works here or not."""
    if name not in NAMES:
        raise ValueError(f"engine={name!r}: expected 'auto', {', '.join(map(repr, NAMES))}, or an Engine")
    if name in HISTORICAL:
        return Historical(name)
    return Engine() if name == "reference" else PlainOnednn()


# --- The processor


@dataclass(frozen=True)
class Cpu:
    """What a processor can do for int8. None: could not be found out."""

    architecture: str  # "x86_64", "aarch64", "arm64"
    model: str
    capability: str  # the instruction set of torch's own float kernels
    avx2: bool | None
    avx512: bool | None
    vnni: bool | None  # u8 * s8 products added up in 32 bits, by one instruction
    amx: bool | None  # the same for whole tiles
    dot_product: bool | None  # ARM's counterpart of VNNI

    @property
    def is_arm(self) -> bool:
        return self.architecture.lower() in ("aarch64", "arm64")


@cache
def cpu() -> Cpu:
    """The instruction set of this machine, from torch and, on Linux, from /proc/cpuinfo.

    >>> cpu().vnni in (True, False, None)
    True
    """
    architecture, info = platform.machine() or "unknown", _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())

    def has(*names: str, ask: str = "") -> bool | None:
        """Whether one of the flags is there, or torch says yes to torch.cpu._is_..._supported()."""
        asked = getattr(torch.cpu, f"_is_{ask}_supported", None)
        if flags.intersection(names) or (asked is not None and asked()):
            return True
        return False if flags or asked is not None else None

    return Cpu(
        architecture,
        info.get("model name") or platform.processor() or "unknown",
        torch.backends.cpu.get_cpu_capability(),
        avx2=has("avx2", ask="avx2"),
        avx512=has("avx512f", ask="avx512"),
        vnni=has("avx512_vnni", "avx_vnni", ask="vnni"),
        amx=has("amx_int8", ask="amx_tile"),
        dot_product=True if (sys.platform, architecture) == ("darwin", "arm64") else has("asimddp"),
    )


def _cpuinfo() -> dict[str, str]:
    """The entries of /proc/cpuinfo for the first processor; nothing on systems that have no such file."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(errors="replace") if path.exists() else ""
    entries = re.findall(r"^([^:\n]+?)[ \t]*:[ \t]*(.*)$", text, flags=re.MULTILINE)
    return dict(reversed(entries))  # of equal names the first stays
