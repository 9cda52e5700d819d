"""What oneDNN computes wrong, and how its layers are kept from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from qlab.affine import QParams
from qlab.int8.reference import Kernel, check_weighted


def work_around(weight, bias, weight_qp, x_qp, window, padded: Callable[[Tensor, list[int]], Tensor], zero: int):
    """Bias, input grid and window for oneDNN's kernel, and what makes of it a kernel for the layer's own inputs.

    ``padded(q, pads)`` gives padded inputs on the grid that starts at 0; ``zero`` is what to pad others with.
    """
    bias, kernel_qp, window, pads = _padded_before(weight, bias, weight_qp, x_qp, window)

    def on_own_inputs(kernel: Kernel) -> Kernel:
        kernel = _never_one_wide(kernel, weight, window, zero)
        return kernel if pads is None else lambda q, *other: kernel(padded(q, pads), *other)

    return bias, kernel_qp, window, on_own_inputs


def _padded_before(weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams, window: tuple) -> tuple:
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


def _never_one_wide(kernel: Kernel, weight: Tensor, window: tuple, zero: int) -> Kernel:
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
