"""GGUF both ways: what is written is read back, llama.cpp computes the same from it, and what has no place is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import nn

from qlab import llm
from qlab.llm import gguf_files
from qlab.llm.families import FAMILIES
from qlab.llm.gguf_saving import FORMATS, save_gguf

SMALL = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
    "initializer_range": 0.2,
}  # fmt: skip
EACH = pytest.mark.parametrize("name", FAMILIES)


def small(name: str, **changes: object) -> nn.Module:
    """A small model of a family with random weights, norms and biases too."""
    torch.manual_seed(0)
    known = FAMILIES[name]
    model = known.model(known.config(**(SMALL | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape) / 4)
    return model.requires_grad_(False)


def logits(model: nn.Module) -> torch.Tensor:
    tokens = torch.arange(3, 60)[None] * 4 % 256
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits


@EACH
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_written_is_read_back_as_it_was(name, tied, tmp_path):
    model = small(name, tie_word_embeddings=tied)
    back = llm.load(save_gguf(model, tmp_path / "model.gguf", "F32"))
    assert type(back) is FAMILIES[FAMILIES[name].file_name].model and back.config.tie_word_embeddings is tied
    assert torch.allclose(logits(back), logits(model), atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_comes_back_on_its_own_grid(name, tmp_path):
    """Written again, nothing changes: the weights lie on the grid. Q6_K and Q4_K look for scales, and may find others."""
    model = small("llama", hidden_size=256, intermediate_size=256)
    first = llm.load(save_gguf(model, tmp_path / "first.gguf", name))
    again = llm.load(save_gguf(first, tmp_path / "again.gguf", name))
    loss = (logits(again) - logits(first)).norm() / logits(first).norm()
    assert loss < (0.2 if name.endswith("_K") else 2e-3)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "first.gguf").tensors}
    assert kinds["blk.1.ffn_up.weight"] == name and kinds["blk.1.ffn_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == (name if name in ("F32", "F16") else "Q8_0")


def test_rows_that_make_no_blocks_of_256_get_the_smaller_block_that_llama_cpp_takes(tmp_path):
    save_gguf(small("llama"), tmp_path / "model.gguf", "Q4_K")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q5_0"


@EACH
def test_llama_cpp_computes_the_same(name, tmp_path):
    server = pytest.importorskip("xllamacpp")
    model = small(name, hidden_size=64)
    parameters = server.CommonParams()
    parameters.model.path = str(save_gguf(model, tmp_path / "model.gguf", "F32"))
    parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.cpuparams.n_threads = 64, 1, False, 1
    parameters.flash_attn_type = server.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to float16
    parameters.cache_type_k = parameters.cache_type_v = server.ggml_type.GGML_TYPE_F32
    tokens = list(range(3, 40))
    said = server.Server(parameters).handle_completions(
        {"prompt": tokens, "n_predict": 1, "temperature": 0, "n_probs": 20}
    )
    said = json.loads(said) if isinstance(said, str) else said
    theirs = {each["id"]: each["logprob"] for each in said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    with torch.inference_mode():
        ours = model(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
    assert len(theirs) == 20
    assert [theirs[token] for token in theirs] == pytest.approx([float(ours[token]) for token in theirs], abs=2e-3)


def test_the_tokenizer_goes_along(tmp_path):
    """Of the byte models: each byte is a token, as byte-level BPE spells it."""
    save_gguf(small("granite"), tmp_path / "model.gguf", "Q8_0")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    assert len(set(tokens)) == 256 and tokens[ord("a")] == "a" and tokens[ord(" ")] == "Ġ" and tokens[ord("\n")] == "Ċ"
    again = save_gguf(llm.load(tmp_path / "model.gguf"), tmp_path / "again.gguf", "Q8_0")
    assert gguf.GGUFReader(again).get_field("tokenizer.ggml.tokens").contents() == tokens


# --- what is refused


def changed(path: Path, key: str, value: bytes, by: bytes) -> Path:
    """The file with some bytes of it replaced."""
    data = path.read_bytes()
    assert value in data, key
    path.write_bytes(data.replace(value, by, 1))
    return path


def test_what_is_no_gguf_file_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no model at all" * 10)
    with pytest.raises(ValueError, match=re.escape(f"{path} is no GGUF file")):
        llm.load(path)
    with pytest.raises(OSError, match=r"nothing\.gguf"):
        llm.load(tmp_path / "nothing.gguf")


def test_another_architecture_is_named_with_those_that_are_known(tmp_path):
    path = save_gguf(small("llama"), tmp_path / "model.gguf", "F32")
    changed(path, "architecture", b"llama", b"bloom")
    with pytest.raises(
        ValueError, match="holds a model of type 'bloom': known are granite, llama, mistral, qwen2, qwen3"
    ):
        llm.load(path)


@pytest.mark.parametrize(
    "theirs, other, words",
    [
        ("blk.0.attn_q.weight", "blk.0.attn_x.weight", "has a tensor 'blk.0.attn_x.weight', which has no place"),
        ("blk.0.attn_q.weight", "blk.9.attn_q.weight", "lacks model.layers.0.self_attn.q_proj.weight"),
    ],
)
def test_a_tensor_that_is_missing_or_has_no_place_is_named(theirs, other, words, tmp_path):
    path = save_gguf(small("llama"), tmp_path / "model.gguf", "F32")
    changed(path, theirs, theirs.encode(), other.encode())
    with pytest.raises(ValueError, match=re.escape(words)):
        llm.load(path)


def test_what_llama_cpp_cannot_take_is_refused(tmp_path):
    with pytest.raises(ValueError, match="format 'Q3_X': llama.cpp's are F32, F16, Q8_0"):
        save_gguf(small("llama"), tmp_path / "model.gguf", "Q3_X")
    scaled = small("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(ValueError, match=r"scales its rotary positions \(linear\)"):
        save_gguf(scaled, tmp_path / "model.gguf", "F32")
    with pytest.raises(ValueError, match="each token sees the 16 before it"):
        save_gguf(small("mistral", sliding_window=16), tmp_path / "model.gguf", "F32")
    with pytest.raises(ValueError, match=r"model.embed_tokens: a tensor of shape \(256, 48\): q8_0 needs rows"):
        save_gguf(small("llama", hidden_size=48), tmp_path / "model.gguf", "Q8_0")
    assert not (tmp_path / "model.gguf").exists()


def test_scaled_rotary_positions_of_a_file_are_refused(tmp_path):
    path = save_gguf(small("llama"), tmp_path / "model.gguf", "F32")
    reader = gguf.GGUFReader(path)
    other = gguf.GGUFWriter(tmp_path / "scaled.gguf", "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            other.add_key_value(key, field.contents(), field.types[0], kind)
    other.add_string("llama.rope.scaling.type", "yarn")
    for tensor in reader.tensors:
        other.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    other.write_header_to_file(), other.write_kv_data_to_file(), other.write_tensors_to_file(), other.close()
    with pytest.raises(ValueError, match=r"scaled.gguf scales its rotary positions \(yarn\)"):
        llm.load(tmp_path / "scaled.gguf")


def test_numbers_of_a_file_are_its_configuration(tmp_path):
    back = llm.load(save_gguf(llm.tiny(), tmp_path / "tiny.gguf", "F16"))
    mine = llm.config()
    for key in (
        "embedding_multiplier",
        "attention_multiplier",
        "residual_multiplier",
        "logits_scaling",
        "rms_norm_eps",
    ):
        assert getattr(back.config, key) == pytest.approx(getattr(mine, key)), key
    assert gguf_files.SUFFIX == Path(back.config._name_or_path).suffix
