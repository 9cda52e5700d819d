"""Integer networks on disk: the same on every engine, small, and safe to open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import qlab
from qlab import PerChannel, QConfig, models
from qlab.files import read_tensors, write_tensors

FILE = Path(__file__).parent / "format1.safetensors"
IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def int8(model: nn.Module, qconfig: QConfig | None = None):
    return qlab.ptq(model.eval(), [IMAGES], qconfig, engine="reference")


@pytest.mark.parametrize("name", models.ARCHITECTURES)
@pytest.mark.parametrize("preset", ["w8a8", "w4a4", "w4a32"])
def test_a_saved_network_comes_back_bit_for_bit(tmp_path, name, preset):
    network = int8(models.ARCHITECTURES[name](), QConfig.preset(preset))
    path = qlab.save(network, tmp_path / "net.safetensors")
    back = qlab.load(path, engine="reference")
    assert torch.equal(back(IMAGES), network(IMAGES))
    assert back.source == network.source and back.size_bytes == network.size_bytes
    assert str(back.report()) == str(network.report())


def test_layers_left_in_float_come_back_too(tmp_path):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 3, bias=False), nn.SiLU(),
        nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 28 * 28, 3), nn.Softmax(dim=1),
    )  # fmt: skip
    network = int8(model, QConfig.w8a8(overrides={"3": None}))
    back = qlab.load(qlab.save(network, tmp_path / "net.safetensors"), engine="reference")
    assert torch.equal(back(IMAGES), network(IMAGES))


def test_the_file_is_at_most_27_percent_of_the_float_one(tmp_path):
    model = models.resnet20()
    small = qlab.save(int8(model), tmp_path / "int8.safetensors").stat().st_size
    large = write_tensors(tmp_path / "fp32.safetensors", model.state_dict()).stat().st_size
    assert small <= 0.27 * large


def test_the_file_does_not_depend_on_the_engine(tmp_path):
    network = int8(models.vgg(), QConfig.w8a8(reduce_range=True))
    first = qlab.save(network, tmp_path / "a.safetensors").read_bytes()
    assert qlab.save(network.on("auto"), tmp_path / "b.safetensors").read_bytes() == first


def test_only_integer_networks_are_saved(tmp_path):
    with pytest.raises(TypeError, match="save takes what qlab.convert or qlab.ptq gave, not a ResNet"):
        qlab.save(models.resnet20(), tmp_path / "x.safetensors")


class Scales(nn.Module):
    def forward(self, x):
        return torch.cat([x * 2.0, x - 1.0], 1)


def test_plain_functions_in_float_come_back_too(tmp_path):
    network = int8(nn.Sequential(nn.Conv2d(3, 4, 3), Scales(), nn.Conv2d(8, 2, 1)))
    assert "float" in network.source
    back = qlab.load(qlab.save(network, tmp_path / "net.safetensors"), engine="reference")
    assert torch.equal(back(IMAGES), network(IMAGES))


class Own(nn.Module):
    def forward(self, x):
        return x.tanh()


@pytest.mark.parametrize("leaves, what", [((), "tanh"), ((Own,), "Own")])
def test_float_code_of_ones_own_cannot_be_saved(tmp_path, leaves, what):
    prepared = qlab.prepare(nn.Sequential(nn.Conv2d(3, 4, 3), Own()), None, IMAGES, leaves=leaves)
    network = qlab.convert(qlab.calibrate(prepared, [IMAGES]), "reference")
    with pytest.raises(ValueError, match=f"stays in float and is '{what}', which is neither .*: it cannot be saved"):
        qlab.save(network, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_file_of_format_1_says_what_it_said_when_it_was_written(tmp_path):
    """format1.safetensors: tests/zoo.py with seed 0; weights per channel and per tensor, in 8 and 4 bits, a float island."""
    network = qlab.load(FILE, engine="reference")
    images = torch.linspace(-2, 2, 3 * 16 * 16).sin().reshape(1, 3, 16, 16)
    scores = [
        0.20906314253807068,
        -0.014933082275092602,
        0.1387898176908493,
        0.058853909373283386,
        0.014933082275092602,
    ]
    torch.testing.assert_close(network(images), torch.tensor([scores]), rtol=1e-6, atol=0)
    assert qlab.save(network, tmp_path / "again.safetensors").read_bytes() == FILE.read_bytes()


def test_the_file_does_not_depend_on_how_the_axis_of_the_scales_is_written(tmp_path):
    model, files = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)), []
    for axis in (0, -4):
        weight = replace(QConfig.w8a8().weight, granularity=PerChannel(axis))
        path = qlab.save(int8(model, QConfig.w8a8(weight=weight)), tmp_path / f"{axis}.safetensors")
        files.append(path.read_bytes())
    assert files[0] == files[1]
    assert torch.equal(qlab.load(path, engine="reference")(IMAGES), int8(model)(IMAGES))


def test_another_format_is_refused(tmp_path):
    path = qlab.save(int8(models.vgg()), tmp_path / "x.safetensors")
    tensors, header = read_tensors(path)
    write_tensors(path, tensors, {**header, "format": 99})
    with pytest.raises(ValueError, match="has format 99; this qlab reads format 1"):
        qlab.load(path)


def test_the_weights_of_a_float_network_are_no_integer_network(tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", models.vgg().state_dict())
    with pytest.raises(ValueError, match="has format None"):
        qlab.load(path)


def test_a_damaged_file_is_refused(tmp_path):
    path = qlab.save(int8(models.vgg()), tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        qlab.load(path)
