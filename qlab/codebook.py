"""Other grids than equal steps: one bit, three values, a learned codebook, a smaller float.

- ``binary``, one bit: the sign times the mean magnitude. Rastegari et al., "XNOR-Net" (2016), equation 6, per
  channel; Zhou et al., "DoReFa-Net" (2016), equation 7, per layer.
- ``ternary``, -1, 0 or 1 times a scale: Li and Liu, "Ternary weight networks" (2016), equations 5 and 6.
- ``kmeans``: a table of 2**bits values, chosen by clustering the weights and then trained; a weight is an
  index into it. Han et al., "Deep compression" (2016), section 3.
- ``round_to_float``: the values of a smaller float, dense near 0 and sparse far out (:mod:`qlab.formats`).

Binary and ternary weights are small integers times a scale, so the int8 kernels compute them; the other two
have no kernel. A QConfig asks for them by a spec: :class:`qlab.qconfig.Binary` and its sisters.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qlab.affine import SMALLEST_SCALE, QParams, check_bits
from qlab.formats import float_format
from qlab.granularity import Granularity, PerChannel, PerTensor

TERNARY_THRESHOLD = 0.7  # of the mean magnitude (Li and Liu 2016, equation 6)


def binary(w: Tensor, granularity: Granularity = PerChannel(0)) -> tuple[Tensor, QParams]:
    """The sign of each weight, and the scale that makes the signs fit best: the mean magnitude.

    Returns (codes of w's shape, int8, -1 or 1; the grid with one scale a channel). Of all scales a,
    mean(abs(w)) makes the sum of (w - a * sign(w))**2 smallest (XNOR-Net, equation 6). The sign of 0 is +1; a
    channel of nothing but 0 gets codes 0, so that it stays 0.

    >>> from qlab.affine import dequantize
    >>> w = torch.tensor([[1.0, -3.0], [0.5, 0.5]])
    >>> codes, grid = binary(w)
    >>> codes.tolist(), grid.scale, dequantize(codes, grid)
    ([[1, -1], [1, 1]], tensor([2.0000, 0.5000]), tensor([[ 2.0000, -2.0000],
            [ 0.5000,  0.5000]]))
    """
    return _three_codes(torch.where(w < 0, -1, 1), mean_magnitude(w, granularity), granularity)


def mean_magnitude(w: Tensor, granularity: Granularity) -> Tensor:
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
    check_bits(bits, most=8)
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
    dtype = float_format(format)
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype).to(x.dtype)
