"""Bias correction gives each channel the mean back that rounding took."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import qlab
from qlab import QConfig, correct_bias
from qlab.bias_correction import mean_of_channels, rectified_moments
from qlab.graph.run import as_float, walk

IMAGES = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LOW = QConfig.preset("w3a8", first_last=None)


class Block(nn.Module):
    """Convolutions with BatchNorm, relu, an addition, a concatenation, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.an = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.bn = nn.Conv2d(8, 8, 3, groups=4, bias=False, padding=1), nn.BatchNorm2d(8)
        self.c = nn.Conv2d(16, 8, 1, bias=False)
        self.pool, self.flat, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4, bias=False)
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()

    def forward(self, x):
        x = self.relu(self.an(self.a(x)))
        y = self.relu6(self.bn(self.b(x)) + x)
        y = self.relu(self.c(torch.cat([x, y], dim=1)))
        return self.fc(self.flat(self.pool(y)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A network whose BatchNorms know the images."""
    torch.manual_seed(0)
    network = Block()
    for norm in (network.an, network.bn):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.5)
    with torch.no_grad():
        for _ in range(40):
            network.train()(IMAGES)
    return network.eval()


def calibrated(model: nn.Module, qconfig: QConfig = LOW):
    return qlab.calibrate(qlab.prepare(model, qconfig, IMAGES), IMAGES.split(16), progress=False)


def shifts(prepared) -> dict[str, float]:
    """How far each layer's mean output is off, the root of the mean square over channels."""
    found = {}
    with torch.no_grad():
        for stop in walk(prepared, IMAGES.split(16)):
            axis = 1 if isinstance(stop.layer, nn.Conv2d) else -1
            off = mean_of_channels(map(stop.layer, stop.inputs), axis) - mean_of_channels(stop.targets, axis)
            found[stop.name] = float(off.square().mean().sqrt())
    return found


def test_each_mean_is_restored(model):
    prepared = calibrated(model)
    before = shifts(prepared)
    assert correct_bias(prepared, IMAGES.split(16)) is prepared
    after = shifts(prepared)
    assert set(before) == {"a", "b", "c", "fc"} and min(before.values()) > 1e-3
    assert max(after.values()) < 1e-5


def test_statistics_of_batchnorm_restore_most_of_it_without_data(model):
    prepared = calibrated(model, QConfig.preset("w3a32", first_last=None, overrides={"a": None}))
    before = shifts(prepared)
    correct_bias(prepared)
    after = shifts(prepared)
    assert after["b"] < 0.7 * before["b"], "borders and the true shape of the distribution remain"
    assert after["c"] < 0.7 * before["c"], "behind an addition and a relu6"


def test_the_first_layer_is_left_alone_since_nothing_is_known_of_the_images(model):
    prepared = calibrated(model)
    first, second = (dict(prepared.weighted())[name] for name in "ab")
    biases = first.bias.detach().clone(), second.bias.detach().clone()
    correct_bias(prepared)
    assert torch.equal(first.bias, biases[0]) and not torch.equal(second.bias, biases[1])


def test_a_second_correction_starts_from_the_float_biases_again(model):
    prepared = calibrated(model)
    biases = []
    for batches in (IMAGES.split(16), None, IMAGES.split(16)):
        correct_bias(prepared, batches)
        biases.append({name: layer.bias.detach().clone() for name, layer in prepared.weighted()})
    assert all(torch.equal(biases[0][name], biases[2][name]) for name in biases[0])


def test_corrected_biases_go_into_the_integer_network(model):
    prepared = calibrated(model)
    before = qlab.convert(prepared, "reference")(IMAGES)
    correct_bias(prepared, [(IMAGES, torch.zeros(64))])
    after = qlab.convert(prepared, "reference")(IMAGES)
    expected = model(IMAGES).mean(0)
    assert (after.mean(0) - expected).norm() < 0.2 * (before.mean(0) - expected).norm()


@settings(max_examples=25, deadline=None)
@given(mean=st.floats(-3, 8), std=st.floats(0.05, 4), top=st.sampled_from([float("inf"), 6.0]))
def test_moments_of_a_clipped_normal_are_those_of_many_samples(mean, std, top):
    samples = (torch.randn(400_000, generator=torch.Generator().manual_seed(0)).double() * std + mean).clamp(0, top)
    found = rectified_moments(torch.tensor(mean).double(), torch.tensor(std).double() ** 2, top)
    assert abs(found[0] - samples.mean()) < 0.01 * std
    assert abs(found[1] - samples.var()) < 0.02 * std**2


def test_no_batch_is_an_error_and_the_mode_is_restored(model):
    prepared = calibrated(model).train()
    with pytest.raises(ValueError, match=r"got no batch.*data.sample\(512\).batches\(64\)"):
        correct_bias(prepared, [])
    correct_bias(prepared, [IMAGES])
    assert prepared.training


def test_without_batchnorm_and_without_data_nothing_is_known():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)).eval()
    with pytest.raises(ValueError, match="no BatchNorm was folded.*give images"):
        correct_bias(calibrated(plain))


def test_an_uncalibrated_network_says_so(model):
    with pytest.raises(RuntimeError, match="has not been calibrated"):
        correct_bias(qlab.prepare(model, LOW, IMAGES), [IMAGES])


def test_channels_of_a_linear_layer_are_the_last_axis_of_four():
    """(N, H, W, channels), as in a transformer for images."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 6)

        def forward(self, x):
            return self.fc(x.permute(0, 2, 3, 1))

    torch.manual_seed(0)
    x = torch.rand(4, 3, 6, 8)
    prepared = qlab.calibrate(qlab.prepare(Last(), QConfig.preset("w3a8", first_last=None), x[:1]), [x])
    qlab.correct_bias(prepared, [x], progress=False)
    floats = as_float(prepared)
    with torch.no_grad():
        torch.testing.assert_close(prepared(x).mean((0, 1, 2)), floats(x).mean((0, 1, 2)), atol=0.02, rtol=0.02)
