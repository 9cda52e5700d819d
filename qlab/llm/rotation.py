"""Rotations: turn the space in which activations live, and no channel is an outlier any more.

Ashkboos et al., "QuaRot" (2024); Liu et al., "SpinQuant" (2024). RMSNorm without a weight commutes with a rotation, so the residual
stream of a whole model may be turned: what writes into it is turned, what reads from it is turned back, and the output stays.
A large value in one channel is spread over all of them. A Hadamard matrix spreads it evenly.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def rotation(size: int, seed: int = 0) -> Tensor:
    """An orthogonal matrix (size, size), float64, that spreads each channel evenly: a Hadamard matrix with random signs.

    Where the size is no power of two, the largest one in it is a Hadamard matrix and the rest a random rotation (their Kronecker
    product). Raises ValueError for an odd size above 1, which no Hadamard matrix divides.

    >>> q = rotation(192)
    >>> bool(torch.allclose(q @ q.T, torch.eye(192, dtype=torch.float64)))
    True
    """
    power = size & -size
    if size < 1 or (power == 1 and size > 1):
        raise ValueError(f"size={size}: expected an even number, since a Hadamard matrix has 2, 4, 8, ... rows")
    draw = torch.Generator().manual_seed(seed)
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < power:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    rest, triangle = torch.linalg.qr(torch.randn(size // power, size // power, generator=draw, dtype=torch.float64))
    signs = torch.randint(0, 2, (size,), generator=draw).double() * 2 - 1
    return torch.kron((rest * triangle.diagonal().sign()).contiguous(), hadamard / power**0.5) * signs[:, None]


def rotate(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy that computes the same function in turned coordinates.

    The norms' weights go into the layers that read them. Then the residual stream is turned, and within each head the values, which
    the output projection turns back. What goes into ``down_proj`` is left as it is: there a nonlinearity stands before, and only a
    multiplication at run time could turn it. Embedding and last layer no longer share their weight.

    Args:
        model: a float model of the Llama family.
        seed: of the random signs.

    Raises:
        ValueError: The width or a head's size is odd.

    >>> from qlab import llm
    >>> model, tokens = llm.tiny(), torch.tensor([list(b"import os")])
    >>> bool(torch.allclose(model(input_ids=tokens).logits, rotate(model)(input_ids=tokens).logits, atol=1e-3))
    True
    """
    model = copy.deepcopy(model)
    decoder, config = model.model, model.config
    head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
    model.lm_head, model.config.tie_word_embeddings = head, False
    q = rotation(config.hidden_size, seed)
    inner = rotation(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads, seed + 1)
    with torch.no_grad():
        _fold(decoder.norm, [head])
        _turn_inputs(head, q)
        decoder.embed_tokens.weight.copy_(decoder.embed_tokens.weight.double() @ q)
        for layer in decoder.layers:
            attention, mlp = layer.self_attn, layer.mlp
            reading = [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]
            for norm, readers in zip((layer.input_layernorm, layer.post_attention_layernorm), reading):
                _fold(norm, readers)
                for linear in readers:
                    _turn_inputs(linear, q)
            for linear in (attention.o_proj, mlp.down_proj):
                _turn_outputs(linear, q)
            _turn_outputs(attention.v_proj, torch.block_diag(*[inner] * config.num_key_value_heads))
            _turn_inputs(attention.o_proj, torch.block_diag(*[inner] * config.num_attention_heads))
    return model


def _fold(norm: nn.Module, readers: list[nn.Linear]) -> None:
    """A norm's weight into the columns of the layers behind it."""
    for linear in readers:
        linear.weight.mul_(norm.weight)
    norm.weight.fill_(1)


def _turn_inputs(linear: nn.Linear, q: Tensor) -> None:
    linear.weight.copy_(linear.weight.double() @ q)


def _turn_outputs(linear: nn.Linear, q: Tensor) -> None:
    linear.weight.copy_(q.T @ linear.weight.double())
    if linear.bias is not None:
        linear.bias.copy_(linear.bias.double() @ q)
