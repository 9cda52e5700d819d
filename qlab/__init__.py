"""qlab: what quantization does to a neural network, in code that can be read in one evening.

Read the files in the order of the course: ``affine`` (one number), ``granularity`` (which numbers share a scale),
``observers`` (which range), ``qconfig`` (which tensors), ``graph`` (a whole network), ``ptq``, ``qat``, and
``int8`` (the arithmetic a processor really does).

Names are loaded when they are first used, so ``import qlab`` costs next to nothing on top of ``import torch``.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_HOME = {  # public name -> the module it lives in
    "QParams": "affine",
    "choose_qparams": "affine",
    "quantize": "affine",
    "dequantize": "affine",
    "fake_quantize": "affine",
    "PerTensor": "granularity",
    "PerChannel": "granularity",
    "PerGroup": "granularity",
    "QuantSpec": "qconfig",
    "QConfig": "qconfig",
    "prepare": "graph.prepare",
    "convert": "graph.convert",
    "calibrate": "ptq",
    "ptq": "ptq",
    "evaluate": "train",
    "save": "export",
    "load": "export",
}
_MODULES = ("affine", "granularity", "observers", "qconfig", "graph", "int8", "bench", "export", "models", "data", "train", "course")

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module 'qlab' has no attribute {name!r}; it offers: {', '.join(sorted(__all__))}")
    globals()[name] = value  # also replaces the submodule `qlab.ptq` by the function of that name
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
