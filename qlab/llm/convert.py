"""A language model -> the same with integer weights. The float model stays as it is; a quantized copy is given back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qlab import blocks
from qlab.granularity import Granularity, PerChannel, PerGroup
from qlab.llm.block_layers import fitting, in_blocks
from qlab.llm.gptq import gptq_quantize
from qlab.llm.layers import DynamicLinear, WeightOnlyEmbedding, WeightOnlyLinear, round_weight
from qlab.llm.stages import hessians

if TYPE_CHECKING:
    from transformers import GraniteForCausalLM, PreTrainedModel

METHODS = ("gptq", "awq", "importance")


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """(name, layer) of the decoder's linear layers; not the last one, which shares its weight with the embedding.

    >>> decoder = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)]), "lm_head": nn.Linear(4, 9)})
    >>> [name for name, _ in linears(decoder)]
    ['layers.0']
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in f".{name}":
            yield name, module


def weight_only(
    model: PreTrainedModel,
    bits: int = 8,
    group_size: int | None = None,
    windows: Tensor | None = None,
    format: str | None = None,
    method: str | None = None,
) -> PreTrainedModel:
    """A copy with weights in a few bits: 8 with one scale a row, 4 with one a group (of 64 by default), or a block format.

    Args:
        model: a float model of the Llama family.
        bits: 8 or 4; without a meaning where there is a ``format``.
        group_size: so many neighbours in a row share a scale; None is one scale a row with 8 bits, and 64 with 4.
        windows: tokens to calibrate on, int64, (count, length), for a ``method``.
        format: one of :data:`qlab.blocks.FORMATS`, such as "nvfp4" or "q4_k". Rows that are no multiple of 256 get "q5_0" in
            place of "q4_k" and "q8_0" in place of "q6_k", as in llama.cpp's own files.
        method: how weights are rounded. None: by GPTQ where there are windows, in a format to the nearest code. "gptq"; "awq"
            (:func:`qlab.llm.awq`, then the nearest code); "importance" (the scales of q4_k and q6_k are searched with
            :func:`qlab.llm.importance`).

    Returns:
        The copy. Embedding and last layer have 8 bits always: every token goes through both.

    Raises:
        ValueError: Other bits, 8 bits in groups, a group or block that does not divide a layer's inputs, a layer with a bias
            outside a format, a method without windows or that does not go with the format.

    >>> from qlab import llm
    >>> from qlab.sizes import memory_bytes
    >>> model = llm.tiny()
    >>> f"{memory_bytes(weight_only(model, bits=4, group_size=64)) / memory_bytes(model):.1%} of the bytes"
    '14.1% of the bytes'
    >>> weight_only(model, format="nvfp4").model.layers[0].mlp.up_proj
    BlockLinear(192 -> 512, nvfp4, 4.5 bits)
    """
    method = method or ("gptq" if windows is not None and format is None else None)
    _check_method(method, windows, format)
    if bits == 4 and group_size is None:
        group_size = 64
    granularity = PerChannel(0) if group_size is None else PerGroup(group_size)
    if method == "awq":
        from qlab.llm.activation_aware import awq

        def on_its_grid(weight: Tensor) -> Tensor:
            if format is None:
                return round_weight(weight, bits, granularity)
            return blocks.dequantize(blocks.quantize(weight, fitting(format, weight.shape[1])))

        model = awq(model, windows, on_its_grid)
    weights = None
    if method == "importance":
        from qlab.llm.importance_matrix import importance

        weights = importance(model, windows)
    model = copy.deepcopy(model)
    if format is not None:
        in_blocks(model, linears, format, weights)
        return model
    if method == "gptq":
        for stage in hessians(model, windows):
            for parent, name, linear, hessian in stage:
                codes, qp = gptq_quantize(linear.weight, hessian, bits, granularity)
                setattr(parent, name, WeightOnlyLinear(codes, qp))
    else:
        replace(model, linears, lambda linear: WeightOnlyLinear.from_weight(linear.weight, bits, granularity))
    return _int8_embedding(model)


def _check_method(method: str | None, windows: Tensor | None, format: str | None) -> None:
    """Raise ValueError for a way of rounding that there is not, or not here."""
    if method not in (None, *METHODS):
        raise ValueError(f"method {method!r}: expected one of {', '.join(METHODS)}, or None for the nearest code")
    if method and windows is None:
        raise ValueError(f"method {method!r} calibrates: give it windows of tokens, as llm.windows('train', 16)")
    if method is None and windows is not None:
        raise ValueError(f"windows change nothing in format {format!r} without a method: 'awq' or 'importance'")
    if format is not None:
        blocks.format_of(format)
    if method == "gptq" and format is not None:
        raise ValueError(
            f"GPTQ rounds to equal steps here, and not in format {format!r}: give bits=4 and a group_size, or 'awq'"
        )
    if method == "importance" and (format is None or not blocks.format_of(format).weighs):
        able = ", ".join(each.name for each in blocks.FORMATS.values() if each.weighs)
        raise ValueError(f"an importance steers a search for scales, which {format!r} has not: {able} have one")


def dynamic(model: GraniteForCausalLM, threshold: float | None = None) -> GraniteForCausalLM:
    """A copy in W8A8: int8 weights, inputs rounded token by token.

    ``threshold`` (6.0 in the paper) makes it LLM.int8(): channels in which a token exceeds it stay in float, inputs and
    weights, for which each layer keeps its float weights too. Embedding and last layer have integer weights and float
    inputs. Raises ValueError for layers with a bias.

    >>> from qlab import llm
    >>> from qlab.sizes import memory_bytes
    >>> dynamic(llm.tiny()).model.layers[0].mlp.down_proj
    DynamicLinear(512 -> 192, W8A8)
    """
    model = copy.deepcopy(model)
    replace(model, linears, lambda linear: DynamicLinear.from_weight(linear.weight, threshold))
    return _int8_embedding(model)


def rounded(model: GraniteForCausalLM, bits: int, granularity: Granularity = PerChannel(0)) -> GraniteForCausalLM:
    """A float copy whose decoder's weights lie on a grid of any number of bits: what is lost, without what is saved.

    Raises ValueError for another granularity than PerChannel(0) and PerGroup.

    >>> from qlab import llm
    >>> from qlab.sizes import memory_bytes
    >>> weight = rounded(llm.tiny(), 2).model.layers[0].mlp.up_proj.weight
    >>> len(weight[0].unique())          # with 2 bits and one scale a row: minus a step, 0, a step
    3
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for _, linear in linears(model):
            linear.weight.copy_(round_weight(linear.weight, bits, granularity))
    return model


def replace(
    model: nn.Module,
    which: Callable[[nn.Module], Iterator[tuple[str, nn.Linear]]],
    make: Callable[[nn.Linear], nn.Module],
) -> None:
    """Put ``make(layer)`` in the place of each layer that ``which(model)`` names. ValueError for one with a bias."""
    with torch.no_grad():
        for name, linear in list(which(model)):
            if linear.bias is not None:
                raise ValueError(f"{name} has a bias: Granite's layers have none, and none is made here")
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, make(linear))


def _int8_embedding(model: GraniteForCausalLM) -> GraniteForCausalLM:
    """8 bits for the embedding and the last layer; one set of codes where they share their weight."""
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    with torch.no_grad():
        rows = WeightOnlyLinear.from_weight(embedding)
        model.lm_head = rows if embedding is head else WeightOnlyLinear.from_weight(head)
    model.model.embed_tokens = WeightOnlyEmbedding(rows, embedding.dtype)
    return model


def as_bfloat16(model: GraniteForCausalLM) -> GraniteForCausalLM:
    """A copy that computes in bfloat16, with the processor's kernels where layers are quantized and it has them.

    (``model.to(torch.bfloat16)`` would also round the angles of the rotary positions.)

    >>> from qlab import llm
    >>> from qlab.sizes import memory_bytes
    >>> as_bfloat16(weight_only(llm.tiny())).dtype
    torch.bfloat16
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, (DynamicLinear, WeightOnlyLinear)):
            module.use_kernel()
        if isinstance(module, WeightOnlyEmbedding):
            module.dtype = torch.bfloat16
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model
