"""Other grids than equal steps: one bit, three values, a learned codebook, a smaller float.

- ``Binary``, one bit: the sign times the mean magnitude. Rastegari et al., "XNOR-Net" (2016), equation 6, per
  channel; Zhou et al., "DoReFa-Net" (2016), equation 7, per layer.
- ``Ternary``, -1, 0 or 1 times a scale: Li and Liu, "Ternary weight networks" (2016), equations 5 and 6.
- ``KMeans``: a table of 2**bits values, chosen by clustering the weights and then trained; a weight is an
  index into it. Han et al., "Deep compression" (2016), section 3.
- ``FloatGrid``: the values of a smaller float, dense near 0 and sparse far out. Micikevicius et al., "FP8
  formats for deep learning" (2022); OCP 8-bit Floating Point Specification (2023).

Each is a spec that stands where a QuantSpec stands for weights in a QConfig, ``FloatGrid`` also for
activations. Binary and ternary weights are small integers times a scale, so the int8 kernels compute them;
the other two have no kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab.affine import SMALLEST_SCALE, QParams, dequantize
from qlab.granularity import Granularity, PerChannel, PerTensor

FORMATS = {
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
CLIP = 3.0  # in units of a binary weight's scale: beyond it no gradient passes
TERNARY_THRESHOLD = 0.7  # of the mean magnitude (Li and Liu 2016, equation 6)


# ---- the grids, as functions of tensors ----


def binary(w: Tensor, granularity: Granularity = PerChannel(0)) -> tuple[Tensor, QParams]:
    """The sign of each weight, and the scale that makes the signs fit best: the mean magnitude.

    Returns (codes of w's shape, int8, -1 or 1; the grid with one scale a channel). Of all scales a,
    mean(abs(w)) makes the sum of (w - a * sign(w))**2 smallest (XNOR-Net, equation 6). The sign of 0 is +1; a
    channel of nothing but 0 gets codes 0, so that it stays 0.

    >>> w = torch.tensor([[1.0, -3.0], [0.5, 0.5]])
    >>> codes, grid = binary(w)
    >>> codes.tolist(), grid.scale, dequantize(codes, grid)
    ([[1, -1], [1, 1]], tensor([2.0000, 0.5000]), tensor([[ 2.0000, -2.0000],
            [ 0.5000,  0.5000]]))
    """
    return _three_codes(torch.where(w < 0, -1, 1), _mean_magnitude(w, granularity), granularity)


def _mean_magnitude(w: Tensor, granularity: Granularity) -> Tensor:
    """The scale of binary weights, 0 where it would be too small for one; in the shape of the grid's scale."""
    mean = granularity.blocks(w.abs()).mean(1).float().reshape(granularity.scale_shape(w.shape))
    return mean.masked_fill(mean < SMALLEST_SCALE, 0.0)


def ternary(w: Tensor, granularity: Granularity = PerChannel(0)) -> tuple[Tensor, QParams]:
    """Weights above 0.7 times the mean magnitude become 1, those below its negative -1, all others 0.

    Returns (codes of w's shape, int8; the grid with one scale a channel): the mean magnitude of what is not
    0. The factor 0.7 is near the best for normally and for uniformly spread weights (TWN, equation 6).

    >>> codes, grid = ternary(torch.tensor([[0.1, -0.3, 1.0, -2.0]]))
    >>> codes, grid.scale
    (tensor([[ 0,  0,  1, -1]], dtype=torch.int8), tensor([1.5000]))
    """
    magnitudes = granularity.blocks(w.abs())
    threshold = TERNARY_THRESHOLD * magnitudes.mean(1)
    above = magnitudes > threshold[:, None]
    scale = (magnitudes * above).sum(1) / above.sum(1).clamp(min=1)
    view, threshold = granularity.align(w, threshold.reshape(granularity.scale_shape(w.shape)))
    codes = (view > threshold).int() - (view < -threshold).int()
    return _three_codes(codes.reshape(w.shape), scale, granularity)


def _three_codes(codes: Tensor, scale: Tensor, granularity: Granularity) -> tuple[Tensor, QParams]:
    """Codes -1, 0, 1 and their grid; where the scale is too small to be one, all values are 0."""
    scale = scale.float().reshape(granularity.scale_shape(codes.shape))
    dead = scale < SMALLEST_SCALE
    scale = scale.masked_fill(dead, 1.0)
    if bool(dead.any()):
        view, dead = granularity.align(codes, dead)
        codes = view.masked_fill(dead, 0).reshape(codes.shape)
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    return codes.to(torch.int8), QParams(scale, zero_point, 2, True, granularity.of(codes.shape), narrow_range=True)


def kmeans(
    x: Tensor,
    bits: int,
    granularity: Granularity = PerTensor(),
    *,
    start: Tensor | None = None,
    iterations: int = 100,
) -> tuple[Tensor, Tensor]:
    """The 2**bits values that stand for those of x with the least squared error, found by Lloyd's algorithm.

    Returns (centroids, float32, in ascending order; codes of x's shape, uint8). The centroids have the shape
    (2**bits,), or (channels or groups, 2**bits) when each has a table of its own. They start at ``start``, or
    evenly spread from the smallest to the largest value, which treats the rare large ones best (Deep
    Compression, section 3.2). In one dimension a cluster is an interval of the sorted values, so a step costs
    a few look-ups: its exact means are differences of cumulative sums. No step raises the error; ends when no
    value changes its cluster.

    >>> centroids, codes = kmeans(torch.tensor([0.0, 1.0, 9.0, 10.0]), bits=1)
    >>> centroids, codes
    (tensor([0.5000, 9.5000]), tensor([0, 0, 1, 1], dtype=torch.uint8))

    Raises ValueError for values that are not finite, for no values, and for bits outside 1 to 8.
    """
    _check_bits(bits)
    if x.numel() == 0 or not bool(x.isfinite().all()):
        raise ValueError(
            f"kmeans: x holds {x.numel()} values, {int((~x.isfinite()).sum())} of them NaN or infinite; "
            "expected at least one, and all finite"
        )
    rows = _rows(x, granularity).double()
    if start is None:
        low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
        start = low + (high - low) * torch.linspace(0, 1, 2**bits, dtype=torch.float64, device=x.device)
    centroids = _lloyd(rows, start.double().sort().values.expand(len(rows), 2**bits), iterations)
    codes = torch.searchsorted(_middles(centroids), rows, right=True).to(torch.uint8).reshape(x.shape)
    centroids = centroids.float()
    return (centroids[0] if isinstance(granularity, PerTensor) else centroids), codes


def _lloyd(rows: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    """Lloyd's two steps in turn, for every row at once: who is nearest to whom, and each cluster's mean."""
    ordered = rows.sort(1).values
    sums = F.pad(ordered.cumsum(1), (1, 0))
    before = None
    for _ in range(iterations):
        ends = F.pad(torch.searchsorted(ordered, _middles(centroids)), (1, 0))  # cluster i: from ends[i] on
        ends = F.pad(ends, (0, 1), value=rows.shape[1])
        if before is not None and torch.equal(ends, before):
            break
        counts, before = ends.diff(dim=1), ends
        means = sums.gather(1, ends).diff(dim=1) / counts.clamp(min=1)
        centroids = torch.where(counts > 0, means, centroids)  # who has no members stays where it is
    return centroids


def _middles(centroids: Tensor) -> Tensor:
    return (centroids[:, 1:] + centroids[:, :-1]) / 2


def _rows(x: Tensor, granularity: Granularity) -> Tensor:
    """x with one row for each table, in the order of x's elements (a view of a contiguous x)."""
    if isinstance(granularity, PerChannel) and granularity.of(x.shape) != PerChannel(0):
        raise ValueError(f"{granularity}: expected PerTensor(), PerChannel(0) or PerGroup(size)")
    return x.reshape(torch.Size(granularity.scale_shape(x.shape)).numel(), -1)


def _check_bits(bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"bits={bits!r}: expected a whole number from 1 to 8, for a table of 2**bits values")


def look_up(centroids: Tensor, codes: Tensor, granularity: Granularity = PerTensor()) -> Tensor:
    """The values that codes stand for. The gradient of a centroid is the sum over its members (Han 2016,
    equation 3).

    >>> centroids = torch.tensor([-1.0, 2.0], requires_grad=True)
    >>> look_up(centroids, torch.tensor([0, 1, 1])).backward(torch.tensor([1.0, 10.0, 100.0]))
    >>> centroids.grad
    tensor([  1., 110.])
    """
    rows = _rows(codes, granularity).long()
    return centroids.reshape(len(rows), -1).gather(1, rows).reshape(codes.shape)


def round_to_float(x: Tensor, format: str) -> Tensor:
    """Each value rounded to the nearest one that the smaller float has, halves to the even one; in x's own
    type.

    ``format`` is "e4m3" (4 bits of exponent, 3 of mantissa, to 448), "e5m2" (to 57344), "float16" or
    "bfloat16". Larger values become the largest (the OCP specification's saturating mode); NaN stays NaN.

    >>> round_to_float(torch.tensor([1.06, 1.07, 0.001, 1000.0]), "e4m3")
    tensor([1.0000e+00, 1.1250e+00, 1.9531e-03, 4.4800e+02])

    Raises ValueError for another format.
    """
    dtype = _dtype(format)
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype).to(x.dtype)


def _dtype(format: str) -> torch.dtype:
    if format not in FORMATS:
        raise ValueError(f"float format {format!r}: expected one of {', '.join(FORMATS)}")
    return FORMATS[format]


def straight_through(rounded: Tensor, x: Tensor, limit: Tensor | float | None = None) -> Tensor:
    """``rounded``, to the bit, with the gradient of x: 1, and 0 where the magnitude of x exceeds ``limit``.

    >>> x = torch.tensor([0.4, -5.0], requires_grad=True)
    >>> straight_through(x.round(), x, limit=2.0).sum().backward(); x.grad
    tensor([1., 0.])
    """
    passed = x if limit is None else torch.where(x.abs() <= limit, x, x.detach())
    return rounded.detach() + (passed - passed.detach())


# ---- the specs ----


class Grid:
    """What the specs of this file share; use one of them."""

    bits: ClassVar[int]
    name: ClassVar[str]
    for_activations: ClassVar[bool] = False
    observer: ClassVar[str] = ""  # the weights alone decide


@dataclass(frozen=True)
class Binary(Grid):
    """One bit: sign(w) times the mean magnitude of the channel (XNOR-Net), or with PerTensor() of the layer
    (DoReFa).

    Both are taken anew from the weights at each forward pass, since training moves them.

    >>> Binary().bits, Binary(PerTensor())
    (1, Binary(granularity=PerTensor()))
    """

    granularity: Granularity = PerChannel(0)
    bits: ClassVar[int] = 1
    name: ClassVar[str] = "binary"

    def quantizer(self, *, fusible: bool = False) -> GridQuantizer:
        return BinaryQuantizer(self, fusible=fusible)


@dataclass(frozen=True)
class Ternary(Grid):
    """-1, 0 or 1 times a scale, taken anew from the weights at each forward pass. TWN's own form is per
    layer.

    >>> Ternary(PerTensor()).bits
    2
    """

    granularity: Granularity = PerChannel(0)
    bits: ClassVar[int] = 2
    name: ClassVar[str] = "ternary"

    def quantizer(self, *, fusible: bool = False) -> GridQuantizer:
        return TernaryQuantizer(self, fusible=fusible)


@dataclass(frozen=True)
class KMeans(Grid):
    """A table of 2**bits values for a layer (Deep Compression), or for each channel; 32 bits a value are
    stored too.

    >>> KMeans(4)
    KMeans(bits=4, granularity=PerTensor())
    """

    bits: int = 4
    granularity: Granularity = PerTensor()
    name: ClassVar[str] = "k-means"

    def __post_init__(self) -> None:
        _check_bits(self.bits)

    def quantizer(self, *, fusible: bool = False) -> GridQuantizer:
        return KMeansQuantizer(self, fusible=fusible)


@dataclass(frozen=True)
class FloatGrid(Grid):
    """The values of a smaller float. Those of 8 bits are scaled so that the largest magnitude is the format's
    largest.

    >>> FloatGrid("e5m2").bits, FloatGrid("bfloat16").bits
    (8, 16)
    """

    format: str = "e4m3"
    granularity: Granularity = PerTensor()
    for_activations: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _dtype(self.format)

    @property
    def bits(self) -> int:
        """8 or 16."""
        return 8 * FORMATS[self.format].itemsize

    @property
    def name(self) -> str:
        """The format."""
        return self.format

    @property
    def observer(self) -> str:
        """How the scale is chosen; empty when there is none."""
        return "largest magnitude" if self.bits == 8 else ""

    def quantizer(self, *, fusible: bool = False) -> GridQuantizer:
        return FloatQuantizer(self, fusible=fusible)


# ---- the fake-quantizers ----


class GridQuantizer(nn.Module):
    """What stands in a prepared network for a spec of this file, with the ways of a FakeQuantizer.

    Its ``mode`` is "quantize"; or "observe", which lets the values pass and looks at them; or "off".
    ``needs_data`` says whether it can only be used after calibration.
    """

    needs_data = False

    def __init__(self, spec: Grid, *, fusible: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.fusible = self.fused = fusible
        self.mode = "quantize"

    @property
    def qparams(self) -> None:
        """None: no scale and zero point describe this grid. Raises RuntimeError before calibration."""
        return None

    def observe(self) -> None:
        """Begin to observe, forgetting what was seen before."""
        self.mode = "observe"

    def observer(self, x: Tensor) -> None:
        """Look at values."""

    def freeze(self) -> None:
        """End observing."""
        self.mode = "quantize"

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "quantize":
            return x if self.fused else self.rounded(x)
        if self.mode == "observe":
            self.observer(x.detach())
        return x

    def extra_repr(self) -> str:
        return repr(self.spec)


class BinaryQuantizer(GridQuantizer):
    """Signs times a scale. The gradient passes straight through, but is 0 beyond 3 times the scale.

    Hubara et al. (2016) stop the gradient at abs(w) > 1, where the network's weights are kept within -1 and
    1. With BatchNorm folded into them weights have any size, each channel its own, so the limit is measured
    in units of the channel's scale. At 3 it holds up what no longer can change sign soon (2 % of normally
    spread weights), while at 1 it would hold 42 % of them where they happen to be.
    """

    def integers(self, w: Tensor) -> tuple[Tensor, QParams]:
        """(codes -1, 0, 1; the grid) of these weights."""
        return binary(w.detach(), self.spec.granularity)

    def rounded(self, w: Tensor) -> Tensor:
        view, scale = self.spec.granularity.align(w, _mean_magnitude(w.detach(), self.spec.granularity))
        values = torch.where(view < 0, -scale, scale).to(w.dtype)  # as dequantized codes, without making them
        return straight_through(values, view, CLIP * scale).reshape(w.shape)


class TernaryQuantizer(GridQuantizer):
    """Codes -1, 0, 1 times a scale; the gradient passes straight through, as in TWN (section 2.3)."""

    def integers(self, w: Tensor) -> tuple[Tensor, QParams]:
        """(codes -1, 0, 1; the grid) of these weights."""
        return ternary(w.detach(), self.spec.granularity)

    def rounded(self, w: Tensor) -> Tensor:
        return straight_through(dequantize(*self.integers(w)).to(w.dtype), w)


class KMeansQuantizer(GridQuantizer):
    """A table of values, the parameter ``centroids``, and each weight's place in it, which stays as
    calibrated.

    In training the table learns and the weights that it replaces do not: their gradient is 0.
    """

    needs_data = True

    def __init__(self, spec: KMeans, *, fusible: bool = False) -> None:
        super().__init__(spec, fusible=fusible)
        self.register_parameter("centroids", None)
        self.register_buffer("codes", None)

    @property
    def qparams(self) -> None:
        """None; raises RuntimeError before calibration."""
        if self.centroids is None:
            raise _uncalibrated()

    def observer(self, x: Tensor) -> None:
        """Cluster these weights."""
        centroids, codes = kmeans(x, self.spec.bits, self.spec.granularity)
        self.centroids, self.codes = nn.Parameter(centroids.detach()), codes

    def rounded(self, w: Tensor) -> Tensor:
        self.qparams  # noqa: B018 - raises when there is no table yet
        return look_up(self.centroids, self.codes, self.spec.granularity).to(w.dtype)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if self.centroids is None and prefix + "centroids" in state_dict:  # make room for it
            self.centroids = nn.Parameter(torch.empty_like(state_dict[prefix + "centroids"]))
            self.codes = torch.empty_like(state_dict[prefix + "codes"])
        super()._load_from_state_dict(state_dict, prefix, *args)


class FloatQuantizer(GridQuantizer):
    """Rounds to a smaller float, with a scale if it has 8 bits; straight through, 0 where x was clipped."""

    def __init__(self, spec: FloatGrid, *, fusible: bool = False) -> None:
        super().__init__(spec, fusible=fusible)
        self.needs_data = spec.bits == 8
        self.register_buffer("scale", None)
        self._largest: Tensor | None = None

    @property
    def qparams(self) -> None:
        """None; raises RuntimeError before calibration."""
        if self.needs_data and self.scale is None:
            raise _uncalibrated()

    def observe(self) -> None:
        super().observe()
        self._largest = None

    def observer(self, x: Tensor) -> None:
        """Remember the largest magnitude."""
        granularity = self.spec.granularity
        largest = granularity.blocks(x.abs().float()).amax(1).reshape(granularity.scale_shape(x.shape))
        if not bool(largest.isfinite().all()):
            raise ValueError(
                f"{self.spec}: the data hold NaN or infinite values; expected finite numbers. Find the "
                "layer or the image they come from"
            )
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)

    def freeze(self) -> None:
        super().freeze()
        if self.needs_data:
            if self._largest is None:
                raise ValueError(f"{self.spec} has seen no data: calibrate with qlab.calibrate(prepared, batches)")
            scale = self._largest / torch.finfo(FORMATS[self.spec.format]).max
            self.scale = torch.where(scale < SMALLEST_SCALE, 1.0, scale)

    def rounded(self, x: Tensor) -> Tensor:
        if not self.needs_data:
            return straight_through(round_to_float(x, self.spec.format), x)
        self.qparams  # noqa: B018 - raises when there is no scale yet
        view, scale = self.spec.granularity.align(x, self.scale)
        values = round_to_float(view.float() / scale, self.spec.format) * scale
        limit = torch.finfo(FORMATS[self.spec.format]).max * scale
        return straight_through(values.to(x.dtype), view, limit).reshape(x.shape)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if self.scale is None and prefix + "scale" in state_dict:
            self.scale = torch.empty_like(state_dict[prefix + "scale"])
        super()._load_from_state_dict(state_dict, prefix, *args)


def _uncalibrated() -> RuntimeError:
    return RuntimeError(
        "this network has not been calibrated, so no grid is known: call qlab.calibrate(prepared, batches) first"
    )
