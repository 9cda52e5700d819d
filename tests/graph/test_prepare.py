"""Which edges are rounded, what the report says, and what `prepare` refuses."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import qlab
from qlab import PerTensor, QConfig, QuantSpec, models
from qlab.graph.prepare import prepare
from qlab.quantizers import Quantizer

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def calibrated(model: nn.Module, qconfig: QConfig | None = None, **options):
    return qlab.calibrate(prepare(model, qconfig, IMAGES[:1], **options), [IMAGES])


def edges(prepared) -> dict[str, Quantizer]:
    return {n.removeprefix("quantizers."): q for n, q in prepared.quantizers() if n.startswith("quantizers.")}


class Block(nn.Module):
    """conv + relu, conv + addition + relu, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.conv2(self.relu(self.conv1(x))) + x)


def test_a_fused_group_is_rounded_once_behind_it():
    found = edges(calibrated(Block()))
    assert list(found) == ["input", "conv1", "conv2", "add"]
    assert [name for name, quantizer in found.items() if quantizer.fusible] == ["conv2"]


def test_every_layer_of_a_resnet_is_quantized():
    report = prepare(models.resnet20()).report()
    assert report.in_float == ()
    assert report.headline == "33 of 33 layers are quantized"
    kinds = [row.kind for row in report]
    assert kinds.count("conv + relu") == 10 and kinds.count("conv") == 11
    assert kinds.count("add + relu") == 9 and kinds[-1] == "linear"
    assert "layer1.0.add" in str(report) and "<td" in report._repr_html_()


def test_one_convolution_at_most_is_inside_each_addition():
    quantizers = edges(prepare(models.resnet20()))
    inner = [name for name, quantizer in quantizers.items() if quantizer.fusible]
    assert inner == [f"layer{stage}_{block}_conv2" for stage in (1, 2, 3) for block in (0, 1, 2)]


def test_fake_quantized_output_is_near_the_float_one_and_on_its_grid():
    model = models.resnet20().eval()
    prepared = calibrated(model)
    y, expected = prepared(IMAGES), model(IMAGES)
    assert (y - expected).norm() < 0.1 * expected.norm()
    grid = edges(prepared)["fc"].qparams
    assert torch.equal(qlab.fake_quantize(y, grid), y)
    assert not torch.equal(y, expected)


def test_the_model_given_is_not_changed():
    model = models.resnet20()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calibrated(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(isinstance(module, Quantizer) for module in model.modules())


def test_below_eight_bits_sums_and_the_first_and_last_layer_stay_at_eight():
    prepared = prepare(models.resnet20(), QConfig.w4a4())
    rows = {row.layer: row for row in prepared.report()}
    assert rows["conv1"].weight.startswith("8 bits") and rows["fc"].weight.startswith("8 bits")
    assert rows["layer1.0.conv1"].weight == "4 bits, per channel"
    assert rows["layer1.0.conv1"].input == "4 bits, per tensor"
    assert rows["layer1.0.add"].input == "8 bits, per tensor"
    bits = {name: quantizer.spec.bits for name, quantizer in edges(prepared).items()}
    assert bits["conv1"] == 8 and bits["conv1_4bit"] == 4, "the sum's and the convolution's grids of one value"
    assert bits["layer1_0_conv1"] == 4, "a value that only a convolution reads has only its grid"


def test_first_and_last_layer_follow_the_others_when_told_to():
    rows = {row.layer: row for row in prepare(models.resnet20(), QConfig.w4a4(first_last=None)).report()}
    assert rows["conv1"].weight == "4 bits, per channel" and rows["fc"].input == "4 bits, per tensor"


@pytest.mark.parametrize("name, expected", [
    ("resnet20", ["layer2.0.shortcut.0", "layer3.0.shortcut.0"]),
    ("mobilenet_v2", []),  # its 1x1 convolutions end in additions too, but lead past nothing
    ("vgg", []),
])  # fmt: skip
def test_a_convolution_that_leads_past_others_can_have_bits_of_its_own(name, expected):
    prepared = prepare(models.ARCHITECTURES[name](), QConfig.w4a4(first_last=None, shortcuts=6))
    assert [row.layer for row in prepared.report() if row.weight.startswith("6 bits")] == expected


def test_max_pool_works_on_the_grid_that_its_reader_wants():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    prepared = prepare(network, QConfig.w4a4(), IMAGES)
    assert {n: q.spec.bits for n, q in edges(prepared).items()} == {"input": 8, "0": 4, "3": 8, "4": 8}


@pytest.mark.parametrize("key", ["layer2", "layer2.0.conv1"])
def test_a_name_is_left_in_float_with_all_inside_it(key):
    prepared = calibrated(models.resnet20().eval(), QConfig.w8a8(overrides={key: None}))
    in_float = prepared.report().in_float
    assert key in str(in_float) and all(name.startswith(key.removesuffix(".conv1")) for name in in_float)
    row = next(row for row in prepared.report() if row.layer == "layer2.0.conv1")
    assert row.float_because == "left in float by overrides" and row.weight == row.input == ""


def test_a_type_can_be_left_in_float_and_a_name_beats_it():
    qconfig = QConfig.w8a8(overrides={nn.Linear: None, "conv1": QConfig.w4a8()})
    rows = {row.layer: row for row in prepare(models.resnet20(), qconfig).report()}
    assert rows["fc"].float_because and rows["conv1"].weight.startswith("4 bits")


def test_weights_alone_can_be_quantized():
    prepared = calibrated(Block().eval(), QConfig.preset("w4a32", first_last=None))
    rows = list(prepared.report())
    assert not edges(prepared)
    assert rows[0].weight == "4 bits, per channel"
    assert rows[0].float_because == "weights only: activations stay in float"
    assert {row.float_because for row in rows if row.kind in ("relu", "add")} == {"its inputs are float"}


class Odd(nn.Module):
    """What has no integer kernel, each in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.mirror = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(3, 3, 3, padding="same")
        self.silu = nn.SiLU()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.first(x) + 1
        x = self.same(self.mirror(x))
        return self.last(self.pool(self.first(self.silu(x))) * 2)


def test_what_stays_in_float_says_why():
    prepared = calibrated(Odd().eval())
    because = {row.layer: row.float_because for row in prepared.report() if row.float_because}
    assert because == {
        "add": "no integer kernel adds a number, or what is no tensor",
        "mirror": "no integer kernel pads with padding_mode='reflect'",
        "same": "no integer kernel takes padding='same': give it in numbers",
        "silu": "no integer kernel for SiLU",
        "pool": "only global average pooling, AdaptiveAvgPool2d(1), has an integer kernel",
        "mul": "no integer kernel for mul",
    }
    assert "float because" in str(prepared.report())


def test_nothing_to_quantize_is_an_error():
    with pytest.raises(ValueError, match="nothing to quantize: Sequential.*It has: SiLU.*overrides"):
        prepare(nn.Sequential(nn.SiLU()), None, IMAGES)
    with pytest.raises(ValueError, match="nothing to quantize: ResNet"):
        prepare(models.resnet20(), QConfig.w8a8(overrides={nn.Conv2d: None, nn.Linear: None}))


def test_an_uncalibrated_network_does_not_pass_for_a_quantized_one():
    with pytest.raises(RuntimeError, match=r"has not been calibrated.*qlab.calibrate\(prepared, batches\)"):
        prepare(Block(), None, IMAGES)(IMAGES)


def test_a_prepared_network_trains():
    prepared = calibrated(models.resnet20()).train()
    prepared(IMAGES).sum().backward()
    weight = prepared.network.conv1.weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_grids_travel_with_the_state_dict_and_to_other_types():
    prepared = calibrated(Block().eval())
    other = prepare(Block(), None, IMAGES)
    other.load_state_dict(prepared.state_dict())
    assert torch.equal(other(IMAGES), prepared(IMAGES))
    assert torch.equal(other.to("cpu")(IMAGES), prepared(IMAGES))


def test_each_call_of_a_shared_layer_has_its_own_grid():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(self.conv(x) * 10)

    found = edges(calibrated(Twice().eval()))
    assert len([name for name in found if name.startswith("conv")]) == 2


def test_any_spec_can_be_given_by_hand():
    weight = QuantSpec(5, signed=True, symmetric=True, granularity=PerTensor(), observer="mse")
    activation = QuantSpec(6, observer="percentile")
    prepared = calibrated(Block().eval(), QConfig(weight, activation))
    row = prepared.report()[1]
    assert (row.layer, row.weight, row.input) == ("conv2", "8 bits, per tensor", "8 bits, per tensor")
    prepared = calibrated(Block().eval(), QConfig(weight, activation, first_last=None))
    row = prepared.report()[0]
    assert (row.weight, row.input, row.observer) == ("5 bits, per tensor", "6 bits, per tensor", "percentile")
    assert {n: q.spec.observer for n, q in edges(prepared).items()}["input"] == "minmax", "which the sum reads"


@pytest.mark.parametrize("name", ["layer1.0.convv1", "Layer1", "fc "])
def test_a_misspelt_override_is_refused(name):
    with pytest.raises(ValueError, match=r"overrides names .*, which is no layer of this network: did you mean "):
        qlab.prepare(models.resnet20(), QConfig.w8a8(overrides={name: None}))


def scripted(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(net)


@pytest.mark.parametrize("make, words", [
    (lambda net: torch.compile(net), r"a compiled network: give the one that was compiled, compiled\._orig_mod"),
    (lambda net: nn.DataParallel(net), r"a network in DataParallel: give the one inside, parallel\.module"),
    (scripted, r"a scripted or traced network: give the nn\.Module"),
    (lambda net: torch.export.export(net, (torch.zeros(1, 3, 8, 8),)), "an exported program: give the network"),
    (lambda net: prepare(net, example=torch.zeros(1, 3, 8, 8)), "a prepared network: give the float network"),
    (type, r"a class, Sequential: expected a network, an nn\.Module; make one first"),
    (lambda net: "resnet20", r"a str: expected a network, an nn\.Module"),
])  # fmt: skip
def test_what_is_no_network_to_trace_is_told_what_to_give(make, words):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with pytest.raises(TypeError, match=f"prepare got {words}"):
        prepare(make(net), example=torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("example, words", [
    ({"x": torch.zeros(1, 3, 8, 8)}, r"the example is a dict: expected a tensor.*of a dict or tuple, the images alone"),
    (np.zeros((1, 3, 8, 8), np.float32), r"the example is a ndarray: expected a tensor.*torch\.from_numpy\(array\)"),
    (torch.zeros(1, 12, dtype=torch.int64), r"the example is torch\.int64: .*What reads tokens is quantized by qlab\.llm"),
    (torch.zeros(0, 3, 8, 8), r"the example has shape \(0, 3, 8, 8\): expected a batch"),
    (torch.zeros(3), r"the example has shape \(3,\): expected a batch"),
])  # fmt: skip
def test_an_example_that_is_no_batch_of_floats_is_refused(example, words):
    with pytest.raises(ValueError, match=words):
        prepare(nn.Sequential(nn.Conv2d(3, 4, 3)), example=example)
