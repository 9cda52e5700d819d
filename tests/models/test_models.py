"""The networks of the course and the weights that the manifest vouches for."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from qlab import models, qat
from qlab.files import read_tensors, sha256, write_tensors


def millions(network: nn.Module) -> float:
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


@pytest.mark.parametrize("name, size", [("resnet20", 0.27), ("mobilenet_v2", 0.70), ("vgg", 1.17)])
def test_a_network_has_the_size_it_says_and_ten_answers(name, size):
    network = models.ARCHITECTURES[name]().eval()
    assert round(millions(network), 2) == size
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_resnet20_has_twenty_layers_with_weights():
    layers = [
        m for m in models.resnet20().modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m.weight.shape[-1] != 1
    ]
    assert len(layers) == 20


@pytest.mark.parametrize("key", sorted(models.manifest()))
def test_committed_weights_are_the_ones_the_manifest_vouches_for(key):
    name, data, *preset = key.split("-")
    network = qat.load(name, *preset, data) if preset else models.load(name, data)
    assert not network.training
    weight = next(network.parameters())
    assert weight.is_contiguous(memory_format=torch.channels_last)
    entry = models.manifest()[key]
    assert {"command", "seed", "epochs", "trained_on", "validation", "test", "test_data"} <= set(entry)


def test_an_unknown_network_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no trained weights for 'resnet18-cifar10': there are .*vgg-cifar10"):
        models.load("resnet18")
    with pytest.raises(ValueError, match="network 'resnet18': expected one of resnet20, mobilenet_v2, vgg"):
        models.build("resnet18")


def test_a_network_with_rounding_is_not_taken_for_a_float_one():
    with pytest.raises(ValueError, match="resnet20-cifar10-w4a4.safetensors holds the weights of another network"):
        models.load("resnet20", "cifar10-w4a4")


@pytest.fixture
def copied(tmp_path, monkeypatch):
    entry = models.manifest()["vgg-cifar10"]
    path = tmp_path / entry["file"]
    path.write_bytes((models.FOLDER / entry["file"]).read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps({"vgg-cifar10": entry}))
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    return path


def test_one_wrong_byte_is_found(copied):
    content = bytearray(copied.read_bytes())
    content[-1] ^= 1
    copied.write_bytes(bytes(content))
    with pytest.raises(
        ValueError,
        match=r"vgg-cifar10.safetensors is damaged \(sha256 .*, expected .*\): restore it with `git checkout",
    ):
        models.load("vgg")


def test_a_missing_file_is_said_to_be_missing(copied):
    copied.unlink()
    with pytest.raises(ValueError, match="is missing: restore it with `git checkout"):
        models.load("vgg")


def test_a_torchvision_that_does_not_fit_is_explained(monkeypatch):
    real = builtins.__import__

    def mismatched(name, *arguments):
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", mismatched)
    with pytest.raises(
        ImportError, match="torchvision::nms.*must come from the same source.*--reinstall torch torchvision"
    ):
        models.mobilenet_v2()


def test_torchvision_is_not_imported_before_it_is_needed():
    code = (
        "import sys, qlab, qlab.models; print({'torchvision', 'matplotlib', 'ipywidgets', 'onnx'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# --- damaged and forged folders


def rewrite(path, entries) -> None:
    (path.parent / "manifest.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))


@pytest.mark.parametrize(
    "entries, words",
    [
        ("{", "is damaged .*: expected a JSON object. Restore it with `git checkout"),
        ("[]", "is damaged .it is a list.: expected a JSON object"),
        ('{"vgg-cifar10": {}, "vgg-cifar10": {}}', "is damaged .the key 'vgg-cifar10' stands there twice."),
        ('{"vgg-cifar10": {"test": NaN}}', "is damaged .NaN is no finite number."),
        ({"vgg-cifar10": 3}, "is damaged .no file and sha256 of 'vgg-cifar10'.. Restore it"),
        ({"vgg-cifar10": {"file": "x"}}, "is damaged .no file and sha256 of 'vgg-cifar10'."),
        ({"vgg-cifar10": {"file": ["x"], "sha256": "x"}}, "is damaged .no file and sha256 of 'vgg-cifar10'."),
        ({"vgg-cifar10": {"file": "../x", "sha256": "x"}}, "is damaged .'vgg-cifar10' is not in its folder."),
    ],
)
def test_a_damaged_manifest_is_named(copied, entries, words):
    rewrite(copied, entries)
    with pytest.raises(ValueError, match=f"{copied.parent}/manifest.json {words}"):
        models.load("vgg")


def test_a_missing_manifest_is_named(copied):
    (copied.parent / "manifest.json").unlink()
    with pytest.raises(OSError, match="manifest.json"):
        models.load("vgg")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state: state.pop("0.weight"), "holds the weights of another network: Missing key"),
        (
            lambda state: state.update({"0.weight": torch.zeros(3)}),
            "holds the weights of another network: size mismatch",
        ),
        (lambda state: state.update({"0.weight": state["0.weight"].double()}), ": '0.weight' is float64"),
        (
            lambda state: state["0.weight"].fill_(float("nan")),
            ": '0.weight' holds NaN or infinity",
        ),
    ],
)
def test_weights_that_the_manifest_vouches_for_have_to_fit_all_the_same(copied, change, words):
    state = {name: tensor.clone() for name, tensor in read_tensors(copied)[0].items()}
    change(state)
    write_tensors(copied, state)
    rewrite(copied, {"vgg-cifar10": {"file": copied.name, "sha256": sha256(copied)}})
    with pytest.raises(ValueError, match=f"{copied}.*{words}"):
        models.load("vgg")
