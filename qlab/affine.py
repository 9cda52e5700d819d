"""Scale and zero point: how a real number becomes a small integer, and what comes back.

A grid of 2**bits equally spaced real numbers stands for all of them:

    code  = clamp(round(x / scale) + zero_point, qmin, qmax)        quantize
    value = (code - zero_point) * scale                             dequantize

Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference"
(2018), equation 1. Zero is always exactly on the grid (code ``zero_point``), because padding and ReLU make so
many zeros. The straight-through gradient is that of Bengio et al. (2013); its zero outside the clipping range
that of Hubara et al., "Binarized neural networks" (2016).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import torch

from qlab.granularity import Granularity, PerChannel, PerGroup, PerTensor, check_granularity

Number = float | torch.Tensor
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # below it 1 / scale may overflow, and steps lose digits


def grid_limits(bits: int, signed: bool, narrow_range: bool = False) -> tuple[int, int]:
    """The lowest and the highest code (qmin, qmax) of a grid. This table is the specification:

    ======  ============  =======================  ==========================
    signed  narrow_range  qmin, qmax               8 bits
    ======  ============  =======================  ==========================
    False   False         0, 2**bits - 1           0, 255
    True    False         -2**(b-1), 2**(b-1) - 1  -128, 127     "full"
    True    True          1 - 2**(b-1), -qmin      -127, 127     "restricted"
    ======  ============  =======================  ==========================

    >>> grid_limits(4, signed=True), grid_limits(4, signed=True, narrow_range=True)
    ((-8, 7), (-7, 7))

    Raises ValueError for bits outside 1 to 16, for a narrow range without sign, and for one of 1 bit.
    """
    check_bits(bits, most=16)
    if not signed:
        if narrow_range:
            raise ValueError(
                "narrow_range=True with signed=False: only a signed grid has a lowest code to "
                "spare; pass signed=True, or narrow_range=False"
            )
        return 0, 2**bits - 1
    if narrow_range and bits == 1:
        raise ValueError("bits=1 with narrow_range=True leaves the single code 0: expected at least 2 bits")
    return -(2 ** (bits - 1)) + narrow_range, 2 ** (bits - 1) - 1


def check_bits(bits: int, most: int) -> None:
    """Raise ValueError unless ``bits`` is a whole number from 1 to ``most``."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= most:
        raise ValueError(f"bits={bits!r}: expected a whole number from 1 to {most}")


@dataclass(frozen=True, eq=False)
class QParams:
    """A grid, or one for every channel or group: all that turns codes into values and back.

    - ``scale``: float32, the distance of two neighbours on the grid; finite and not below 1.2e-38.
    - ``zero_point``: int32, the code of the value 0; ``qmin <= zero_point <= qmax``.
    - ``granularity``: which values share a scale. Both tensors have shape () with PerTensor, (channels,) with
      PerChannel, (rows, groups a row) with PerGroup.
    - The values are ``(code - zero_point) * scale`` for the codes qmin to qmax; the largest is a finite
      float32.

    All of that is checked when a QParams is made, and not again when it is used. Both tensors are constants:
    no gradient flows into them.

    >>> qp = QParams(scale=0.5, zero_point=10, bits=4)
    >>> qp.qmin, qp.qmax
    (0, 15)
    >>> dequantize(torch.tensor([0, 10, 15]), qp)
    tensor([-5.0000,  0.0000,  2.5000])
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    bits: int = 8
    signed: bool = False
    granularity: Granularity = PerTensor()
    narrow_range: bool = False

    def __post_init__(self) -> None:
        zero_point = torch.as_tensor(self.zero_point)
        if zero_point.is_floating_point() or zero_point.dtype is torch.bool:
            raise ValueError(f"zero_point {zero_point} is {zero_point.dtype}: a zero point is a code, an integer")
        scale = torch.as_tensor(self.scale, dtype=torch.float32, device=zero_point.device)
        if isinstance(self.scale, torch.Tensor):
            scale, zero_point = self.scale.detach().to(torch.float32), zero_point.to(self.scale.device)
        _check_shapes(scale, zero_point, self.granularity)
        _check_grid(scale, zero_point, self.qmin, self.qmax)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point.to(torch.int32))

    @property
    def qmin(self) -> int:
        """The lowest code."""
        return grid_limits(self.bits, self.signed, self.narrow_range)[0]

    @property
    def qmax(self) -> int:
        """The highest code."""
        return grid_limits(self.bits, self.signed, self.narrow_range)[1]

    def to(self, device: torch.device | str) -> QParams:
        """The same grid with its tensors on another device."""
        return replace(self, scale=self.scale.to(device), zero_point=self.zero_point.to(device))

    def __eq__(self, other: object) -> bool:
        """Two grids are equal when every code has the same meaning in both.

        A grid does not know how many axes its tensors have, so ``PerChannel(-1)`` and ``PerChannel(1)`` are two
        meanings here. Whoever makes a grid from a tensor counts axes from the front (:meth:`Granularity.of`), so
        that the grids of two tensors compare as they should.
        """
        if not isinstance(other, QParams):
            return NotImplemented
        if (self.qmin, self.qmax, self.granularity) != (other.qmin, other.qmax, other.granularity):
            return False
        other = other.to(self.scale.device)
        return torch.equal(self.scale, other.scale) and torch.equal(self.zero_point, other.zero_point)


def choose_qparams(
    lo: Number,
    hi: Number,
    bits: int = 8,
    signed: bool = False,
    symmetric: bool = False,
    narrow_range: bool = False,
    granularity: Granularity = PerTensor(),
) -> QParams:
    """The grid that covers the values from lo to hi, widened to contain 0.

    lo and hi are numbers, or tensors of the scale's shape: one entry a channel with PerChannel, (rows, groups
    a row) with PerGroup. ``symmetric`` puts the zero point at 0: a signed grid gets the smallest scale that
    covers both ends, an unsigned one needs lo >= 0. A range of nothing but 0 gets scale 1, on which 0 is exact.

    >>> qp = choose_qparams(-1.0, 3.0, bits=2)
    >>> qp.scale, qp.zero_point
    (tensor(1.3333), tensor(1, dtype=torch.int32))
    >>> dequantize(torch.arange(4), qp)
    tensor([-1.3333,  0.0000,  1.3333,  2.6667])
    >>> choose_qparams(-1.0, 3.0, bits=2, signed=True, symmetric=True).scale
    tensor(3.)

    Raises ValueError for lo > hi, NaN or infinite ends, a range whose step float32 cannot hold, a symmetric
    grid that cannot hold the range (unsigned with lo < 0, or 1 signed bit, which has no positive code), and
    shapes that do not fit.
    """
    qmin, qmax = grid_limits(bits, signed, narrow_range)
    lo, hi = _float64_pair(lo, hi)
    if symmetric and signed and qmax == 0:
        raise ValueError(
            "bits=1, signed and symmetric: the codes are -1 and 0, so no positive number has "
            "one; use bits=2 with narrow_range=True (-1, 0, 1), or symmetric=False"
        )
    if symmetric and not signed and bool((lo < 0).any()):
        raise ValueError(
            f"symmetric and unsigned with lo={_first(lo, lo < 0)}: an unsigned grid whose zero "
            "point is 0 holds no negative number; use signed=True, or symmetric=False"
        )
    scale, zero_point = fit_grid(lo, hi, qmin, qmax, symmetric)
    span = hi - lo
    good = (span >= 0) & (span < inf) & (scale >= SMALLEST_SCALE) & (scale < inf)  # NaN fails all of these
    if not bool(good.all()):
        raise ValueError(_range_error(lo, hi, scale, bits))
    return QParams(scale, zero_point, bits, signed, granularity, narrow_range)


def fit_grid(
    lo: torch.Tensor, hi: torch.Tensor, qmin: int, qmax: int, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The arithmetic of :func:`choose_qparams` without its checks: float64 ends of any shape -> parameters.

    The zero point is rounded, so one end of the range may stand up to half a step outside the grid: no
    further than the error of every other value.

    >>> lo, hi = torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double()
    >>> fit_grid(lo, hi, 0, 255, symmetric=False)
    (tensor([0.0078, 1.0000]), tensor([127,   0], dtype=torch.int32))
    """
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    if symmetric:
        scale = torch.maximum(lo / qmin, hi / qmax) if qmin else hi / qmax
    else:
        scale = hi / (qmax - qmin) - lo / (qmax - qmin)  # not (hi - lo), which could overflow
    scale = torch.where(lo == hi, 1.0, scale).to(torch.float32)
    if symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    return scale, (qmin - torch.round(lo / scale)).to(torch.int32)


def quantize(x: torch.Tensor, qp: QParams) -> torch.Tensor:
    """Real numbers -> codes: ``clamp(round(x / scale) + zero_point, qmin, qmax)``, halves to the even code.

    x is any floating tensor; the codes have its shape. Their type is the smallest that holds the grid: int8
    for up to 8 signed bits, uint8 for 8 unsigned ones, int16 for all others except 16 unsigned bits, which
    need uint16. (torch's uint16 knows no arithmetic and no comparison but ==: write ``codes.int()`` first.)

    Like torch's operators it multiplies by ``1 / scale``; ONNX divides by ``scale``. The two differ, by one
    code, only for a value within rounding error of the middle between two codes, and never when scale is a
    power of two. Codes of float64 are computed in float64, those of any other type in float32.

    >>> quantize(torch.tensor([-1.0, 0.0, 0.5, 1.5, 9.0]), QParams(1.0, 2, bits=3))
    tensor([1, 2, 2, 4, 7], dtype=torch.uint8)

    Raises ValueError for NaN and infinite values (an infinity means that something went wrong before), for
    tensors that are not floating, and for a shape that the scale does not fit.
    """
    view, scale, zero_point = _align(x, qp)
    # A sum is finite only if every term is: one cheap pass. But it may overflow, so look again if it is not.
    if not bool(torch.isfinite(view.sum())) and not bool(torch.isfinite(view).all()):
        raise ValueError(
            f"quantize: x holds {int(x.isnan().sum())} NaN and {int(x.isinf().sum())} infinite "
            f"values of {x.numel()}; expected finite numbers. Look at what computed x, or mend "
            "it with torch.nan_to_num(x)"
        )
    codes = _codes(view, scale.reciprocal(), zero_point, qp.qmin, qp.qmax)
    return codes.to(torch.int32).to(_code_dtype(qp)).reshape(x.shape)  # straight to uint8 torch takes longer


def dequantize(codes: torch.Tensor, qp: QParams) -> torch.Tensor:
    """Codes -> the real numbers that they stand for, in float32: ``(code - zero_point) * scale``.

    codes is any integer tensor, of the shape that was quantized; the result has that shape.

    >>> dequantize(torch.tensor([0, 2, 7]), QParams(0.5, 2, bits=3))
    tensor([-1.0000,  0.0000,  2.5000])

    Raises ValueError for codes that are no integers and for a shape that the scale does not fit.
    """
    if codes.is_floating_point() or codes.is_complex() or codes.dtype is torch.bool:
        raise ValueError(f"dequantize got {codes.dtype}: expected integer codes, such as quantize returns")
    view, scale, zero_point = _align(codes.float(), qp)
    return view.sub(zero_point).mul_(scale).reshape(codes.shape)


def round_rows(x: torch.Tensor, qmax: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row of x in whole steps of its own, ``qmax`` of them for its largest magnitude: dynamic, by token.

    Returns (codes, whole numbers in float32 of x's shape; steps of shape (..., 1)). It is what a symmetric grid for
    each row does, made anew for every product of a language model (Yao et al., "ZeroQuant", 2022), and so without
    the checks of :func:`choose_qparams`: NaN stays NaN. A row of nothing but 0 gets codes 0.

    >>> codes, steps = round_rows(torch.tensor([[0.25, -1.0], [4.0, 2.0]]), qmax=4)
    >>> codes, steps
    (tensor([[ 1., -4.],
            [ 4.,  2.]]), tensor([[0.2500],
            [1.0000]]))
    """
    x = x.to(torch.float32)
    steps = x.abs().amax(-1, keepdim=True).clamp_(min=1e-12).div_(qmax)
    return (x / steps).round_(), steps


def fake_quantize(x: torch.Tensor, qp: QParams) -> torch.Tensor:
    """``dequantize(quantize(x))`` in x's type, with a straight-through gradient: a grid as training sees it.

    Rounding has the gradient 0 almost everywhere, from which nothing can be learned. So the gradient passes
    as if there had been no rounding, but is 0 where x was clipped: it is multiplied by :func:`within_range`.
    It flows to x alone (learned scales: ``qlab.qat``).

    It gives the bits of torch.fake_quantize_per_tensor_affine and its per-channel sister, but does not call
    them: on a CPU they take 3 to 18 times as long (tools/bench_numbers.py), turn NaN into a number, and the
    latter clips huge values to the wrong end. Nothing is checked here, as a training step does it for every
    tensor: NaN stays NaN, infinities are clipped.

    >>> x = torch.tensor([-1.0, 0.2, 0.4, 9.0], requires_grad=True)
    >>> y = fake_quantize(x, QParams(0.5, 0, bits=3))
    >>> y
    tensor([0.0000, 0.0000, 0.5000, 3.5000], grad_fn=<_StraightThroughBackward>)
    >>> y.sum().backward(); x.grad
    tensor([0., 1., 1., 0.])

    Raises ValueError for tensors that are not floating and for a shape that the scale does not fit.
    """
    view, scale, zero_point = _align(x, qp)
    y = _StraightThrough.apply(view, scale, zero_point, qp.qmin, qp.qmax)
    return (y if y.shape == x.shape else y.reshape(x.shape)).to(x.dtype)


def within_range(x: torch.Tensor, qp: QParams) -> torch.Tensor:
    """Which values of x the grid does not clip: True where their code lies from qmin to qmax, of x's shape.

    It is the derivative of :func:`fake_quantize`, when rounding itself is taken to have the derivative 1.

    >>> within_range(torch.tensor([-1.0, 0.2, 0.4, 9.0]), QParams(0.5, 0, bits=3))
    tensor([False,  True,  True, False])
    """
    view, scale, zero_point = _align(x, qp)
    codes = torch.round(view * scale.reciprocal()) + zero_point
    return ((codes >= qp.qmin) & (codes <= qp.qmax)).reshape(x.shape)


class _StraightThrough(torch.autograd.Function):
    """Rounding to a grid with the gradient ``gradient * within_range(x, qp)``, faster than it is written."""

    @staticmethod
    def forward(ctx, x, scale, zero_point, qmin, qmax):
        inverse = scale.reciprocal()
        ctx.save_for_backward(x, inverse, zero_point)
        ctx.limits = qmin, qmax
        codes = _codes(x, inverse, zero_point, qmin, qmax)
        return codes.sub_(zero_point).to(torch.float32).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, inverse, zero_point = ctx.saved_tensors
        qmin, qmax = ctx.limits
        # Computed again rather than kept: x lives on anyway, a mask would cost memory. hardtanh passes the
        # gradient strictly between its ends, hence one code further; it does in one pass what compare and
        # multiply do in two.
        codes = torch.mul(x, inverse).round_().add_(zero_point)
        return torch.ops.aten.hardtanh_backward(gradient, codes, qmin - 1, qmax + 1), None, None, None, None


def _codes(x: torch.Tensor, inverse: torch.Tensor, zero_point: torch.Tensor, qmin: int, qmax: int) -> torch.Tensor:
    """The formula at the head of this file: whole numbers in x's floating type, in one new tensor."""
    return torch.mul(x, inverse).round_().add_(zero_point).clamp_(qmin, qmax)


def _code_dtype(qp: QParams) -> torch.dtype:
    """The smallest integer type for the codes; int16 before uint16, which torch can hardly compute with."""
    if qp.bits <= 8:
        return torch.int8 if qp.signed else torch.uint8
    return torch.uint16 if qp.qmax > 32767 else torch.int16


def _align(x: torch.Tensor, qp: QParams) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, scale and zero point in the type to compute in, viewed so that they broadcast."""
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}: expected a floating tensor; write x.float()")
    work = x if x.dtype is torch.float64 else x.float()
    if not qp.scale.ndim:
        return work, qp.scale, qp.zero_point.to(work.dtype)
    granularity = qp.granularity
    if granularity.scale_shape(x.shape) != tuple(qp.scale.shape):
        raise ValueError(
            f"x of shape {tuple(x.shape)} does not fit {granularity} with a scale of shape "
            f"{tuple(qp.scale.shape)}: expected a scale of shape "
            f"{granularity.scale_shape(x.shape)}; make the QParams from a tensor shaped like x"
        )
    return granularity.align(work, qp.scale, qp.zero_point.to(work.dtype))


def _float64_pair(lo: Number, hi: Number) -> tuple[torch.Tensor, torch.Tensor]:
    """lo and hi as float64 tensors on one device; ValueError when their shapes differ."""
    device = next((end.device for end in (lo, hi) if isinstance(end, torch.Tensor)), None)
    lo, hi = (torch.as_tensor(end, dtype=torch.float64, device=device).detach() for end in (lo, hi))
    if lo.shape != hi.shape:
        raise ValueError(f"lo of shape {tuple(lo.shape)} and hi of shape {tuple(hi.shape)}: expected the same shape")
    return lo, hi


def _range_error(lo: torch.Tensor, hi: torch.Tensor, scale: torch.Tensor, bits: int) -> str:
    """What is wrong with the first range that has no grid."""
    no_range = ~(lo.isfinite() & hi.isfinite() & (lo <= hi))
    bad = no_range if bool(no_range.any()) else ~((scale >= SMALLEST_SCALE) & (scale < inf))
    where = f" at index {bad.nonzero()[0].tolist()}" if bad.ndim else ""
    if bad is no_range:
        return (
            f"lo={_first(lo, bad)}, hi={_first(hi, bad)}{where}: expected finite numbers with lo <= hi. "
            "Swap them if they are in the wrong order; NaN or infinity comes from the data: look there"
        )
    return (
        f"the range from {_first(lo, bad)} to {_first(hi, bad)}{where} needs a scale of "
        f"{_first(scale, bad):.3g} at {bits} bits: expected {SMALLEST_SCALE:.3g} to 3.4e+38. Multiply "
        "the data by a power of two, or set values as small as these to 0"
    )


def _check_shapes(scale: torch.Tensor, zero_point: torch.Tensor, granularity: Granularity) -> None:
    """ValueError when scale and zero point differ in shape, or have not as many axes as their granularity."""
    check_granularity(granularity)
    ndim = {PerTensor: 0, PerChannel: 1, PerGroup: 2}[type(granularity)]
    if scale.ndim != ndim or scale.shape != zero_point.shape:
        raise ValueError(
            f"scale of shape {tuple(scale.shape)} and zero_point of shape "
            f"{tuple(zero_point.shape)} with {granularity}: expected both with {ndim} "
            "dimensions. Shape () goes with PerTensor, (channels,) with PerChannel, (rows, groups a "
            "row) with PerGroup"
        )


def _check_grid(scale: torch.Tensor, zero_point: torch.Tensor, qmin: int, qmax: int) -> None:
    """ValueError when a scale is no usable float32, a zero point no code, or the grid's far end overflows."""
    zero_point = zero_point.to(torch.float32)
    farthest = torch.maximum(zero_point - qmin, qmax - zero_point)  # in steps; too many if 0 is off the grid
    good = (scale >= SMALLEST_SCALE) & (farthest <= qmax - qmin) & (farthest * scale < inf)
    if bool(good.all()):
        return
    bad_scale, bad_zero = ~((scale >= SMALLEST_SCALE) & (scale < inf)), farthest > qmax - qmin
    if bool(bad_scale.any()):
        raise ValueError(
            f"scale {_first(scale, bad_scale)}: expected a finite number of at least "
            f"{SMALLEST_SCALE:.3g}, as a smaller one underflows; choose_qparams(lo, hi) makes a "
            "valid one"
        )
    if bool(bad_zero.any()):
        raise ValueError(
            f"zero_point {_first(zero_point, bad_zero):.0f}: expected a code from {qmin} to "
            f"{qmax}, as 0 must be on the grid; choose_qparams(lo, hi) makes a valid one"
        )
    raise ValueError(
        f"scale {_first(scale, ~good)}: the value of the farthest code overflows float32; "
        f"expected less than 3.4e+38 / {qmax - qmin}. Multiply the data by a power of two below "
        "1"
    )


def _first(values: torch.Tensor, where: torch.Tensor) -> float:
    """The first of the values for which ``where`` holds, for an error message."""
    return values[where][0].item()
