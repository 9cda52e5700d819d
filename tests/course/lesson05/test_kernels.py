"""One layer on one engine: the codes are those of the whole network, the exact sums those that are rounded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qlab
from qlab.course.lesson05 import kernels
from qlab.int8 import engines


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Two convolutions, the second with a stride."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2, padding=1)).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def probe(network, images) -> kernels.Probe:
    int8 = qlab.ptq(network, [images], qlab.QConfig.w8a8(reduce_range=True), engine="reference")
    return kernels.Probe(int8, network, "2", images)


def test_the_codes_are_the_exact_sums_rounded(probe):
    codes, exact = probe.codes("reference"), probe.exact()
    nearest = (exact.round() + probe.y_grid.zero_point).clamp(probe.y_grid.qmin, probe.y_grid.qmax)
    clear = kernels.far_from_a_tie(exact) > 1e-3
    assert codes.shape == exact.shape and clear.float().mean() > 0.9
    assert torch.equal((codes + probe.y_grid.zero_point)[clear].double(), nearest[clear])


def test_every_engine_differs_from_the_reference_near_a_tie_alone(probe):
    expected, exact = probe.codes("reference"), probe.exact()
    for name in (name for name, engine in engines.available().items() if engine.usable):
        differs = probe.codes(name) != expected
        assert not differs.any() or kernels.far_from_a_tie(exact[differs]).max() < 0.01, name


def test_the_codes_of_a_layer_are_nearly_what_the_float_layer_gives(probe, network, images):
    with torch.no_grad():
        y = network(images)
    assert qlab.analysis.sqnr(y, probe.codes("reference") * probe.step) > 20


def test_a_convolution_is_rows_times_rows(network, images):
    conv = nn.Conv2d(3, 8, 3, padding=1)
    pieces, weights = kernels.as_rows(images, conv, 4 * 8 * 8)
    with torch.no_grad():
        outputs, expected = pieces @ weights.T + conv.bias, conv(images).permute(0, 2, 3, 1).reshape(-1, 8)
    key = [sorted(map(tuple, rows.mul(1e4).round().long().tolist())) for rows in (outputs, expected)]
    assert sum(abs(a - b) for one, other in zip(*key) for a, b in zip(one, other)) < len(expected)


def test_a_layers_numbers_are_those_that_it_moves_and_multiplies():
    engine = engines.get("reference")
    linear = kernels.layer_speed("row", nn.Linear(64, 10), torch.rand(1, 64), engine)
    assert (linear.operations, linear.int8_bytes, linear.float_bytes) == (2 * 640, 64 + 640 + 10, 4 * 714)
    conv = nn.Conv2d(4, 8, 3, padding=1)
    speed = kernels.layer_speed("image", conv, torch.rand(1, 4, 6, 6), engine)
    assert (speed.operations, speed.int8_bytes) == (2 * 8 * 4 * 9 * 36, 4 * 36 + 8 * 4 * 9 + 8 * 36)
    assert min(linear.float_seconds, linear.int8_seconds, speed.speedup) > 0


def test_an_int8_layer_among_floats_is_three_calls():
    seconds = kernels.alone_among_floats(nn.Linear(8, 4), torch.rand(1, 8), engines.get("reference"))
    assert list(seconds) == ["float layer", "quantize", "int8 layer", "dequantize"] and min(seconds.values()) > 0
