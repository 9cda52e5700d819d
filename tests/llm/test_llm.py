"""Language models: integer weights cost what they should, the function stays where it must, errors say what to do."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qlab
from qlab import PerChannel, PerGroup, PerTensor, llm
from qlab.extras import remedy
from qlab.files import read_tensors, sha256, write_tensors
from qlab.int8 import engines
from qlab.llm import gptq, granite, measure, outliers, stages, text
from qlab.llm.families import FAMILIES
from qlab.llm.layers import DynamicLinear, WeightOnlyEmbedding, WeightOnlyLinear, round_weight, weight_qparams
from qlab.sizes import memory_bytes

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "attention_multiplier": 1 / 16, "initializer_range": 0.15}


@pytest.fixture(scope="module")
def model():
    """A small Granite with random weights."""
    torch.manual_seed(0)
    return llm.build(llm.config(**SMALL))


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (4, 33), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits.float()


def error(model: nn.Module, other: nn.Module, tokens: torch.Tensor) -> float:
    """The squared error of the other's answers, relative to the model's."""
    right = logits(model, tokens)
    return float((logits(other, tokens) - right).square().sum() / right.square().sum())


# --- text


def test_the_splits_hold_the_whole_library_and_share_no_file():
    names = [name for split in text.SPLITS for name, _ in text.files(split)]
    assert len(names) == len(set(names)) > 200
    assert all(text.split_of(name) == "test" for name, _ in text.files("test"))
    sizes = {split: len(llm.corpus(split)) for split in text.SPLITS}
    assert sizes["train"] > 10 * sizes["test"] > 100_000 and sizes["validation"] > 50_000


def test_windows_are_pieces_of_the_text_spread_over_all_of_it():
    pieces = llm.windows("validation", 5, 16)
    data = llm.corpus("validation")
    assert pieces.shape == (5, 17) and pieces.dtype is torch.int64
    assert pieces[0].tolist() == data[:17].tolist() and pieces[-1].tolist() == data[-17:].tolist()


def test_what_is_wrong_with_a_text_is_said(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="split 'dev': expected one of train, validation, test"):
        llm.corpus("dev")
    with pytest.raises(ValueError, match="0 windows"):
        llm.windows("test", 0)
    monkeypatch.setattr(text.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(ValueError, match="no source of the standard library"):
        text.files("test")


def test_line_ends_are_the_same_on_every_system(tmp_path):
    (tmp_path / "a.py").write_bytes(b"x\r\ny\n")
    assert text._read(tmp_path / "a.py") == b"x\ny\n"


# --- layers


@pytest.mark.parametrize(
    "bits, granularity, rate", [(8, PerChannel(0), 0.25 + 1 / 128 / 2), (4, PerGroup(64), 0.125 + 3 / 64 / 4)]
)
def test_codes_hold_the_rounded_weight_in_few_bytes(bits, granularity, rate):
    weight = torch.randn(32, 128)
    layer = WeightOnlyLinear.from_weight(weight, bits, granularity)
    assert torch.equal(layer.weight_rows(), round_weight(weight, bits, granularity))
    rows = torch.tensor([3, 3, 31])
    assert torch.equal(layer.weight_rows(rows), layer.weight_rows()[rows])
    x = torch.randn(2, 5, 128)
    assert torch.allclose(layer(x), F.linear(x, layer.weight_rows()))
    assert memory_bytes(layer) == weight.numel() * 4 * rate
    assert f"128 -> 32, {bits} bits" in repr(layer)


def test_rounding_is_off_by_half_a_step_at_most():
    weight = torch.randn(16, 128)
    for bits, granularity in ((8, PerChannel(0)), (4, PerGroup(64)), (3, PerGroup(32)), (2, PerGroup(128))):
        qp = weight_qparams(weight, bits, granularity)
        off = granularity.blocks((round_weight(weight, bits, granularity) - weight).abs()).amax(-1)
        # bfloat16 has 8 digits: a scale that was rounded down puts the largest value a little beyond the last code
        assert bool((off <= 0.5 * qp.scale.flatten() + 2**-8 * 2**bits * qp.scale.flatten()).all())


@pytest.mark.parametrize("bits, granularity", [(8, PerGroup(64)), (4, PerChannel(0)), (5, PerGroup(64))])
def test_what_has_no_storage_is_refused(bits, granularity):
    with pytest.raises(ValueError, match=rf"{bits} bits, .*signed, Per.*: no storage for these codes. Expected 8 bits"):
        WeightOnlyLinear.from_weight(torch.randn(16, 64), bits, granularity)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1), PerChannel(-1)])
def test_weights_have_a_scale_for_each_row_or_group(granularity):
    for refused in (llm.quantize_weight, lambda w, bits, shared: gptq.gptq_quantize(w, torch.eye(64), bits, shared)):
        with pytest.raises(ValueError, match=r"Per.*: expected PerChannel\(0\), one scale a row, or PerGroup\(size\)"):
            refused(torch.randn(16, 64), 8, granularity)


def test_rows_counted_from_the_end_are_the_same_rows():
    weight = torch.randn(16, 64)
    (codes, grids), (others, same) = (llm.quantize_weight(weight, 8, PerChannel(axis)) for axis in (0, -2))
    assert torch.equal(codes, others) and grids == same
    layer = WeightOnlyLinear(codes, replace(grids, granularity=PerChannel(-2)))
    assert torch.equal(layer.weight_rows(), qlab.dequantize(codes, grids))


def test_weights_are_rounded_as_those_of_any_other_network():
    """One scale a row: the grids are a QConfig's, but for scales in bfloat16."""
    weight = torch.randn(16, 64)
    for bits in (3, 8):
        spec = replace(qlab.QConfig.w8a8().weight, bits=bits)
        expected, found = qlab.observers.grid_of(weight, spec), weight_qparams(weight, bits)
        assert found == replace(expected, scale=expected.scale.to(torch.bfloat16).float())


def test_groups_that_do_not_divide_the_rows_are_refused():
    for refused in (llm.quantize_weight, lambda w, bits, group: gptq.gptq_quantize(w, torch.eye(64), bits, group)):
        with pytest.raises(ValueError, match="group size 48 does not divide the 64 values a row"):
            refused(torch.randn(16, 64), 4, PerGroup(48))


def test_codes_of_gptq_that_have_no_storage_are_refused_too(model, tokens):
    with pytest.raises(ValueError, match="5 bits, unsigned, .*no storage for these codes"):
        llm.weight_only(model, 5, 64, windows=tokens)


def test_inputs_are_rounded_token_by_token():
    layer = DynamicLinear.from_weight(torch.randn(16, 64))
    x = torch.randn(6, 64)
    x[0] *= 1000  # another token's size changes nothing
    together, alone = layer(x), torch.cat([layer(row[None]) for row in x])
    assert torch.allclose(together, alone, rtol=1e-6)
    expected = F.linear(x, layer.codes * layer.scale[:, None])
    step = x.abs().amax(1, keepdim=True) / 127
    bound = 0.5 * step * (layer.codes.abs() * layer.scale[:, None]).sum(1)
    assert bool(((layer(x) - expected).abs() <= bound * 1.0001).all()) and not torch.allclose(layer(x), expected)
    assert bool((layer(torch.zeros(1, 64)) == 0).all())


def outlier_in_channel_7() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and inputs; where the inputs are large the weights are so small that their int8 codes are 0."""
    weight, x = torch.randn(16, 64), torch.randn(5, 64)
    x[2, 7] = 1000.0
    weight[:, 7] /= 1000
    return weight, x


def test_channels_beyond_the_threshold_are_multiplied_by_float_weights():
    weight, x = outlier_in_channel_7()
    mixed = DynamicLinear.from_weight(weight, threshold=6.0)
    assert bool((mixed.codes[:, 7] == 0).all()) and torch.equal(mixed.weight, weight)
    alone = torch.zeros(1, 64)
    alone[0, 7] = 1000.0
    assert torch.equal(mixed(alone), 1000 * weight[:, 7][None]) and mixed.in_float == 1
    plain = DynamicLinear.from_weight(weight)
    others = x.clone()
    others[:, 7] = 0
    assert torch.allclose(mixed(x), plain(others) + x[:, 7:8] * weight[:, 7], rtol=1e-5, atol=1e-5)
    assert (mixed(x) - F.linear(x, weight)).abs().max() < 0.1 * (plain(x) - F.linear(x, weight)).abs().max()
    assert "channels above 6 in float" in repr(mixed)
    assert torch.allclose(mixed(x[:2]), plain(x[:2]), atol=1e-5) and mixed.in_float == 0


def test_on_kernels_too_outliers_meet_float_weights():
    weight, x = outlier_in_channel_7()
    mixed = DynamicLinear.from_weight(weight, threshold=6.0)
    bytes_before, expected = memory_bytes(mixed), mixed(x)
    assert torch.allclose(mixed.use_kernel()(x), expected, rtol=0.05, atol=0.2) and mixed.in_float == 1
    assert memory_bytes(mixed) == bytes_before - 2 * weight.numel(), "the float weights are bfloat16 now"


def test_a_threshold_needs_the_float_weight():
    codes, grids = llm.quantize_weight(torch.randn(16, 64))
    for weight, found in ((None, "none"), (torch.randn(64, 16), r"one of \(64, 16\)")):
        with pytest.raises(
            ValueError, match=rf"threshold=6, and of float weights {found}: expected those of the codes"
        ):
            DynamicLinear(codes, grids, 6.0, weight)


# --- kernels


def test_the_integer_kernel_computes_the_integers():
    layer = DynamicLinear.from_weight(torch.randn(48, 96))
    x = torch.randn(7, 96)
    exact, bits = layer(x), 7 if engines.availability("onednn_plain").saturates else 8
    codes, size = layer.codes, memory_bytes(layer)
    y = layer.use_kernel()(x)
    assert memory_bytes(layer) == size
    step = x.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    expected = F.linear((x / step).round(), codes.float()) * step * layer.scale
    assert torch.allclose(y, expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(y, exact, atol=0.05 * float(exact.abs().max()))


def test_without_onednn_torchs_own_integer_product_gives_the_same(monkeypatch):
    layer = DynamicLinear.from_weight(torch.randn(16, 64))
    x = torch.randn(20, 64)
    exact = layer(x)
    nothing = engines.Availability("onednn_plain", False, "taken away")
    monkeypatch.setattr(engines.matmul, "availability", lambda name: nothing)
    assert torch.allclose(layer.use_kernel()(x), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not engines.has_weight_products(), reason="this torch has no weight-only kernels here")
@pytest.mark.parametrize("bits, granularity", [(8, PerChannel(0)), (4, PerGroup(32)), (4, PerGroup(64))])
def test_the_weight_only_kernels_agree_with_the_floats(bits, granularity):
    layer = WeightOnlyLinear.from_weight(torch.randn(32, 128), bits, granularity)
    x = torch.randn(2, 3, 128).to(torch.bfloat16)
    expected, before = layer(x.float()), memory_bytes(layer)
    y = layer.use_kernel()(x)
    assert layer.on_kernel and y.dtype is torch.bfloat16 and y.shape == (2, 3, 32)
    assert (y.float() - expected).abs().max() < 0.02 * expected.abs().max()
    assert memory_bytes(layer) <= before + 2 * granularity.blocks(torch.empty(32, 128)).shape[0]


def test_without_kernels_a_layer_computes_in_bfloat16_all_the_same(monkeypatch):
    def missing(*arguments):
        raise RuntimeError("no such kernel")

    engines.has_weight_products.cache_clear()
    monkeypatch.setattr(engines.matmul, "int8_weight_product", missing)
    try:
        assert not engines.has_weight_products()
        layer = WeightOnlyLinear.from_weight(torch.randn(32, 128), 4, PerGroup(64)).use_kernel()
        assert not layer.on_kernel and layer(torch.randn(1, 128).to(torch.bfloat16)).dtype is torch.bfloat16
    finally:
        engines.has_weight_products.cache_clear()


# --- whole models


def test_more_bits_mean_less_error_and_more_bytes(model, tokens):
    eight, four = llm.weight_only(model), llm.weight_only(model, 4)
    assert error(model, eight, tokens) < 1e-3 < error(model, four, tokens) < 0.5
    floats = memory_bytes(model)
    assert 0.25 < memory_bytes(eight) / floats < 0.27 and 0.14 < memory_bytes(four) / floats < 0.17
    assert sum(isinstance(m, WeightOnlyLinear) for m in eight.modules()) == 15  # 7 a layer, and the last one
    assert eight.model.embed_tokens.rows is eight.lm_head and isinstance(model.lm_head, nn.Linear)


def test_the_decoder_alone_is_rounded_to_any_number_of_bits(model, tokens):
    errors = [error(model, llm.rounded(model, bits, PerGroup(64)), tokens) for bits in (6, 4, 3, 2)]
    assert errors == sorted(errors) and errors[0] > 0
    assert torch.equal(llm.rounded(model, 4).lm_head.weight, model.lm_head.weight)


def test_the_embedding_of_an_untied_model_has_its_own_codes(tokens):
    model = llm.build(llm.config(**SMALL, tie_word_embeddings=False))
    quantized = llm.weight_only(model)
    assert quantized.model.embed_tokens.rows is not quantized.lm_head
    assert error(model, quantized, tokens) < 1e-3


def test_w8a8_is_nearly_the_model(model, tokens):
    quantized = llm.dynamic(model)
    assert 0 < error(model, quantized, tokens) < 5e-3
    assert sum(isinstance(m, DynamicLinear) for m in quantized.modules()) == 14


@pytest.mark.parametrize("make", [llm.weight_only, lambda m: llm.weight_only(m, 4), llm.dynamic, lambda m: m])
def test_in_bfloat16_a_model_says_nearly_the_same(model, tokens, make):
    floats = make(model)
    fast = llm.as_bfloat16(floats)
    assert error(floats, fast, tokens) < 5e-3
    assert fast.dtype is torch.bfloat16 and floats.dtype is torch.float32
    assert fast.model.rotary_emb.inv_freq.dtype is torch.float32


def test_a_layer_with_a_bias_is_refused():
    model = llm.build(llm.config(**SMALL, mlp_bias=True))
    with pytest.raises(ValueError, match="mlp.gate_proj has a bias"):
        llm.weight_only(model)


# --- GPTQ


def problem(rows: int = 24, columns: int = 128, count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and inputs whose channels are correlated."""
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(columns // 4, columns, generator=draw)
    x = torch.randn(count, columns // 4, generator=draw) @ mix + 0.3 * torch.randn(count, columns, generator=draw)
    return torch.randn(rows, columns, generator=draw), x


@pytest.mark.parametrize("bits, granularity", [(4, PerGroup(64)), (3, PerGroup(32)), (8, PerChannel(0))])
def test_gptq_makes_the_outputs_error_much_smaller_than_rounding_does(bits, granularity):
    weight, x = problem()
    codes, qp = gptq.gptq_quantize(weight, x.T @ x, bits, granularity)
    assert codes.dtype is (torch.int8 if granularity == PerChannel(0) else torch.uint8)
    solved, rounded = qlab.dequantize(codes, qp), round_weight(weight, bits, granularity)
    right = x @ weight.T
    errors = [float((x @ other.T - right).square().sum()) for other in (solved, rounded)]
    assert errors[0] < 0.5 * errors[1]
    assert (solved - weight).square().sum() > (rounded - weight).square().sum(), "each weight is further off"


def test_with_uncorrelated_inputs_gptq_rounds_to_nearest():
    weight, _ = problem()
    codes, qp = gptq.gptq_quantize(weight, torch.eye(128) * 7, 4, PerGroup(64), damp=0.0)
    assert torch.equal(qlab.dequantize(codes, qp), round_weight(weight, 4, PerGroup(64)))


def test_the_factor_is_one_of_the_inverse_and_a_dead_channel_does_no_harm():
    _, x = problem()
    x[:, 5] = 0
    hessian = x.double().T @ x.double()
    factor = gptq.inverse_factor(hessian.float(), 0.0).double()
    hessian[5, 5] = 1
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.T @ factor @ hessian, torch.eye(128).double(), atol=1e-2)


def test_layer_by_layer_a_model_computes_what_it_computes_at_once(model, tokens):
    seen = []
    hook = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    logits(model, tokens)
    hook.remove()
    *_, last = stages.hessians(model, tokens)
    x = seen[0].flatten(0, 1)
    sums = {name: hessian for _, name, _, hessian in last}
    assert torch.allclose(sums["down_proj"], x.T @ x, rtol=1e-3, atol=1e-4)
    assert list(sums) == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_gptq_helps_a_whole_model(model, tokens):
    nearest, solved = llm.weight_only(model, 4), llm.weight_only(model, 4, windows=tokens)
    assert error(model, solved, tokens) < 0.8 * error(model, nearest, tokens)
    assert memory_bytes(solved) == memory_bytes(nearest)


# --- outliers


def test_injected_outliers_change_no_answer_and_ruin_w8a8(model, tokens):
    with_outliers = llm.inject(model, channels=2, factor=64.0)
    assert torch.allclose(logits(with_outliers, tokens), logits(model, tokens), rtol=1e-4, atol=1e-4)
    before, after = (llm.largest_inputs(m, tokens) for m in (model, with_outliers))
    names = dict(llm.linears(model)), dict(llm.linears(with_outliers))
    ratios = after[names[1]["model.layers.0.self_attn.q_proj"]] / before[names[0]["model.layers.0.self_attn.q_proj"]]
    assert sorted(ratios.round().tolist())[-3:] == [1, 64, 64]
    plain, broken = error(model, llm.dynamic(model), tokens), error(model, llm.dynamic(with_outliers), tokens)
    assert broken > 20 * plain
    for rescued in (llm.dynamic(with_outliers, threshold=20.0), llm.dynamic(llm.smooth(with_outliers, tokens))):
        assert error(model, rescued, tokens) < 0.2 * broken


def test_float_weights_rescue_what_codes_of_0_cannot(model, tokens):
    """LLM.int8(): the outliers' weights are so small that their codes are 0, and dequantized codes bring nothing back."""
    with_outliers = llm.inject(model, channels=2, factor=1024.0)
    split = llm.dynamic(with_outliers, threshold=100.0)
    by_codes = llm.dynamic(with_outliers, threshold=100.0)
    for layer in by_codes.modules():
        if isinstance(layer, DynamicLinear):
            layer.weight = layer.codes * layer.scale[:, None]
    plain = error(model, llm.dynamic(model), tokens)
    assert error(model, split, tokens) < 2 * plain and error(model, by_codes, tokens) > 5 * plain


def test_the_inputs_of_a_layer_are_what_enters_it(model, tokens):
    name = "model.layers.1.mlp.down_proj"
    x = llm.layer_inputs(model, name, tokens)
    assert x.shape == (tokens.numel(), 128)
    assert torch.equal(x.abs().amax(0), llm.largest_inputs(model, tokens)[model.get_submodule(name)])
    with pytest.raises(AttributeError, match="down"):
        llm.layer_inputs(model, "model.layers.1.down", tokens)
    assert not model.get_submodule(name)._forward_pre_hooks


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_changes_no_answer_and_does_what_its_formula_says(model, tokens, alpha):
    smooth = llm.smooth(model, tokens, alpha)
    assert torch.allclose(logits(smooth, tokens), logits(model, tokens), rtol=1e-3, atol=1e-3)
    layer = smooth.model.layers[0]
    x = llm.largest_inputs(smooth, tokens)[layer.mlp.down_proj]
    w = layer.mlp.down_proj.weight.abs().amax(0)
    # the inputs become (max|X| max|W|)^(1 - alpha), the weights the same to the power of alpha
    assert torch.allclose(x**alpha, w ** (1 - alpha), rtol=1e-2)


def test_alpha_is_a_share(model, tokens):
    with pytest.raises(ValueError, match="alpha=1.5: expected a number from 0"):
        llm.smooth(model, tokens, 1.5)
    assert torch.isfinite(outliers.smoothing_scale(torch.zeros(3), torch.zeros(3), 0.5)).all()


# --- perplexity and speed


class Fixed(nn.Module):
    """Says the same scores after every token."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, input_ids: torch.Tensor, **options):
        return type("Said", (), {"logits": self.scores.expand(*input_ids.shape, -1)})


def test_perplexity_is_the_number_of_equally_likely_tokens(tokens):
    assert measure.perplexity(Fixed(torch.zeros(256)), tokens) == pytest.approx(256)
    half = torch.full((256,), -1e9)
    half[:2] = 0
    assert measure.perplexity(Fixed(half), torch.zeros(20, 5, dtype=torch.int64), batch_size=3) == pytest.approx(2)
    with pytest.raises(ValueError, match="NaN"):
        measure.perplexity(Fixed(torch.full((256,), math.nan)), tokens)


def test_writing_with_kept_keys_gives_the_likeliest_tokens(model, tokens):
    written = llm.generate(model, tokens[0, :9], 4)
    row = tokens[0, :9]
    for token in written:
        assert int(logits(model, row[None])[0, -1].argmax()) == int(token)
        row = torch.cat([row, token[None]])


def test_speed_counts_tokens(model, tokens, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(clock)))
    assert llm.speed(model, tokens[0, :9], 5) == (9.0, 1.0)


# --- where models come from


def test_a_folder_in_the_hubs_layout_is_loaded(model, tokens, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = llm.load(tmp_path)
    assert not loaded.training and torch.equal(logits(loaded, tokens), logits(model, tokens))
    assert llm.load(tmp_path, torch.bfloat16).dtype is torch.bfloat16
    quantized = llm.weight_only(loaded)
    assert error(model, quantized, tokens) < 1e-3


def test_the_tokenizer_comes_from_the_same_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    found = llm.tokenizer(tmp_path)
    assert found.decode(found("qlab")["input_ids"], skip_special_tokens=True) == "qlab"


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        ValueError, match="holds a model of type 'bert': known are granite, llama, mistral, qwen2, qwen3"
    ):
        llm.load(tmp_path)


@pytest.mark.parametrize(
    "layers, words", [(3, "missing, such as model.layers.2"), (1, "unexpected, such as model.layers.1")]
)
def test_weights_that_are_not_those_of_the_configuration_are_no_model(model, tmp_path, layers, words):
    model.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["num_hidden_layers"] == 2
    (tmp_path / "config.json").write_text(json.dumps(said | {"num_hidden_layers": layers}))
    with pytest.raises(ValueError, match=f"{tmp_path} holds other weights than its config.json asks for .*{words}"):
        llm.load(tmp_path)


def test_a_damaged_folder_is_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=f"{tmp_path} could not be loaded .*: expected a folder"):
        llm.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json is damaged"):
        llm.load(tmp_path)


def test_the_tiny_models_manifest_and_weights_are_looked_at(tmp_path, monkeypatch):
    entry = llm.manifest()["granite-tiny"]
    path = tmp_path / entry["file"]
    state = dict(read_tensors(granite.FOLDER / entry["file"])[0])
    state.pop("model.norm.weight")
    write_tensors(path, state)
    monkeypatch.setattr(granite, "FOLDER", tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"granite-tiny": entry}))
    with pytest.raises(ValueError, match=f"{path} is damaged .sha256 .*, expected .*: restore it"):
        llm.tiny()
    (tmp_path / "manifest.json").write_text(json.dumps({"granite-tiny": entry | {"sha256": sha256(path)}}))
    with pytest.raises(ValueError, match=f"granite-tiny in {tmp_path}: 'model.norm.weight' is missing"):
        llm.tiny()


@pytest.mark.parametrize("failure", [OSError("no route to host\nmore"), ValueError("no route to host")])
def test_without_a_network_one_line_says_what_was_expected(monkeypatch, failure):
    def fail(*arguments, **options):
        raise failure

    monkeypatch.setattr(importlib.import_module("transformers").AutoConfig, "from_pretrained", fail)
    with pytest.raises(ValueError, match=r"granite-x could not be loaded \(no route to host\): expected a folder") as e:
        llm.load("ibm-granite/granite-x")
    assert "\n" not in str(e.value)


def test_without_transformers_one_line_says_what_to_install(monkeypatch):
    for name in ("granite", "llama"):
        monkeypatch.setitem(sys.modules, f"transformers.models.{name}.configuration_{name}", None)
    for call in (llm.config, llm.tiny, lambda: llm.load("x"), lambda: llm.tokenizer("x")):
        with pytest.raises(ImportError, match=re.escape(remedy("llm"))) as error:
            call()
        assert "\n" not in str(error.value)


def test_torchao_stays_out_and_nothing_is_left_in_its_place():
    hidden = "torchao" in sys.modules
    FAMILIES["granite"].model  # noqa: B018 - imported when it is asked for
    assert ("torchao" in sys.modules) is hidden and sys.modules.get("torchao", 0) is not None


# --- the large configuration, on a small scale


@pytest.mark.parametrize("kind", granite.KINDS)
def test_a_model_with_random_weights_is_made_layer_by_layer(kind, tokens):
    configuration = llm.config(llm.GRANITE_2B, **SMALL, vocab_size=256)
    model = llm.random_model(configuration, kind)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    again = llm.random_model(configuration, kind)
    assert torch.equal(logits(model, tokens), logits(again, tokens))
    assert logits(model, tokens).isfinite().all() and model.dtype is torch.bfloat16
    share = memory_bytes(model) / sum(p.numel() for p in llm.build(configuration).parameters()) / 4
    assert share == pytest.approx({"bf16": 0.5, "int8": 0.26, "int4": 0.16, "w8a8": 0.27}[kind], abs=0.01)
    assert isinstance(model.model.embed_tokens, nn.Embedding if kind == "bf16" else WeightOnlyEmbedding)


def test_the_kinds_of_random_models_are_the_same_model(tokens):
    configuration = llm.config(llm.GRANITE_2B, **SMALL, vocab_size=256)
    models = {kind: llm.random_model(configuration, kind) for kind in granite.KINDS}
    errors = {kind: error(models["bf16"], model, tokens) for kind, model in models.items()}
    assert errors["int8"] < 2e-3 and errors["w8a8"] < 2e-2 and errors["int4"] < 0.2


def test_the_2b_configuration_has_its_true_number_of_weights():
    with torch.device("meta"):
        model = llm.build(llm.config(llm.GRANITE_2B))
    assert sum(p.numel() for p in model.parameters()) == 2_533_531_648


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind 'int3': expected one of bf16, int8, int4, w8a8"):
        llm.random_model(llm.config(), "int3")
