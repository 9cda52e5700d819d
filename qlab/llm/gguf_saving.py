"""A model here -> a GGUF file that llama.cpp opens, with its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from qlab import blocks
from qlab.extras import remedy
from qlab.files import whole
from qlab.llm import gguf_files
from qlab.llm.block_layers import OUTER, BlockEmbedding, BlockLinear, fitting
from qlab.llm.families import Family, family

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedModel

FORMATS = ("F32", "F16", "Q8_0", "Q6_K", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "MXFP4")
FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q4_K": 15,
    "Q6_K": 18,
    "MXFP4": 38,
}  # llama.cpp's
THEIRS = {mine: theirs for theirs, mine in gguf_files.IN_A_LAYER.items()}
THEIRS_OUTSIDE = {mine: theirs for theirs, mine in gguf_files.OUTSIDE.items()}


def save_gguf(model: PreTrainedModel, path: str | Path, name: str = "Q4_K") -> Path:
    """Write a model of the Llama family as a GGUF file, for llama.cpp and all that is built on it.

    Args:
        model: float, or with weights in llama.cpp's blocks (``llm.weight_only(model, format="q4_k")``), which are kept.
        path: the file; written whole or not at all.
        name: the format of the decoder's weights: one of :data:`FORMATS`. A layer whose rows are no multiple of 256 gets Q5_0 in
            place of Q4_K, and Q8_0 in place of Q6_K, as in llama.cpp's own files. Embedding and last layer are kept in
            Q8_0 unless it is F32 or F16, norms in float32.

    Returns:
        The path.

    Raises:
        ValueError: llama.cpp has no such format, cannot take the model's architecture, layers or tokenizer, or a row is no
            multiple of the format's block.
        OSError: The file cannot be written.
        ImportError: ``gguf`` is missing; says what to install.
    """
    if name not in FORMATS:
        raise ValueError(f"format {name!r}: llama.cpp's are {', '.join(FORMATS)}")
    known = family(model.config.model_type, "save_gguf's model")
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise ImportError(f"GGUF files need the package gguf: {remedy('llm')}") from error
    with whole(path) as part:
        writer = GGUFWriter(part, known.file_name)
        try:
            _write_sizes(writer, model, known)
            writer.add_file_type(FILE_TYPES[name])
            _write_tokenizer(writer, model)
            for theirs, bytes_, kind in tqdm(_tensors(model, known, name), Path(path).name, leave=False, delay=2):
                writer.add_tensor(theirs, bytes_, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return Path(path)


def _write_sizes(writer: GGUFWriter, model: PreTrainedModel, known: Family) -> None:
    """The configuration as metadata."""
    config = model.config
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"the model scales its rotary positions ({rope['rope_type']}): that is not written here")
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    if window < config.max_position_embeddings:
        raise ValueError(
            f"each token sees the {window} before it, and llama.cpp would show it all: that is not written here"
        )
    writer.add_name(Path(config._name_or_path or "qlab").stem)
    numbers = {theirs: getattr(config, mine) for mine, theirs in (*gguf_files.SIZES.items(), *known.says)}
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers |= {"rope.dimension_count": heads, "attention.key_length": heads, "attention.value_length": heads}
    for theirs, number in numbers.items():
        add = writer.add_uint32 if isinstance(number, int) else writer.add_float32
        add(f"{known.file_name}.{theirs}", number)
    writer.add_float32(f"{known.file_name}.rope.freq_base", float(rope.get("rope_theta", 10000.0)))
    writer.add_vocab_size(config.vocab_size)
    writer.add_quantization_version(2)


def _tensors(model: PreTrainedModel, known: Family, name: str) -> Iterator[tuple[str, np.ndarray, Any]]:
    """(llama.cpp's name, bytes, type) of each tensor, the embedding once where the last layer shares it."""
    for mine, module in model.named_modules():
        own = {key: value for key, value in module.named_parameters(recurse=False) if value is not None}
        if isinstance(module, BlockLinear):
            own = {"weight": module.packed, **({} if module.bias is None else {"bias": module.bias})}
        elif isinstance(module, BlockEmbedding):
            own = {"weight": module.rows.packed}
        for what, value in own.items():
            if isinstance(module, BlockLinear) and mine.endswith("embed_tokens.rows"):
                continue
            if mine == "lm_head" and model.config.tie_word_embeddings:
                continue
            yield _tensor(mine, what, value, model, known, name)


def _tensor(
    mine: str, what: str, value: Tensor | blocks.Packed, model: PreTrainedModel, known: Family, name: str
) -> tuple[str, np.ndarray, Any]:
    """A tensor as llama.cpp wants it."""
    import gguf

    theirs = _their_name(mine)
    kinds = gguf.GGMLQuantizationType
    order = _row_order(theirs, model, known)
    if isinstance(value, blocks.Packed):
        bytes_, kind = _bytes_of(value, mine)
        return f"{theirs}.{what}", (bytes_ if order is None else bytes_[order]).numpy(), kinds[kind]
    weight = value.detach().float() if order is None else value.detach().float()[order]
    kind = "F32" if weight.ndim == 1 else name if ".layers." in mine or name in ("F32", "F16") else OUTER.upper()
    kind = fitting(kind.lower(), weight.shape[-1]).upper()
    if kind in ("F32", "F16"):
        return f"{theirs}.{what}", weight.to(torch.float32 if kind == "F32" else torch.float16).numpy(), kinds[kind]
    try:
        packed = blocks.quantize(weight, kind.lower())
    except ValueError as error:
        raise ValueError(f"{mine}: {error}") from error
    return f"{theirs}.{what}", _bytes_of(packed, mine)[0].numpy(), kinds[kind]


def _their_name(mine: str) -> str:
    """llama.cpp's name of a module."""
    parts = mine.split(".")
    if mine in THEIRS_OUTSIDE:
        return THEIRS_OUTSIDE[mine]
    if parts[:2] == ["model", "layers"] and ".".join(parts[3:]) in THEIRS:
        return f"blk.{parts[2]}.{THEIRS['.'.join(parts[3:])]}"
    raise ValueError(f"{mine} has no place in a GGUF file of its architecture")


def _row_order(theirs: str, model: PreTrainedModel, known: Family) -> Tensor | None:
    """llama.cpp's order of a query's and a key's rows, where it is another than transformers'."""
    kind = theirs.split(".")[-1]
    if not known.interleaved or kind not in ("attn_q", "attn_k"):
        return None
    config = model.config
    heads = config.num_attention_heads if kind == "attn_q" else config.num_key_value_heads
    rows = (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads) * heads
    return torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).flatten()


def _bytes_of(packed: blocks.Packed, mine: str) -> tuple[Tensor, str]:
    """The rows of a packed weight in a GGUF file's bytes, and their type's name there."""
    if "bytes" in packed.parts:
        return packed.parts["bytes"], packed.format.upper()
    if packed.format == "mxfp4":  # an exponent, then 16 bytes with the codes of weight k and weight k + 16
        codes = (
            torch.stack([packed.parts["codes"] & 15, packed.parts["codes"] >> 4], -1)
            .flatten(1)
            .unflatten(1, (-1, 2, 16))
        )
        halves = codes[:, :, 0] | codes[:, :, 1] << 4
        return torch.cat([packed.parts["scale"].unsqueeze(2), halves], 2).flatten(1), "MXFP4"
    able = ", ".join(form.lower() for form in FORMATS if form.startswith(("Q", "MX")))
    raise ValueError(f"{mine} is in {packed.format}, which llama.cpp has not: expected {able}")


# --- the tokenizer


def _write_tokenizer(writer: GGUFWriter, model: PreTrainedModel) -> None:
    """The tokens and how a text becomes them."""
    source = str(model.config._name_or_path)
    if source.endswith(gguf_files.SUFFIX):
        _copy_tokenizer(writer, source)
    elif model.config.vocab_size == 256:
        letters = _letters()
        merges = [f"{letters[0]} {letters[0]}"]  # llama.cpp wants one; it makes no token, so two bytes stay two
        _say_tokenizer(writer, [letters[byte] for byte in range(256)], [1] * 256, merges, "gpt-2")
    else:
        _from_transformers(writer, source, model.config.vocab_size)
    for name in ("bos", "eos"):
        token = getattr(model.config, f"{name}_token_id")
        if isinstance(token, int) and not source.endswith(gguf_files.SUFFIX):
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)


def _copy_tokenizer(writer: GGUFWriter, source: str) -> None:
    """What the file that the model came from says of its tokenizer."""
    from gguf import GGUFReader, GGUFValueType

    for key, field in GGUFReader(source).fields.items():
        if key.startswith("tokenizer."):
            kinds = field.types
            writer.add_key_value(
                key, field.contents(), kinds[0], kinds[-1] if kinds[0] is GGUFValueType.ARRAY else None
            )


def _from_transformers(writer: GGUFWriter, source: str, count: int) -> None:
    """A byte-level BPE tokenizer that splits off each digit, as SmolLM's and Granite's; no other is written here."""
    from qlab.llm.loading import tokenizer

    fast: Any = tokenizer(source)
    known = json.loads(fast.backend_tokenizer.to_str())
    before = known.get("pre_tokenizer") or {}
    steps = [step["type"] for step in before.get("pretokenizers", [before])]
    if known["model"]["type"] != "BPE" or steps != ["Digits", "ByteLevel"]:
        raise ValueError(
            f"the tokenizer of {source} is a {known['model']['type']} after {', '.join(map(str, steps))}: only byte-level BPE "
            "with single digits is written here. llama.cpp's convert_hf_to_gguf.py knows the others"
        )
    tokens = [f"[PAD{number}]" for number in range(count)]
    types = [5] * count  # unused
    for token, number in known["model"]["vocab"].items():
        tokens[number], types[number] = token, 1
    for added in known.get("added_tokens", []):
        tokens[added["id"]], types[added["id"]] = added["content"], 3 if added["special"] else 4
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in known["model"]["merges"]]
    _say_tokenizer(writer, tokens, types, merges, "smollm")


def _say_tokenizer(writer: GGUFWriter, tokens: list[str], types: list[int], merges: list[str], pre: str) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def _letters() -> dict[int, str]:
    """The letter that stands for each byte in byte-level BPE: itself where it can be seen, else one from 256 up."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + place) for place, byte in enumerate(others)}
