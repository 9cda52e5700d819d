"""The table of accuracies: every method makes a network, a row is measured once, wrong words are refused."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import qlab

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def bench(monkeypatch):
    """The tool, with a small network and noise under the names that it asks for."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 10)).eval()

    def noise(split="train"):
        images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
        labels, moments = torch.arange(40) % 10, ((0.5,) * 3, (0.3,) * 3)
        return qlab.data.Dataset(images, labels, tuple("abcdefghij"), "noise", split, *moments)

    monkeypatch.setattr(qlab.data, "cifar10", noise)
    monkeypatch.setattr(qlab.models, "load", lambda name, data: network)
    monkeypatch.setattr(qlab.models, "manifest", lambda: {"resnet20-cifar10-w4a4": {"epochs": "3 of 5"}})
    monkeypatch.setattr(qlab.qat, "load", lambda name, bits, data: network)
    monkeypatch.syspath_prepend(TOOLS)
    module = importlib.import_module("bench_accuracy")
    # the tool's own numbers of steps are for real networks
    learn, images = qlab.adaround, qlab.datafree.images
    monkeypatch.setattr(qlab, "adaround", lambda *args, **options: learn(*args, steps=2, progress=False, **options))
    monkeypatch.setattr(qlab.datafree, "images", lambda *args, **options: images(*args, count=4, steps=1, **options))
    yield module
    sys.modules.pop("bench_accuracy")


def test_every_method_fills_a_row_and_no_row_is_measured_twice(bench, tmp_path, capsys, monkeypatch):
    path = tmp_path / "rows.jsonl"
    words = ["--rows", str(path), "--bits", "w4a4", "--images", "20"]
    assert bench.main([*words, "--only", "mse", "minmax"]) == 0
    with path.open("a") as file:
        file.write('{"network": "resn\n')  # a call that was killed
    assert bench.main(words) == 0
    rows = bench.read(path)
    assert [row["method"] for row in rows] == ["minmax", "mse", *list(bench.METHODS)[2:]]
    assert rows[-1]["epochs"] == "3 of 5" and rows[-1]["seconds"] == ""
    first = rows[0]
    assert first["drop"] == pytest.approx(first["fp32"] - first["top1"]) and first["data"] == "noise"
    assert (first["images"], first["seed"], first["split"]) == (20, 0, "test")
    assert capsys.readouterr().out.count("| resnet20 | w4a4 | data-free |") == 1
    monkeypatch.setattr(bench, "measure", lambda *args: pytest.fail("measured again"))
    assert bench.main(words) == 0


def test_other_weights_or_images_are_other_rows(bench, tmp_path):
    path = tmp_path / "rows.jsonl"
    words = ["--rows", str(path), "--only", "minmax", "w8a8"]
    for more in ([], ["--split", "validation"], ["--images", "10"], ["--seed", "1"]):
        assert bench.main([*words, *more]) == 0
    qlab.models.load("", "")[0].weight.data.mul_(1.5)
    assert bench.main(words) == 0
    assert len(bench.read(path)) == 5


def test_per_tensor_and_equalization_are_what_they_say(bench):
    task = bench.Task(qlab.models.load("", ""), "w4a4", qlab.data.cifar10("train"), 0)
    scales = {name: layer.weight_quantizer.scale for name, layer in bench.METHODS["minmax per tensor"](task).weighted()}
    assert all(scale.ndim == 0 for scale in scales.values())
    plain, equal = (bench.METHODS[name](task).network.get_submodule("0").weight for name in ("minmax", "minmax + CLE"))
    assert not torch.equal(plain, equal)


def test_unknown_words_and_missing_weights_are_errors(bench, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        bench.main(["--only", "magic"])
    assert "--only 'magic': expected one of minmax; mse;" in capsys.readouterr().err

    def load(network, data):
        raise ValueError("no trained weights for 'vgg-cifar10'")

    monkeypatch.setattr(qlab.models, "load", load)
    assert bench.main(["--network", "vgg"]) == 1
    assert "nothing to measure: no trained weights" in capsys.readouterr().err


def test_the_rows_are_json(bench, tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    bench.append(path, {"top1": 90.5})
    assert json.loads(path.read_text()) == {"top1": 90.5}
