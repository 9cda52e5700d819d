"""`qlab quantize` says what an int8 network costs and gains."""

from __future__ import annotations

import pytest
import torch

import qlab
from qlab.cli.main import main
from qlab.int8 import engines


@pytest.fixture
def small_course(monkeypatch):
    """A two-layer network and 40 images under the names that `qlab quantize` asks for."""

    def shapes(split="train"):
        images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        return qlab.data.Dataset(
            images,
            torch.arange(40) % 10,
            tuple("abcdefghij"),
            "forty squares",
            split,
            (0.5,) * 3,
            (0.25,) * 3,
        )

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(512, 10)
    )
    monkeypatch.setattr(qlab.data, "cifar10", shapes)
    monkeypatch.setattr(qlab.models, "load", lambda name, data: network.eval(), raising=False)


def test_quantize_says_accuracy_sizes_engine_and_the_copy_of_the_data(small_course, capsys, tmp_path):
    path = tmp_path / "int8.safetensors"
    assert main(["quantize", "resnet20", "--engine", "reference", "--images", "20", "--out", str(path)]) == 0
    output = capsys.readouterr().out
    assert "resnet20, w8a8, engine reference, 40 test images of forty squares" in output
    rows = {line.split()[0]: line.split() for line in output.splitlines()[1:]}
    assert rows["float"][2] == rows["int8"][2] == "%"
    assert float(rows["int8"][3]) < float(rows["float"][3]) / 2
    assert rows["int8"][3] == f"{path.stat().st_size / 1024:.1f}"
    assert rows["saved"][1] == str(path)


def test_quantize_spares_an_engine_that_saturates_the_eighth_bit(small_course, capsys, monkeypatch):
    saturating = engines.Availability("reference", True, "works", saturates=True)
    monkeypatch.setattr(engines.choice, "availability", lambda name: saturating)
    monkeypatch.setattr(engines, "available", lambda: {"reference": saturating})
    assert main(["quantize", "resnet20", "--engine", "reference", "--images", "20"]) == 0
    assert "weights have at most 7 bits" in capsys.readouterr().out


def test_quantize_names_what_is_not_there(small_course, capsys):
    assert main(["quantize", "resnet20", "--images", "1024"]) == 1
    assert "sample(1024): expected 1 to 40" in capsys.readouterr().err


def test_quantize_names_what_stays_in_float(small_course, capsys):
    assert main(["quantize", "resnet20", "--engine", "reference", "--images", "20", "--qconfig", "w8a32"]) == 0
    assert "\n  in float: 0, " in capsys.readouterr().out
    assert main(["quantize", "resnet20", "--engine", "reference", "--images", "20"]) == 0
    assert "in float" not in capsys.readouterr().out
