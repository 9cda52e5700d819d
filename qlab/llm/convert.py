"""A language model -> the same with integer weights. The float model stays as it is; a quantized copy is given back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qlab.granularity import Granularity, PerChannel, PerGroup
from qlab.llm.gptq import gptq_quantize
from qlab.llm.layers import DynamicLinear, WeightOnlyEmbedding, WeightOnlyLinear, round_weight
from qlab.llm.stages import hessians

if TYPE_CHECKING:
    from transformers import GraniteForCausalLM


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
    model: GraniteForCausalLM, bits: int = 8, group_size: int | None = None, windows: Tensor | None = None
) -> GraniteForCausalLM:
    """A copy with integer weights: 8 bits with one scale a row, or 4 bits with one a group (of 64 by default).

    With ``windows`` (tokens to calibrate on, int64, (count, length)) each layer's weights are rounded by GPTQ, else to
    the nearest code. Embedding and last layer have 8 bits always: every token goes through both.

    >>> from qlab import llm
    >>> from qlab.sizes import memory_bytes
    >>> model = llm.tiny()
    >>> small = weight_only(model, bits=4, group_size=64)
    >>> f"{memory_bytes(small) / memory_bytes(model):.1%} of the bytes"
    '14.1% of the bytes'

    Raises ValueError for other bits, for 8 bits in groups, for a group size that does not divide a layer's inputs, and
    for layers with a bias.
    """
    if bits == 4 and group_size is None:
        group_size = 64
    granularity = PerChannel(0) if group_size is None else PerGroup(group_size)
    model = copy.deepcopy(model)
    if windows is None:
        replace(model, linears, lambda linear: WeightOnlyLinear.from_weight(linear.weight, bits, granularity))
    else:
        for stage in hessians(model, windows):
            for parent, name, linear, hessian in stage:
                codes, qp = gptq_quantize(linear.weight, hessian, bits, granularity)
                setattr(parent, name, WeightOnlyLinear(codes, qp))
    return _int8_embedding(model)


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
