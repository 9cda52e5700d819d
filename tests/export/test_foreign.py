"""Networks that are not the course's: what they consist of is saved, loaded and written as ONNX, or refused by name."""

from __future__ import annotations

import copy
import pickle

import onnx
import onnxruntime
import pytest
import torch
from memory import peak
from steps import STEPS, Step, X, rows
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

import qlab
from qlab import QConfig
from qlab.analysis import sqnr
from qlab.export import aten, calls, checks, qdq
from qlab.files import read_tensors, write_tensors
from qlab.int8.modules import Call, Input

LAYERS = {
    "multi-head attention": (nn.MultiheadAttention(8, 2, batch_first=True),
                             lambda net, y: net.layer(rows(y), rows(y), rows(y), need_weights=False)[0].transpose(1, 2)),
    "shifted windows": (ShiftedWindowAttention(8, [4, 4], [2, 2], 2),
                        lambda net, y: net.layer(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "group norm": (nn.GroupNorm(2, 8), lambda net, y: net.layer(y)),
    "transposed": (nn.ConvTranspose2d(8, 8, 3, 2, 1, 1), lambda net, y: net.layer(y)),
    "reflect": (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), lambda net, y: net.layer(y)),
    "replicate": (nn.Conv2d(8, 8, 3, padding=2, padding_mode="replicate"), lambda net, y: net.layer(y)),
    "same": (nn.Conv2d(8, 8, 3, dilation=2, padding="same"), lambda net, y: net.layer(y)),
    "means of unequal cells": (nn.AdaptiveAvgPool2d(5), lambda net, y: net.layer(y)),
    "means of rows": (nn.AdaptiveAvgPool2d((None, 4)), lambda net, y: net.layer(y)),
}  # fmt: skip
NETWORKS = {name: lambda step=step: Step(step) for name, step in STEPS.items()} | {
    name: lambda layer=layer, step=step: Step(step, copy.deepcopy(layer)) for name, (layer, step) in LAYERS.items()
}


def int8(model: nn.Module):
    return qlab.ptq(model.eval(), [X], QConfig.w8a8(reduce_range=True), engine="reference")


def onnxruntimes(path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_what_networks_consist_of_is_saved_and_written_as_onnx(tmp_path, name):
    network = int8(NETWORKS[name]())
    back = qlab.load(qlab.save(network, tmp_path / "net.safetensors"), engine="reference")
    path = qlab.save_onnx(back, tmp_path / "net.onnx")
    for x in (X, X[:1], X.repeat(2, 1, 1, 1)):
        assert torch.equal(back(x), network(x))
        assert sqnr(network(x), onnxruntimes(path, x)) > 32
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_answers_of_several_tensors_are_saved_and_refused_by_onnx(tmp_path):
    class Two(Step):
        def forward(self, x):
            y = self.conv(x)
            return {"scores": self.fc(y.mean((2, 3))), "map": [y, None]}

    network = int8(Two(None))
    back = qlab.load(qlab.save(network, tmp_path / "net.safetensors"), engine="reference")
    assert torch.equal(back(X)["scores"], network(X)["scores"]) and torch.equal(back(X)["map"][0], network(X)["map"][0])
    with pytest.raises(ValueError, match="the network answers with a dict: in ONNX it would have several outputs"):
        qlab.save_onnx(network, tmp_path / "net.onnx")


def test_recurrent_layers_are_saved_and_refused_by_onnx(tmp_path):
    network = int8(Step(lambda net, y: net.layer(rows(y))[0].transpose(1, 2), nn.LSTM(8, 8, batch_first=True)))
    back = qlab.load(qlab.save(network, tmp_path / "net.safetensors"), engine="reference")
    assert torch.equal(back(X), network(X))
    with pytest.raises(
        ValueError, match="layer stays in float and is 'LSTM', for which qlab knows no ONNX form: it comes down"
    ):
        qlab.save_onnx(network, tmp_path / "net.onnx")


def test_a_wrong_graph_is_not_written(tmp_path, monkeypatch):
    network, path = int8(NETWORKS["gain"]()), tmp_path / "net.onnx"
    monkeypatch.setitem(aten.ATEN, "mul", aten._binary("Add"))
    with pytest.raises(
        ValueError, match=r"other answers than the network: -?[\d.]+ dB between the two in layer 'mul', on noise"
    ):
        qlab.save_onnx(network, path)
    assert not path.exists()


def test_the_proof_is_left_out_where_onnxruntime_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(qdq, "find_spec", lambda name: None)
    monkeypatch.setattr(qdq, "prove_onnx", lambda *_: pytest.fail("it is there"))
    assert qlab.save_onnx(int8(NETWORKS["gain"]()), tmp_path / "net.onnx").exists()


# --- What a file may say


@pytest.mark.parametrize("argument", [
    None, True, 3, 2.5, "bilinear", Input(0), [Input(1), (1, [2])], slice(None, Input(2), -1), (..., None), torch.int64,
    {"a": (Input(0),)}, float("-inf"),
])  # fmt: skip
def test_an_argument_comes_back_as_it_was(argument):
    value = calls.encode(argument)
    assert calls.is_argument(value) and calls.decode(value) == argument


def test_an_argument_without_words_is_refused():
    with pytest.raises(ValueError, match="an argument of it is a device, which a file has no words for"):
        calls.encode([torch.device("cpu")])


@pytest.mark.parametrize("value", [
    1 << 40, "x" * 300, [0] * 2000, [[[[[[[[1]]]]]]]], {"slice": [1]}, {"input": -1}, {"input": True}, {"code": "x"}, {},
    {"dtype": "complex64"}, {"infinity": 2}, {"ellipsis": 1}, {"tuple": 3}, {"slice": [0, 1 << 40, 1]}, {"input": 0, "x": 1},
])  # fmt: skip
def test_no_other_argument_is_believed(value):
    assert not calls.is_argument(value)


@pytest.mark.parametrize("value", [{"out": {"input": 0}}, {"device": "cuda"}, {"inplace": True}, {"a b": 1}, ["x"]])
def test_no_other_keyword_is_believed(value):
    assert not calls.is_keywords(value)


IN, TWICE = {"input": 0}, [{"input": 0}, 2.0]
FORGED = {
    "a method": ({"method": "__reduce__", "arguments": TWICE, "keywords": {}}, "method of layer .* is '__reduce__', exp"),
    "a function": ({"function": "torch.load", "arguments": TWICE}, "function of layer .* is 'torch.load', expected a func"),
    "an attribute": ({"function": "getattr", "arguments": [IN, "__class__"]}, "attribute that is none of shape"),
    "a method of a text": ({"method": "split", "arguments": ["a", "b"], "keywords": {}}, "of what is no tensor"),
    "a huge expand": ({"method": "expand", "arguments": [IN, 1 << 20, 1 << 10, -1, -1, -1], "keywords": {}}, "more than 268,"),
    "a huge pad": ({"function": "functional.pad", "arguments": [IN, [1 << 30, 1 << 30]]}, "more than 268,"),
    "a huge image": ({"function": "functional.interpolate", "arguments": [IN, 1 << 20]}, "step .* cannot be done"),
    "huge zeros": ({"function": "torch.zeros", "arguments": [1 << 30, 1 << 10]}, "more than 268,"),
    "a huge product": ({"function": "torch.einsum", "arguments": ["abcd,efgh,ijkl,mnop->abcdefghijklmnop", IN, IN, IN, IN]}, "more than 268,"),
    "a huge range": ({"function": "torch.arange", "arguments": [1 << 31]}, "more than 268,"),
    "a huge number": ({"function": "pow", "arguments": [1 << 31, 1 << 31]}, "a power without a tensor, above the 8th"),
    "a long text": ({"function": "mod", "arguments": ["%1000000000d", 1]}, "neither a tensor nor a number"),
    "a long list": ({"function": "mul", "arguments": [[1], 1 << 30]}, "neither a tensor nor a number"),
    "no scores": ({"function": "eq", "arguments": [1, 1]}, "a file that reads it|cannot be done"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_call_is_refused_in_words(tmp_path, kind):
    network = int8(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 1)))
    tensors, header = read_tensors(qlab.save(network, tmp_path / "net.safetensors"))
    described, words = FORGED[kind]
    next(layer for layer in header["layers"] if layer[0] == "float")[2] = described
    header["sha256"] = checks.digest(header, tensors)
    write_tensors(tmp_path / "net.safetensors", tensors, header)
    before = peak()
    with pytest.raises(
        ValueError, match=f"net.safetensors is damaged, or no network for engine 'reference': .*({words})"
    ):
        qlab.load(tmp_path / "net.safetensors", engine="reference")
    assert peak() < before + 200e6


def test_a_tensor_is_not_cut_into_millions_of_parts():
    with pytest.raises(ValueError, match="it cuts a tensor into more than 1,000 parts"):
        calls.flow(Call(torch.split, (Input(0), 1), {}), (torch.empty(1 << 20, device="meta"),))
    with pytest.raises(ValueError, match="it cuts a tensor into more than 1,000 parts"):
        calls.flow(Call("unbind", (Input(0),), {}), (torch.empty(1 << 20, device="meta"),))


def test_every_name_of_a_file_is_one_function():
    assert all(calls.name_of(function) is not None for function in calls.FUNCTIONS.values())
    assert all(callable(getattr(Tensor, name)) for name in calls.METHODS)


# --- Prepared networks


def prepared(bits: int = 8, width: int = 4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 2, 3)).eval()
    return qlab.prepare(model, QConfig.preset(f"w{bits}a{bits}", first_last=None), X)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_trained_network_comes_back_bit_for_bit(tmp_path, bits):
    trained = qlab.calibrate(prepared(bits), [X], progress=False)
    with torch.no_grad():
        next(layer for _, layer in trained.weighted()).weight.mul_(1.1)
    path = qlab.save(trained, tmp_path / "trained.safetensors")
    fresh = prepared(bits)
    assert qlab.load(path, into=fresh) is fresh
    assert torch.equal(fresh(X), trained(X))
    assert torch.equal(qlab.convert(fresh, "reference")(X), qlab.convert(trained, "reference")(X))


def started(method: str, x: Tensor = X):
    """In the middle of a training: BatchNorms beside the weights, grids that learn or follow."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten()
    form = qlab.prepare(nn.Sequential(*layers).eval(), QConfig.preset("w4a4", first_last=None), X)
    return form if not method else qlab.qat.start(qlab.calibrate(form, [x], progress=False), [x], method)


def train(network, steps: int):
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        network(X).square().mean().backward()
        optimizer.step()
    return network


@pytest.mark.parametrize("method", ["lsq", "pact", "straight_through"])
def test_a_network_in_training_comes_back_and_is_trained_on(tmp_path, method):
    network = train(started(method), 3)
    path = qlab.save(network, tmp_path / "halfway.safetensors")
    back = qlab.load(path, into=started(method, X * 2))
    train(network, 2), train(back, 2)
    state = back.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    done, again = qlab.qat.finish(network), qlab.qat.finish(back)
    assert torch.equal(qlab.convert(done, "reference")(X), qlab.convert(again, "reference")(X))


def test_a_network_in_training_goes_into_no_other(tmp_path):
    path = qlab.save(started("lsq"), tmp_path / "halfway.safetensors")
    for other in ("", "pact"):
        with pytest.raises(
            ValueError,
            match=r"halfway.safetensors is of another stage: '.*' is a \w+ there, a \w+ here. .*qlab.qat.start\(prepared, ",
        ):
            qlab.load(path, into=started(other))


@pytest.mark.parametrize("other, words", [
    (dict(bits=4), "of another network or other bits: '.*' is QuantSpec.*bits=8.* there, QuantSpec.*bits=4.* here: prepare the"),
    (dict(width=5), r"of another network: 'network.0.weight' is \(4, 3, 3, 3\) there, \(5, 3, 3, 3\) here"),
])  # fmt: skip
def test_another_prepared_network_is_refused_and_stays_as_it_was(tmp_path, other, words):
    path = qlab.save(qlab.calibrate(prepared(), [X], progress=False), tmp_path / "trained.safetensors")
    into = prepared(**other)
    before = copy.deepcopy(into.state_dict())
    with pytest.raises(ValueError, match=words):
        qlab.load(path, into=into)
    after = into.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def test_each_kind_of_file_says_how_it_is_loaded(tmp_path):
    one = qlab.calibrate(prepared(), [X], progress=False)
    path, whole = qlab.save(one, tmp_path / "p.safetensors"), qlab.save(qlab.convert(one), tmp_path / "i.safetensors")
    with pytest.raises(
        ValueError, match=r"holds a prepared network: load it with qlab.load\(path, into=qlab.prepare\("
    ):
        qlab.load(path)
    with pytest.raises(ValueError, match="holds an integer network, no prepared one: load it with"):
        qlab.load(whole, into=one)
    with pytest.raises(TypeError, match="into takes what qlab.prepare gave, not a Linear"):
        qlab.load(path, into=nn.Linear(2, 2))


def test_a_damaged_file_of_a_prepared_network_is_refused(tmp_path):
    path = qlab.save(qlab.calibrate(prepared(), [X], progress=False), tmp_path / "p.safetensors")
    tensors, header = read_tensors(path)
    write_tensors(path, {name: tensor + 1 for name, tensor in tensors.items()}, header)
    with pytest.raises(
        ValueError, match=r"p.safetensors is damaged: its checksum \(sha256\) is not that of its content"
    ):
        qlab.load(path, into=prepared())
    for version in (2, True, "1"):
        write_tensors(path, tensors, {**header, "prepared": version})
        with pytest.raises(ValueError, match="p.safetensors has format .* of prepared networks; this qlab reads 1"):
            qlab.load(path, into=prepared())


def test_a_mask_of_infinity_is_refused_with_its_name_and_what_to_write(tmp_path):
    class Masked(Step):
        def __init__(self) -> None:
            super().__init__(None)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf] * 4))

        def forward(self, x):
            return self.fc(torch.softmax(self.conv(x).mean((2, 3)) + self.mask, 1))

    words = "cannot be saved: .*mask.* holds NaN or infinity, .* such as -1e9"
    with pytest.raises(ValueError, match=words):
        qlab.save(int8(Masked()), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=words):
        qlab.save(qlab.prepare(Masked().eval(), example=X), tmp_path / "net.safetensors")


def test_a_network_of_nan_is_not_saved(tmp_path):
    broken = qlab.calibrate(prepared(), [X], progress=False)
    with torch.no_grad():
        next(layer for _, layer in broken.weighted()).weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="this network cannot be saved: 'network.0.weight' holds NaN or infinity"):
        qlab.save(broken, tmp_path / "p.safetensors")


def test_a_pickle_is_refused_with_the_way_that_works(tmp_path):
    one = qlab.calibrate(prepared(), [X], progress=False)
    for write in (pickle.dumps, lambda it: torch.save(it, tmp_path / "x.pt")):
        with pytest.raises(
            TypeError, match=r"cannot be pickled .*qlab.save\(prepared, path\), and bring it back with qlab.load"
        ):
            write(one)
    again = copy.deepcopy(one)
    assert torch.equal(again(X), one(X)) and again.network is not one.network
    again.decisions.clear()
    assert one.decisions
