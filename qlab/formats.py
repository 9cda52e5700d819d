"""Smaller floats: their names and torch's types for them.

"e4m3" has 4 bits of exponent and 3 of mantissa, and reaches to 448; "e5m2" reaches to 57344. Micikevicius et al.,
"FP8 formats for deep learning" (2022); OCP 8-bit Floating Point Specification (2023).
"""

from __future__ import annotations

import torch

FORMATS = {
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def float_format(name: str) -> torch.dtype:
    """torch's type of a format. Raises ValueError for another name.

    >>> torch.finfo(float_format("e4m3")).max
    448.0
    """
    if name not in FORMATS:
        raise ValueError(f"float format {name!r}: expected one of {', '.join(FORMATS)}")
    return FORMATS[name]
