"""Two processes, each on its half of every batch, learn what one process learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stripes import stripes
from torch import nn

import qlab
from qlab import parallel, train
from qlab.files import read_tensors

HERE = Path(__file__).resolve()
PLAN = train.Plan(epochs=2, batch_size=16, lr=0.05, shrink=0.0)


def network(norm: bool) -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(
        *(layer for layer in layers if norm or not isinstance(layer, nn.BatchNorm2d)), nn.Linear(64, 2)
    )


def learn(folder: Path) -> None:
    """Train in float and with the rounding, and write what came out; 165 images do not divide by the batch."""
    with parallel.processes("cpu") as device:
        float_history = train.fit(
            network(norm=False), stripes(165), stripes(33, "validation"), PLAN, folder=folder / "float",
            device=device, progress=False,
        )  # fmt: skip
        _, history = qlab.qat.train(
            network(norm=True).eval(), "w4a4", stripes(1024), stripes(64, "validation"), PLAN, folder=folder / "qat",
            device=device, progress=False,
        )  # fmt: skip
        number, count = parallel.place()
        said = {"place": [number, count], "sum": parallel.total(number + 1.0)}
        said |= {"float": float_history, "qat": history}
        (folder / f"said-{number}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """The folders of the same training in one process, and in two that torchrun starts."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    learn(one)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(HERE), str(two)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr
    return one, two


def said(folder: Path, number: int) -> dict:
    return json.loads((folder / f"said-{number}.json").read_text())


def test_every_process_knows_its_place_and_the_same_results(runs):
    assert said(runs[0], 0)["place"] == [0, 1] and said(runs[0], 0)["sum"] == 1
    first, second = (said(runs[1], number) for number in (0, 1))
    assert (first["place"], second["place"]) == ([0, 2], [1, 2]) and first["sum"] == second["sum"] == 3
    for history in ("float", "qat"):
        rows = [[{**row, "seconds": 0} for row in each[history]] for each in (first, second)]
        assert rows[0] == rows[1]


def test_without_batchnorm_two_processes_take_the_steps_of_one(runs):
    alone, both = (read_tensors(folder / "float" / "last.safetensors") for folder in runs)
    for name, tensor in alone[0].items():
        torch.testing.assert_close(both[0][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    for a, b in zip(alone[1]["history"], both[1]["history"], strict=True):
        assert a["validation"] == b["validation"] and a["loss"] == pytest.approx(b["loss"], abs=2e-4)


def test_qat_with_batchnorm_ends_as_good(runs):
    """Each BatchNorm sees half a batch, so the weights differ; what they are worth does not."""
    alone, both = (said(folder, 0)["qat"][-1] for folder in runs)
    assert both["loss"] == pytest.approx(alone["loss"], abs=0.1)
    assert min(alone["validation"], both["validation"]) > 90
    prepared = qlab.prepare(network(norm=True), qlab.qat.qconfig("w4a4"))
    prepared.load_state_dict(read_tensors(runs[1] / "qat" / "prepared.safetensors")[0])
    assert qlab.evaluate(prepared, stripes(64, "test")) > 90


def test_alone_nothing_is_shared():
    x = torch.arange(5)
    assert parallel.share(x)[0] is x and parallel.total(3.0) == 3.0
    model = network(norm=False)
    assert parallel.together(model) is model
    with parallel.processes("cuda") as device:
        assert device == "cuda"


if __name__ == "__main__":
    learn(Path(sys.argv[1]))
