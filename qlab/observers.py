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

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from qlab.affine import QParams, choose_qparams, fit_grid, grid_limits
from qlab.granularity import Granularity, PerGroup
from qlab.qconfig import QuantSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self  # of Python 3.11

BINS = 2048  # on either side of 0; as many as TensorRT's calibrator has
BINS_PER_CHANNEL = 512  # a channel has fewer values, and there are many channels
BLIND = 0.125  # the share of values in the bin of 0 from which on a histogram's bins are too wide to choose by
TRACE = 1e-4  # of one value: as much as MXNet's and ONNX Runtime's calibrators smooth a distribution
SMALLEST_EXPONENT = -64  # what is closer to 0 than 2**-64 counts as 0
SPAN = 2**24  # between the bins of a row and the next: there are not as many


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

    def _has_seen(self, values: int, granularity: Granularity, scale_shape: tuple[int, ...] | None) -> None:
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

    def join(self, other: Self) -> None:
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

    lo: torch.Tensor  # they are there once something was seen
    hi: torch.Tensor

    def collect(self, rows: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor) -> None:
        self._cover(lo, hi)

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.lo, self.hi

    def join(self, other: Self) -> None:
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

    def join(self, other: Self) -> None:
        self._move(other.lo, other.hi, other.seen / (self.seen + other.seen))

    def _move(self, lo: torch.Tensor, hi: torch.Tensor, weight: float) -> None:
        if weight < 1:
            lo, hi = self.lo.lerp(lo, weight), self.hi.lerp(hi, weight)
        self.lo, self.hi = lo, hi


class Histogram:
    """How many values lie where, for each row, in bins that are narrow beside the values they hold.

    A bin holds the values that have the sign, the exponent and the first bits of the mantissa in common: each octave
    from 2**e to 2**(e + 1) is cut into ``bins / 2`` equal bins, those of the octave above are twice as wide (Tene,
    HdrHistogram). So one value of 1e5 leaves the bins around 1 as fine as they were. The bins lie where they lie
    whatever comes, so counts add up: they do not depend on the order or the size of the batches. (Bins that share out
    the range seen so far, as in torch.ao's HistogramObserver, must interpolate.) What is closer to 0 than 2**-64
    counts as 0.

    >>> histogram = Histogram(rows=1, bins=4)
    >>> histogram.add(torch.tensor([[0.0, 0.0, 1.0, 3.0, 1e5]]))
    >>> cells = histogram.cells()
    >>> [(low, high) for low, high in zip(cells.lower.tolist(), cells.upper.tolist())][1:], cells.count
    ([(1.0, 1.5), (3.0, 4.0), (98304.0, 131072.0)], tensor([2, 1, 1, 1]))
    """

    def __init__(self, rows: int, bins: int, device: torch.device | str = "cpu") -> None:
        self.rows, self.bins = rows, bins
        self._octave = bins // 2
        self._shift = 23 - (self._octave.bit_length() - 1)  # bits of a float32 that its bin does not look at
        self._zero = (127 + SMALLEST_EXPONENT) * self._octave  # the bin of SMALLEST, counted from that of 0
        # One row: counts of all bins from number `first` on. Many: of those in use, whose numbers are `used`.
        self.first = 0
        self.used = torch.zeros(0, dtype=torch.int64, device=device)
        self.counts = torch.zeros(int(rows == 1), dtype=torch.int64, device=device)

    def add(self, values: torch.Tensor, ends: torch.Tensor | None = None) -> None:
        """Count finite float32 values of shape (rows, any number). ``ends``: the smallest and the largest, if known."""
        if self.rows > 1:
            row = torch.arange(self.rows, device=values.device)[:, None]
            self._add_used(*torch.unique(self._numbers(values) + row * SPAN, return_counts=True))
            return
        ends = torch.stack(values.aminmax()) if ends is None else ends
        first, last = self._numbers(ends).tolist()
        first, last = min(first, 0), max(last, 0)
        self._reach(first, last + 1)
        for part in values[0].split(2**19):  # what is made on the way then stays in the processor's cache
            numbers = self._numbers(part, positive=first == 0).sub_(self.first)
            self.counts = self.counts + torch.bincount(numbers, minlength=len(self.counts))

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram of as many rows and bins."""
        if self.rows > 1:
            self._add_used(other.used, other.counts)
            return
        self._reach(other.first, other.first + len(other.counts))
        ahead = other.first - self.first
        behind = len(self.counts) - len(other.counts) - ahead
        self.counts = self.counts + torch.nn.functional.pad(other.counts, (ahead, behind))

    def cells(self) -> Cells:
        """The bins in use, in order."""
        if self.rows > 1:
            row = (self.used + SPAN // 2).div(SPAN, rounding_mode="floor")
            number, count = self.used - row * SPAN, self.counts
        else:
            index = self.counts.nonzero().squeeze(1)
            row, number, count = torch.zeros_like(index), index + self.first, self.counts[index]
        size = number.abs()
        inner, outer = self._edge(size) * (size > 0), self._edge(size + 1)
        lower = torch.where(number > 0, inner, -outer)
        return Cells(row, lower, torch.where(number < 0, -inner, outer), count, self.rows, self.bins)

    def _numbers(self, values: torch.Tensor, positive: bool = False) -> torch.Tensor:
        """The number of each value's bin: 0 around 0, and rising with the value; ``positive``: there is none below 0."""
        bits = values.view(torch.int32)
        if positive:
            return (bits >> self._shift).sub_(self._zero).clamp_(min=0)
        # a negative float's bits but for its sign are turned over, so that they rise with the value
        ordered = (bits >> 31).bitwise_and_(2**31 - 1).bitwise_xor_(bits).bitwise_right_shift_(self._shift)
        return ordered.sub_(ordered.clamp(-self._zero - 1, self._zero))

    def _edge(self, size: torch.Tensor) -> torch.Tensor:
        """The end nearer to 0 of the bin of this number."""
        bits = (size + self._zero << self._shift).to(torch.int32)
        return bits.view(torch.float32).double().clamp(max=torch.finfo(torch.float32).max)

    def _reach(self, first: int, stop: int) -> None:
        """Make room for the bins with numbers from ``first`` up to ``stop``."""
        ahead, behind = max(self.first - first, 0), max(stop - self.first - len(self.counts), 0)
        if ahead or behind:
            self.first -= ahead
            self.counts = torch.nn.functional.pad(self.counts, (ahead, behind))

    def _add_used(self, used: torch.Tensor, counts: torch.Tensor) -> None:
        if len(self.used):
            used, place = torch.unique(torch.cat([self.used, used]), return_inverse=True)
            counts = torch.zeros_like(used).index_add_(0, place, torch.cat([self.counts, counts]))
        self.used, self.counts = used, counts


@dataclass(frozen=True)
class Cells:
    """A histogram's bins in use, row by row and from the lowest to the highest.

    Args:
        row: Whose values they count.
        lower, upper: Their ends, float64.
        count: How many values are in each.
        rows, bins: Of the histogram.
    """

    row: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    count: torch.Tensor
    rows: int
    bins: int
    _views: dict[tuple[float, ...], Linear] = field(default_factory=dict)  # those of linear, by their widths

    def linear(self, limit: torch.Tensor) -> Linear:
        """In bins of one width a row, a power of two: so fine that fewer than ``bins`` on either side reach ``limit``.

        No bin has to be cut for that: up to the limit they are as narrow, or narrower.
        """
        width = _power_of_two_above(limit.double() / self.bins).clamp(min=2.0**SMALLEST_EXPONENT)
        key = tuple(width.tolist())
        if key not in self._views:
            self._views[key] = self._of_width(width)
        return self._views[key]

    def _of_width(self, width: torch.Tensor) -> Linear:
        number = torch.where(self.lower >= 0, self.lower, self.upper).div_(width[self.row]).trunc_()
        number.clamp_(-self.bins, self.bins)  # one more bin on either side, for what is beyond
        counts = torch.zeros(self.rows, 2 * self.bins + 1, dtype=torch.int64, device=width.device)
        place = number.long().add_(self.row * counts.shape[1] + self.bins)
        counts.view(-1).index_add_(0, place.view(-1), self.count)
        beyond = [self._powers((number == side).nonzero().squeeze(1)) for side in (-self.bins, self.bins)]
        return Linear(counts[:, 1:-1], width, torch.stack(beyond))

    def by_row(self) -> Iterator[Cells]:
        """Those of each row, as the only row of a histogram."""
        sizes = torch.bincount(self.row, minlength=self.rows).tolist()
        for lower, upper, count in zip(*(of.split(sizes) for of in (self.lower, self.upper, self.count))):
            yield Cells(torch.zeros_like(count), lower, upper, count, 1, self.bins)

    def share_below(self, limit: float) -> float:
        """The share of the values that are no further than this from 0, but for those that count as 0."""
        size = torch.maximum(self.upper, -self.lower)
        counted = torch.where(self.lower * self.upper < 0, 0, self.count)
        return float(counted[size <= limit].sum() / counted.sum().clamp(min=1))

    def _powers(self, chosen: torch.Tensor) -> torch.Tensor:
        """How many values the chosen bins hold, their sum and the sum of their squares: (rows, 3), float64."""
        lower, upper = self.lower[chosen], self.upper[chosen]
        means = torch.ones_like(lower), (lower + upper) / 2, (lower**2 + lower * upper + upper**2) / 3
        sums = torch.zeros(self.rows, 3, dtype=torch.float64, device=lower.device)
        return sums.index_add_(0, self.row[chosen], torch.stack(means, 1) * self.count[chosen, None])


@dataclass(frozen=True)
class Linear:
    """A histogram in bins of one width for each row, a power of two: bin k holds the values with ``trunc(x / width) == k``.

    Bin 0, in the middle, reaches from -width to width and stands for 0, the exact zeros of ReLU and padding among them.

    Args:
        counts: (rows, 2 * bins - 1).
        width: (rows,), float64.
        beyond: What lies below the lowest and above the highest bin: how many values, their sum and that of their
            squares; (2, rows, 3), float64.
    """

    counts: torch.Tensor
    width: torch.Tensor
    beyond: torch.Tensor

    @property
    def bins(self) -> int:
        """On either side, the one in the middle counting for both."""
        return self.counts.shape[1] // 2 + 1

    @property
    def edges(self) -> torch.Tensor:
        """The bins' ends from the lowest to the highest, in float64: shape (rows, 2 * bins)."""
        steps = torch.arange(1, self.bins + 1, dtype=torch.float64, device=self.width.device)
        return torch.cat([-steps.flip(0), steps]) * self.width[:, None]

    def density(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Values per bin and unit of length, and the bins' edges, from the first bin in use to the last."""
        used = self.counts.any(0).nonzero()
        first, last = (int(used[0]), int(used[-1])) if len(used) else (self.bins - 1, self.bins - 1)
        counts = self.counts.double()
        counts[:, self.bins - 1] = 0  # bin 0 stands for 0, which every grid holds
        edges = self.edges
        return (counts / edges.diff())[:, first : last + 1], edges[:, first : last + 2]

    def clipped(self, lo: torch.Tensor, hi: torch.Tensor) -> torch.Tensor:
        """At least how much squared error it costs each row to clip what is outside its (lo, hi)."""
        edges = self.edges
        below = (lo[:, None] - edges[:, 1:]).clamp_(min=0)
        above = (edges[:, :-1] - hi[:, None]).clamp_(min=0)
        within = (self.counts * below.add_(above).square_()).sum(1)
        beyond = zip(self.beyond, (lo, hi), (lo >= edges[:, 0], hi <= edges[:, -1]))
        return within + sum(_squared_distance(powers, end) * known for powers, end, known in beyond)


def _power_of_two_above(x: torch.Tensor) -> torch.Tensor:
    """The smallest power of two that is more than x, which is not negative."""
    return torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent)  # x = m * 2**exponent with 0.5 <= m < 1


class HistogramObserver(MinMax):
    """What Percentile, MSE and Entropy have in common: the smallest, the largest, and a histogram in between.

    Raises ValueError for PerGroup: a histogram for every few values would be larger than the values.
    """

    histogram: Histogram  # it is there once something was seen

    def __init__(self, spec: QuantSpec) -> None:
        if isinstance(spec.granularity, PerGroup):
            raise ValueError(
                f"{self._name} with {spec.granularity}: a group has too few values for a "
                "histogram; expected PerTensor or PerChannel, or observer='minmax' for groups"
            )
        super().__init__(spec)

    def collect(self, rows: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor) -> None:
        super().collect(rows, lo, hi)
        if not self.seen:
            self.histogram = Histogram(len(rows), BINS if len(rows) == 1 else BINS_PER_CHANNEL, rows.device)
        self.histogram.add(rows, torch.cat([lo, hi]) if len(rows) == 1 else None)

    def join(self, other: Self) -> None:
        super().join(other)
        if not self.seen:
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
        cells, share = self.histogram.cells(), self.percentile / 100
        return self._quantile(cells, 1 - share), self._quantile(cells, share)

    def _quantile(self, cells: Cells, share: float) -> torch.Tensor:
        """The value below which this share of each row's values lies, as if they were even within a bin."""
        up_to = cells.count.cumsum(0).double()  # float32 cannot count beyond 2**24
        values = torch.zeros_like(self.lo, dtype=torch.float64).index_add_(0, cells.row, cells.count.double())
        before = values.cumsum(0) - values  # of the rows before
        rank = before + values * share
        index = torch.searchsorted(up_to, rank.clamp(min=before + 0.5))  # not in the last bin of the row before
        inside = (rank - (up_to - cells.count)[index]) / cells.count[index]
        return (cells.lower[index] + inside * (cells.upper - cells.lower)[index]).clamp(self.lo, self.hi)


class MSE(HistogramObserver):
    """The range whose grid makes the expected squared error smallest: clipping against rounding.

    Each end is tried at shares of the extreme value: all of it, 0.84, 0.71 ... for as long as what is clipped does not
    alone cost more than the best, then at 17 around the best: first both ends together, then, for values on both sides
    of 0 on an affine grid, one end at a time, twice in turn.

    >>> heavy_tailed = torch.distributions.StudentT(3.0).sample((10000,))
    >>> wide, narrow = MinMax(QuantSpec(bits=4)), MSE(QuantSpec(bits=4))
    >>> wide(heavy_tailed); narrow(heavy_tailed)
    >>> bool(narrow.qparams().scale < wide.qparams().scale)
    True
    """

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        cells = self.histogram.cells()
        extremes = torch.stack([self.lo.clamp(max=0), self.hi.clamp(min=0)]).double()
        moves = torch.tensor([[1, 1], [1, 0], [0, 1]], dtype=torch.bool, device=extremes.device)
        both, low, high = moves[..., None]
        kept = torch.ones_like(extremes)  # the share of each end, shape (2, rows)
        one_sided = bool((extremes == 0).any(0).all())
        for moved in (both,) if one_sided or self.spec.symmetric else (both, high, low, high, low):
            kept = self._best(cells, extremes, kept, moved)
        lo, hi = extremes * kept
        return lo, hi

    def _best(self, cells: Cells, extremes: torch.Tensor, kept: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """The shares with the least error when the ends that ``moved`` says are tried; all shapes but its own (2, rows)."""

        def tried(shares: torch.Tensor, center: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            some = (center[..., None] * 2.0 ** shares.to(kept)).clamp(max=1)  # (2, rows, shares)
            some = torch.where(moved[..., None], some, kept[..., None])
            return some, extremes[..., None] * some

        best, center = torch.full_like(kept[0], torch.inf), torch.ones_like(kept)
        for octaves in range(0, 256, 8):
            shares, ends = tried(COARSE - octaves, torch.ones_like(kept))
            histogram = cells.linear(ends.abs().amax((0, 2)))
            error, index = self._squared_error(histogram, *ends).min(1)
            found = shares.gather(2, index.expand(2, -1)[..., None]).squeeze(2)
            center, best = torch.where(error < best, found, center), torch.minimum(error, best)
            if bool(self._hopeless(histogram, ends[..., -1], moved, best).all()):
                break
        shares, ends = tried(FINE, center)
        index = self._squared_error(cells.linear(ends.abs().amax((0, 2))), *ends).argmin(1)
        return shares.gather(2, index.expand(2, -1)[..., None]).squeeze(2)

    def _hopeless(self, histogram: Linear, ends: torch.Tensor, moved: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        """Can no narrower ends have a smaller error? Alone they clip too much, or less than a step is left to them."""
        qmin, qmax = grid_limits(self.spec.bits, self.spec.signed, self.spec.narrow_range)
        step = (ends[1] - ends[0]) / (qmax - qmin)
        # a grid reaches up to half a step further than it is asked to
        return (histogram.clipped(ends[0] - step, ends[1] + step) >= best) | ((ends * moved).abs().amax(0) <= step / 4)

    def _squared_error(self, histogram: Linear, lo: torch.Tensor, hi: torch.Tensor) -> torch.Tensor:
        """The squared error of each range, summed over the histogram; lo, hi and the result: (rows, ranges).

        Values are even within a bin, so their error is the integral of (x - grid(x))**2 over it. Where the
        code (less the zero point) is n, the integral from 0 to x = u * scale is
        scale**3 * (n / 12 + (u - n)**3 / 3): a whole step adds 1/12, and beyond the grid's ends u - n grows.
        """
        density, edges = histogram.density()
        # sum of density * (integral at the right edge - at the left one), the terms of each edge together
        weight = torch.nn.functional.pad(density, (1, 0)) - torch.nn.functional.pad(density, (0, 1))
        qmin, qmax = grid_limits(self.spec.bits, self.spec.signed, self.spec.narrow_range)
        grids = fit_grid(lo, hi, qmin, qmax, self.spec.symmetric)
        some = max(1, 2**16 // edges.numel())  # ranges at a time: what is made on the way stays in the cache
        errors = []
        for scale, zero_point in zip(*(parameter[..., None].split(some, 1) for parameter in grids)):
            scale = scale.double()
            u = edges[:, None] / scale
            n = u.round().clamp_(qmin - zero_point, qmax - zero_point)
            integral = (u.sub_(n).pow_(3) / 3).add_(n, alpha=1 / 12)
            within = (integral @ weight[..., None] * scale**3).squeeze(2)
            for side, end in zip(histogram.beyond, (qmin - zero_point, qmax - zero_point)):
                within += _squared_distance(side[:, None], (end * scale).squeeze(2))
            errors.append(within)
        return torch.cat(errors, 1)


def _squared_distance(powers: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """The squared distances from a point, summed, of values that are given by their number, sum and squares' sum."""
    count, total, squares = powers.unbind(-1)
    return squares - 2 * point * total + count * point**2


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
        cells = self.histogram.cells()
        limit = torch.maximum(self.hi, -self.lo).double()
        for row, mine in enumerate(cells.by_row()):
            limit[row] = self._threshold(mine, (self.lo[row], self.hi[row]), limit[row])
        return torch.maximum(self.lo.double(), -limit), torch.minimum(self.hi.double(), limit)

    def _threshold(self, cells: Cells, ends: tuple[torch.Tensor, torch.Tensor], largest: torch.Tensor) -> torch.Tensor:
        """Where to clip the values of one row, whose ends and largest magnitude are given."""
        qmin, qmax = grid_limits(self.spec.bits, self.spec.signed, self.spec.narrow_range)
        if qmax - qmin >= cells.bins:
            return largest
        histogram = cells.linear(largest[None])
        while cells.share_below(float(histogram.width)) > BLIND:  # a few far out make the bins too wide for the rest
            histogram = cells.linear(histogram.width * (cells.bins / 2 - 1))
        while True:
            last = min(int(largest / histogram.width) + 1, cells.bins)  # bins on either side of 0
            tried = torch.linspace(min(qmax - qmin, last), last, 100, dtype=torch.float64).round().unique()
            index = int(self._divergence(histogram, ends, tried.to(largest.device), qmin, qmax).argmin())
            best = histogram.width * tried[index]
            around = min(tried[min(2 * index + 1, len(tried) - 1)], tried[-1] / 2)
            finer = cells.linear(histogram.width * max(around, tried[0]))
            if index >= len(tried) // 10 or bool(finer.width == histogram.width):
                return best
            histogram = finer  # the best is among the lowest: look closer at what lies around it

    def _divergence(
        self, histogram: Linear, ends: tuple[torch.Tensor, torch.Tensor], tried: torch.Tensor, qmin: int, qmax: int
    ) -> torch.Tensor:
        """KL(clipped distribution || quantized one) of a row, for each number of bins below the threshold."""
        zero = histogram.bins - 1
        counts = histogram.counts[0].double()
        counts[zero] = 0
        lo, hi = (float(end / histogram.width) for end in ends)  # in bins
        below, above = histogram.beyond[:, 0, 0]
        counts = torch.cat([below[None], counts, above[None]])
        zero += 1
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
