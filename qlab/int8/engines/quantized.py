"""torch.ops.quantized: kernels on tensors of the type quint8, which carry their scale and zero point with them.

- **fbgemm** (Khudia et al., "FBGEMM: enabling high-performance low-precision deep learning inference", 2021),
- **qnnpack** (made for ARM),
- **onednn**, the one that fuses convolution and addition,
- **x86**, which takes fbgemm's or onednn's kernel by layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab.affine import QParams
from qlab.int8.engines.packing import as_numbers, by_shape, direct
from qlab.int8.engines.workarounds import Workaround
from qlab.int8.held import Held
from qlab.int8.reference import (
    Engine,
    Kernel,
    Pair,
    channels_last,
    check_activation,
    check_addends,
    check_weighted,
    conv2d_shape,
    finite,
    floats,
    linear_shape,
    pair,
    ratio,
    same_grid,
)  # fmt: skip

QUANTIZED = ("onednn", "x86", "fbgemm", "qnnpack")

# Torch's one engine for all quantized tensors, in all threads: its number, for the names cost a microsecond.
_engine = Held(torch._C._get_qengine, torch._C._set_qengine)
_number = torch.backends.quantized._get_qengine_id


class QuantizedOps(Engine):
    """One of torch's engines for quint8 tensors.

    The kernels of a packed layer belong to the engine that packed it. The others (add, pooling) look at the
    global ``torch.backends.quantized.engine`` each time, so :meth:`running` sets it.
    """

    def __init__(self, name: str) -> None:
        self.name, self._number = name, _number(name)
        self.fuses_add = name == "onednn"

    @contextmanager
    def running(self) -> Iterator[None]:
        # Every argument of an operator is asked for __torch_function__. Packed weights answer by an
        # exception, at 15 us: more than a small convolution takes.
        with _engine.at(self._number), torch._C.DisableTorchFunctionSubclass():
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

        number = self._number

        def run(x: Tensor) -> Tensor:
            x = finite(channels_last(x))
            before = _engine.hold(number)
            try:
                return captured(x)
            finally:
                _engine.hold(before)

        return run

    def _traced(self, program: Kernel, layers: nn.Module, x: Tensor) -> Kernel:
        """``program`` as torch.jit records it, which knows only what belongs to a module."""

        class Captured(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return program(x)

        module = Captured().eval()
        module.layers = layers
        with warnings.catch_warnings():
            # torch.jit is deprecated, like the kernels; and it says that the check for NaN is left out.
            warnings.filterwarnings("ignore", message=".*torch.jit.*")
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            captured = torch.jit.freeze(torch.jit.trace(module, x, check_trace=False))
        for _ in range(3):  # torch.jit watches two calls before it settles
            captured(x)
        return captured.forward  # as the module does, but without asking for hooks first

    def quantize(self, qp: QParams) -> Kernel:
        (scale, zero_point), quantize, quint8 = as_numbers(qp), torch.quantize_per_tensor, torch.quint8

        def kernel(x: Tensor) -> Tensor:
            return quantize(finite(floats(x)), scale, zero_point, quint8)

        return self._clamped(kernel, qp)

    def dequantize(self, qp: QParams) -> Kernel:
        check_activation(qp)
        return lambda q: q.dequantize()

    def conv2d(
        self, weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams, out_qp: QParams, *,
        stride: int | Pair = 1, padding: int | Pair = 0, dilation: int | Pair = 1, groups: int = 1,
        relu: bool = False,
    ) -> Kernel:  # fmt: skip
        op = direct((torch.ops.quantized.conv2d_relu if relu else torch.ops.quantized.conv2d).new)
        window = (*map(pair, (stride, padding, dilation)), groups)
        scale, zero_point = as_numbers(out_qp)

        def calling(pack: object) -> Kernel:
            return lambda q: op(q, pack, scale, zero_point)

        return self._clamped(self._conv2d(calling, weight, bias, weight_qp, x_qp, window), out_qp)

    def conv2d_add(
        self, weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams, other_qp: QParams,
        out_qp: QParams, *, stride: int | Pair = 1, padding: int | Pair = 0, dilation: int | Pair = 1,
        groups: int = 1, relu: bool = False, overwrite_other: bool = False,
    ) -> Kernel:  # fmt: skip
        if not self.fuses_add:
            raise ValueError(
                f"engine {self.name!r} has no conv2d_add: of torch's engines only onednn fuses convolution "
                "and addition; use engine='onednn', or conv2d and then add"
            )
        op = direct((torch.ops.quantized.conv2d_add_relu if relu else torch.ops.quantized.conv2d_add).default)
        window = (*map(pair, (stride, padding, dilation)), groups)
        (scale, zero_point), other_grid = as_numbers(out_qp), as_numbers(other_qp)

        def calling(pack: object) -> Kernel:
            def kernel(q: Tensor, other: Tensor) -> Tensor:
                if not overwrite_other or other is q:  # the operator leaves the result in the memory of `other`
                    other = _wrap(_codes(other).clone(), *other_grid)
                if _engine.is_at(self._number):
                    return op(q, other, pack, scale, zero_point)
                with _engine.at(self._number):
                    return op(q, other, pack, scale, zero_point)

            return kernel

        return self._clamped(self._conv2d(calling, weight, bias, weight_qp, x_qp, window), out_qp)

    def linear(
        self, weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams, out_qp: QParams, *,
        relu: bool = False,
    ) -> Kernel:  # fmt: skip
        op = direct((torch.ops.quantized.linear_relu if relu else torch.ops.quantized.linear).default)
        scale, zero_point = as_numbers(out_qp)
        prepack = self._prepack(torch.ops.quantized.linear_prepack, weight, bias, weight_qp, x_qp)

        def make(shape: torch.Size) -> Kernel:
            linear_shape(shape, weight)
            pack = prepack()
            return lambda q: op(q, pack, scale, zero_point)

        return self._clamped(by_shape(make), out_qp)

    def add(self, a_qp: QParams, b_qp: QParams, out_qp: QParams, *, relu: bool = False) -> Kernel:
        scale, zero_point = as_numbers(out_qp)
        ratios = float(ratio(a_qp, out_qp)), float(ratio(b_qp, out_qp))
        if min(ratios) < 2**-14 or max(ratios) > 2**7 or (relu and zero_point == 255):
            return self._on_codes(super().add(a_qp, b_qp, out_qp, relu=relu), out_qp)  # qnnpack refuses these
        op = direct((torch.ops.quantized.add_relu if relu else torch.ops.quantized.add).default)

        def make(a: torch.Size, b: torch.Size) -> Kernel:
            check_addends(a, b)
            return lambda a, b: op(a, b, scale, zero_point)

        return self._clamped(by_shape(make), out_qp)

    def max_pool2d(
        self, qp: QParams, *, kernel_size: int | Pair, stride: int | Pair | None = None,
        padding: int | Pair = 0, dilation: int | Pair = 1, ceil_mode: bool = False,
    ) -> Kernel:  # fmt: skip
        check_activation(qp)
        kernel_size, padding, dilation = pair(kernel_size), pair(padding), pair(dilation)
        stride = kernel_size if stride is None else pair(stride)
        window = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
        slow = self._on_codes(super().max_pool2d(qp, **window, ceil_mode=ceil_mode), qp)
        if dilation != (1, 1) or kernel_size == (1, 1):  # qnnpack takes the wrong elements, and refuses windows of one
            return slow

        def make(shape: torch.Size) -> Kernel:
            if shape[2:] == (1, 1):  # where padding makes more of one pixel, torch takes the wrong elements
                return slow
            return lambda q: torch.max_pool2d(q, kernel_size, stride, padding, dilation, ceil_mode)

        return by_shape(make)

    def avg_pool2d(self, x_qp: QParams, out_qp: QParams, **window: object) -> Kernel:
        return self._in_float(lambda x: channels_last(F.avg_pool2d(x, **window)), x_qp, out_qp)

    def adaptive_avg_pool2d(self, x_qp: QParams, out_qp: QParams, *, output_size: int | Pair) -> Kernel:
        if same_grid(x_qp, out_qp) and pair(output_size) == (1, 1):  # torch's integer kernel knows no other grid ...
            return lambda q: F.adaptive_avg_pool2d(q, output_size)  # ... and makes nonsense of one pixel for more
        return self._in_float(lambda x: channels_last(F.adaptive_avg_pool2d(x, output_size)), x_qp, out_qp)

    def cat(self, qps: Sequence[QParams], out_qp: QParams, *, dim: int = 1) -> Kernel:
        moves, grid, join = [self.requantize(qp, out_qp) for qp in qps], as_numbers(out_qp), torch.ops.quantized.cat
        return lambda parts: join([move(q) for move, q in zip(moves, parts, strict=True)], dim, *grid)

    def requantize(self, x_qp: QParams, out_qp: QParams, *, relu: bool = False) -> Kernel:
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
        (scale, zero_point), clamp = as_numbers(out_qp), torch.clamp
        lowest, highest = -zero_point * scale, (out_qp.qmax - zero_point) * scale  # values, not codes
        return lambda *inputs: clamp(kernel(*inputs), lowest, highest)

    def _in_float(self, change: Callable[[Tensor], Tensor], x_qp: QParams, out_qp: QParams) -> Kernel:
        """Where torch has no integer kernel: dequantize, change, quantize; rounded once all the same."""
        check_activation(x_qp)
        (scale, zero_point), quantize, quint8 = as_numbers(out_qp), torch.quantize_per_tensor, torch.quint8
        return self._clamped(lambda q: quantize(change(q.dequantize()), scale, zero_point, quint8), out_qp)

    def _on_codes(self, kernel: Kernel, out_qp: QParams) -> Kernel:
        """A kernel of the reference (it takes and gives uint8) for quint8 tensors, without a copy."""
        grid = as_numbers(out_qp)
        return lambda *inputs: _wrap(kernel(*map(_codes, inputs)), *grid)

    def _conv2d(
        self, calling: Callable[[object], Kernel], weight: Tensor, bias: Tensor | None, weight_qp: QParams,
        x_qp: QParams, window: tuple[Pair, Pair, Pair, int],
    ) -> Kernel:  # fmt: skip
        """A convolution (and addition), from ``calling(pack)``: the kernel that calls torch's with packed weights."""
        prepack_op = torch.ops.quantized.conv2d_prepack
        if self.name not in ("onednn", "x86"):
            prepack = self._prepack(prepack_op, weight, bias, weight_qp, x_qp)

            def unchanged(shape: torch.Size) -> Kernel:
                conv2d_shape(shape, weight, *window)
                return calling(prepack(*window))

            return by_shape(unchanged)
        check_weighted(weight, weight_qp, x_qp)
        around, scale = Workaround(weight, bias, weight_qp, x_qp, *window), float(x_qp.scale)
        prepack = self._prepack(prepack_op, weight, around.bias, weight_qp, x_qp)

        def padded(q: Tensor, pads: list[int]) -> Tensor:
            q = F.pad(q, pads) if any(pads) else q
            if not around.from_zero:
                return q
            if torch.jit.is_tracing():  # it would record the codes of one image
                raise RuntimeError(f"{self.name} takes this layer's codes for others, which cannot be recorded")
            return _wrap(_codes(q), scale, 0)

        def make(shape: torch.Size, other: torch.Size | None = None) -> Kernel:
            return around.kernel(shape, other, lambda window, _: calling(prepack(*window)), padded)

        return by_shape(make)

    def _prepack(self, op, weight, bias, weight_qp, x_qp) -> Callable[..., object]:
        """The function "window -> packed weights"; one pack serves all shapes where no kernel keeps a shape's own."""
        check_weighted(weight, weight_qp, x_qp)
        scale = weight_qp.scale.to(torch.float64).expand(weight.shape[0])
        if self.name == "qnnpack" and bias is not None:
            weight, scale = room_for_bias(weight, scale, bias, x_qp)
        zero_point = torch.zeros(weight.shape[0], dtype=torch.int64)
        codes = torch._make_per_channel_quantized_tensor(weight, scale.contiguous(), zero_point, 0)
        bias = None if bias is None else bias.detach().to(torch.float32)

        def anew(*window) -> object:
            with _engine.at(self._number):
                return op(codes, bias, *window)

        one = cache(anew)

        def prepack(*window) -> object:
            # While torch.jit records, it must see the packing, or it does not know where the pack comes from.
            return (anew if self.name in ("onednn", "x86") or torch.jit.is_tracing() else one)(*window)

        return prepack


def _codes(q: Tensor) -> Tensor:
    """The uint8 codes of a quint8 tensor, in its memory (``int_repr`` copies, and slowly)."""
    empty = torch.empty(0, dtype=torch.uint8)
    return empty.set_(q.untyped_storage(), q.storage_offset(), q.size(), q.stride())


def _wrap(codes: Tensor, scale: float, zero_point: int) -> Tensor:
    """A quint8 tensor in the memory of uint8 codes."""
    empty = torch._empty_affine_quantized([0], scale=scale, zero_point=zero_point, dtype=torch.quint8)
    return empty.set_(codes.untyped_storage(), codes.storage_offset(), codes.size(), codes.stride())


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
