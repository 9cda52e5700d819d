"""Observers: a histogram that does not care for order, and ranges that are what their names say."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.affine import choose_qparams, fake_quantize
from qlab.granularity import PerChannel, PerGroup, PerTensor
from qlab.observers import (
    MSE,
    OBSERVERS,
    Entropy,
    Histogram,
    MinMax,
    MovingAverageMinMax,
    Observer,
    Percentile,
    build,
    grid_of,
)
from qlab.qconfig import QuantSpec

NAMES = [name for name in OBSERVERS if name != "dynamic"]  # which is "minmax", on each batch anew
WEIGHT = QuantSpec(8, signed=True, symmetric=True, granularity=PerChannel(0), narrow_range=True)
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
batches_of_numbers = st.lists(st.lists(numbers, min_size=1, max_size=6), min_size=1, max_size=6)


def spec(name="minmax", **changes):
    return QuantSpec(**{"observer": name, **changes})


def after(observer, *batches):
    """The observer, having seen the batches."""
    for batch in batches:
        observer(batch)
    return observer


def squared_error(x, qp):
    return float((fake_quantize(x, qp) - x).double().square().sum())


def data(kind, count=20_000):
    """Seeded data of the shapes that networks have."""
    x = torch.randn(count)
    return {
        "normal": x,
        "relu": x.relu(),
        "heavy": torch.distributions.StudentT(2.5).sample((count,)),
        "outlier": torch.cat([x, torch.tensor([60.0])]),
        "lopsided": (x + 1.5).clamp(min=-0.3),
        "negative": -x.abs(),
    }[kind]


KINDS = ["normal", "relu", "heavy", "outlier", "lopsided", "negative"]
BITS = [1, 2, 4, 8, 12, 16]
# A Latin square: every observer meets every kind and every number of bits once, on another diagonal than the others.
SQUARE = [
    (name, kind, BITS[(row + column) % len(BITS)])
    for row, name in enumerate(NAMES) for column, kind in enumerate(KINDS)
]  # fmt: skip


def histogram_of(values, bins=16):
    """Of one row, all at once."""
    histogram = Histogram(1, bins)
    histogram.add(torch.tensor([values]))
    return histogram


def cells_of(histogram):
    cells = histogram.cells()
    return list(zip(cells.row.tolist(), cells.lower.tolist(), cells.upper.tolist(), cells.count.tolist()))


class TestHistogram:
    @settings(max_examples=300)
    @given(batches_of_numbers, st.randoms(use_true_random=False))
    def test_batches_in_any_order_give_the_histogram_of_one_pass(self, batches, random):
        whole = histogram_of([value for batch in batches for value in batch])
        parts, merged = Histogram(1, 16), Histogram(1, 16)
        random.shuffle(batches)
        for batch in batches:
            parts.add(torch.tensor([batch]))
            merged.merge(histogram_of(batch))
        for histogram in (parts, merged):
            assert cells_of(histogram) == cells_of(whole)
            assert torch.equal(histogram.counts, whole.counts)

    @settings(max_examples=300)
    @given(st.lists(numbers, min_size=1, max_size=20))
    def test_a_bin_holds_the_values_between_its_edges_and_no_others(self, values):
        for _, lower, upper, count in cells_of(histogram_of(values)):
            if lower < 0 < upper:  # that of 0
                inside = [value for value in values if lower < value < upper]
            elif lower >= 0:
                inside = [value for value in values if lower <= value and (value < upper or upper > 3.4e38)]
            else:
                inside = [value for value in values if value <= upper and (lower < value or lower < -3.4e38)]
            assert len(inside) == count > 0

    @settings(max_examples=200)
    @given(numbers, st.lists(numbers, max_size=9))
    def test_a_bin_is_narrow_beside_what_it_holds_whatever_else_there_is(self, value, others):
        """Every octave has half as many bins as bins=16 says."""
        cells = histogram_of([value, *others]).cells()
        mine = (cells.lower <= value) & (
            value <= cells.upper
        )  # on an edge two of them: the largest float has no bin above it
        assert ((cells.upper - cells.lower)[mine] <= max(abs(value) / 8, 2.0**-62)).all() and mine.any()

    @settings(max_examples=100)
    @given(st.integers(0, 2**32), st.integers(2, 5))
    def test_rows_are_histograms_of_their_own(self, seed, rows):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, 30, generator=generator) * torch.randn(rows, 1, generator=generator).mul(20).exp2()
        together, merged = Histogram(rows, 32), Histogram(rows, 32)
        for part in (x[:, :10], x[:, 10:]):
            together.add(part)
            other = Histogram(rows, 32)
            other.add(part)
            merged.merge(other)
        alone = [cells_of(histogram_of(row.tolist(), 32)) for row in x]
        expected = [(row, *cell[1:]) for row, cells in enumerate(alone) for cell in cells]
        assert cells_of(together) == cells_of(merged) == expected
        assert [cells_of_part.count.tolist() for cells_of_part in together.cells().by_row()] == [
            [cell[3] for cell in cells] for cells in alone
        ]

    def test_more_values_than_are_counted_at_a_time(self):
        x = torch.arange(2**20 + 7).remainder(4).float()
        assert histogram_of(x.tolist()).cells().count.tolist() == torch.bincount(x.int()).tolist()


class TestLinear:
    """The view that has bins of one width."""

    @settings(max_examples=300)
    @given(st.lists(numbers, min_size=1, max_size=20), st.floats(2.0**-60, 2.0**120, width=32))
    def test_a_bin_holds_the_values_that_truncate_to_its_number(self, values, limit):
        linear = histogram_of(values).cells().linear(torch.tensor([limit]))
        width = linear.width.item()
        assert math.frexp(width)[0] == 0.5 and limit / 16 < width <= limit / 8
        codes = [math.trunc(value / width) for value in values]
        inside = [code + 15 for code in codes if abs(code) < 16]
        assert linear.counts[0].tolist() == np.bincount(inside, minlength=31).tolist()
        for side, sign in zip(linear.beyond[:, 0], (-1, 1)):
            outside = [float(value) for value, code in zip(values, codes) if code * sign >= 16]
            assert side[0] == len(outside)
            assert side[1].item() == pytest.approx(sum(outside), rel=1 / 8)
            assert side[2].item() == pytest.approx(sum(value**2 for value in outside), rel=1 / 4)

    def test_edges_lie_on_multiples_of_the_width_and_bin_0_on_both_sides(self):
        histogram = Histogram(2, 4)
        histogram.add(torch.tensor([[2.5], [-5.0]]))
        edges = histogram.cells().linear(torch.tensor([2.5, 5.0])).edges
        assert edges.tolist() == [[-4, -3, -2, -1, 1, 2, 3, 4], [-8, -6, -4, -2, 2, 4, 6, 8]]

    @settings(max_examples=100)
    @given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), st.floats(0, 900), st.floats(1, 1000))
    def test_what_clipping_costs_at_least(self, values, end, limit):
        linear = histogram_of(values).cells().linear(torch.tensor([limit]))
        hi = torch.tensor([end], dtype=torch.float64)
        cost = sum(max(abs(value) - end, 0) ** 2 for value in values)
        below = [value for value in values if abs(value) >= 16 * float(linear.width)]  # of these only to a bin
        assert linear.clipped(-hi, hi).item() <= cost + sum(value**2 for value in below) / 2 + 1e-9


class TestEveryObserver:
    @pytest.mark.parametrize("name", NAMES)
    def test_seeing_nothing_is_no_range(self, name):
        for observer in (build(spec(name)), after(build(spec(name)), torch.empty(0, 3))):
            assert observer.seen == 0
            with pytest.raises(ValueError, match=rf"{type(observer).__name__} has seen no data: .* Calibrate first"):
                observer.qparams()

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        ("value", "symmetric"),
        [(0.0, False), (0.0, True), (1.7, False), (-1.7, False), (-1.7, True), (1e-20, True), (1e20, False)],
    )
    def test_a_constant_has_a_grid_that_holds_it(self, name, value, symmetric):
        qp = after(build(spec(name, signed=True, symmetric=symmetric)), torch.full((40,), value)).qparams()
        assert fake_quantize(torch.tensor(value), qp).item() == pytest.approx(value, rel=0.01, abs=qp.scale.item() / 2)

    @pytest.mark.parametrize("name, kind, bits", SQUARE)
    def test_the_range_lies_within_the_data_and_their_grid_is_valid(self, name, kind, bits):
        x = data(kind, 500)
        observer = after(build(spec(name, bits=bits)), x)
        lo, hi = observer.range()
        assert min(float(x.min()), 0) - 1e-6 <= lo <= hi <= max(float(x.max()), 0) + 1e-6
        qp = observer.qparams()
        assert qp.scale.shape == () and qp.bits == bits
        if kind == "relu":
            assert qp.zero_point == 0
        if kind == "negative":
            assert qp.zero_point == qp.qmax

    @pytest.mark.parametrize("name", NAMES)
    def test_per_channel_is_each_channel_alone(self, name):
        x = torch.randn(5, 3, 40) * torch.tensor([0.01, 1.0, 300.0])[:, None]
        qp = after(build(spec(name, granularity=PerChannel(-2))), x[:2], x[2:]).qparams()
        assert qp.granularity == PerChannel(1) and qp.scale.shape == (3,)
        if name == "moving_average":
            return
        for channel in range(3):
            twice = x[:, channel].reshape(1, -1).expand(2, -1)  # one row alone would get finer bins
            alone = after(build(spec(name, granularity=PerChannel(0))), twice).qparams()
            assert alone.scale[0] == qp.scale[channel] and alone.zero_point[0] == qp.zero_point[channel]

    @pytest.mark.parametrize("name", [name for name in NAMES if name != "moving_average"])
    def test_order_and_size_of_the_batches_do_not_matter(self, name):
        x = data("heavy", 999)
        one = after(build(spec(name)), x)
        many = after(build(spec(name)), *x.flip(0).split(100))
        assert many.seen == one.seen == 999 and many.qparams() == one.qparams()

    @pytest.mark.parametrize("name", [name for name in NAMES if name != "moving_average"])
    @pytest.mark.parametrize("granularity", [PerChannel(0), QuantSpec().granularity])
    def test_merging_two_observers_is_seeing_both_halves(self, name, granularity):
        x = torch.randn(4, 100).exp()
        form = spec(name, granularity=granularity)
        left, right, empty = after(build(form), x[:, :30]), after(build(form), x[:, 30:]), build(form)
        for part in (left, right, build(form)):
            empty.merge(part)
        assert empty.seen == 400 and empty.qparams() == after(build(form), x).qparams()
        assert left.seen == 120 and left.qparams() == after(build(form), x[:, :30]).qparams()  # is not touched

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("granularity", [PerChannel(0), QuantSpec().granularity])
    def test_what_was_seen_without_autograd_serves_training(self, name, granularity):
        observer = build(spec(name, granularity=granularity))
        with torch.inference_mode():
            observer(torch.randn(3, 8))
            grid = observer.qparams()
        observer(torch.randn(3, 8) * 2)
        x = torch.randn(3, 8, requires_grad=True)
        for qp in (grid, observer.qparams()):
            fake_quantize(x, qp).square().sum().backward()
        assert x.grad.any()

    @pytest.mark.parametrize("name", NAMES)
    def test_reset_forgets_everything(self, name):
        observer = after(build(spec(name)), torch.full((3, 2), 1000.0))
        observer.reset()
        assert observer.seen == 0
        x = torch.randn(5)
        assert after(observer, x).qparams() == after(build(spec(name)), x).qparams()

    @pytest.mark.parametrize("name", NAMES)
    def test_a_copy_goes_its_own_way(self, name):
        observer = after(build(spec(name)), torch.ones(3))
        before = observer.qparams()
        after(copy.deepcopy(observer), torch.full((30,), 9.0))
        assert observer.qparams() == before

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        "make",
        [
            lambda x: x.contiguous(memory_format=torch.channels_last),
            lambda x: x.transpose(0, 3),
            lambda x: x[:, :, ::2],
            lambda x: x.double(),
            lambda x: x.half().float(),
            lambda x: x.requires_grad_(),
        ],
    )
    def test_strides_and_types_do_not_matter(self, name, make):
        x = make(torch.randn(3, 4, 5, 6))
        qp = after(build(spec(name)), x).qparams()
        assert qp == after(build(spec(name)), x.detach().float().contiguous()).qparams()
        assert not qp.scale.requires_grad

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_halves_are_seen_as_they_are(self, dtype):
        x = torch.randn(500).to(dtype)
        for name in NAMES:
            assert after(build(spec(name)), x).qparams() == after(build(spec(name)), x.float()).qparams()

    def test_a_single_number_is_a_batch(self):
        assert after(MinMax(spec()), torch.tensor(2.55)).qparams().scale.item() == pytest.approx(0.01)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            ([math.nan, 1.0], "1 NaN and 0 infinite values of 2; expected finite"),
            ([math.inf, -math.inf, 0.0], "0 NaN and 2 infinite values of 3; expected finite"),
        ],
    )
    def test_nan_and_infinity_are_named_and_not_taken_in(self, name, bad, words):
        observer = after(build(spec(name)), torch.ones(4))
        before = observer.qparams()
        with pytest.raises(ValueError, match=f"{type(observer).__name__}: the data hold {words}"):
            observer(torch.tensor(bad))
        assert observer.seen == 4 and observer.qparams() == before


class TestMinMax:
    @settings(max_examples=100)
    @given(batches_of_numbers)
    def test_the_range_is_that_of_everything_seen(self, batches):
        lo, hi = after(MinMax(spec()), *(torch.tensor(batch) for batch in batches)).range()
        every = [value for batch in batches for value in batch]
        assert (lo.item(), hi.item()) == (min(every), max(every))

    def test_per_group(self):
        x = torch.randn(3, 8, 2)
        qp = after(MinMax(spec(granularity=PerGroup(4), bits=4)), x).qparams()
        groups = x.reshape(3, 4, 4)
        assert qp == choose_qparams(groups.amin(2), groups.amax(2), bits=4, granularity=PerGroup(4))
        assert qp.scale.shape == (3, 4)

    def test_weights_are_never_clipped(self):
        x = torch.randn(6, 20)
        qp = after(MinMax(WEIGHT), x).qparams()
        assert ((fake_quantize(x, qp) - x).abs().amax(1) <= qp.scale * 0.5001).all()


class TestMovingAverage:
    def test_the_average_follows_its_recurrence(self):
        observer, lo, hi = MovingAverageMinMax(spec(), momentum=0.25), None, None
        for batch in torch.randn(6, 50):
            observer(batch)
            lo = float(batch.min()) if lo is None else lo + 0.25 * (float(batch.min()) - lo)
            hi = float(batch.max()) if hi is None else hi + 0.25 * (float(batch.max()) - hi)
        assert [end.item() for end in observer.range()] == pytest.approx([lo, hi], rel=1e-5)

    def test_one_wild_batch_hardly_moves_it(self):
        observer = after(MovingAverageMinMax(spec()), *torch.rand(20, 100), torch.tensor([100.0]))
        assert observer.range()[1] < 2.1

    def test_merging_weighs_by_what_each_has_seen(self):
        left = after(MovingAverageMinMax(spec()), torch.tensor([0.0, 0.0, 4.0]))
        left.merge(after(MovingAverageMinMax(spec()), torch.tensor([8.0])))
        assert [end.item() for end in left.range()] == [2.0, 5.0]

    @pytest.mark.parametrize("momentum", [0, 1.5, -0.1, math.nan])
    def test_a_momentum_is_a_share(self, momentum):
        with pytest.raises(ValueError, match=f"momentum={momentum}: expected a share"):
            MovingAverageMinMax(spec(), momentum=momentum)


class TestPercentile:
    @settings(max_examples=150)
    @given(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
        st.sampled_from([60.0, 90.0, 99.0, 99.99]),
    )
    def test_it_is_the_percentile_to_within_a_bin(self, values, percentile):
        x = torch.tensor(values)
        observer = after(Percentile(spec(), percentile), x)
        for end, share in zip(observer.range(), (1 - percentile / 100, percentile / 100)):
            below, above = (torch.quantile(x.double(), share, interpolation=side) for side in ("lower", "higher"))
            assert below - below.abs() / 1024 - 1e-19 <= end <= above + above.abs() / 1024 + 1e-19

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=4),
        st.integers(0, 2**32),
        st.sampled_from([None, PerChannel(0)]),
    )
    def test_a_few_values_of_any_size_move_it_by_less_than_a_bin(self, outliers, seed, granularity):
        """Against the percentile of all values, sorted."""
        generator = torch.Generator().manual_seed(seed)
        rows = 1 if granularity is None else 2
        x = torch.cat([torch.randn(rows, 4000, generator=generator), torch.tensor([outliers] * rows)], 1)
        form = spec() if granularity is None else spec(granularity=granularity)
        observer = after(Percentile(form, 99.5), *x.split(1000, 1))
        precision = 1024 if granularity is None else 256
        for end, share in zip(observer.range(), (0.005, 0.995)):
            for found, row in zip(end, x.double()):
                below, above = (torch.quantile(row, share, interpolation=side).item() for side in ("lower", "higher"))
                assert below - abs(below) / precision <= found <= above + abs(above) / precision

    def test_one_value_of_a_hundred_thousand_does_not_blur_the_others(self):
        x = torch.cat([torch.randn(40_000).relu(), torch.tensor([1e5])])
        top = after(Percentile(spec()), x).range()[1].item()
        assert top == pytest.approx(x.double().quantile(0.9999).item(), abs=0.05)

    def test_100_is_min_max(self):
        x = data("heavy", 1000)
        assert after(Percentile(spec(), 100), x).qparams() == after(MinMax(spec()), x).qparams()

    def test_one_outlier_in_ten_thousand_is_left_out(self):
        assert after(Percentile(spec()), data("outlier")).range()[1] < 5

    def test_a_hundred_million_times_the_data_has_the_same_percentiles(self):
        observer = after(Percentile(spec()), data("normal"))
        before = observer.range()
        observer.histogram.counts *= 10**8
        assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(before, observer.range()))

    @pytest.mark.parametrize("percentile", [50, 0, 100.1, math.nan])
    def test_a_percentile_is_between_50_and_100(self, percentile):
        with pytest.raises(ValueError, match=f"percentile={percentile}: expected a number above 50"):
            Percentile(spec(), percentile)


class TestMSE:
    @pytest.mark.parametrize(
        ("bits", "kind", "symmetric"),  # each two of them in every pair of values
        [
            (bits, kind, (row + column) % 2 == 1)
            for row, bits in enumerate([2, 3, 4, 8])
            for column, kind in enumerate(KINDS)
        ],
    )
    def test_no_shrunken_range_has_a_smaller_error(self, bits, kind, symmetric):
        """Measured on the values themselves, within 2 %: the histogram knows them only to a bin."""
        x = data(kind)
        form = spec("mse", bits=bits, signed=symmetric, symmetric=symmetric)
        found = squared_error(x, after(MSE(form), x).qparams())
        shares = torch.linspace(0.01, 1, 60).tolist()
        lo, hi = min(float(x.min()), 0), max(float(x.max()), 0)
        tried = [(share * lo, share * hi) for share in shares]
        if not symmetric:
            tried += [(share * lo, other * hi) for share in shares[::4] for other in shares[::4]]
        best = min(squared_error(x, choose_qparams(*ends, bits, symmetric, symmetric)) for ends in tried)
        assert found <= best * 1.02

    @pytest.mark.parametrize("bits", [2, 4, 8, 16])
    @pytest.mark.parametrize("symmetric", [False, True])
    def test_the_expected_error_is_the_real_one_of_values_even_within_bins(self, bits, symmetric):
        """Every bin filled evenly: then the closed form must equal the mean over the values."""
        x = torch.linspace(-3, 5, 800_001, dtype=torch.float64)
        x = x[x.abs() > 0.01]
        observer = after(MSE(spec("mse", bits=bits, signed=True, symmetric=symmetric)), x.float())
        linear = observer.histogram.cells().linear(torch.tensor([5.0]))
        for share in (0.1, 0.4, 1.0):
            lo, hi = torch.tensor([[-3.0 * share]]), torch.tensor([[5.0 * share]])
            expected = observer._squared_error(linear, lo.double(), hi.double()).item()
            qp = choose_qparams(lo.item(), hi.item(), bits, True, symmetric)
            assert expected == pytest.approx(squared_error(x, qp), rel=0.02)

    @settings(max_examples=20, deadline=None)
    @given(
        st.integers(0, 2**32),
        st.sampled_from([2, 4, 8]),
        st.floats(1, 1e6, width=32),
        st.integers(1, 3),
        st.sampled_from(["relu", "symmetric", "rows"]),
    )
    def test_no_clipping_has_a_smaller_error_with_outliers_of_any_size(self, seed, bits, size, how_many, kind):
        """Against 100 ranges, from all of it to a millionth."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2 if kind == "rows" else 1, 5000, generator=generator)
        x = torch.cat([x.relu() if kind == "relu" else x, torch.full((len(x), how_many), size)], 1)
        symmetric = kind != "relu"
        form = spec("mse", bits=bits, signed=symmetric, symmetric=symmetric)
        form = form if kind != "rows" else QuantSpec(bits, True, True, PerChannel(0), "mse")
        lo, hi = after(MSE(form), *x.split(2000, 1)).range()
        for row, low, high in zip(x, lo, hi):
            grids = [(low.item(), high.item())]
            grids += [
                (float(row.min()) * share, float(row.max()) * share)
                for share in torch.logspace(0, -6, 100, dtype=torch.float64).tolist()
            ]
            found, *others = (squared_error(row, choose_qparams(*ends, bits, symmetric, symmetric)) for ends in grids)
            assert found <= 1.05 * min(others)

    def test_known_clipping_of_a_gaussian_at_4_bits(self):
        """The best uniform grid of 16 levels for N(0, 1) has steps of 0.3352: Max, "Quantizing for minimum
        distortion" (1960), table 2."""
        qp = after(MSE(spec("mse", bits=4)), torch.randn(400_000)).qparams()
        assert qp.scale.item() == pytest.approx(0.3352, rel=0.02)

    def test_exact_zeros_cost_nothing(self):
        """A million zeros of ReLU must not change the range that the other values ask for."""
        x = data("relu")
        few, many = (
            after(MSE(spec("mse", bits=4)), x),
            after(MSE(spec("mse", bits=4)), x, torch.zeros(1_000_000)),
        )
        assert few.qparams() == many.qparams()


class TestEntropy:
    @pytest.mark.parametrize("kind", ["normal", "relu", "heavy", "outlier", "lopsided"])
    @pytest.mark.parametrize(("bits", "signed"), [(8, False), (8, True), (4, False)])
    def test_it_is_the_divergence_written_out(self, kind, bits, signed):
        """The running sums against the pseudocode of Migacz (2017), slide 39, one bin at a time."""
        observer = after(Entropy(spec("entropy", bits=bits, signed=signed, symmetric=signed)), data(kind))
        qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        tried = torch.tensor([qmax - qmin, 400, 700, 1023], dtype=torch.float64)
        ends = observer.lo[0], observer.hi[0]
        linear = observer.histogram.cells().linear(torch.maximum(-observer.lo, observer.hi))
        ours = observer._divergence(linear, ends, tried, qmin, qmax).tolist()
        for bins, divergence in zip(tried.int().tolist(), ours):
            assert divergence == pytest.approx(_migacz(observer, linear, bins), rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("bits", [3, 4, 6, 8])
    @pytest.mark.parametrize("kind", ["relu", "heavy"])
    @pytest.mark.parametrize("size", [1e2, 1e3, 1e5, 1e30])
    def test_an_outlier_leaves_the_range_where_it_was(self, size, kind, bits):
        x = data(kind)
        without, beside = (
            after(Entropy(spec(bits=bits)), values).range()[1] for values in (x, torch.cat([x, x.new_tensor([size])]))
        )
        assert abs(beside / without - 1) < 0.25

    @pytest.mark.parametrize("size", [60.0, 1e3, 1e5, -1e5, 1e30])
    @pytest.mark.parametrize("kind", ["normal", "relu", "lopsided"])
    @pytest.mark.parametrize("bits", [4, 8])
    def test_an_outlier_of_any_size_is_clipped(self, size, kind, bits):
        x = data(kind)
        reach = max(end.abs().item() for end in after(Entropy(spec("entropy", bits=bits)), x).range())
        with_it = after(Entropy(spec("entropy", bits=bits)), torch.cat([x, torch.tensor([size])]))
        assert max(end.abs().item() for end in with_it.range()) < 1.6 * reach

    def test_rows_are_clipped_one_by_one(self):
        x = torch.stack([data("outlier"), data("outlier") * 1e-3])
        _, hi = after(Entropy(spec("entropy", granularity=PerChannel(0))), x).range()
        assert hi[0] < 20 and hi[1] == pytest.approx(hi[0].item() / 1000, rel=0.1)

    def test_with_more_levels_than_bins_nothing_is_clipped(self):
        x = data("outlier")
        assert after(Entropy(spec("entropy", bits=16)), x).qparams() == after(MinMax(spec(bits=16)), x).qparams()


def _migacz(observer, linear, bins):
    """KL divergence of one threshold, the slow way."""
    counts, width = linear.counts[0].tolist(), float(linear.width)
    zero = len(counts) // 2
    counts[zero] = 0
    ends = [max(float(observer.lo), -bins * width), min(float(observer.hi), bins * width)]
    form = observer.spec
    qp = choose_qparams(*ends, form.bits, form.signed, form.symmetric)
    inside = range(-bins + 1, bins)
    reference = {k: counts[zero + k] for k in inside}
    reference[-bins + 1] += sum(counts[: zero - bins + 1])
    reference[bins - 1] += sum(counts[zero + bins :])
    level = {}
    for k in inside:
        middle = (k + (k > 0) / 2 - (k < 0) / 2) * width
        code = math.floor(middle / float(qp.scale) + 0.5) + int(qp.zero_point)
        level[k] = min(max(code, qp.qmin), qp.qmax)
    mass, filled = {}, {}
    for k in inside:
        mass[level[k]] = mass.get(level[k], 0) + counts[zero + k]
        filled[level[k]] = filled.get(level[k], 0) + (reference[k] > 0)
    total, kept = sum(reference.values()), sum(mass.values())
    divergence = 0.0
    for k in inside:
        if reference[k]:
            candidate = max(mass[level[k]], 1e-4) / filled[level[k]] / kept
            divergence += reference[k] / total * math.log(reference[k] / total / candidate)
    return divergence


class TestBuild:
    @pytest.mark.parametrize("name", NAMES)
    def test_by_name(self, name):
        form = spec(name)
        assert type(build(form)) is OBSERVERS[name] and build(form).spec is form

    def test_dynamic_is_min_max(self):
        assert OBSERVERS["dynamic"] is MinMax

    def test_by_any_callable(self):
        assert build(spec(partial(Percentile, percentile=90))).percentile == 90

    def test_an_observer_shows_its_spec(self):
        assert repr(MinMax(spec(bits=4))).startswith("MinMax(QuantSpec(bits=4,")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: build(spec("median")),
            "observer 'median': expected one of minmax, moving_average, percentile, mse, entropy, ",
        ),
        (
            lambda: MSE(spec("mse", granularity=PerGroup(4))),
            "MSE with PerGroup(size=4): a group has too few values",
        ),
        (lambda: MinMax(spec())(torch.arange(3)), "MinMax: got torch.int64; expected a floating tensor"),
        (
            lambda: after(MinMax(WEIGHT), torch.ones(2, 3), torch.ones(3, 3)),
            "MinMax: this batch has a scale of shape (3,), those before had (2,); expected the same channels",
        ),
        (lambda: MinMax(spec()).merge(MSE(spec("mse"))), "cannot merge MSE"),
        (lambda: MinMax(spec()).merge(MinMax(spec(bits=4))), "expected the same class and spec"),
        (
            lambda: after(MinMax(WEIGHT), torch.ones(2, 3)).merge(after(MinMax(WEIGHT), torch.ones(3, 3))),
            "scales of shape (2,) and (3,) do not merge",
        ),
        (
            lambda: MinMax(spec(symmetric=True))(torch.tensor([1e300], dtype=torch.float64)),
            "expected finite float32",
        ),
        (
            lambda: after(MinMax(spec(symmetric=True)), torch.tensor([-1.0])).qparams(),
            "symmetric and unsigned with lo=-1.0",
        ),
    ],
)
def test_bad_input_is_named_with_what_was_expected(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: after(Observer(spec()), torch.ones(1)),
        lambda: Observer(spec()).range(),
        lambda: Observer(spec()).join(Observer(spec())),
    ],
)
def test_the_base_class_chooses_nothing(call):
    with pytest.raises(TypeError, match="Observer chooses nothing: use MinMax"):
        call()


def test_axes_are_counted_from_the_front_while_all_tensors_have_as_many():
    last = QuantSpec(8, granularity=PerChannel(-1))
    images, rows = torch.rand(2, 4, 3), torch.rand(2, 3)
    assert after(MinMax(last), images, images).qparams().granularity == PerChannel(2)
    assert after(MinMax(last), rows).qparams().granularity == PerChannel(1)
    mixed = after(MinMax(last), images, rows, rows)
    merged = after(MinMax(last), images)
    merged.merge(after(MinMax(last), rows, rows))
    for observer in (mixed, merged):
        grid = observer.qparams()
        assert grid.granularity == PerChannel(-1)
        assert all(fake_quantize(x, grid).shape == x.shape for x in (images, rows))
    mixed.reset()
    assert after(mixed, rows).qparams().granularity == PerChannel(1)


def test_the_grid_of_one_tensor_is_what_an_observer_that_saw_it_chooses():
    x = torch.randn(4, 500)
    for name in ("minmax", "mse"):
        for granularity in (PerTensor(), PerChannel(-2)):
            form = spec(name, granularity=granularity)
            assert grid_of(x, form) == after(build(form), x).qparams()
    with pytest.raises(ValueError, match="MinMax has seen no data"):
        grid_of(torch.empty(0, 3), spec("minmax"))
