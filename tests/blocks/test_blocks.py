"""Blocks share a scale: the bytes are those of the formats' own tools, the errors what the formats allow."""

from __future__ import annotations

import re

import gguf
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from qlab import blocks
from qlab.formats import decode, encode, largest, magnitudes

ALL = pytest.mark.parametrize("name", blocks.FORMATS)
A_FEW = settings(max_examples=20)  # of each format: an example is a thousand numbers
OF_GGUF = pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q8_0", "q4_k", "q6_k"])


def rows(seed: int, count: int = 4, columns: int = 512) -> Tensor:
    """Rows of very different size, with zeros and an outlier among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, columns, generator=generator) * 10.0 ** torch.empty(count, 1).uniform_(
        -3, 2, generator=generator
    )
    x[0, :256] = 0
    x[1, 7] *= 50
    return x


def there_and_back(x: Tensor, name: str, **options) -> Tensor:
    return blocks.dequantize(blocks.quantize(x, name, **options))


def share_of_error(x: Tensor, name: str, **options) -> float:
    return float((there_and_back(x, name, **options) - x).norm() / x.norm())


# --- laws of all formats


@ALL
@A_FEW
@given(st.integers(0, 2**31), st.sampled_from([(256,), (3, 512), (2, 2, 256)]))
def test_what_comes_back_has_the_shape_and_the_announced_size(name, seed, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    packed = blocks.quantize(x, name)
    assert blocks.dequantize(packed).shape == x.shape and blocks.dequantize(packed).dtype == torch.float32
    once = {"nvfp4": 4, "nf4": 4 + 4 * (1 - x.numel() / 64 / 256 % 1)}.get(name, 0)  # bytes a tensor, whatever its size
    assert packed.nbytes == pytest.approx(x.numel() * blocks.bits_per_weight(name) / 8 + once, abs=0.01)


@ALL
def test_zeros_stay_zeros(name):
    assert torch.equal(there_and_back(torch.zeros(2, 256), name), torch.zeros(2, 256))


@ALL
@A_FEW
@given(st.integers(0, 2**31))
def test_a_second_time_costs_little(name, seed):
    """Nothing, but for the scales' own rounding, and for a search that finds another scale as good."""
    x = there_and_back(torch.randn(4, 512, generator=torch.Generator().manual_seed(seed)), name)
    assert share_of_error(x, name) < {"q4_k": 0.04, "q6_k": 0.015, "nf4": 0.01, "nvfp4": 0.06}.get(name, 1e-3)


@ALL
@A_FEW
@given(st.integers(0, 2**31), st.integers(-3, 8))
def test_a_power_of_two_goes_through(name, seed, power):
    """But for what float16 scales can hold and NF4's mean."""
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(
        there_and_back(x * 2.0**power, name), there_and_back(x, name) * 2.0**power, rtol=2e-3, atol=2e-3
    )


@given(st.integers(0, 2**31))
def test_more_bits_lose_less(seed):
    x = torch.randn(8, 512, generator=torch.Generator().manual_seed(seed))
    order = ["q8_0", "q6_k", "mxfp6", "q4_k", "q4_0", "nvfp4", "mxfp4"]
    errors = [share_of_error(x, name) for name in order]
    assert errors == sorted(errors)


# --- bit for bit


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q8_0"])
@given(st.integers(0, 2**31))
def test_the_bytes_are_those_of_llama_cpps_own_reference(name, seed):
    x = rows(seed)
    assert np.array_equal(
        blocks.quantize(x, name).parts["bytes"].numpy(), gguf.quantize(x.numpy(), TYPES[name.upper()])
    )


TYPES = gguf.GGMLQuantizationType


@OF_GGUF
@A_FEW
@given(st.integers(0, 2**31))
def test_any_bytes_mean_what_they_mean_to_llama_cpp(name, seed):
    """Not only those that qlab would write."""
    packed = blocks.quantize(rows(seed), name)
    noise = torch.randint(
        0, 256, packed.parts["bytes"].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    with np.errstate(all="ignore"):  # a scale may be any float16, infinity and NaN among them
        back = torch.from_numpy(gguf.dequantize(noise.numpy(), TYPES[name.upper()]))
    assert torch.equal(
        blocks.dequantize(blocks.Packed(name, packed.shape, {"bytes": noise})).nan_to_num(), back.nan_to_num()
    )


@given(st.integers(0, 2**31))
def test_mxfp4_is_what_llama_cpp_makes_of_it(seed):
    """But for a weight just between two numbers: there llama.cpp goes down, and the specification to the even one."""
    x = rows(seed)
    ours, theirs = (
        there_and_back(x, "mxfp4"),
        torch.from_numpy(gguf.dequantize(gguf.quantize(x.numpy(), TYPES.MXFP4), TYPES.MXFP4)),
    )
    between = ours != theirs
    assert between.sum() < 5 and torch.equal((ours - x)[between].abs(), (theirs - x)[between].abs())


def test_an_mx_scale_is_torchs_e8m0_and_the_codes_its_small_floats():
    packed = blocks.quantize(rows(3), "mxfp8")
    scale = packed.parts["scale"].view(torch.float8_e8m0fnu).float()
    numbers = packed.parts["codes"].view(torch.float8_e4m3fn).float().unflatten(1, (-1, 32))
    assert torch.equal((numbers * scale.unsqueeze(2)).flatten(1), blocks.dequantize(packed))


# --- by hand


def test_a_block_of_mxfp4_by_hand():
    """The largest is 7: floor(log2 7) = 2, and 4 = 2**2 is the largest power of two of e2m1, so the scale is 1."""
    x = torch.tensor([[7.0, 5.0, 2.5, -0.25, 0.75, -6.0] + [0.0] * 26])
    packed = blocks.quantize(x, "mxfp4")
    assert packed.parts["scale"].tolist() == [[127]]
    assert packed.parts["codes"][0, :3].tolist() == [0x67, 0x84, 0xF2]  # 6, 4 | 2, -0 | 1, -6
    assert blocks.dequantize(packed)[0, :6].tolist() == [6, 4, 2, 0, 1, -6]


def test_a_block_of_nvfp4_by_hand():
    """The largest of the tensor is 6 * 448, so the tensor's scale is 1; the second block's is 30 / 6 = 5, an e4m3 number."""
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 16], x[0, 17] = 6 * 448, 30.0, -7.0
    packed = blocks.quantize(x, "nvfp4")
    assert packed.parts["tensor_scale"].item() == 1
    assert packed.parts["scale"].view(torch.float8_e4m3fn).float().tolist() == [[448, 5]]
    assert blocks.dequantize(packed)[0, [0, 16, 17]].tolist() == [6 * 448, 30, -7.5]


def test_nf4_has_the_papers_values():
    """QLoRA (2023), appendix E, to the digits given there."""
    paper = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert blocks.normal.VALUES.tolist() == pytest.approx(paper, abs=2e-6)


@pytest.mark.parametrize(
    "name, numbers",
    [
        ("e2m1", [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
        ("e2m3", [k / 8 for k in range(16)] + [2 + k / 4 for k in range(8)] + [4 + k / 2 for k in range(8)]),
        ("e3m2", [k / 16 for k in range(8)] + [(4 + k) / 4 * 2.0**e for e in range(-1, 5) for k in range(4)]),
    ],
)
def test_the_numbers_of_a_small_float_and_their_patterns(name, numbers):
    assert magnitudes(name).tolist() == numbers and largest(name) == numbers[-1]
    both = torch.tensor([*numbers, *(-float(n) for n in numbers)])
    assert encode(both, name).tolist() == list(range(2 * len(numbers)))
    assert torch.equal(decode(encode(both, name), name), both)


@pytest.mark.parametrize("name", ["e2m1", "e2m3", "e3m2"])
@given(st.floats(-100, 100))
def test_the_nearest_number_is_taken_and_of_two_the_even_one(name, value):
    x = torch.tensor([value])
    found = decode(encode(x, name), name)
    numbers = torch.cat([magnitudes(name), -magnitudes(name)])
    assert abs(found - x) == (numbers - x.clamp(-largest(name), largest(name))).abs().min() or abs(value) > largest(
        name
    )
    halfway = (magnitudes(name)[1:] + magnitudes(name)[:-1]) / 2
    assert (encode(halfway, name) % 2 == 0).all()


# --- a search for scales is worth it, and more so when it knows what counts


@pytest.mark.parametrize("name, plain", [("q4_k", "q4_0"), ("q6_k", None)])
def test_a_searched_scale_beats_dividing_the_range(name, plain, monkeypatch):
    x = torch.randn(16, 1024, generator=torch.Generator().manual_seed(1))
    searched = share_of_error(x, name)
    monkeypatch.setattr(blocks.superblocks, "TRIES", 0)
    assert searched < share_of_error(x, name)
    assert plain is None or searched < share_of_error(x, plain)


@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
def test_what_is_important_is_kept_better(name):
    generator = torch.Generator().manual_seed(2)
    x, importance = torch.randn(16, 512, generator=generator), torch.rand(512, generator=generator) ** 4

    def counted(**options) -> float:
        return float(((there_and_back(x, name, **options) - x).square() * importance).sum())

    assert counted(importance=importance) < 0.97 * counted()


# --- what is refused


@pytest.mark.parametrize(
    "x, name, options, words",
    [
        (torch.ones(2, 32), "q5_9", {}, "block format 'q5_9': expected one of mxfp8, mxfp8_e5m2"),
        (torch.ones(2, 48), "mxfp4", {}, "a tensor of shape (2, 48): mxfp4 needs rows of a multiple of 32 numbers"),
        (torch.tensor(1.0), "mxfp4", {}, "a tensor of shape (): mxfp4 needs rows"),
        (torch.ones(2, 0), "q4_0", {}, "a tensor of shape (2, 0)"),
        (torch.ones(2, 32, dtype=torch.int8), "q4_0", {}, "a torch.int8 tensor has codes already"),
        (torch.full((1, 32), torch.nan), "nvfp4", {}, "32 of 32 values are NaN or infinite"),
        (
            torch.ones(1, 32),
            "q4_0",
            {"importance": torch.ones(32)},
            "q4_0 looks for no scale, so an importance changes nothing",
        ),
        (torch.ones(1, 256), "q4_k", {"importance": torch.ones(32)}, "an importance of shape (32,): expected (256,)"),
        (torch.ones(1, 256), "q4_k", {"importance": -torch.ones(256)}, "none below 0"),
    ],
)
def test_what_makes_no_blocks_is_refused(x, name, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        blocks.quantize(x, name, **options)


@pytest.mark.parametrize("call", [lambda: magnitudes("e4m3"), lambda: encode(torch.tensor([torch.nan]), "e2m1")])
def test_what_is_no_small_float_is_refused(call):
    with pytest.raises(ValueError, match=r"expected one of e2m1, e2m3, e3m2|1 of 1 values are NaN"):
        call()
