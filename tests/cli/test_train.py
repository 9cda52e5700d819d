"""`qlab train` trains, goes on, and says how good a network is."""

from __future__ import annotations

from dataclasses import replace

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


class Small(Tiny):
    """Another network, which has more channels."""

    def __init__(self) -> None:
        super().__init__()
        self[0], self[1], self[5] = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.Linear(8, 2)


OPTIONS = ["--data", "shapes10", "--epochs", "1", "--device", "cpu", "--threads", "1"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A network and a data set that train in a moment, and an empty folder to be in."""
    monkeypatch.setattr(qlab.data, "shapes10", lambda split: stripes(1024 if split == "train" else 32, split))
    monkeypatch.setitem(qlab.models.ARCHITECTURES, "tiny", Tiny)
    monkeypatch.setitem(qlab.models.ARCHITECTURES, "small", Small)
    monkeypatch.setattr(qlab.models, "load", lambda name, data: qlab.models.build(name).eval())
    monkeypatch.chdir(tmp_path)
    return ["tiny", *OPTIONS]


def test_train_trains_goes_on_and_says_how_good_it_is(tiny, tmp_path, capsys):
    assert main(["train", *tiny]) == 0
    said = capsys.readouterr().out
    assert "tiny on stripes: 1024 images, 1 epochs" in said and "test accuracy" in said and "(stripes)" in said
    best = tmp_path / "runs" / "tiny-shapes10" / "best.safetensors"
    assert main(["train", *tiny, "--init", str(best), "--out", "second"]) == 0
    assert (tmp_path / "second" / "last.safetensors").exists()
    assert main(["train", "small", *OPTIONS, "--init", str(best), "--out", "third"]) == 1
    assert "best.safetensors holds the weights of another network" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_train_with_qat_goes_on_from_the_float_network(tiny, tmp_path, capsys):
    assert main(["train", *tiny, "--qat", "w4a4"]) == 0
    assert "test accuracy" in capsys.readouterr().out
    prepared = tmp_path / "runs" / "tiny-shapes10-w4a4" / "prepared.safetensors"
    assert prepared.exists()
    first = read_tensors(prepared)[0]
    words = ["--qat", "w4a4", "--init", str(prepared), "--out", "second", "--lr", "0", "--weight-decay", "0"]
    assert main(["train", *tiny, *words]) == 0
    second = read_tensors(tmp_path / "second" / "prepared.safetensors")[0]
    name = "network.quantizers.input.scale"
    assert torch.equal(first[name], second[name]), "it went on from where the first run ended"


def test_a_folder_of_another_run_is_neither_continued_nor_overwritten(tiny, tmp_path, capsys, monkeypatch):
    first = ["train", *tiny, "--qat", "w8a8", "--out", "run"]
    assert main(first) == 0
    initial = tmp_path / "run" / "prepared.safetensors"
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}

    def refused(words: list[str], said: str) -> None:
        capsys.readouterr()
        assert main(words) == 1
        assert said in capsys.readouterr().err
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before

    refused([*first, "--qat", "w4a4"], "is of a run with qconfig 'w8a8', here it is 'w4a4': choose another folder")
    refused(["train", "small", *first[2:]], "is of a run with network 'tiny', here it is 'small'")
    refused([*first, "--init", str(initial)], "is of a run with init None, here it is '")
    refused([*first, "--momentum", "0.5"], "is of a run with momentum 0.9, here it is 0.5")
    copy = lambda split: replace(stripes(1024 if split == "train" else 32, split), source="another copy")  # noqa: E731
    monkeypatch.setattr(qlab.data, "shapes10", copy)
    refused(first, "is of a run with source 'stripes', here it is 'another copy': choose another folder")


def test_where_nothing_can_be_written_nothing_is_trained(tiny, tmp_path, capsys, monkeypatch):
    (tmp_path / "runs").write_text("a file where the folder should be")
    monkeypatch.setattr(qlab.models, "build", lambda name: pytest.fail("it has begun"))
    assert main(["train", *tiny]) == 2
    assert "'runs/tiny-shapes10': expected a folder that can be written: Not a directory" in capsys.readouterr().err
