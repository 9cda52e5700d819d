"""Which range should a grid cover? Observers watch the data and choose.

A wide range clips nothing but makes every step coarse; a narrow one gives fine steps and clips the rare large
values.

- ``MinMax`` clips nothing, ``MovingAverageMinMax`` forgets old batches: Jacob et al. (2018), section 3.1.
- ``Percentile`` clips a fixed share of the values: McKinstry et al. (2018); Wu et al., "Integer quantization
  for deep learning inference" (2020), section 3.
- ``MSE`` makes the expected squared error smallest: Banner et al., "Post training 4-bit quantization" (2019);
  Nagel et al., "A white paper on neural network quantization" (2021), section 3.1.
- ``Entropy`` keeps the distribution's shape: Migacz, "8-bit inference with TensorRT" (2017).

What collects is apart from what decides: the last three share one :class:`Histogram` and differ in one
function.
"""

from __future__ import annotations

import torch

from qlab.affine import QParams, choose_qparams, fit_grid, grid_limits
from qlab.granularity import Granularity, PerGroup
from qlab.qconfig import QuantSpec

BINS = 2048  # on either side of 0; as many as TensorRT's calibrator has
BINS_PER_CHANNEL = 512  # a channel has fewer values, and there are many channels
TRACE = 1e-4  # of one value: as much as MXNet's and ONNX Runtime's calibrators smooth a distribution
SMALLEST_WIDTH = torch.finfo(torch.float32).tiny


class Observer:
    """Sees tensors and then chooses a grid for them: ``observer(x)`` any number of times, then ``qparams()``.

    A subclass says what it keeps of a batch (``collect``), the range it chooses (``range``), and how it joins
    what another observer has seen (``join``). ``seen`` counts the values so far.

    >>> observer = MinMax(QuantSpec(bits=8))
    >>> observer(torch.tensor([0.0, 1.0])); observer(torch.tensor([[2.55]]))
    >>> observer.seen, observer.qparams().scale
    (3, tensor(0.0100))
    """

    def __init__(self, spec: QuantSpec) -> None:
        self.spec = spec
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.seen = 0
        self.granularity = self.spec.granularity
        self.scale_shape: tuple[int, ...] | None = None

    def __call__(self, x: torch.Tensor) -> None:
        """Take in a batch. Raises ValueError for NaN, infinity, integers, and other channels than before.

        >>> MinMax(QuantSpec())(torch.tensor([1.0, float("nan")]))
        Traceback (most recent call last):
        ValueError: MinMax: the data hold 1 NaN and 0 infinite values of 2; expected finite ...
        """
        if not x.is_floating_point():
            raise ValueError(f"{self._name}: got {x.dtype}; expected a floating tensor, write x.float()")
        scale_shape = self.spec.granularity.scale_shape(x.shape)
        if self.scale_shape not in (None, scale_shape):
            raise ValueError(
                f"{self._name}: this batch has a scale of shape {scale_shape}, those before had "
                f"{self.scale_shape}; expected the same channels in each. Call reset() to start "
                "anew"
            )
        if x.numel() == 0:
            return
        rows = self.spec.granularity.blocks(x.detach()).float()
        lo, hi = rows.amin(1), rows.amax(1)
        if not bool((lo.isfinite() & hi.isfinite()).all()):  # both carry NaN along
            raise ValueError(
                f"{self._name}: the data hold {int(rows.isnan().sum())} NaN and "
                f"{int(rows.isinf().sum())} infinite values of {x.numel()}; expected finite "
                "float32 numbers. Find the layer or the image they come from: no range covers "
                "them"
            )
        self.collect(rows, lo, hi)
        self._has_seen(x.numel(), self.spec.granularity.of(x.shape), scale_shape)

    def qparams(self) -> QParams:
        """The grid for the range that this observer chooses. Raises ValueError when it has seen nothing.

        >>> MinMax(QuantSpec()).qparams()
        Traceback (most recent call last):
        ValueError: MinMax has seen no data: expected at least one value. Calibrate first: ...
        """
        if self.seen == 0:
            raise ValueError(
                f"{self._name} has seen no data: expected at least one value. Calibrate first: "
                "qlab.calibrate(prepared, batches), or call observer(x)"
            )
        lo, hi = (end.reshape(self.scale_shape) for end in self.range())
        spec = self.spec
        return choose_qparams(lo, hi, spec.bits, spec.signed, spec.symmetric, spec.narrow_range, self.granularity)

    def merge(self, other: Observer) -> None:
        """Take in what another observer of the same kind has seen, as in another process."""
        if type(other) is not type(self) or other.spec != self.spec:
            raise ValueError(
                f"{self._name} for {self.spec} cannot merge {other._name} for {other.spec}: "
                "expected the same class and spec"
            )
        if other.seen == 0:
            return
        if self.scale_shape not in (None, other.scale_shape):
            raise ValueError(
                f"{self._name}: scales of shape {self.scale_shape} and {other.scale_shape} do "
                "not merge; expected observers of the same tensor"
            )
        self.join(other)
        self._has_seen(other.seen, other.granularity, other.scale_shape)

    def _has_seen(self, values: int, granularity: Granularity, scale_shape: tuple[int, ...]) -> None:
        """Count values. Tensors of as many axes each count them from the front; else the spec's way fits them all."""
        if self.seen and granularity != self.granularity:
            granularity = self.spec.granularity
        self.seen += values
        self.granularity, self.scale_shape = granularity, scale_shape

    def collect(self, rows: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor) -> None:
        """Keep what is needed of a batch: a row for each scale, and each row's smallest and largest value."""
        raise TypeError(f"{self._name} chooses nothing: use MinMax or another observer")

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen (lo, hi), one entry for each scale."""
        raise TypeError(f"{self._name} chooses nothing: use MinMax or another observer")

    def join(self, other: Observer) -> None:
        """Add the state of an observer of the same class, which has seen something, to this one's."""
        raise TypeError(f"{self._name} chooses nothing: use MinMax or another observer")

    def __repr__(self) -> str:
        return f"{self._name}({self.spec})"

    @property
    def _name(self) -> str:
        return type(self).__name__


class MinMax(Observer):
    """The range of everything seen: clips nothing, and one outlier makes every step coarser.

    >>> observer = MinMax(QuantSpec())
    >>> observer(torch.tensor([-1.0, 2.0])); observer(torch.tensor([5.0]))
    >>> observer.range()
    (tensor([-1.]), tensor([5.]))
    """

    def collect(self, rows: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor) -> None:
        self._cover(lo, hi)

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.lo, self.hi

    def join(self, other: MinMax) -> None:
        self._cover(other.lo, other.hi)

    def _cover(self, lo: torch.Tensor, hi: torch.Tensor) -> None:
        if self.seen:
            lo, hi = torch.minimum(self.lo, lo), torch.maximum(self.hi, hi)
        self.lo, self.hi = lo, hi


class MovingAverageMinMax(MinMax):
    """The average of the batches' ranges, the newest weighing ``momentum``: follows a network in training.

    >>> observer = MovingAverageMinMax(QuantSpec(), momentum=0.5)
    >>> observer(torch.tensor([0.0, 2.0])); observer(torch.tensor([0.0, 4.0]))
    >>> observer.range()
    (tensor([0.]), tensor([3.]))

    Merging weighs the two averages by the values they have seen. Raises ValueError for a momentum outside 0
    to 1.
    """

    def __init__(self, spec: QuantSpec, momentum: float = 0.01) -> None:
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum={momentum}: expected a share above 0 and at most 1, such as 0.01")
        self.momentum = momentum
        super().__init__(spec)

    def collect(self, rows: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor) -> None:
        self._move(lo, hi, 1.0 if self.seen == 0 else self.momentum)

    def join(self, other: MovingAverageMinMax) -> None:
        self._move(other.lo, other.hi, other.seen / (self.seen + other.seen))

    def _move(self, lo: torch.Tensor, hi: torch.Tensor, weight: float) -> None:
        if weight < 1:
            lo, hi = self.lo.lerp(lo, weight), self.hi.lerp(hi, weight)
        self.lo, self.hi = lo, hi


class Histogram:
    """How many values lie where, for each row, in bins whose width is a power of two.

    Bin k holds the values with ``trunc(x / width) == k``, for -bins < k < bins: bin 0 reaches from -width to
    width and stands for 0, the exact zeros of ReLU and padding among them. The width is the smallest that
    reaches the largest value. When a larger one comes, the width doubles and bins merge in pairs (bin 0 with
    both its neighbours), and as every edge is a multiple of a power of two, this is exact: the counts do not
    depend on the order or the size of the batches. (Bins that share out the range seen so far, as in
    torch.ao's HistogramObserver, must interpolate.)

    >>> histogram = Histogram(rows=1, bins=4)
    >>> histogram.add(torch.tensor([[0.0, 0.0, 1.0, 3.0]])); histogram.width, histogram.counts
    (tensor([1.]), tensor([[0, 0, 0, 2, 1, 0, 1]]))
    >>> histogram.add(torch.tensor([[-5.0]])); histogram.width, histogram.counts
    (tensor([2.]), tensor([[0, 1, 0, 3, 1, 0, 0]]))
    """

    def __init__(self, rows: int, bins: int, device: torch.device | str = "cpu") -> None:
        self.bins = bins
        self.width = torch.full((rows,), SMALLEST_WIDTH, device=device)
        self.counts = torch.zeros(rows, 2 * bins - 1, dtype=torch.int64, device=device)

    def add(self, values: torch.Tensor, largest: torch.Tensor | None = None) -> None:
        """Count finite float32 values of shape (rows, any number). ``largest``: each row's, if known."""
        self._widen(self._fitting(values.abs().amax(1) if largest is None else largest))
        if len(self.counts) == 1:
            for part in values[0].split(2**20):  # what is made on the way then stays in the processor's cache
                # int16, whose conversion and count are the fastest torch has: hence at most 2**14 bins
                codes = torch.mul(part, 1 / self.width).to(torch.int16).add_(self.bins - 1)
                self.counts = self.counts + torch.bincount(codes, minlength=self.counts.shape[1])
            return
        codes = (values / self.width[:, None]).to(torch.int32).add_(self.bins - 1)
        row = torch.arange(len(codes), dtype=torch.int32, device=codes.device)[:, None]
        codes += row * self.counts.shape[1]
        new = torch.bincount(codes.flatten(), minlength=self.counts.numel())
        self.counts = self.counts + new.view_as(self.counts)

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram of as many rows and bins."""
        self._widen(other.width)
        self.counts = self.counts + _coarsen(other.counts, other.width, self.width)

    @property
    def edges(self) -> torch.Tensor:
        """The bins' ends from the lowest to the highest, in float64: shape (rows, 2 * bins)."""
        steps = torch.arange(1, self.bins + 1, dtype=torch.float64, device=self.width.device)
        return torch.cat([-steps.flip(0), steps]) * self.width[:, None]

    def _widen(self, width: torch.Tensor) -> None:
        """Merge bins until they are at least this wide."""
        if bool((width > self.width).any()):
            wider = torch.maximum(width, self.width)
            self.counts, self.width = _coarsen(self.counts, self.width, wider), wider

    def _fitting(self, largest: torch.Tensor) -> torch.Tensor:
        """The smallest power of two that is more than largest / bins."""
        share = largest / self.bins
        mantissa = torch.frexp(share).mantissa  # share = mantissa * 2**exponent with 0.5 <= mantissa < 1
        return torch.where(share < SMALLEST_WIDTH, SMALLEST_WIDTH, share / mantissa)


def _coarsen(counts: torch.Tensor, width: torch.Tensor, wider: torch.Tensor) -> torch.Tensor:
    """The same counts in bins that are wider by powers of two."""
    doublings = torch.frexp(wider).exponent - torch.frexp(width).exponent
    last = counts.shape[1] // 2
    k = torch.arange(-last, last + 1, device=counts.device)
    merged = k.sign() * (k.abs() >> doublings.long().clamp(max=62)[:, None]) + last
    return torch.zeros_like(counts).scatter_add_(1, merged, counts)


class HistogramObserver(MinMax):
    """What Percentile, MSE and Entropy have in common: the smallest, the largest, and a histogram in between.

    Raises ValueError for PerGroup: a histogram for every few values would be larger than the values.
    """

    def __init__(self, spec: QuantSpec) -> None:
        if isinstance(spec.granularity, PerGroup):
            raise ValueError(
                f"{self._name} with {spec.granularity}: a group has too few values for a "
                "histogram; expected PerTensor or PerChannel, or observer='minmax' for groups"
            )
        super().__init__(spec)

    def reset(self) -> None:
        super().reset()
        self.histogram: Histogram | None = None

    def collect(self, rows: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor) -> None:
        super().collect(rows, lo, hi)
        if self.histogram is None:
            self.histogram = Histogram(len(rows), BINS if len(rows) == 1 else BINS_PER_CHANNEL, rows.device)
        self.histogram.add(rows, torch.maximum(hi, -lo))

    def join(self, other: HistogramObserver) -> None:
        super().join(other)
        if self.histogram is None:
            self.histogram = Histogram(len(other.lo), other.histogram.bins, other.lo.device)
        self.histogram.merge(other.histogram)


class Percentile(HistogramObserver):
    """The range that leaves out the smallest and the largest 0.01 % of the values (for ``percentile=99.99``).

    It is found within the width of a histogram's bin, and never outside the values seen.

    >>> observer = Percentile(QuantSpec(), percentile=99.0)
    >>> observer(torch.arange(10001.0))
    >>> [round(end.item()) for end in observer.range()]
    [100, 9901]

    Raises ValueError for a percentile that is not above 50 and at most 100.
    """

    def __init__(self, spec: QuantSpec, percentile: float = 99.99) -> None:
        if not 50 < percentile <= 100:
            raise ValueError(f"percentile={percentile}: expected a number above 50 and at most 100, such as 99.99")
        self.percentile = percentile
        super().__init__(spec)

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        share = self.percentile / 100
        return self._quantile(1 - share), self._quantile(share)

    def _quantile(self, share: float) -> torch.Tensor:
        """The value below which this share of each row's values lies, as if they were even within a bin."""
        counts, edges = self.histogram.counts, self.histogram.edges
        up_to = counts.cumsum(1).double()  # float32 cannot count beyond 2**24
        rank = up_to[:, -1:] * share
        index = torch.searchsorted(up_to, rank)
        inside = (rank - (up_to - counts).gather(1, index)) / counts.gather(1, index).clamp(min=1)
        left, right = edges.gather(1, index), edges.gather(1, index + 1)
        return (left + inside * (right - left)).squeeze(1).clamp(self.lo, self.hi)


class MSE(HistogramObserver):
    """The range whose grid makes the expected squared error smallest: clipping against rounding.

    Each end is tried at 33 shares of the extreme value, from all of it to 1/256, then at 17 around the best:
    first both ends together, then, for values on both sides of 0 on an affine grid, one end at a time, twice
    in turn.

    >>> heavy_tailed = torch.distributions.StudentT(3.0).sample((10000,))
    >>> wide, narrow = MinMax(QuantSpec(bits=4)), MSE(QuantSpec(bits=4))
    >>> wide(heavy_tailed); narrow(heavy_tailed)
    >>> bool(narrow.qparams().scale < wide.qparams().scale)
    True
    """

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        extremes = torch.stack([self.lo.clamp(max=0), self.hi.clamp(min=0)]).double()
        moves = torch.tensor([[1, 1], [1, 0], [0, 1]], dtype=torch.bool, device=extremes.device)
        both, low, high = moves[..., None]
        kept = torch.ones_like(extremes)  # the share of each end, shape (2, rows)
        one_sided = bool((extremes == 0).any(0).all())
        for moved in (both,) if one_sided or self.spec.symmetric else (both, high, low, high, low):
            center = torch.ones_like(kept)
            for shares in (COARSE, FINE):
                tried = (center[..., None] * 2.0 ** shares.to(kept)).clamp(max=1)  # (2, rows, shares)
                tried = torch.where(moved[..., None], tried, kept[..., None])
                best = self._squared_error(*(extremes[..., None] * tried)).argmin(1)
                center = tried.gather(2, best.expand(2, -1)[..., None]).squeeze(2)
            kept = center
        lo, hi = extremes * kept
        return lo, hi

    def _squared_error(self, lo: torch.Tensor, hi: torch.Tensor) -> torch.Tensor:
        """The squared error of each range, summed over the histogram; lo, hi and the result: (rows, ranges).

        Values are even within a bin, so their error is the integral of (x - grid(x))**2 over it. Where the
        code (less the zero point) is n, the integral from 0 to x = u * scale is
        scale**3 * (n / 12 + (u - n)**3 / 3): a whole step adds 1/12, and beyond the grid's ends u - n grows.
        """
        density, edges = self._density()
        # sum of density * (integral at the right edge - at the left one), the terms of each edge together
        weight = torch.nn.functional.pad(density, (1, 0)) - torch.nn.functional.pad(density, (0, 1))
        qmin, qmax = grid_limits(self.spec.bits, self.spec.signed, self.spec.narrow_range)
        grids = fit_grid(lo, hi, qmin, qmax, self.spec.symmetric)
        some = max(1, 2**16 // edges.numel())  # ranges at a time: what is made on the way stays in the cache
        errors = []
        for scale, zero_point in zip(*(parameter[..., None].split(some, 1) for parameter in grids)):
            u = edges[:, None] / scale.double()
            n = u.round().clamp_(qmin - zero_point, qmax - zero_point)
            integral = (u.sub_(n).pow_(3) / 3).add_(n, alpha=1 / 12)
            errors.append((integral @ weight[..., None] * scale.double() ** 3).squeeze(2))
        return torch.cat(errors, 1)

    def _density(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Values per bin and unit of length, and the bins' edges, from the first bin in use to the last."""
        counts, edges = self.histogram.counts, self.histogram.edges
        used = counts.any(0).nonzero()
        first, last = int(used[0]), int(used[-1])
        counts = counts.double()
        counts[:, self.histogram.bins - 1] = 0  # bin 0 stands for 0, which every grid holds
        return (counts / edges.diff())[:, first : last + 1], edges[:, first : last + 2]


COARSE = torch.arange(33) / -4  # exponents of 2: 1, 0.84, 0.71 ... 1/256
FINE = torch.arange(-8, 9) / 32


class Entropy(HistogramObserver):
    """The range that keeps most information: least Kullback-Leibler divergence of the quantized distribution.

    Migacz (2017): values beyond a threshold are clipped to it, and the levels within it each spread their
    values evenly over their (not empty) bins. What was clipped piles up in the last bin of the first
    distribution but is not in the second one, so that the divergence of the two weighs clipping against
    coarse steps. Up to 100 thresholds are tried, from one with as many bins as the grid has levels; with no
    more bins than levels nothing is clipped. Bin 0 is left out: 0 is exact on every grid, and the many zeros
    of ReLU would drown all else.

    >>> observer = Entropy(QuantSpec(bits=8))
    >>> observer(torch.cat([torch.rand(10000), torch.tensor([4.0])]))
    >>> bool(observer.range()[1] < 1.5)
    True
    """

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        qmin, qmax = grid_limits(self.spec.bits, self.spec.signed, self.spec.narrow_range)
        largest = torch.maximum(self.hi, -self.lo)
        used = (largest / self.histogram.width).int() + 1  # bins on either side of 0
        threshold = largest.double()
        for row, last in enumerate(used.tolist()):
            tried = torch.linspace(min(qmax - qmin, last), last, 100, dtype=torch.float64).round().unique()
            divergence = self._divergence(row, tried.to(threshold.device), qmin, qmax)
            threshold[row] = tried[int(divergence.argmin())] * self.histogram.width[row]
        return torch.maximum(self.lo.double(), -threshold), torch.minimum(self.hi.double(), threshold)

    def _divergence(self, row: int, tried: torch.Tensor, qmin: int, qmax: int) -> torch.Tensor:
        """KL(clipped distribution || quantized one) of a row, for each number of bins below the threshold."""
        zero = self.histogram.bins - 1
        counts = self.histogram.counts[row].double()
        counts[zero] = 0
        lo, hi = (float(end[row] / self.histogram.width[row]) for end in (self.lo, self.hi))  # in bins
        ends = (-tried).clamp(min=lo), tried.clamp(max=hi)
        scale, zero_point = fit_grid(*ends, qmin, qmax, self.spec.symmetric)
        # A code's bins are those whose middle (k + 1/2, or k - 1/2 for negative k) rounds to it: from one
        # border to the next. Borders beyond the threshold are moved onto it.
        half_codes = torch.arange(qmin, qmax, device=counts.device) + 0.5
        border = (half_codes - zero_point[:, None]) * scale[:, None].double()
        bins = torch.where(border > 0, (border - 0.5).ceil().clamp(min=1), (border + 0.5).ceil().clamp(max=0))
        borders = bins.long() + zero
        first, stop = (zero - tried.long() + 1)[:, None], (zero + tried.long())[:, None]
        borders = torch.cat([first, torch.minimum(torch.maximum(borders, first), stop), stop], 1)
        return _kl(counts, borders)


def _kl(counts: torch.Tensor, borders: torch.Tensor) -> torch.Tensor:
    """Divergence for each row of borders between levels, from running sums: no work for single bins."""

    def running(per_bin: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(per_bin.cumsum(0), (1, 0))

    up_to, terms = running(counts), running(torch.xlogy(counts, counts))
    levels, filled = up_to[borders].diff(dim=1), running((counts > 0).double())[borders].diff(dim=1)
    first, stop = borders[:, :1], borders[:, -1:]
    clipped = levels.clone()  # the first distribution, where what lies beyond the ends is in the last bins
    surprise = terms[stop] - terms[first]
    for end, beyond in ((first, up_to[first]), (stop - 1, up_to[-1] - up_to[stop])):
        level, inside = (borders <= end).sum(1, keepdim=True) - 1, counts[end]
        clipped.scatter_add_(1, level, beyond)
        filled.scatter_add_(1, level, ((inside == 0) & (beyond > 0)).double())
        surprise += torch.xlogy(inside + beyond, inside + beyond) - torch.xlogy(inside, inside)
    total, kept = clipped.sum(1).clamp(min=1), levels.sum(1).clamp(min=1)
    # a level that holds nothing but what was clipped would make the divergence infinite: give it a trace
    spread = torch.xlogy(clipped, levels.clamp(min=TRACE) / filled.clamp(min=1)).sum(1)
    return (surprise.squeeze(1) - spread) / total - total.log() + kept.log()


OBSERVERS = {
    "minmax": MinMax,
    "moving_average": MovingAverageMinMax,
    "percentile": Percentile,
    "mse": MSE,
    "entropy": Entropy,
    "dynamic": MinMax,  # of one batch: see qlab.graph.prepare.DynamicQuantizer
}


def grid_of(x: torch.Tensor, spec: QuantSpec) -> QParams:
    """The grid that the spec's observer chooses when this tensor is all that it sees.

    >>> grid_of(torch.tensor([0.0, 2.55]), QuantSpec(bits=8)).scale
    tensor(0.0100)

    Raises ValueError for what the observer refuses: no values, NaN, infinity.
    """
    observer = build(spec)
    observer(x)
    return observer.qparams()


def build(spec: QuantSpec) -> Observer:
    """The observer that a spec asks for, by name or by any callable that makes one from a spec.

    >>> build(QuantSpec(observer="mse"))
    MSE(QuantSpec(bits=8, ..., observer='mse', narrow_range=False))
    >>> from functools import partial
    >>> build(QuantSpec(observer=partial(Percentile, percentile=99.9))).percentile
    99.9

    Raises ValueError for a name that is none of "minmax", "moving_average", "percentile", "mse", "entropy"
    and "dynamic".
    """
    if callable(spec.observer):
        return spec.observer(spec)
    if spec.observer not in OBSERVERS:
        raise ValueError(
            f"observer {spec.observer!r}: expected one of {', '.join(OBSERVERS)}, or a callable "
            "that makes an observer from a QuantSpec"
        )
    return OBSERVERS[spec.observer](spec)
