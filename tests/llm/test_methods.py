"""Ways to lose less in few bits: each keeps the function where it promises to, and helps where it says so."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from qlab import PerGroup, blocks, llm
from qlab.llm.activation_aware import best_scale, scale_of
from qlab.llm.cache import CacheBits, quantized_cache, rounded
from qlab.llm.layers import round_weight
from qlab.llm.rotation import rotation


@pytest.fixture(scope="module")
def model():
    return llm.tiny()


@pytest.fixture(scope="module")
def seen() -> Tensor:
    """What is calibrated on."""
    return llm.windows("train", 4, length=96)


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    return llm.windows("test", 12, length=96)


def logits(model: nn.Module, windows: Tensor, **options) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=windows[:, :-1], **options).logits.float()


# --- blocks in a model


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "nf4", "q4_0", "q8_0"])
def test_a_model_in_blocks_computes_with_the_blocks_values(model, held_out, name):
    small = llm.weight_only(model, format=name)
    layer, before = small.model.layers[1].mlp.gate_proj, model.model.layers[1].mlp.gate_proj
    assert isinstance(layer, llm.BlockLinear) and layer.format == name
    assert torch.equal(layer.weight_rows(), blocks.dequantize(blocks.quantize(before.weight, name)))
    assert 0 < llm.kl_divergence(model, small, held_out) < 0.06
    assert torch.equal(model.model.layers[1].mlp.gate_proj.weight, before.weight), "the float model stays as it is"


def test_more_bits_are_nearer_to_the_float_model(model, held_out):
    apart = [
        llm.kl_divergence(model, llm.weight_only(model, format=name), held_out)
        for name in ("q8_0", "mxfp6", "q4_1", "mxfp4")
    ]
    assert apart == sorted(apart)


def test_a_row_that_makes_no_block_of_256_gets_the_smaller_one(model):
    assert llm.weight_only(model, format="q4_k").model.layers[0].self_attn.q_proj.format == "q5_0"  # 192 inputs
    assert llm.weight_only(model, format="q4_k").model.layers[0].mlp.down_proj.format == "q4_k"  # 512


def test_a_model_in_llama_cpps_blocks_is_saved_as_it_is(model, held_out, tmp_path):
    small = llm.weight_only(model, format="q4_0")
    back = llm.load(llm.save_gguf(small, tmp_path / "small.gguf", "Q4_0"))
    assert torch.allclose(logits(back, held_out), logits(small, held_out), atol=1e-4)


def test_what_llama_cpp_has_no_blocks_for_is_not_saved(model, tmp_path):
    with pytest.raises(ValueError, match="q_proj is in nf4, which llama.cpp has not: expected q8_0"):
        llm.save_gguf(llm.weight_only(model, format="nf4"), tmp_path / "small.gguf", "Q4_0")


# --- importance, AWQ


def test_an_importance_is_the_mean_square_of_what_enters(model, seen):
    name = "model.layers.2.mlp.up_proj"
    inputs = llm.layer_inputs(model, name, seen)
    assert torch.allclose(llm.importance(model, seen)[name], inputs.square().mean(0), rtol=1e-4)


def test_awq_changes_no_output_and_loses_less_where_channels_differ(model, seen, held_out):
    """The tiny model's own channels are much alike, and there is little to gain; so some are made larger."""

    def in_groups(weight: Tensor) -> Tensor:
        return round_weight(weight, 3, PerGroup(64))

    with_outliers = llm.inject(model, channels=16, factor=16.0)
    scaled = llm.awq(with_outliers, seen, in_groups)
    assert torch.allclose(logits(scaled, held_out), logits(model, held_out), atol=5e-3)
    plain, better = (llm.rounded(each, 3, PerGroup(64)) for each in (with_outliers, scaled))
    assert llm.kl_divergence(model, better, held_out) < 0.7 * llm.kl_divergence(model, plain, held_out)


def test_the_search_never_does_worse_than_no_scale():
    draw = torch.Generator().manual_seed(0)
    weight, inputs = (
        torch.randn(32, 64, generator=draw),
        torch.randn(500, 64, generator=draw) * torch.rand(64, generator=draw) ** 4,
    )

    def rounding(w: Tensor) -> Tensor:
        return round_weight(w, 3, PerGroup(64))

    scale = best_scale([weight], inputs.T @ inputs / 500, rounding)
    errors = [(inputs @ (rounding(weight * s) / s - weight).T).square().sum() for s in (scale, torch.ones(64))]
    assert errors[0] < errors[1] and scale.log().mean().abs() < 1e-5


def test_alpha_0_scales_nothing_and_alpha_1_makes_inputs_alike():
    squares = torch.tensor([1.0, 100.0, 0.01])
    assert torch.equal(scale_of(squares, 0.0), torch.ones(3))
    assert torch.allclose((squares.sqrt() / scale_of(squares, 1.0)).diff(), torch.zeros(2), atol=1e-6)


@pytest.mark.parametrize("method", ["awq", "importance"])
def test_a_method_helps_in_a_block_format(model, seen, held_out, method):
    """Averaged over the decoder, where only down_proj has rows for q4_k here: so for AWQ mxfp4 is taken."""
    name = "q4_k" if method == "importance" else "mxfp4"
    plain, better = (
        llm.weight_only(model, format=name),
        llm.weight_only(model, windows=seen, format=name, method=method),
    )
    assert llm.kl_divergence(model, better, held_out) < 1.02 * llm.kl_divergence(model, plain, held_out)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"method": "hqq"}, "method 'hqq': expected one of gptq, awq, importance"),
        ({"method": "awq"}, "method 'awq' calibrates: give it windows of tokens"),
        ({"format": "nvfp5"}, "block format 'nvfp5': expected one of mxfp8"),
        ({"format": "nvfp4", "windows": True}, "windows change nothing in format 'nvfp4' without a method"),
        ({"format": "nvfp4", "windows": True, "method": "gptq"}, "GPTQ rounds to equal steps here"),
        ({"format": "nvfp4", "windows": True, "method": "importance"}, "which 'nvfp4' has not: q4_k, q6_k have one"),
        ({"windows": True, "method": "importance"}, "which None has not"),
    ],
)
def test_what_does_not_go_together_is_refused(model, seen, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        llm.weight_only(model, **{**options, **({"windows": seen} if "windows" in options else {})})


# --- rotations


@pytest.mark.parametrize("size", [1, 2, 64, 96, 192, 576])
def test_a_rotation_keeps_lengths_and_spreads_a_channel_evenly(size):
    q = rotation(size)
    assert torch.allclose(q @ q.T, torch.eye(size, dtype=torch.float64))
    assert q.abs().max() <= (size & -size) ** -0.5 + 1e-9, "a channel spreads over the Hadamard matrix at least"


@pytest.mark.parametrize("size", [3, 0, 15])
def test_an_odd_size_is_refused(size):
    with pytest.raises(ValueError, match=f"size={size}: expected an even number"):
        rotation(size)


def test_a_rotated_model_says_the_same_and_has_no_outliers(model, seen, held_out):
    with_outliers = llm.inject(model, factor=64.0)
    turned = llm.rotate(with_outliers)
    assert torch.allclose(logits(turned, held_out), logits(model, held_out), atol=1e-3)
    assert turned.lm_head.weight is not turned.model.embed_tokens.weight

    def peak(each: nn.Module) -> float:
        """The largest input of a layer beside the mean magnitude, over the layers that read the residual stream."""
        found = llm.layer_inputs(each, "model.layers.2.mlp.gate_proj", seen).abs()
        return float(found.max() / found.mean())

    assert peak(turned) < peak(with_outliers) / 10
    losses = [llm.kl_divergence(model, llm.dynamic(each), held_out) for each in (with_outliers, turned)]
    assert losses[1] < losses[0] / 20, "W8A8, a scale a token"


# --- the cache


def through(model: nn.Module, windows: Tensor, bits: CacheBits) -> Tensor:
    return logits(model, windows, past_key_values=quantized_cache(bits), use_cache=True)


def test_a_cache_in_float_changes_nothing(model, held_out):
    assert torch.equal(through(model, held_out, CacheBits(None, None)), logits(model, held_out, use_cache=False))


def test_fewer_bits_lose_more_and_the_window_keeps_the_newest(model, held_out):
    float_, errors = logits(model, held_out, use_cache=False), []
    for bits in (8, 4, 2):
        errors.append(float((through(model, held_out, CacheBits(bits, bits)) - float_).norm()))
    assert 0 < errors[0] < errors[1] < errors[2]
    all_in_the_window = through(model, held_out, CacheBits(2, 2, window=96))
    assert torch.equal(all_in_the_window, float_)


def test_one_token_after_the_other_is_what_reading_at_once_gives(model, held_out):
    """Where nothing lies in the window at the end."""
    bits, tokens = CacheBits(4, 4, group=16, window=0), held_out[:1, :64]
    cache = quantized_cache(bits)
    with torch.inference_mode():
        for token in tokens.T:
            model(input_ids=token[None], past_key_values=cache, use_cache=True)
    at_once = quantized_cache(bits)
    with torch.inference_mode():
        model(input_ids=tokens, past_key_values=at_once, use_cache=True)
    first, second = (each.layers[0] for each in (cache, at_once))  # the first layer's inputs are the same
    assert first.settled == second.settled == 64
    assert torch.allclose(first.keys, second.keys, atol=1e-4) and torch.allclose(first.values, second.values, atol=1e-4)


def test_keys_share_a_scale_along_their_channel_and_values_along_their_token():
    x = torch.randn(1, 2, 32, 8, generator=torch.Generator().manual_seed(0))
    outlier = x.clone()
    outlier[0, 0, :, 3] *= 100
    by_channel, by_token = rounded(outlier, 4, 2, 32), rounded(outlier, 4, 3, 8)
    others = [0, 1, 2, 4, 5, 6, 7]
    error = [float((each - outlier)[0, 0][:, others].norm()) for each in (by_channel, by_token)]
    assert error[0] < error[1] / 4, "an outlier channel has its own scale, and leaves the others alone"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"keys": 1}, "keys=1: expected 2 to 8 bits"),
        ({"values": 9}, "values=9: expected 2 to 8 bits"),
        ({"keys_by": "row"}, "keys_by='row': expected 'channel' or 'token'"),
        ({"group": 0}, "group=0, window=32: expected at least 1"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        CacheBits(**options)


# --- judging


def test_flips_are_counted_against_the_float_model(model, held_out):
    assert 0 < llm.flips(model, llm.rounded(model, 3), held_out) < 30
    assert llm.flips(model, llm.rounded(model, 8), held_out) < 2
