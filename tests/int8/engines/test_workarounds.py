"""oneDNN computes some layers wrong; here they are right, whichever engine computes them."""

from __future__ import annotations

import pytest
import torch
from kernels import FUSING, assert_within_one, both, draw, every_engine, within

from qlab.affine import QParams
from qlab.int8 import engines
from qlab.int8.reference import pair

# Layers that oneDNN 3.x gets wrong on some processors: (groups, inputs and outputs of one, kernel), window, zero point.
HARD = {
    "groups of many outputs": ((2, 1, 17, 3, 3), {"stride": 2, "padding": 1}, 102),
    "groups of many outputs, no padding": ((3, 1, 48, 3, 3), {"stride": 2}, 102),
    "groups of one output": ((2, 4, 1, 7, 1), {"padding": (1, 0)}, 102),
    "kernels one pixel wide": ((1, 8, 16, 7, 1), {"padding": (1, 0)}, 102),
    "outputs one pixel wide": ((1, 7, 17, 1, 9), {"stride": (1, 2), "padding": (0, 3), "dilation": (1, 2)}, 0),
    "padding alone, one group": ((1, 1, 8, 2, 3), {"padding": (2, 0)}, 50),
    "padding alone, groups": ((4, 1, 2, 2, 3), {"padding": (2, 0)}, 50),
    "padding alone, dilated past the map": ((1, 16, 8, 2, 2), {"stride": 1, "padding": 1, "dilation": 2}, 102),
    "outputs one pixel wide, groups of one input": ((4, 1, 2, 3, 3), {"stride": (1, 2), "padding": 1}, 103),
    "outputs one pixel wide, one channel": ((1, 1, 16, 3, 3), {"stride": (1, 3), "padding": (1, 0)}, 50),
    "padding alone, one weight": ((16, 1, 1, 1, 1), {"padding": (1, 0)}, 102),
}


@every_engine
@pytest.mark.parametrize("bias", [None, 20.0])
@pytest.mark.parametrize("case", HARD)
def test_layers_that_are_wrong_in_onednn_are_right_here(name, case, bias):
    (groups, inputs, outputs, *kernel), window, zero_point = HARD[case]
    weight = torch.randint(-127, 128, (groups * outputs, inputs, *kernel), dtype=torch.int8)
    x_qp, weight_qp = within(QParams(1.0, zero_point), name), QParams(0.03, 0, signed=True)
    step = float(weight.float().flatten(1).abs().sum(1).max()) * 0.03
    out_qp, bias = QParams(step, 128), None if bias is None else torch.randn(len(weight)) * bias * step
    args, window = (weight, bias, weight_qp, x_qp), {**window, "groups": groups}
    for size in ((12, 12), (14, 14), (16, 16), (4, 1), (8, 3), (5, 2)):
        extents = (d * (k - 1) + 1 for d, k in zip(pair(window.get("dilation", 1)), kernel))
        if any(n + 2 * p < e for n, p, e in zip(size, pair(window.get("padding", 0)), extents)):
            continue
        x = draw((2, groups * inputs, *size), x_qp)
        kernels = both(name, "conv2d", *args, out_qp, **window)
        shape = tuple(assert_within_one(engines.get(name), kernels, [(x, x_qp)]).shape)
        if name in FUSING:
            other = draw(shape, out_qp)
            kernels = both(name, "conv2d_add", *args, out_qp, out_qp, **window)
            assert_within_one(engines.get(name), kernels, [(x, x_qp), (other, out_qp)])
