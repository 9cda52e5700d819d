"""Integer networks on disk: the same on every engine, small, and safe to open."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from memory import peak
from torch import nn

import qlab
from qlab import PerChannel, QConfig, models
from qlab.export import checks
from qlab.files import read_tensors, write_tensors
from qlab.int8.modules import LAYERS

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


def test_only_networks_of_qlab_are_saved(tmp_path):
    with pytest.raises(TypeError, match="save takes what qlab.convert, qlab.ptq or qlab.prepare gave, not a ResNet"):
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
        return x.cummax(1)[0]


@pytest.mark.parametrize("leaves, what", [((), "cummax"), ((Own,), "Own")])
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
    again = qlab.load(qlab.save(network, tmp_path / "again.safetensors"), engine="reference")
    assert torch.equal(again(images), network(images)) and str(again.report()) == str(network.report())


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
    for version in (99, 2.0, True, [2], "2"):
        write_tensors(path, tensors, {**header, "format": version})
        with pytest.raises(ValueError, match="x.safetensors has format .*; this qlab reads formats 1 and 2 of integer"):
            qlab.load(path)


def test_the_weights_of_a_float_network_are_no_integer_network(tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", models.vgg().state_dict())
    with pytest.raises(ValueError, match="has format None"):
        qlab.load(path)


def test_a_wrong_engine_is_not_the_files_fault(tmp_path):
    path = qlab.save(int8(models.vgg()), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="^engine='fast': expected"):
        qlab.load(path, engine="fast")


# --- Files of format 1

FORMAT_1 = Path(__file__).with_name("small_format1.safetensors")  # written by a version before format 2
X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
SCORES = [[0.5909526, -0.4168736, -0.3527392], [0.0824585, -0.5772095, -0.3939684]]  # what that version gave


def test_a_file_of_format_1_still_gives_its_scores_and_becomes_one_of_format_2(tmp_path):
    network = qlab.load(FORMAT_1, engine="reference")
    assert torch.allclose(network(X), torch.tensor(SCORES), atol=1e-6)
    again = qlab.load(qlab.save(network, tmp_path / "x.safetensors"), engine="reference")
    assert torch.equal(again(X), network(X)) and str(again.report()) == str(network.report())
    (_, old), (_, new) = read_tensors(FORMAT_1), read_tensors(tmp_path / "x.safetensors")
    assert old["format"] == 1 and new["format"] == 2 and new["fusible"] == old["inner"] and "inner" not in new


# --- Damaged and forged files


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file of format 2, as (tensors, header)."""
    path = tmp_path_factory.mktemp("saved") / "x.safetensors"
    return read_tensors(qlab.save(qlab.load(FORMAT_1, engine="reference"), path))


def test_a_damaged_file_is_refused(tmp_path):
    path = qlab.save(int8(models.vgg()), tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="x.safetensors is damaged"):
        qlab.load(path)


def test_one_wrong_bit_anywhere_is_found(tmp_path, saved):
    path = write_tensors(tmp_path / "x.safetensors", *saved)
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="x.safetensors"):
            qlab.load(path, engine="reference")


def test_the_schema_knows_every_operation():
    assert checks.OPTIONS.keys() == LAYERS.keys()


def layer(header: dict, op: str) -> dict:
    """The options of the first layer of that kind."""
    return next(options for kind, _, options in header["layers"] if kind == op)


def in_float(header: dict, name: str) -> dict:
    return next(o for kind, _, o in header["layers"] if kind == "float" and o.get("class", o.get("function")) == name)


def swap(header: dict, number: int, name: str, **arguments) -> None:
    """Another layer of torch.nn in that place."""
    header["layers"][number][2] = {"class": name, "arguments": arguments}


def normalized(header: dict, tensors: dict) -> None:
    """A BatchNorm as no training leaves it."""
    swap(header, 5, "BatchNorm2d", num_features=4)
    for name, tensor in nn.BatchNorm2d(4).state_dict().items():
        tensors[f"5.module.{name}"] = -tensor if name == "running_var" else tensor


def give(change):
    """What changes the tensors only."""
    return lambda header, tensors: tensors.update(change(tensors))


HUGE = {"class": "Linear", "arguments": {"in_features": 30_000, "out_features": 30_000, "bias": False}}
FORGED = {
    "no layers": (lambda h, t: h.pop("layers"), "the header lacks 'layers'"),
    "something else": (lambda h, t: h.update(code="x"), "the header has 'code'"),
    "layers that are a number": (lambda h, t: h.update(layers=3), "layers is 3, expected a list of 1 to 10000"),
    "no steps": (lambda h, t: h.update(steps=[]), "steps is a list of 0, expected a list of 17"),
    "a size of 1.5": (lambda h, t: h["input_shape"].__setitem__(0, 1.5), "a size of input_shape is 1.5, expected a whole"),
    "a layer that is none": (lambda h, t: h["layers"].__setitem__(0, ["quantize"]), "layer 0 is a list of 1, expected"),
    "an unknown layer": (lambda h, t: h["layers"][0].__setitem__(0, "exec"), "layer 0 is 'exec', expected one of conv2d"),
    "a layer like a list": (lambda h, t: h["layers"][0].__setitem__(0, [[]]), "layer 0 is a list of 1, expected one of"),
    "a name that is a number": (lambda h, t: h["layers"][0].__setitem__(1, 3), "the name of layer 0 is 3, expected a text"),
    "an option too many": (lambda h, t: layer(h, "add").update(x=1), "layer 3, add, has 'x'"),
    "an option too few": (lambda h, t: layer(h, "conv2d").pop("stride"), "layer 1, conv2d, lacks 'stride'"),
    "a stride of 0": (lambda h, t: layer(h, "conv2d").update(stride=[0, 1]), "stride of layer 1 is a list of 2, expected"),
    "a stride that is true": (lambda h, t: layer(h, "conv2d").update(stride=True), "stride of layer 1 is True, expected"),
    "three strides": (lambda h, t: layer(h, "conv2d").update(stride=[1, 1, 1]), "stride of layer 1 is a list of 3"),
    "endless padding": (lambda h, t: layer(h, "conv2d").update(padding=10**9), "padding of layer 1 is 1000000000, expected"),
    "a relu of 2": (lambda h, t: layer(h, "conv2d").update(relu=2), "relu of layer 1 is 2, expected true or false"),
    "12 bits": (lambda h, t: layer(h, "conv2d").update(bits=12), "bits of layer 1 is 12, expected .* from 1 to 8"),
    "2 bits": (lambda h, t: layer(h, "conv2d").update(bits=2), "layer 1: codes from -127 to 127 do not fit 2 bits"),
    "other groups": (lambda h, t: layer(h, "conv2d").update(groups=2), r"step 1, 'stem.0' cannot be done .*in 2 groups"),
    "code for a number": (lambda h, t: h["steps"][2].__setitem__(2, "3 = __import__('os')"), "step 2 is a list of 3, exp"),
    "a value from nowhere": (lambda h, t: h["steps"][2].__setitem__(1, [99]), "what step 2 reads is 99, expected .* to 2"),
    "a value from later": (lambda h, t: h["steps"][2].__setitem__(1, [5]), "what step 2 reads is 5, expected .* to 2"),
    "a value from itself": (lambda h, t: h["steps"][2].__setitem__(1, [3]), "what step 2 reads is 3, expected .* to 2"),
    "a value from below": (lambda h, t: h["steps"][2].__setitem__(1, [-1]), "what step 2 reads is -1"),
    "another layer": (lambda h, t: h["steps"][2].__setitem__(0, 1), r"step 2 is a list of 3, expected \[2, .*, 3\]"),
    "nothing to read": (lambda h, t: h["steps"][2].__setitem__(1, []), "step 2 is a list of 3, expected"),
    "two inputs": (lambda h, t: h["steps"][2].__setitem__(1, [2, 2]), "step 2, 'body.0' cannot be done .2 inputs, exp"),
    "one input": (lambda h, t: h["steps"][3].__setitem__(1, [2]), "step 3, 'add' cannot be done"),
    "a zero point of 1.5": (lambda h, t: h["grids"][1].__setitem__(1, 1.5), "the zero point of grid 1 is 1.5, expected a"),
    "a zero point of 300": (lambda h, t: h["grids"][1].__setitem__(1, 300), "zero point of grid 1 is 300, expected .* 255"),
    "a scale of 0": (lambda h, t: h["grids"][1].__setitem__(0, 0.0), "the scale of grid 1 is 0.0, expected a float32"),
    "a scale below 0": (lambda h, t: h["grids"][1].__setitem__(0, -1.0), "the scale of grid 1 is -1.0, expected"),
    "a scale no float32 is": (lambda h, t: h["grids"][1].__setitem__(0, 0.1), "the scale of grid 1 is 0.1, expected"),
    "a scale without end": (lambda h, t: h["grids"][1].__setitem__(0, 1e300), "scale of grid 1 is 1e.300, expected"),
    "a grid too few": (lambda h, t: h["grids"].pop(), "grids is a list of 17, expected a list of 18"),
    "floats for integers": (lambda h, t: h["grids"].__setitem__(2, None), "step 1, .* floats where integers belong"),
    "integers for floats": (lambda h, t: h["grids"].__setitem__(6, [1.0, 0, 8]), "step 5, .* integers where floats belong"),
    "integers at the end": (lambda h, t: h["grids"].__setitem__(-1, [1.0, 0, 8]), "the first or the last value is on a"),
    "another grid after pooling": (lambda h, t: h["grids"].__setitem__(10, [1.0, 0, 8]), "integers on another grid than"),
    "fusible from nowhere": (lambda h, t: h.update(fusible=[99]), "a fusible value is 99, expected .* from 1 to 17"),
    "fusible that is read twice": (lambda h, t: h.update(fusible=[2]), "value 2 is fusible, but not what one convolution"),
    "fusible that is no convolution": (lambda h, t: h.update(fusible=[9]), "value 9 is fusible, but not what"),
    "fusible with a relu": (lambda h, t: h["layers"][2][2].update(relu=True), "value 3 is fusible, but not what"),
    "a headline that is none": (lambda h, t: h.update(headline=None), "headline is None, expected a text"),
    "a row that is too short": (lambda h, t: h["report"][0].pop(), "a row of the report is a list of 5, expected 6 texts"),
    "a class of 3.4 GB": (lambda h, t: in_float(h, "SiLU").update(HUGE), "step 5, 'act' cannot be done"),
    "a class that is none": (lambda h, t: in_float(h, "SiLU").update({"class": "__init__"}), "class of layer 5 is '__init__'"),
    "a class of functions": (lambda h, t: in_float(h, "SiLU").update({"class": "functional"}), "class of layer 5 is 'funct"),
    "a class of networks": (lambda h, t: in_float(h, "SiLU").update({"class": "Transformer"}), "class of layer 5 is 'Tra"),
    "an argument of another": (lambda h, t: in_float(h, "SiLU")["arguments"].update(p=1), "layer 5: SiLU has no argument 'p'"),
    "a device": (lambda h, t: in_float(h, "GroupNorm")["arguments"].update(device="cuda"), "layer 11: GroupNorm has no argument 'device'"),
    "an argument that is cut": (lambda h, t: in_float(h, "SiLU")["arguments"].update(inplace=[{}]), "'inplace' of layer 5"),
    "groups of 0": (lambda h, t: in_float(h, "GroupNorm")["arguments"].update(num_groups=0), "layer 11: no GroupNorm with"),
    "other channels": (lambda h, t: in_float(h, "GroupNorm")["arguments"].update(num_channels=4), "step 11, 'norm' cannot"),
    "an axis that is none": (lambda h, t: h["layers"][5].__setitem__(2, {"class": "Softmax", "arguments": {"dim": 7}}),
                             "step 5, 'act' cannot be done .no axis 7"),
    "a function that is none": (lambda h, t: in_float(h, "mul").update(function="eval"), "function of layer 6 is 'eval'"),
    "a method": (lambda h, t: in_float(h, "mul").update(function=["add"]), "function of layer 6 is a list of 1"),
    "a list times a number": (lambda h, t: in_float(h, "mul").update(arguments=[[{"input": 0}], 10**9]),
                              "step 6, 'mul' cannot be done .it computes with a list"),
    "an input that is not there": (lambda h, t: in_float(h, "mul").update(arguments=[{"input": 3}, 2.0]), "step 6, 'mul' can"),
    "an input below 0": (lambda h, t: in_float(h, "mul").update(arguments=[{"input": -1}, 2.0]), "arguments of layer 6 is a list of 2"),
    "a cat of numbers": (lambda h, t: in_float(h, "mul").update(function="cat", arguments=[[1, 2], 1]), "step 6, 'mul' cannot"),
    "a cat without axis": (lambda h, t: in_float(h, "mul").update(function="cat", arguments=[[{"input": 0}], 99]), "step 6, 'mul' cannot"),
    "half a grid": (lambda h, t: h["grids"].__setitem__(1, [1.0, 0]), "grid 1 is a list of 2, expected a scale, a zero"),
    "an image as large as a town": (lambda h, t: swap(h, 5, "Upsample", scale_factor=1e5), "step 5, .*it makes a tensor of more than 268,435,456"),
    "an argument that becomes another": (lambda h, t: swap(h, 5, "LayerNorm", normalized_shape=8), "does not keep its arg"),
    "two inputs for one": (lambda h, t: h["steps"][5].__setitem__(1, [5, 5]), "step 5, 'act' cannot be done .2 inputs"),
    "a variance below 0": (lambda h, t: normalized(h, t), "layer 5: 'running_var' holds numbers below 0"),
    "a missing bias": (lambda h, t: t.pop("1.bias"), "layer 1: 'bias' is missing"),
    "a missing weight": (lambda h, t: t.pop("1.weight"), "layer 1: 'weight' is missing"),
    "a bias that is not said": (lambda h, t: layer(h, "conv2d").update(bias=False), "layer 1: 'bias' is one tensor too many"),
    "a bias of NaN": (give(lambda t: {"1.bias": t["1.bias"] * float("nan")}), "layer 1: 'bias' holds NaN or infinity"),
    "a scale of NaN": (give(lambda t: {"1.scale": t["1.scale"] * float("nan")}), "layer 1: 'scale' holds NaN or infinity"),
    "scales below 0": (give(lambda t: {"1.scale": -t["1.scale"]}), "layer 1: a scale of -.*, expected positive ones"),
    "weights in float": (give(lambda t: {"1.weight": t["1.weight"].float()}), "layer 1: 'weight' is float32 .*, expected int8"),
    "a bias too short": (give(lambda t: {"1.bias": t["1.bias"][:3]}), r"layer 1: 'bias' is float32 \(3,\), expected .* \(4,\)"),
    "weights of another layer": (give(lambda t: {"1.weight": t["2.weight"].clone()}), r"step 1, 'stem.0' cannot be done .\(1, 3, 8, 8\)"),
    "no weights": (give(lambda t: {"1.weight": t["1.weight"][:0]}), "layer 1: 'weight' is .*, expected 4 dim.* no empty one"),
    "flat weights": (give(lambda t: {"1.weight": t["1.weight"].flatten()}), "layer 1: 'weight' is .*, expected 4 dimensions"),
    "a norm of NaN": (give(lambda t: {"11.module.bias": t["11.module.bias"] * float("nan")}), "layer 11: 'bias' holds NaN"),
    "a norm without weight": (lambda h, t: t.pop("11.module.weight"), "layer 11: 'weight' is missing"),
    "a norm in half": (give(lambda t: {"11.module.bias": t["11.module.bias"].half()}), "layer 11: 'bias' is float16"),
    "a tensor of nobody": (give(lambda t: {"99.weight": torch.zeros(3)}), "the tensor '99.weight' belongs to no layer"),
    "a tensor of a function": (give(lambda t: {"6.weight": torch.zeros(3)}), "layer 6: 'weight' is one tensor too many"),
    "a tensor of an addition": (give(lambda t: {"3.weight": torch.zeros(3)}), "layer 3: 'weight' is one tensor too many"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
@pytest.mark.parametrize("version", [1, 2])
def test_a_forged_file_is_refused_in_words(tmp_path, saved, kind, version):
    change, words = FORGED[kind]
    (tensors, header), path = saved, tmp_path / "x.safetensors"
    tensors, header = {name: tensor.clone() for name, tensor in tensors.items()}, copy.deepcopy(header)
    change(header, tensors)
    header["sha256"] = checks.digest(header, tensors)
    if version == 1:
        header = as_format_1(header)
        if kind in ("a missing bias", "a bias that is not said"):
            pytest.skip("format 1 does not say which layers have a bias")
    write_tensors(path, tensors, header)
    before = peak()
    with pytest.raises(ValueError, match=f"{path} is damaged, or no network for engine 'reference': .*{words}"):
        qlab.load(path, engine="reference")
    assert peak() < before + 200e6


def as_format_1(header: dict) -> dict:
    """The same header as a version before format 2 wrote it."""
    header = {("inner" if name == "fusible" else name): value for name, value in header.items() if name != "sha256"}
    for described in header.get("layers") or () if isinstance(header.get("layers"), list) else ():
        if len(described) == 3:
            described[2].pop("bias", None)
    return {**header, "format": 1}


def test_a_change_without_a_new_checksum_is_found(tmp_path, saved):
    tensors, header = saved
    path = write_tensors(tmp_path / "x.safetensors", {**tensors, "1.bias": tensors["1.bias"] + 1}, header)
    with pytest.raises(
        ValueError, match=r"x.safetensors is damaged.*its checksum \(sha256\) is not that of its content"
    ):
        qlab.load(path)


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"format": NaN}', "NaN is no finite number"),
        ('{"format": 2, "format": 1}', "the key 'format' stands there twice"),
        ('{"format": ' + "[" * 50_000, "recursion"),
        ("[2]", "it is a list"),
    ],
)
def test_a_header_that_is_no_plain_json_is_refused(tmp_path, monkeypatch, text, words):
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_, **__: text)
        path = write_tensors(tmp_path / "x.safetensors", {})
    with pytest.raises(ValueError, match=f"the header of {path} is damaged .*{words}"):
        qlab.load(path)


def test_a_layer_whose_sums_overflow_is_refused_by_the_engine_and_the_file_named(tmp_path, saved):
    tensors, header = saved
    header = copy.deepcopy(header)
    header["grids"][1][0], header["grids"][2][0] = 2.0**60, 2.0**-60
    header["sha256"] = checks.digest(header, tensors)
    path = write_tensors(tmp_path / "x.safetensors", tensors, header)
    with pytest.raises(
        ValueError, match="x.safetensors is damaged, or no network for engine 'reference': multipliers from"
    ):
        qlab.load(path, engine="reference")


def test_padding_that_an_engine_would_make_is_counted():
    x, weight = torch.empty(1, 64, 8, 8, device="meta"), torch.empty(4, 64, 3, 3, device="meta")
    assert checks._convolve(x, weight, 1, 1000, 1, 1).shape == (1, 4, 2006, 2006)
    with pytest.raises(ValueError, match="too much padding"):
        checks._convolve(x, weight, 1, (1024, 1024), 1, 1)


def test_what_load_would_refuse_is_not_written(tmp_path):
    network = qlab.load(FORMAT_1, engine="reference")
    network.layers[1].bias = network.layers[1].bias * float("nan")
    with pytest.raises(ValueError, match="this network cannot be saved: stem.0: 'bias' holds NaN or infinity"):
        qlab.save(network, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_layers_that_a_file_may_name_are_torchs_own_and_have_no_layers_in_them():
    for name in checks.FLOAT_LAYERS:
        assert issubclass(getattr(nn, name), nn.Module)
    assert not checks.FLOAT_LAYERS & {"Sequential", "ModuleList", "LSTM", "Transformer", "MultiheadAttention", "Module"}


def test_numbers_that_are_no_numbers_never_become_code():
    from qlab.int8.modules import _link

    with pytest.raises(ValueError, match="format code 'd'"):
        _link([("f", (0,), "1 = print('ran')")], {"f": print})


def test_a_float_layer_with_parts_of_its_own_cannot_be_saved(tmp_path):
    network = int8(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.TransformerEncoderLayer(900, 2, 4), nn.Linear(900, 2))
    )
    with pytest.raises(
        ValueError,
        match="stays in float and is 'TransformerEncoderLayer', which is neither one of torch.nn's plain layers",
    ):
        qlab.save(network, tmp_path / "x.safetensors")
