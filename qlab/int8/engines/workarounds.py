"""What oneDNN 3.x computes wrong, and how its convolutions are kept from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qlab.affine import QParams
from qlab.int8.reference import Kernel, Pair, channels_last, check_addends, conv2d_shape


class Workaround:
    """One convolution, so given to oneDNN that all its sums are right.

    - A zero point z. oneDNN adds up what it does to the sums, and takes it off. With AVX512 and AMX it takes off what
      belongs to others: in groups (but not in depthwise layers), and under kernels one pixel wide. There the bias takes
      it off, ``sum((q - z) w) = sum(q w) - z sum(w)``, on a grid that starts at 0, and inputs get their padding before.
    - Outputs that see nothing but padding. The inputs get their padding before.
    - Outputs one pixel wide of windows that move. The inputs get as many columns more as the window moves, and of two
      outputs the second goes.

    The usual layers stay as they are: padding costs time. ``bias`` and ``x_qp`` are what oneDNN gets.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams, stride: Pair, padding: Pair,
        dilation: Pair, groups: int,
    ) -> None:  # fmt: skip
        self.weight, self.bias, self.x_qp = weight, bias, x_qp
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        zero_point, kernel = int(x_qp.zero_point), weight.shape[2:]
        depthwise = groups == weight.shape[0] and weight.shape[1] == 1
        unusual = kernel.numel() > 1 and not depthwise and (groups > 1 or kernel[1] == 1)
        self.from_zero = bool(zero_point) and unusual
        if self.from_zero:
            sums = weight.flatten(1).sum(1, dtype=torch.float64)
            offset = (zero_point * x_qp.scale.double() * weight_qp.scale.double() * sums).float()
            self.bias = -offset if bias is None else bias.detach() - offset
            self.x_qp = QParams(x_qp.scale, 0, x_qp.bits)

    def kernel(
        self, shape: Sequence[int], other: Sequence[int] | None, make: Callable[[tuple, list[int]], Kernel],
        pad: Callable[[Tensor, list[int]], Tensor],
    ) -> Kernel:  # fmt: skip
        """The kernel for this shape (and that of what is added), from ``make(window, shape)``, which packs the weights.

        ``pad(q, [left, right, top, bottom])`` gives padded inputs, on the grid ``x_qp``.
        """
        out = conv2d_shape(shape, self.weight, self.stride, self.padding, self.dilation, self.groups)
        if other is not None:
            check_addends(out, other)
        extents = [d * (size - 1) + 1 for d, size in zip(self.dilation, self.weight.shape[2:])]
        edges = zip(self.padding, self.dilation, extents, shape[2:])
        unseen = any(p >= extent or p and d > length for p, d, extent, length in edges)
        narrow = out[3] == 1 and self.stride[1] > 1
        before = self.from_zero or unseen
        (down, across), extra = self.padding if before else (0, 0), self.stride[1] if narrow else 0
        window = (self.stride, (0, 0) if before else self.padding, self.dilation, self.groups)
        kernel = make(window, [*shape[:2], shape[2] + 2 * down, shape[3] + 2 * across + extra])
        if not (self.from_zero or down or across or extra):
            return kernel
        pads = [across, across + extra, down, down]

        def padded(q: Tensor, *added: Tensor) -> Tensor:
            if not narrow:
                return kernel(pad(q, pads), *added)
            return channels_last(kernel(pad(q, pads), *(F.pad(each, (0, 1)) for each in added))[..., :1])

        return padded
