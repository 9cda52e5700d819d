"""qlab: what quantization does to a neural network, in code that is meant to be read.

Read the files in the order of the course: ``affine`` (one number), ``granularity`` (which numbers share a scale),
``observers`` (which range), ``qconfig`` (which tensors), ``quantizers`` (what rounds them), ``graph`` (a whole network),
``int8`` (the arithmetic a processor really does), ``calibration`` (all of that in one call), ``qat`` (training with the
rounding in place).
"""

from __future__ import annotations

from importlib import import_module

from qlab import observers
from qlab.adaptive_rounding import adaround
from qlab.affine import QParams, choose_qparams, dequantize, fake_quantize, quantize
from qlab.bias_correction import correct_bias
from qlab.calibration import calibrate, ptq
from qlab.export import OnnxNetwork, load, save, save_onnx
from qlab.granularity import PerChannel, PerGroup, PerTensor
from qlab.graph.convert import convert
from qlab.graph.prepare import prepare
from qlab.qconfig import QConfig, QuantSpec
from qlab.train import evaluate

__version__ = "0.1.0"

# loaded when first used: they bring more than torch
_LATER = ("analysis", "bench", "course", "data", "datafree", "detect", "llm", "models", "qat")

__all__ = [
    "OnnxNetwork", "PerChannel", "PerGroup", "PerTensor", "QConfig", "QParams", "QuantSpec", "adaround", "calibrate",
    "choose_qparams", "convert", "correct_bias", "dequantize", "evaluate", "fake_quantize", "load", "observers", "prepare", "ptq",
    "quantize", "save", "save_onnx", *_LATER,
]  # fmt: skip


def __getattr__(name: str):
    if name in _LATER:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'qlab' has no attribute {name!r}; it offers: {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])
