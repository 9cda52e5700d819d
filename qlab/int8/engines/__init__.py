"""Fast engines: the int8 kernels of torch, behind the interface of :class:`qlab.int8.reference.Engine`.

This is the one folder that touches them, since upstream is taking them away. There are two families: quantized.py on
tensors of their own type, onednn.py on plain ones; workarounds.py knows what oneDNN computes wrong. matmul.py has the
matrix products of language models. choice.py tries the engines out on this machine, whose instructions processor.py
knows.

All stay within one code of the reference; they multiply their int32 sums by a float, where it takes a
fixed-point number. The exception has a physical cause. Without VNNI instructions (2019 and later) an x86
processor adds up u8 * s8 products in pairs of 16 bits, and ``255 * 127 * 2`` does not fit: it *saturates* at
32767. (fbgemm's kernel for depthwise layers does so even with them.) choice.py finds that out. Seven bits for
weights (``reduce_range=True``) or for activations make every pair fit.
"""

from qlab.int8.engines.choice import NAMES, Availability, availability, available, choose, get, saturates_on
from qlab.int8.engines.matmul import (
    dynamic_linear,
    has_weight_products,
    int4_weight_product,
    int8_weight_product,
    pack_int4,
)
from qlab.int8.engines.processor import Cpu, cpu
from qlab.int8.engines.quantized import QUANTIZED, room_for_bias
from qlab.int8.reference import Engine

__all__ = [
    "NAMES", "QUANTIZED", "Availability", "Cpu", "Engine", "availability", "available", "choose", "cpu",
    "dynamic_linear", "get", "has_weight_products", "int4_weight_product", "int8_weight_product", "pack_int4",
    "room_for_bias", "saturates_on",
]  # fmt: skip
