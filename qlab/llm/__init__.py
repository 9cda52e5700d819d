"""Language models: integer weights, outliers, and what they cost. IBM's Granite is the example.

Read ``granite`` (the tiny model), ``families``, ``loading`` and ``gguf_files`` (real ones), ``text`` (what the tiny one was
trained on), ``layers`` (weight-only, W8A8), ``convert`` (a whole
model), ``gptq`` with ``stages`` (better rounding), ``outliers`` (SmoothQuant), ``measure`` (perplexity, speed). Needs
transformers, the extra ``llm``: ``python3 tools/install.py llm``.
"""

from qlab.llm.activation_aware import awq
from qlab.llm.block_layers import BlockLinear
from qlab.llm.cache import CacheBits, quantized_cache
from qlab.llm.convert import as_bfloat16, dynamic, linears, rounded, weight_only
from qlab.llm.gguf_saving import save_gguf
from qlab.llm.gptq import gptq_quantize
from qlab.llm.granite import GRANITE_2B, TINY, build, config, manifest, random_model, tiny
from qlab.llm.importance_matrix import importance
from qlab.llm.layers import DynamicLinear, WeightOnlyLinear, quantize_weight
from qlab.llm.loading import fetch_smol, load, smol, tokenizer
from qlab.llm.measure import flips, generate, kl_divergence, perplexity, speed
from qlab.llm.outliers import inject, largest_inputs, layer_inputs, smooth, smoothing_scale
from qlab.llm.rotation import rotate
from qlab.llm.text import corpus, source, windows

__all__ = [
    "GRANITE_2B", "TINY", "BlockLinear", "CacheBits", "DynamicLinear", "WeightOnlyLinear", "as_bfloat16", "awq", "build",
    "config", "corpus", "dynamic", "fetch_smol", "flips", "generate", "gptq_quantize", "importance", "inject",
    "kl_divergence", "largest_inputs", "layer_inputs", "linears", "load", "manifest", "perplexity", "quantize_weight",
    "quantized_cache", "random_model", "rotate", "rounded", "save_gguf", "smol", "smooth", "smoothing_scale", "source",
    "speed", "tiny", "tokenizer", "weight_only", "windows",
]  # fmt: skip
