"""Integer networks: errors name the layers, and nothing from outside changes what was packed."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from kernels import USABLE
from torch import nn

import qlab
from qlab import models
from qlab.int8 import engines

ENGINES = ["reference", *USABLE]
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Joined(nn.Module):
    """Two branches that have one size for images of even size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.pool = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, 2, 1), nn.MaxPool2d(2)

    def forward(self, x):
        x = self.stem(x).relu()
        return (self.pool(x) + self.conv(x)).relu()


def integer(model: nn.Module, engine: str, **overrides) -> qlab.int8.modules.Int8Network:
    qconfig = qlab.QConfig.w8a8(reduce_range=engines.saturates_on(engine, model), overrides=overrides)
    return qlab.ptq(model.eval(), [X], engine=engine, qconfig=qconfig)


@pytest.mark.parametrize("engine", ENGINES)
def test_images_for_which_two_branches_differ_are_refused_with_the_layers_and_both_shapes(engine):
    """oneDNN would write the sum into the smaller branch's memory; see the test in a process of its own."""
    int8 = integer(Joined(), engine)
    expected = r"'add', which reads .*'pool'.*two addends of shapes \(2, 64, 1[67], 1[67]\) and \(2, 64, 1[67], 1[67]\)"
    for _ in range(2):
        with pytest.raises(ValueError, match=expected):
            int8(torch.randn(2, 3, 33, 33))
    assert int8(X).isfinite().all()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_window_in_a_file_that_was_changed_is_refused_too(engine):
    int8 = integer(Joined(), engine)
    convolution = next(layer for layer in int8.layers if layer.name == "conv")
    convolution.options["padding"] = (1, 3)
    with pytest.raises(ValueError, match="two addends of shapes"):
        int8.on(engine)(X)


@pytest.mark.skipif("onednn" not in USABLE, reason="no onednn here")
@pytest.mark.parametrize("captured", [False, True])
def test_no_memory_is_overwritten_where_two_branches_differ(captured):
    script = f"""
import torch, qlab
from torch import nn
{inspect.getsource(Joined)}
x = torch.randn(2, 3, 32, 32)
int8 = qlab.ptq(Joined().eval(), [x], engine="onednn")
if {captured}:
    int8.capture(x)
expected = int8(x)
for size in (33, 31, 33, 17, 33):
    try:
        int8(torch.randn(2, 3, size, size))
        raise SystemExit("nothing was said")
    except ValueError as error:
        assert "two addends of shapes" in str(error), error
assert torch.equal(int8(x), expected)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_input_that_does_not_fit_names_the_layer(engine):
    model = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 5))
    int8 = integer(model, engine)
    with pytest.raises(ValueError, match="'2', which reads '0': a window of 3 does not fit an image of 1 padded by 0"):
        int8(torch.randn(1, 3, 5, 32))
    with pytest.raises(ValueError, match=r"'4', which reads '3': an input of shape \(1, 8\) for a linear layer"):
        int8(torch.randn(1, 3, 8, 8))


# --- autocast


@pytest.mark.parametrize("engine", ENGINES)
def test_autocast_changes_no_integer_network(engine):
    torch.manual_seed(0)
    int8 = integer(models.resnet20(), engine, layer2=None)  # with layers in float
    expected = int8(X)
    with torch.autocast("cpu"):
        assert torch.equal(int8(X), expected)
    if engine in engines.QUANTIZED and engine != "qnnpack":
        with torch.autocast("cpu"):
            assert torch.equal(int8.capture(X)(X), expected)


# --- threads


@pytest.mark.skipif(len(USABLE) < 2, reason="one engine here")
def test_engines_in_several_threads_give_the_scores_that_they_give_alone():
    torch.manual_seed(0)
    nets = {engine: integer(models.resnet20(), engine) for engine in ENGINES}
    alone = {engine: int8(X) for engine, int8 in nets.items()}
    before, wrong = torch.backends.quantized.engine, []

    def run(engine: str) -> None:
        torch.set_num_threads(1)
        try:
            wrong.extend(engine for _ in range(10) if not torch.equal(nets[engine](X), alone[engine]))
        except Exception as error:
            wrong.append(f"{engine}: {error}")

    threads = [threading.Thread(target=run, args=[engine]) for engine in ENGINES for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and torch.backends.quantized.engine == before


# --- what is packed stays


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda net: net.half(),
            "layer 'conv1' of an integer network: torch.float32 on cpu cannot become torch.float16",
        ),
        (lambda net: net.to(torch.bfloat16), "cannot become torch.bfloat16 on cpu, for its kernel is packed already"),
        (lambda net: net.to("meta"), "cannot become torch.int8 on meta"),
        (lambda net: nn.Sequential(nn.ReLU(), net).double(), "cannot become torch.float64.*Change the float network"),
    ],
)
def test_an_integer_network_becomes_no_other_type(change, words):
    int8 = integer(models.resnet20(), "reference")
    expected = int8(X)
    with pytest.raises(TypeError, match=words):
        change(int8)
    assert torch.equal(int8(X), expected)
    assert int8.float().to("cpu") is int8 and torch.equal(int8(X), expected)  # these change nothing


def test_an_integer_network_takes_no_state_of_another():
    torch.manual_seed(0)
    int8, other = integer(models.resnet20(), "reference"), integer(models.resnet20(), "reference")
    expected = int8(X)
    for load in (int8.load_state_dict, lambda state: int8.layers[1].load_state_dict(other.layers[1].state_dict())):
        with pytest.raises(RuntimeError, match="takes no load_state_dict: .*qlab.save, and load with qlab.load"):
            load(other.state_dict())
    outer = nn.Sequential(int8)
    with pytest.raises(RuntimeError, match="takes no load_state_dict"):
        outer.load_state_dict(nn.Sequential(other).state_dict())
    assert torch.equal(int8(X), expected)


def test_a_pickle_is_refused_with_what_to_write_and_a_copy_is_the_same():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    int8 = qlab.ptq(network, [x], engine="reference")
    with pytest.raises(
        TypeError, match=r"cannot be pickled .* qlab.save\(int8, path\), and bring it back with qlab.load"
    ):
        pickle.dumps(int8)
    assert torch.equal(copy.deepcopy(int8)(x), int8(x))
