"""Learned step size: a grid's scale is a weight like any other, and trains along.

- LSQ: the scale's gradient leads to where rounding and clipping together cost least (Esser et al., "Learned step size
  quantization", 2020). Where 0 is inside the range, the zero point learns too (Bhalgat et al., "LSQ+", 2020).
- PACT: only what is clipped moves the clipping point (Choi et al., "PACT", 2018).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qlab.affine import SMALLEST_SCALE, QParams, grid_limits
from qlab.quantizers import AffineQuantizer

LIMIT = 0.02  # the share by which a learned scale may change in one step


class LearnedQuantizer(AffineQuantizer):
    """A quantizer whose scale learns, and its zero point where 0 is inside the range: :class:`LearnedStep`.

    It begins with the grid of a calibrated ``quantizer``. A step changes a scale by at most 2 % of itself. The gradient
    knows nothing of the scale's size, and with 8 bits a scale is small: one large gradient would throw it below 0, and
    that channel would never come back. ``largest`` is the scale at which the grid's top lies where a relu6 cuts off.
    """

    held: Tensor | None = None  # the scale before the last step
    unit: Tensor | None = None  # what the scale is counted in: the gain by which the weights are multiplied
    at_zero = False  # is the zero point 0, and stays so? Then it need not be added and taken away

    def __init__(
        self, quantizer: AffineQuantizer, *, of_weight: bool = False, pact: bool = False, behind_relu6: bool = False
    ) -> None:
        super().__init__(quantizer.spec, fusible=quantizer.fusible)
        self.fused, self.mode = quantizer.fused, quantizer.mode
        qparams = quantizer.qparams
        from_zero = bool((qparams.zero_point == qparams.qmin).all())
        self.of_weight, self.pact = of_weight, pact and from_zero
        del self.scale
        self.scale = nn.Parameter(qparams.scale.clone())
        if from_zero or self.spec.symmetric:
            self.zero_point = qparams.zero_point
        else:
            del self.zero_point
            self.zero_point = nn.Parameter(qparams.zero_point.float())
        self.held = qparams.scale.clone()
        self.look_for_zero()
        self.largest = 6.0 / qparams.qmax if behind_relu6 and self.at_zero else None
        self.train(quantizer.training)

    @property  # type: ignore[misc]  # it moves with its parameters: nobody sets it
    def qparams(self) -> QParams:
        """The grid as it is now."""
        self.hold()
        qmin, qmax = self._limits()
        zero_point = self.zero_point.detach().round().clamp(qmin, qmax).to(torch.int32)
        scale = self.scale.detach().clone()
        return self.spec.qparams(scale if self.unit is None else scale * self.unit, zero_point)

    def hold(self) -> None:
        """Bring a scale that moved too far since the last call to as far as it may go.

        In eval mode no step lies behind it, so it only has to be a scale: an average of many steps' scales may lie
        farther off than one step leads. Raises ValueError where it is none.
        """
        now = self.scale.data  # not the parameter: this must not count as a change since the forward pass
        if self.held is None:
            with torch.inference_mode(False):  # it is written to in training, wherever it was made
                self.held = now.clone()
        if self.training:
            now.clamp_(self.held * (1 - LIMIT), self.held * (1 + LIMIT)).clamp_(SMALLEST_SCALE, self.largest)
        elif not bool((now > 0).all()):
            raise ValueError(
                f"a learned scale is {float(now.min()):.3g}, which no grid has: what wrote it? An average of weights has to "
                "be taken where scales are held, behind the next forward pass in training mode"
            )
        self.held.copy_(now)

    def count_in(self, unit: Tensor) -> None:
        """From now on the scale is a multiple of ``unit``, which may change; the grid stays as it is."""
        self.scale.data.div_(unit)
        self.unit, self.held = unit, self.scale.detach().clone()

    def observe(self) -> None:
        raise RuntimeError("the grids of this network learn: qlab.qat.finish(prepared) ends that, then calibrate again")

    def rounded(self, x: Tensor) -> Tensor:
        self.hold()
        qmin, qmax = self._limits()
        scale, zero_point = self.scale, self.zero_point.float()
        if self.unit is not None:
            scale = scale * self.unit
        view = x
        if scale.ndim:
            view, scale, zero_point = self.spec.granularity.align(x, scale, zero_point)
        if self.pact:
            share = 1 / qmax**2  # the end alpha = qmax * scale is what learns
        else:
            share = gradient_share(x.numel() // (self.scale.numel() if self.of_weight else len(x)), qmax)
        return LearnedStep.apply(
            view, scale, None if self.at_zero else zero_point, qmin, qmax, share, self.pact
        ).reshape(x.shape)

    def look_for_zero(self) -> None:
        """Find out whether the zero point is 0: when it was set, not in each step, where a GPU would be waited for."""
        self.at_zero = not (isinstance(self.zero_point, nn.Parameter) or bool(self.zero_point.any()))

    def train(self, mode: bool = True) -> LearnedQuantizer:
        if self.training and not mode:
            self.hold()
        return super().train(mode)

    def _limits(self) -> tuple[int, int]:
        return grid_limits(self.spec.bits, self.spec.signed, self.spec.narrow_range)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "held": None}  # a copy has no step behind it, and may be made an average of many

    def _apply(self, fn, recurse=True):
        self.unit = None if self.unit is None else fn(self.unit)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, *args) -> None:
        self.hold()
        super()._save_to_state_dict(*args)

    def renew(self) -> None:
        super().renew()
        self.held = None
        self.look_for_zero()


def gradient_share(values: int, qmax: int) -> float:
    """LSQ's gradient scale 1 / sqrt(N * Qp): it makes a scale learn about as fast as the weights do.

    N counts the values that share one scale: the weights of a channel where scales are per channel, the values of
    one image for activations (Esser et al. 2020, section 2.2).

    >>> gradient_share(144, 7)
    0.031497...
    """
    return (values * max(qmax, 1)) ** -0.5


class LearnedStep(torch.autograd.Function):
    """Rounding to a grid, with gradients for the values and for the grid.

    Of y = (clamp(round(x / s) + z) - z) * s, with rounding passed straight through:

        dy/dx = 1 inside the grid, 0 where x is clipped
        dy/ds = (y - x) / s inside, y / s where x is clipped         LSQ, equation 3
        dy/ds = 0 inside, y / s where x is clipped                   PACT
        dy/dz = 0 inside, -s where x is clipped                      LSQ+, equation 5

    So with g the gradient of y and gx that of x, the gradient of s is (sum g * y - sum gx * x) / s: two dot products.
    That is a difference of large numbers, which the few bits of bfloat16 would not survive; they take the longer way,
    sum (g - gx) * y + sum gx * (y - x). That of z (None: it is 0) is made the gradient of the offset -z * s, measured
    in steps, so that it moves as the scale does.

    >>> x, scale = torch.tensor([0.4, 5.0], requires_grad=True), torch.tensor(1.0, requires_grad=True)
    >>> LearnedStep.apply(x, scale, None, 0, 3, 1.0, False).sum().backward()
    >>> x.grad, scale.grad  # 0 - 0.4 from the first, 3 from the clipped one
    (tensor([1., 0.]), tensor(2.6000))
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, share: float, pact: bool
    ) -> Tensor:
        y = torch.mul(x, scale.reciprocal()).round_()
        if zero_point is None:
            codes = None
            y.clamp_(qmin, qmax)
        else:
            codes = zero_point.round().clamp(qmin, qmax)
            y.add_(codes).clamp_(qmin, qmax).sub_(codes)
        y.mul_(scale)
        ctx.save_for_backward(x, y, scale, codes)
        ctx.constants = qmin, qmax, share, pact
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, zero_point = ctx.saved_tensors
        qmin, qmax, share, pact = ctx.constants
        position = torch.mul(x, scale.reciprocal())
        if zero_point is not None:
            position.add_(zero_point)
        passed = torch.ops.aten.hardtanh_backward(gradient, position, qmin, qmax)
        if x.dtype == torch.bfloat16:
            of_scale = _dot(gradient - passed, y, scale)
            if not pact:
                of_scale = of_scale + _dot(passed, y - x, scale)
        else:
            of_scale = _dot(gradient, y, scale) - _dot(passed, y if pact else x, scale)
        of_scale = of_scale.to(scale.dtype) / scale * share
        of_zero = None
        if ctx.needs_input_grad[2]:
            of_zero = -_dot(gradient - passed, None, scale).to(scale.dtype) / scale * share
        return passed, of_scale, of_zero, None, None, None, None


def _dot(a: Tensor, b: Tensor | None, like: Tensor) -> Tensor:
    """The sum of a * b (of a, when b is None) over all that shares one entry of ``like``."""
    if (
        like.ndim == 0
        and b is not None
        and a.stride() == b.stride()
        and a.is_contiguous(memory_format=torch.channels_last if a.ndim == 4 else torch.contiguous_format)
    ):
        flat = (a.numel(),), (1,)
        return torch.dot(a.as_strided(*flat), b.as_strided(*flat))
    return (a if b is None else a * b).sum_to_size(like.shape)
