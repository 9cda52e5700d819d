"""IBM's Granite, in two sizes: a tiny one that we trained, and the true 2B configuration.

Granite is a decoder-only transformer of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU;
its own are four constant multipliers (of embeddings, attention scores, residuals, logits), so that one recipe trains
every width (Granite team, IBM, "Granite 3.0 Language Models", 2024; Yang et al., "Tensor Programs V", 2022). The
architecture's code is ``transformers``'.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qlab import models
from qlab.files import check_tensors
from qlab.granularity import PerGroup
from qlab.llm.convert import linears, replace
from qlab.llm.families import FAMILIES
from qlab.llm.layers import DynamicLinear, WeightOnlyEmbedding, WeightOnlyLinear

if TYPE_CHECKING:
    from transformers import GraniteConfig, GraniteForCausalLM

FOLDER = Path(__file__).parent / "checkpoints"

# A byte is a token. Multipliers as in Granite 3.1, but for a width of 192 and 4 layers.
TINY = {
    "vocab_size": 256, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "embedding_multiplier": 12.0, "attention_multiplier": 1 / 32, "residual_multiplier": 0.35, "logits_scaling": 1.0,
    "initializer_range": 0.06, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
# config.json of ibm-granite/granite-3.1-2b-instruct.
GRANITE_2B = {
    "vocab_size": 49155, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "embedding_multiplier": 12.0, "attention_multiplier": 1 / 64, "residual_multiplier": 0.22, "logits_scaling": 8.0,
    "initializer_range": 0.02, "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0},
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


def config(size: Mapping[str, object] | None = None, **changes: object) -> GraniteConfig:
    """A Granite configuration: :data:`TINY` (default) or :data:`GRANITE_2B`, with changes.

    >>> config(num_hidden_layers=2).hidden_size, config(GRANITE_2B).hidden_size
    (192, 2048)

    Raises ImportError, and says what to install, when transformers is missing.
    """
    return FAMILIES["granite"].config(**{**(size or TINY), **changes})


def build(configuration: GraniteConfig) -> GraniteForCausalLM:
    """A Granite with random weights in float32, in eval mode.

    >>> sum(p.numel() for p in build(config()).parameters())
    1623744
    """
    return FAMILIES["granite"].model(configuration).eval()


def tiny() -> GraniteForCausalLM:
    """The Granite over bytes that we trained on the standard library's source; float32, in eval mode.

    >>> tokens = torch.tensor([list(b"def f(x):")])
    >>> tiny()(input_ids=tokens).logits.shape              # a score for each of the 256 bytes that may come next
    torch.Size([1, 9, 256])

    Raises ValueError when its weights are not those that the manifest vouches for (sha256).
    """
    model = build(config())
    state = {name: tensor.float() for name, tensor in models.weights("granite-tiny", FOLDER).items()}
    expected = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    check_tensors(state, expected, f"granite-tiny in {FOLDER}")
    model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    return model.requires_grad_(False)


def manifest() -> dict[str, dict]:
    """How the committed language models were made, and how good they are: {name: entry}.

    >>> manifest()["granite-tiny"]["command"]
    'python tools/train_llm.py'
    """
    return models.manifest(FOLDER)


def random_model(configuration: GraniteConfig, kind: str = "int8", seed: int = 0) -> GraniteForCausalLM:
    """A Granite with random weights that never stands in memory as floats: "bf16", "int8", "int4" or "w8a8".

    It is built on the meta device, where tensors have a shape and no memory. Then each layer's weights are
    drawn, quantized and let go, one layer after the other. It computes in bfloat16 and uses the processor's kernels.
    The same ``seed`` draws the same weights for every kind. Raises ValueError for another kind.

    >>> random_model(config(num_hidden_layers=1), "int4").model.layers[0].mlp.up_proj
    WeightOnlyLinear(192 -> 512, 4 bits, groups of 64)
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    with torch.device("meta"):
        model = build(configuration)
    make, draw = KINDS[kind], torch.Generator().manual_seed(seed)

    def drawn(weight: Tensor) -> Tensor:
        return torch.empty(weight.shape).normal_(0.0, configuration.initializer_range, generator=draw)

    replace(model, linears, lambda linear: make(drawn(linear.weight)))
    if kind == "bf16":
        _with_weight(model.model.embed_tokens, drawn(model.lm_head.weight))
        model.lm_head.weight = model.model.embed_tokens.weight
    else:
        model.lm_head = KINDS["int8"](drawn(model.lm_head.weight))
        model.model.embed_tokens = WeightOnlyEmbedding(model.lm_head, torch.bfloat16)
    for module in model.modules():
        if getattr(module, "weight", None) is not None and module.weight.is_meta:
            _with_weight(module, torch.ones(module.weight.shape))  # a norm
    model.model.rotary_emb = type(model.model.rotary_emb)(configuration)
    return model.requires_grad_(False)


def _with_weight(module: nn.Module, weight: Tensor) -> nn.Module:
    """The module, with this weight in bfloat16."""
    module.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
    return module


KINDS = {
    "bf16": lambda weight: _with_weight(nn.Linear(*weight.shape[::-1], bias=False, device="meta"), weight),
    "int8": lambda weight: WeightOnlyLinear.from_weight(weight, 8).use_kernel(),
    "int4": lambda weight: WeightOnlyLinear.from_weight(weight, 4, PerGroup(64)).use_kernel(),
    "w8a8": lambda weight: DynamicLinear.from_weight(weight).use_kernel(),
}
