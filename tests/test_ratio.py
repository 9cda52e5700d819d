"""SQNR: the share of noise, in decibel."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qlab
from qlab import analysis


@given(st.integers(0, 10**6), st.floats(-60, 60))
def test_sqnr_is_the_share_of_noise_in_decibel_whatever_the_size_of_both(seed, decibel):
    signal, noise = torch.randn(2, 100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise *= signal.norm() / noise.norm() * 10 ** (-decibel / 20)
    assert analysis.sqnr(signal, signal + noise) == pytest.approx(decibel, abs=1e-4)
    assert analysis.sqnr(1e3 * signal, 1e3 * (signal + noise)) == pytest.approx(decibel, abs=1e-4)


def test_a_bit_more_is_worth_six_decibel():
    x = torch.rand(10_000)
    values = [analysis.sqnr(x, qlab.fake_quantize(x, qlab.choose_qparams(0.0, 1.0, bits))) for bits in (4, 5, 6, 7)]
    assert all(5.5 < b - a < 6.6 for a, b in pairwise(values))


def test_no_noise_and_no_signal():
    one, none = torch.ones(3), torch.zeros(3)
    assert analysis.sqnr(one, one) == analysis.sqnr(none, none) == math.inf
    assert analysis.sqnr(none, one) == -math.inf
    with pytest.raises(ValueError, match=r"shape \(3,\) and a noisy one of shape \(2,\): expected the same tensor"):
        analysis.sqnr(one, one[:2])
