"""Grids that are not equal steps: each function against the definition, or against every other choice."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spread import squared_error, weights
from torch import Tensor

import qlab
from qlab import PerChannel, PerGroup, PerTensor, codebook, formats


@given(weights, st.floats(0.0, 3.0))
def test_no_other_scale_of_the_signs_is_nearer_than_the_mean_magnitude(w, factor):
    codes, grid = codebook.binary(w, PerTensor())
    assert set(codes.unique().tolist()) <= {-1, 1}
    best = squared_error(w, codes * grid.scale)
    assert best <= squared_error(w, codes * (factor * grid.scale)) * (1 + 1e-6)


@given(weights)
def test_the_ternary_scale_is_the_best_for_its_codes(w):
    codes, grid = codebook.ternary(w, PerTensor())
    chosen = codes != 0
    assert float(grid.scale) == pytest.approx(float(w[chosen].abs().mean()), rel=1e-5)
    assert bool((w[chosen].sign() == codes[chosen]).all())
    assert float(w[chosen].abs().min()) > 0.7 * float(w.abs().mean()) >= _largest(w[~chosen])


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


@given(st.integers(0, 10**6), st.booleans())
def test_seven_tenths_of_the_mean_is_near_the_best_threshold(seed, uniform):
    """Against every possible threshold, on the two spreads for which Li and Liu derive it."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.rand(400, generator=generator) * 2 - 1 if uniform else torch.randn(400, generator=generator)
    magnitudes = w.abs().sort(descending=True).values
    kept = torch.arange(1, 401)
    # with the best scale the error is ||w||**2 - (sum of what is kept)**2 / how many are kept
    best = float(w.square().sum() - (magnitudes.cumsum(0).square() / kept).max())
    codes, grid = codebook.ternary(w, PerTensor())
    assert best - 1e-3 <= squared_error(w, codes * grid.scale) <= 1.08 * best


@given(weights, st.integers(1, 4))
def test_each_round_of_lloyd_lowers_the_error_and_the_first_beats_even_steps(w, bits):
    errors = []
    for iterations in (0, 1, 2, 5, 100):
        centroids, codes = codebook.kmeans(w, bits, iterations=iterations)
        errors.append(squared_error(w, codebook.look_up(centroids, codes)))
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(errors))
    even = torch.linspace(float(w.min()), float(w.max()), 2**bits)
    nearest = (w.reshape(-1, 1) - even).abs().amin(1)
    assert errors[0] == pytest.approx(float(nearest.double().square().sum()), rel=1e-3), "the start: even steps"
    assert errors[-1] < errors[0]


@given(weights, st.integers(1, 4))
def test_a_table_that_starts_from_the_values_of_a_grid_is_never_worse_than_the_grid(w, bits):
    grid = qlab.choose_qparams(w.min(), w.max(), bits=bits)
    values = qlab.dequantize(torch.arange(2**bits), grid)
    error = squared_error(w, codebook.look_up(*codebook.kmeans(w, bits, start=values.flip(0))))
    assert error <= squared_error(w, qlab.fake_quantize(w, grid)) * (1 + 1e-6)


@given(weights, st.integers(1, 4), st.sampled_from([PerTensor(), PerChannel(0), PerGroup(9)]))
def test_each_value_has_its_nearest_centroid_and_each_centroid_its_members_mean(w, bits, granularity):
    centroids, codes = codebook.kmeans(w, bits, granularity)
    tables = centroids.reshape(-1, 2**bits)
    rows, members = w.reshape(len(tables), -1), codes.reshape(len(tables), -1).long()
    for row, table, member in zip(rows, tables, members):
        distance = (row[:, None] - table).abs()
        assert torch.allclose(distance.gather(1, member[:, None])[:, 0], distance.amin(1), rtol=1e-4, atol=1e-6)
        for code in member.unique():
            mean = float(row[member == code].double().mean())
            assert float(table[code]) == pytest.approx(mean, rel=1e-4, abs=1e-5 * float(w.abs().max()))


def test_enough_values_in_the_table_make_no_error():
    w = torch.tensor([[-1.0, 0.25, 1.0, 2.0]]).repeat(3, 5)
    centroids, codes = codebook.kmeans(w, 2)
    assert torch.equal(codebook.look_up(centroids, codes), w)
    same, _ = codebook.kmeans(torch.full((5,), 2.5), 3)
    assert torch.equal(same, torch.full((8,), 2.5))


def values_of(exponent_bits: int, mantissa_bits: int, bias: int, largest: float) -> Tensor:
    """Every positive value of an 8-bit float, from its definition (OCP specification, section 5)."""
    values = {0.0}
    for exponent in range(2**exponent_bits):
        for mantissa in range(2**mantissa_bits):
            share = mantissa / 2**mantissa_bits
            values.add(share * 2.0 ** (1 - bias) if exponent == 0 else (1 + share) * 2.0 ** (exponent - bias))
    return torch.tensor(sorted(value for value in values if value <= largest), dtype=torch.float64)


EIGHT_BITS = {"e4m3": values_of(4, 3, 7, 448.0), "e5m2": values_of(5, 2, 15, 57344.0)}


@pytest.mark.parametrize("format, count", [("e4m3", 127), ("e5m2", 124)])
def test_an_8_bit_float_has_the_values_of_its_definition_and_rounds_to_the_nearest(format, count):
    table = EIGHT_BITS[format]
    assert len(table) == count
    assert torch.equal(codebook.round_to_float(table.float(), format).double(), table)
    between = (table[1:] * 0.51 + table[:-1] * 0.49).float()
    assert torch.equal(codebook.round_to_float(between, format).double(), table[1:])
    middle = ((table[1:] + table[:-1]) / 2).float()
    even = torch.where(torch.arange(len(middle)) % 2 == 0, table[:-1], table[1:])
    assert torch.equal(codebook.round_to_float(-middle, format).double(), -even), "halves to the even one"


@given(st.floats(width=32, allow_nan=False), st.sampled_from(sorted(formats.FORMATS)))
def test_a_smaller_float_is_torchs_cast_within_its_range_and_its_largest_beyond(x, format):
    dtype = formats.FORMATS[format]
    largest = torch.finfo(dtype).max
    expected = torch.tensor(x).to(dtype).float() if abs(x) <= largest else torch.tensor(x).sign() * largest
    assert float(codebook.round_to_float(torch.tensor(x), format)) == float(expected)


def test_nan_stays_nan():
    assert codebook.round_to_float(torch.tensor([float("nan")]), "e4m3").isnan().all()


def test_a_table_is_for_a_tensor_a_channel_or_a_group():
    with pytest.raises(ValueError, match=r"PerChannel\(axis=1\): expected PerTensor\(\), PerChannel\(0\)"):
        codebook.kmeans(torch.ones(2, 2), 2, PerChannel(1))
