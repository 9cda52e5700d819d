"""What only torch.ops.quantized has: a global engine, a rounded bias, a warning, and no fusion except in onednn."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kernels import FUSING, USABLE, assert_within_one, both, draw, every_engine

from qlab.affine import QParams
from qlab.int8 import engines


@every_engine
def test_running_leaves_everything_as_it_was(name):
    before = torch.backends.quantized.engine
    with pytest.raises(KeyError), engines.get(name).running():
        raise KeyError("an error inside")
    assert torch.backends.quantized.engine == before
    assert torch._C._is_torch_function_enabled()


@pytest.mark.parametrize("name", [name for name in USABLE if name not in FUSING])
def test_an_engine_that_does_not_fuse_says_which_does(name):
    qp, weight_qp, weight = QParams(1.0, 0), QParams(1.0, 0, signed=True), torch.ones(2, 2, 1, 1).char()
    with pytest.raises(ValueError, match=f"engine '{name}' has no conv2d_add.*use engine='onednn'"):
        engines.get(name).conv2d_add(weight, None, weight_qp, qp, qp, qp)


@given(st.lists(st.tuples(*[st.integers(-128, 127)] * 3), min_size=1, max_size=5), st.sampled_from([127, 63]))
@example([(-128, -63, 18)], 127)
def test_room_for_a_bias_is_made_without_changing_a_weight(rows, most):
    weight, x_qp = torch.tensor(rows, dtype=torch.int8), QParams(0.5, 7)
    codes, scale = engines.room_for_bias(weight, torch.tensor(0.03), torch.full((len(rows),), 0.1), x_qp, most)
    assert torch.allclose(codes * scale[:, None], weight * torch.tensor(0.03).double(), rtol=1e-12, atol=0)
    grown = (codes != weight).any(1)
    assert (codes[grown].int().abs() <= most).all() and (codes[grown].int().abs().amax(1) > most // 2).all()


@every_engine
def test_pools_of_one_pixel_and_windows_of_one_pixel(name):
    """torch takes the wrong elements where padding makes more of one pixel; qnnpack refuses windows of one."""
    torch.manual_seed(0)
    qp = QParams(0.1, 40)
    for size, window in (
        ((2, 17, 1, 1), {"kernel_size": (2, 3), "stride": 1, "padding": 1}),
        ((2, 64, 13, 2), {"kernel_size": (2, 3), "stride": 1, "padding": 1}),
        ((2, 17, 6, 6), {"kernel_size": 1, "stride": 2}),
    ):
        x = [(draw(size, qp), qp)]
        kernels = both(name, "max_pool2d", qp, **window)
        assert torch.equal(assert_within_one(engines.get(name), kernels, x), kernels[1](x[0][0]))
    for size in ((2, 3), (1, 2), 2):
        kernels = both(name, "adaptive_avg_pool2d", qp, qp, output_size=size)
        assert_within_one(engines.get(name), kernels, [(draw((2, 17, 1, 1), qp), qp)])


def test_nobody_is_told_that_quantized_tensors_are_deprecated():
    script = (
        "import torch; from qlab.int8 import engines; from qlab.affine import QParams\n"
        "engine = engines.get('auto'); engine.quantize(QParams(0.5, 0))(torch.ones(1, 2)); print(engine.name)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
