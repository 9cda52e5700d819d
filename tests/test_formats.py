"""The names of smaller floats."""

from __future__ import annotations

import pytest
import torch

from qlab import formats
from qlab.qconfig import SmallFloat


def test_every_name_is_torchs_type_of_as_many_bits():
    """e4m3: 1 bit of sign, 4 of exponent, 3 of mantissa."""
    for name, dtype in formats.FORMATS.items():
        assert formats.float_format(name) is dtype
        assert torch.finfo(dtype).bits == (8 if name.startswith("e") else 16)
    assert (
        torch.finfo(formats.float_format("e4m3")).eps == 2**-3
        and torch.finfo(formats.float_format("e5m2")).eps == 2**-2
    )


def test_another_name_is_refused_also_by_a_spec():
    for call in (formats.float_format, SmallFloat):
        with pytest.raises(ValueError, match="float format 'fp8': expected one of e4m3, e5m2, float16, bfloat16"):
            call("fp8")
