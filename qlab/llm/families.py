"""The Llama family: which architectures are known here, each with its class in transformers and its names in a GGUF file.

A decoder-only transformer with RMSNorm, rotary positions, grouped-query attention and SwiGLU (Touvron et al., "LLaMA", 2023).
What differs: Granite multiplies by four constants, Qwen 2 has biases at queries, keys and values, Qwen 3 norms queries and keys.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from qlab.extras import remedy

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """An architecture: its ``model_type``, its classes in transformers, and whether llama.cpp stores rows of queries and keys so
    that the two numbers that a rotary position turns lie side by side (``interleaved``), not half a head apart. In a GGUF file
    it may go by another's name, ``as_file``: a Mistral is a Llama there."""

    name: str
    prefix: str
    interleaved: bool = False
    as_file: str = ""
    says: tuple[tuple[str, str], ...] = ()  # further fields of its configuration, and their names in a GGUF file

    @property
    def file_name(self) -> str:
        """Its name in a GGUF file."""
        return self.as_file or self.name

    def config(self, **fields: object) -> PretrainedConfig:
        """A configuration of it. Raises ImportError, and says what to install, when transformers is missing."""
        return getattr(_module(self.name, "configuration"), f"{self.prefix}Config")(**fields)

    @property
    def model(self) -> type[PreTrainedModel]:
        """The class of the whole model. Raises ImportError, and says what to install, when transformers is missing."""
        return getattr(_module(self.name, "modeling"), f"{self.prefix}ForCausalLM")


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "granite", "Granite", interleaved=True,
            says=(
                ("embedding_multiplier", "embedding_scale"), ("attention_multiplier", "attention.scale"),
                ("residual_multiplier", "residual_scale"), ("logits_scaling", "logit_scale"),
            ),
        ),
        Family("llama", "Llama", interleaved=True),
        Family("mistral", "Mistral", interleaved=True, as_file="llama"),
        Family("qwen2", "Qwen2"),
        Family("qwen3", "Qwen3"),
    )
}  # fmt: skip


def family(name: str, what: str) -> Family:
    """The family of ``what``, a file or a folder. Raises ValueError for another one, and names those that are known.

    >>> family("llama", "SmolLM2").prefix
    'Llama'
    """
    if name not in FAMILIES:
        raise ValueError(f"{what} holds a model of type {name!r}: known are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _module(name: str, part: str) -> object:
    """A module of transformers, imported without torchao, which it would bring along for a format that we do not read.

    torchao takes a second and says on import that torch has changed.
    """
    hidden = "torchao" not in sys.modules
    if hidden:
        sys.modules["torchao"] = None  # type: ignore[assignment]
    try:
        return import_module(f"transformers.models.{name}.{part}_{name}")
    except ImportError as error:
        raise ImportError(f"language models need transformers: {remedy('llm')}") from error
    finally:
        if hidden:
            del sys.modules["torchao"]
