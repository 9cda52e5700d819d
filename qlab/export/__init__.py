"""A converted network leaves Python: as a safetensors file for qlab, as an ONNX graph for every other runtime.

- ``tensors.py``: :func:`save` and :func:`load`, the integers themselves.
- ``qdq.py``: :func:`save_onnx`, the same network as a graph with QuantizeLinear and DequantizeLinear nodes.
- ``operators.py``: what each operation is called in ONNX.
"""

from qlab.export.qdq import save_onnx
from qlab.export.tensors import load, save

__all__ = ["load", "save", "save_onnx"]
