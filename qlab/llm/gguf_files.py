"""GGUF, llama.cpp's file: one that its users have becomes a model here.

A GGUF file holds metadata (the architecture, its sizes, the tokenizer) and tensors in block formats (:mod:`qlab.blocks`). The
package ``gguf`` reads it. Names differ from transformers', and so does the order of a query's and a key's rows: llama.cpp lets a
rotary position turn neighbours, transformers numbers half a head apart (Su et al., "RoFormer", 2021, has both).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from qlab.extras import remedy
from qlab.llm.families import Family, family

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PretrainedConfig, PreTrainedModel

SUFFIX = ".gguf"
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_A_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
SIZES = {  # of a configuration, and their names in the metadata behind the architecture's
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length", "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}  # fmt: skip


def read(path: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model in a GGUF file, its blocks turned back into floats of ``dtype``; in eval mode.

    Raises:
        ValueError: It is no GGUF file, of another family, lacks a tensor or a number, or has one that has no place here (such
            as scaled rotary positions), which would be left out silently.
        OSError: It cannot be read.
        ImportError: ``gguf`` or transformers is missing; says what to install.
    """
    reader = _reader(path)
    known = family(_said(reader, "general.architecture", path), str(path))
    configuration = _config(reader, known, path)
    weights = {}
    for tensor in tqdm(reader.tensors, f"reading {Path(path).name}", leave=False, delay=2, unit="tensor"):
        weights[_name(tensor.name, path)] = _floats(tensor, known, configuration).to(dtype)
    configuration.tie_word_embeddings = "lm_head.weight" not in weights
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    return _with_weights(known, configuration, weights, path)


def _reader(path: str | Path) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ImportError(f"GGUF files need the package gguf: {remedy('llm')}") from error
    try:
        return GGUFReader(path)
    except OSError:
        raise
    except Exception as error:  # whatever the bytes lead it to
        raise ValueError(f"{path} is no GGUF file ({str(error)[:120]}): fetch it again") from error


def _said(reader: GGUFReader, key: str, path: str | Path, default: object = None) -> Any:
    """A number or a text of the metadata. Raises ValueError when it is missing and has no default."""
    field = reader.get_field(key)
    if field is None and default is None:
        raise ValueError(f"{path} says no {key}: fetch the file again")
    return default if field is None else field.contents()


def _config(reader: GGUFReader, known: Family, path: str | Path) -> PretrainedConfig:
    """transformers' configuration from the metadata."""
    fields = {mine: _said(reader, f"{known.name}.{theirs}", path) for mine, theirs in (*SIZES.items(), *known.says)}
    scaling = _said(reader, f"{known.name}.rope.scaling.type", path, "none")
    if scaling != "none":
        raise ValueError(f"{path} scales its rotary positions ({scaling}): that is not read here")
    width = fields["hidden_size"] // fields["num_attention_heads"]
    return known.config(
        **fields,
        head_dim=_said(reader, f"{known.name}.attention.key_length", path, width),
        vocab_size=len(_said(reader, "tokenizer.ggml.tokens", path)),
        rope_parameters={
            "rope_type": "default", "rope_theta": float(_said(reader, f"{known.name}.rope.freq_base", path, 10000.0)),
        },
        bos_token_id=_said(reader, "tokenizer.ggml.bos_token_id", path, 0),
        eos_token_id=_said(reader, "tokenizer.ggml.eos_token_id", path, 0),
        attention_bias=any(tensor.name.endswith("attn_q.bias") for tensor in reader.tensors),
    )  # fmt: skip


def _name(theirs: str, path: str | Path) -> str:
    """transformers' name of a tensor. Raises ValueError for one without a place."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", theirs)
    outside = re.fullmatch(r"(\w+)\.(weight|bias)", theirs)
    if layer and layer[2] in IN_A_LAYER:
        return f"model.layers.{layer[1]}.{IN_A_LAYER[layer[2]]}.{layer[3]}"
    if outside and outside[1] in OUTSIDE:
        return f"{OUTSIDE[outside[1]]}.{outside[2]}"
    raise ValueError(f"{path} has a tensor {theirs!r}, which has no place in its architecture here")


def _floats(tensor: Any, known: Family, configuration: PretrainedConfig) -> Tensor:
    """A tensor of the file as float32, a query's and a key's rows in transformers' order."""
    import gguf

    weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
    kind = tensor.name.split(".")[-2]
    if known.interleaved and kind in ("attn_q", "attn_k"):
        heads = configuration.num_attention_heads if kind == "attn_q" else configuration.num_key_value_heads
        weight = weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return weight


def _with_weights(
    known: Family, configuration: PretrainedConfig, weights: dict[str, Tensor], path: str | Path
) -> PreTrainedModel:
    """The model, whose weights never stand in memory twice."""
    with torch.device("meta"):
        model = known.model(configuration)
    wanted = model.state_dict()
    missing, unknown = wanted.keys() - weights.keys(), weights.keys() - wanted.keys()
    shapes = {name for name in wanted.keys() & weights.keys() if wanted[name].shape != weights[name].shape}
    for names, words in (
        (missing, "lacks"),
        (unknown, "has, without a place for it,"),
        (shapes, "has in another shape"),
    ):
        if names:
            raise ValueError(f"{path} {words} {min(names)} ({len(names)} such tensors): fetch the file again")
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(configuration)
    model.config._name_or_path = str(path)
    return model.eval().requires_grad_(False)
