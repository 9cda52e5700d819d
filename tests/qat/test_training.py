"""Training helps, goes on where it broke off, and what is trained converts."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from stripes import stripes
from tiny import PLAN, calibrated
from torch import nn
from torch.nn import functional as F

import qlab
from qlab import PerChannel, QConfig, QuantSpec, qat, train
from qlab.data.dataset import Dataset
from qlab.int8 import engines
from qlab.qat import training


def test_a_training_that_diverges_says_so(network):
    with pytest.raises(ValueError, match="the loss became nan in epoch 1.*lower the learning rate"):
        qat.fit(calibrated(network), stripes(64), None, replace(PLAN, lr=1e30), progress=False)


@pytest.mark.parametrize("method", qat.METHODS)
def test_training_brings_back_what_rounding_and_clipping_took(network, method):
    exam = stripes(96, "test")
    prepared = calibrated(network, QConfig.preset("w3a3", first_last=None))
    for _, quantizer in prepared.quantizers():
        quantizer.qparams = replace(quantizer.qparams, scale=quantizer.qparams.scale / 2)
    loss = [loss_of(prepared, exam)]
    plan = replace(PLAN, epochs=6, lr=0.1)
    history = qat.fit(prepared, stripes(160), stripes(32, "validation"), plan, method=method, progress=False)
    loss.append(loss_of(prepared, exam))
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert loss[0] > 0.5 > 0.25 > loss[1]


def loss_of(prepared, data: Dataset) -> float:
    x, y = next(data.batches(len(data)))
    with torch.inference_mode():
        return F.cross_entropy(prepared.eval()(x), y).item()


def test_training_in_bfloat16_brings_it_back_too(network):
    exam = stripes(96, "test")
    prepared = calibrated(network, QConfig.preset("w3a3", first_last=None))
    for _, quantizer in prepared.quantizers():
        quantizer.qparams = replace(quantizer.qparams, scale=quantizer.qparams.scale / 2)
    plan = replace(PLAN, epochs=6, lr=0.1, precision="bfloat16")
    before = loss_of(prepared, exam)
    qat.fit(prepared, stripes(160), None, plan, teacher=network, progress=False)
    assert before > 0.5 > 0.25 > loss_of(prepared, exam)
    assert {p.dtype for p in prepared.parameters()} == {torch.float32}


@pytest.mark.parametrize("method", qat.METHODS)
def test_what_was_trained_gives_the_same_answers_in_integers(network, method):
    prepared = calibrated(network, qat.qconfig("w8a8"))
    qat.fit(prepared, stripes(64), None, replace(PLAN, epochs=1), method=method, progress=False)
    exam = stripes(200, "test")
    x = next(exam.batches(200))[0]
    for name, there in engines.available().items():
        if there.usable:
            engine = engines.get(name)
            int8 = qlab.convert(prepared, name)
            with torch.inference_mode():
                same = int8(x).argmax(1) == prepared.fuse_additions(engine.fuses_add)(x).argmax(1)
            assert same.float().mean() >= 0.995, name


def test_the_first_axis_counted_from_the_end_learns_the_same(network):
    """Each output channel's scale is counted in units of the channel's own, whichever way the axis is written."""
    int8 = []
    for convolution, linear in ((0, 0), (-4, -2)):
        specs = [replace(QConfig.w4a4().weight, granularity=PerChannel(axis)) for axis in (convolution, linear)]
        qconfig = QConfig(specs[0], overrides={nn.Linear: QConfig(specs[1])})
        prepared = calibrated(network, qconfig)
        qat.fit(prepared, stripes(64), None, replace(PLAN, epochs=1), progress=False)
        int8.append(qlab.convert(prepared, "reference"))
    x = next(stripes(64, "test").batches(64))[0]
    assert torch.equal(int8[0](x), int8[1](x))


def test_integers_of_two_bits_are_the_fake_quantized_network_in_exact_arithmetic(network):
    """In float32 a sum may land on the wrong side of a threshold; in float64 none of these does."""
    prepared = calibrated(network, qat.qconfig("w3a2"))
    qat.fit(prepared, stripes(64), None, replace(PLAN, epochs=1), progress=False)
    x = next(stripes(200, "test").batches(200))[0]
    for name, there in engines.available().items():
        if there.usable and name != "qnnpack":  # which rounds its biases
            prepared.fuse_additions(engines.get(name).fuses_add)
            with torch.inference_mode():
                exact = copy.deepcopy(prepared).double()(x.double())
                torch.testing.assert_close(qlab.convert(prepared, name)(x).double(), exact, rtol=0, atol=1e-5)


def test_a_broken_run_goes_on_where_it_stopped(network, tmp_path, monkeypatch):
    def run(folder):
        prepared = calibrated(network)
        qat.fit(prepared, stripes(64), stripes(32, "validation"), PLAN, folder=folder, progress=False)
        return prepared.state_dict()

    whole = run(tmp_path / "whole")
    real = train._epoch

    def breaks(*arguments):
        if arguments[3] == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(train, "_epoch", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken")
    monkeypatch.setattr(train, "_epoch", real)
    again = run(tmp_path / "broken")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_plain_batches_will_do(network):
    prepared = calibrated(network)
    history = qat.fit(prepared, list(stripes(48).batches(16)), None, replace(PLAN, epochs=1), progress=False)
    assert [sorted(row) for row in history] == [["epoch", "loss", "seconds"]]


def test_a_loss_of_ones_own_takes_the_place_of_the_labels(network):
    """Here y is not looked at: the network learns to answer 1, whatever it sees."""
    seen = []

    def loss(x, output, y):
        seen.append((len(x), len(y)))
        return F.cross_entropy(output, torch.ones_like(y))

    prepared = calibrated(network)
    images = stripes(64)
    qat.fit(prepared, images, None, replace(PLAN, epochs=2, batch_size=16), loss=loss, progress=False)
    assert seen == [(16, 16)] * 8
    with torch.inference_mode():
        assert (prepared(next(images.batches(64))[0]).argmax(1) == 1).float().mean() > 0.9
    with pytest.raises(ValueError, match="a teacher teaches classes, and a loss of your own takes their place"):
        qat.fit(prepared, images, None, PLAN, loss=loss, teacher=network)


def test_what_is_not_calibrated_cannot_be_trained(network):
    with pytest.raises(RuntimeError, match="call qlab.calibrate"):
        qat.fit(qlab.prepare(network), stripes(32), None, PLAN)


def test_errors_name_the_value_and_what_was_expected(network):
    with pytest.raises(ValueError, match="method 'adam': expected one of lsq, pact, straight_through"):
        qat.fit(calibrated(network), stripes(32), None, PLAN, method="adam")
    with pytest.raises(ValueError, match="freeze_batchnorm=2: expected a share from 0 to 1"):
        qat.fit(calibrated(network), stripes(32), None, PLAN, freeze_batchnorm=2)
    with pytest.raises(ValueError, match="no batch to train on"):
        qat.fit(calibrated(network), [], None, PLAN)


@pytest.mark.parametrize("preset", ["w4a4", "w1a32", "w1a1"])
def test_train_prepares_calibrates_trains_and_saves(network, tmp_path, preset):
    plan = replace(PLAN, epochs=1, batch_size=128)
    data = stripes(1024)  # it is calibrated with as many
    prepared, history = qat.train(
        network, preset, data, stripes(32, "validation"), plan, folder=tmp_path, progress=False
    )
    saved, _ = qlab.files.read_tensors(tmp_path / "prepared.safetensors")
    assert len(history) == 1
    assert all(torch.equal(saved[name], tensor) for name, tensor in prepared.state_dict().items())
    again = qlab.prepare(network, qat.qconfig(preset))
    again.load_state_dict(saved)
    x = next(data.batches(8))[0]
    with torch.inference_mode():
        assert torch.equal(again(x), prepared(x))


def test_a_run_goes_on_with_what_it_learned_and_chooses_the_grids_it_lacks(network):
    """Activations of few bits after binary weights: their ranges are those of the values that rounded weights give."""
    binary = calibrated(network, qat.qconfig("w1a32"))
    layer = dict(binary.weighted())["conv2"]
    with torch.no_grad():  # signs as before, sizes not: before rounding it is another network
        layer.weight.mul_(torch.linspace(0.1, 3, layer.weight[0].numel()).reshape(layer.weight[0].shape))
    seen, images = [], list(stripes(64).batches(32))
    binary.network.get_submodule("pool").register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for x, _ in images:
        binary(x)
    prepared = qlab.prepare(network, qat.qconfig("w1a2"))
    training._go_on(prepared, binary.state_dict(), images)
    assert torch.equal(dict(prepared.weighted())["conv2"].weight, layer.weight)
    observer = qlab.observers.MSE(QuantSpec(7))
    observer(torch.cat(seen).detach())
    scale = dict(prepared.quantizers())["quantizers.add"].qparams.scale
    torch.testing.assert_close(scale, observer.qparams().scale, rtol=0.05, atol=0)


def test_a_run_of_the_same_bits_goes_on_with_the_grids_it_had(network):
    before = calibrated(network, qat.qconfig("w4a4"))
    for _, quantizer in before.quantizers():
        quantizer.qparams = replace(quantizer.qparams, scale=quantizer.qparams.scale * 1.5)
    prepared = qlab.prepare(network, qat.qconfig("w4a4"))
    training._go_on(prepared, before.state_dict(), stripes(64).batches(32))
    assert all(torch.equal(prepared.state_dict()[name], value) for name, value in before.state_dict().items())


@pytest.mark.parametrize("earlier, header, words", [
    ("w4a4", {"qconfig": "w4a4"}, "earlier.safetensors is of a run with w4a4: expected one with w1a4 or w1a32"),
    ("w1a2", {"qconfig": "w1a2"}, "is of a run with w1a2: expected one with w1a4 or w1a32"),
    ("w4a4", {}, "go on from a run with .*weight_quantizer.scale: expected this network, with weights of as many"),
])  # fmt: skip
def test_a_run_of_other_bits_is_refused(network, tmp_path, earlier, header, words):
    """By its header; a file that has none, by the grids in it, which tells other weights at least."""
    state = calibrated(network, qat.qconfig(earlier)).state_dict()
    initial = qlab.files.write_tensors(tmp_path / "earlier.safetensors", state, header)
    with pytest.raises(ValueError, match=words):
        qat.train(network, "w1a4", stripes(1024), stripes(32), PLAN, folder=tmp_path, initial=initial, progress=False)


def test_a_run_with_float_activations_is_gone_on_from(network, tmp_path):
    plan = replace(PLAN, epochs=1, batch_size=64)
    parts = stripes(1024), stripes(32, "validation"), plan
    qat.train(network, "w1a32", *parts, folder=tmp_path / "first", progress=False)
    earlier = tmp_path / "first" / "prepared.safetensors"
    assert qlab.files.read_tensors(earlier)[1] == {"qconfig": "w1a32"}
    prepared, _ = qat.train(network, "w1a2", *parts, folder=tmp_path / "second", initial=earlier, progress=False)
    assert qlab.evaluate(prepared, stripes(64, "test")) > 90
