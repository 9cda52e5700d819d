"""torch.ops.onednn: the operators that torch's compiler uses, on plain uint8 tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from qlab.affine import QParams
from qlab.int8.engines.packing import as_numbers, by_shape, direct
from qlab.int8.engines.workarounds import Workaround
from qlab.int8.reference import (
    Engine,
    Kernel,
    Pair,
    channels_last,
    check_addends,
    check_weighted,
    linear_shape,
    pair,
    ratio,
    same_grid,
)


class OnednnOps(Engine):
    """oneDNN's kernels on plain uint8 tensors; scales are given with each call."""

    name = "onednn_plain"

    @contextmanager
    def running(self) -> Iterator[None]:
        with torch._C.DisableTorchFunctionSubclass():  # saves asking 17 arguments, see QuantizedOps.running
            yield

    def conv2d(
        self, weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams, out_qp: QParams, *,
        stride: int | Pair = 1, padding: int | Pair = 0, dilation: int | Pair = 1, groups: int = 1,
        relu: bool = False,
    ) -> Kernel:  # fmt: skip
        op = direct(torch.ops.onednn.qconv2d_pointwise.default)
        window = (*map(pair, (stride, padding, dilation)), groups)
        out = (*as_numbers(out_qp), torch.uint8, "relu" if relu else "none", [], "")

        def calling(x_grid: tuple, packed: tuple, bias: Tensor | None, window: tuple) -> Kernel:
            return lambda q: op(q, *x_grid, *packed, bias, *window, *out)

        return _clamped(self._conv2d(calling, weight, bias, weight_qp, x_qp, window), out_qp)

    def conv2d_add(
        self, weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams, other_qp: QParams,
        out_qp: QParams, *, stride: int | Pair = 1, padding: int | Pair = 0, dilation: int | Pair = 1,
        groups: int = 1, relu: bool = False, overwrite_other: bool = False,
    ) -> Kernel:  # fmt: skip
        op = direct(torch.ops.onednn.qconv2d_pointwise.binary)
        window = (*map(pair, (stride, padding, dilation)), groups)
        out = (*as_numbers(out_qp), torch.uint8, *as_numbers(other_qp), "sum", 1.0, "relu" if relu else "none", [], "")

        def calling(x_grid: tuple, packed: tuple, bias: Tensor | None, window: tuple) -> Kernel:
            def kernel(q: Tensor, other: Tensor) -> Tensor:
                if not overwrite_other or other is q:  # the operator makes the sum in the memory of `other`
                    other = other.clone(memory_format=torch.channels_last)
                return op(q, *x_grid, *packed, other, bias, *window, *out)

            return kernel

        return _clamped(self._conv2d(calling, weight, bias, weight_qp, x_qp, window), out_qp)

    def linear(
        self, weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams, out_qp: QParams, *,
        relu: bool = False,
    ) -> Kernel:  # fmt: skip
        op, x_grid = direct(torch.ops.onednn.qlinear_pointwise.default), as_numbers(x_qp)
        scales, bias = self._scales(weight, weight_qp, x_qp), _float32(bias)
        out = (*as_numbers(out_qp), torch.uint8, "relu" if relu else "none", [], "")

        def make(shape: torch.Size) -> Kernel:
            linear_shape(shape, weight)
            packed = torch.ops.onednn.qlinear_prepack(weight, shape)
            return lambda q: op(q, *x_grid, packed, *scales, bias, *out)

        return _clamped(by_shape(make), out_qp)

    def add(self, a_qp: QParams, b_qp: QParams, out_qp: QParams, *, relu: bool = False) -> Kernel:
        return _rescaled_in_float([a_qp, b_qp], out_qp, relu)  # torch.ops.onednn.qadd takes ten times as long

    def avg_pool2d(self, x_qp: QParams, out_qp: QParams, **window: object) -> Kernel:
        return _rescaled_in_float([x_qp], out_qp, change=lambda x: channels_last(F.avg_pool2d(x, **window)))

    def adaptive_avg_pool2d(self, x_qp: QParams, out_qp: QParams, *, output_size: int | Pair) -> Kernel:
        return _rescaled_in_float([x_qp], out_qp, change=lambda x: channels_last(F.adaptive_avg_pool2d(x, output_size)))

    def requantize(self, x_qp: QParams, out_qp: QParams, *, relu: bool = False) -> Kernel:
        if same_grid(x_qp, out_qp):
            return super().requantize(x_qp, out_qp, relu=relu)
        return _rescaled_in_float([x_qp], out_qp, relu)

    def _conv2d(
        self, calling: Callable[..., Kernel], weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams,
        window: tuple[Pair, Pair, Pair, int],
    ) -> Kernel:  # fmt: skip
        """A convolution (and addition), from ``calling(x_grid, packed, bias, window)``, which calls torch's."""
        scales, zero = self._scales(weight, weight_qp, x_qp), int(x_qp.zero_point)
        around = Workaround(weight, bias, weight_qp, x_qp, *window)
        x_grid, bias = as_numbers(around.x_qp), _float32(around.bias)

        def padded(q: Tensor, pads: list[int]) -> Tensor:
            return F.pad(q, pads, value=zero) if any(pads) else q

        def make(shape: torch.Size, other: torch.Size | None = None) -> Kernel:
            def packing(window: tuple, shape: list[int]) -> Kernel:
                packed = torch.ops.onednn.qconv_prepack(weight, scales[0], *x_grid, *window, shape)
                return calling(x_grid, (packed, *scales), bias, window)

            return around.kernel(shape, other, packing, padded)

        return by_shape(make)

    def _scales(self, weight: Tensor, weight_qp: QParams, x_qp: QParams) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each output channel."""
        check_weighted(weight, weight_qp, x_qp)
        scale = weight_qp.scale.to(torch.float32).expand(weight.shape[0]).contiguous()
        return scale, torch.zeros(weight.shape[0], dtype=torch.int32)


def _float32(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().to(torch.float32)


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
        check_addends(parts[0].shape, parts[-1].shape)
        total = parts[0].to(torch.float32).mul_(factors[0]).add_(offset)
        for part, factor in zip(parts[1:], factors[1:]):
            total.add_(part, alpha=factor)
        if change is not None:
            total = change(total)
        return total.round_().add_(zero_point).clamp_(low, highest).to(torch.int32).to(torch.uint8)

    return kernel


def _clamped(kernel: Kernel, out_qp: QParams) -> Kernel:
    """The kernel for a grid of fewer than 8 bits: torch's kernels clamp to 0 and 255 only."""
    highest = out_qp.qmax
    if out_qp.bits == 8:
        return kernel
    return lambda *inputs: kernel(*inputs).clamp_(max=highest)  # in new memory, so it may be changed in place
