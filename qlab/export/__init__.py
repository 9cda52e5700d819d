"""A converted network leaves Python: as a safetensors file for qlab, as an ONNX graph for every other runtime.

- ``tensors.py``: :func:`save` and :func:`load`, the integers themselves.
- ``prepared.py``: the same for a prepared network, calibrated or trained, to go on with it.
- ``calls.py``: functions and methods that a file may name for what stays in float.
- ``checks.py``: what such a file may say, compared before anything of it is built.
- ``qdq.py``: :func:`save_onnx`, the same network as a graph with QuantizeLinear and DequantizeLinear nodes.
- ``operators.py``: what each operation that qlab has in integers is called in ONNX.
- ``aten.py``: the same for the small operations that everything in float comes down to.
- ``runtime.py``: :class:`OnnxNetwork`, that graph run by onnxruntime.
"""

from qlab.export.qdq import save_onnx
from qlab.export.runtime import OnnxNetwork
from qlab.export.tensors import load, save

__all__ = ["OnnxNetwork", "load", "save", "save_onnx"]
