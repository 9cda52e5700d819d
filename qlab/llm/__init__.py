"""Language models: integer weights, outliers, and what they cost. IBM's Granite is the example.

Read ``granite`` (the tiny model), ``families``, ``loading`` and ``gguf_files`` (real ones), ``text`` (what the tiny one was
trained on), ``layers`` (weight-only, W8A8), ``convert`` (a whole
model), ``gptq`` with ``stages`` (better rounding), ``outliers`` (SmoothQuant), ``measure`` (perplexity, speed). Needs
transformers, the extra ``llm``: ``python3 tools/install.py llm``.
"""

from qlab.llm.convert import as_bfloat16, dynamic, linears, rounded, weight_only
from qlab.llm.gguf_saving import save_gguf
from qlab.llm.gptq import gptq_quantize
from qlab.llm.granite import GRANITE_2B, TINY, build, config, manifest, random_model, tiny
from qlab.llm.layers import DynamicLinear, WeightOnlyLinear, quantize_weight
from qlab.llm.loading import fetch_smol, load, smol, tokenizer
from qlab.llm.measure import generate, perplexity, speed
from qlab.llm.outliers import inject, largest_inputs, layer_inputs, smooth, smoothing_scale
from qlab.llm.text import corpus, source, windows

__all__ = [
    "GRANITE_2B", "TINY", "DynamicLinear", "WeightOnlyLinear", "as_bfloat16", "build", "config", "corpus", "dynamic",
    "fetch_smol", "generate", "gptq_quantize", "inject", "largest_inputs", "layer_inputs", "linears", "load", "manifest",
    "perplexity", "quantize_weight", "random_model", "rounded", "save_gguf", "smol", "smooth", "smoothing_scale", "source",
    "speed", "tiny", "tokenizer", "weight_only", "windows",
]  # fmt: skip
