"""`qlab train` trains, goes on, and says how good a network is."""

from __future__ import annotations

import pytest
import torch
from stripes import stripes
from torch import nn

import qlab
from qlab.cli.main import main
from qlab.files import read_tensors


class Tiny(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=4),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        )


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A network and a data set that train in a moment, and an empty folder to be in."""
    monkeypatch.setattr(
        qlab.data, "stripes", lambda split: stripes(1024 if split == "train" else 32, split), raising=False
    )
    monkeypatch.setitem(qlab.models.ARCHITECTURES, "tiny", Tiny)
    monkeypatch.chdir(tmp_path)
    return ["tiny", "--data", "stripes", "--epochs", "1", "--device", "cpu", "--threads", "1"]


def test_train_trains_goes_on_and_says_how_good_it_is(tiny, tmp_path, capsys):
    assert main(["train", *tiny]) == 0
    said = capsys.readouterr().out
    assert "tiny on stripes: 1024 images, 1 epochs" in said and "test accuracy" in said and "(stripes)" in said
    best = tmp_path / "runs" / "tiny-stripes" / "best.safetensors"
    assert main(["train", *tiny, "--init", str(best), "--out", "second"]) == 0
    assert (tmp_path / "second" / "last.safetensors").exists()


def test_train_with_qat_goes_on_from_the_float_network(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(qlab.models, "load", lambda name, data: Tiny().eval())
    assert main(["train", *tiny, "--qat", "w4a4"]) == 0
    assert "test accuracy" in capsys.readouterr().out
    prepared = tmp_path / "runs" / "tiny-stripes-w4a4" / "prepared.safetensors"
    assert prepared.exists()
    first = read_tensors(prepared)[0]
    words = ["--qat", "w4a4", "--init", str(prepared), "--out", "second", "--lr", "0", "--weight-decay", "0"]
    assert main(["train", *tiny, *words]) == 0
    second = read_tensors(tmp_path / "second" / "prepared.safetensors")[0]
    name = "network.quantizers.input.scale"
    assert torch.equal(first[name], second[name]), "it went on from where the first run ended"
