"""Which layers mind being rounded, and what is done for them."""

from __future__ import annotations

import pytest
import torch
from residual import IMAGES, LABELS, calibrated, network
from torch import nn

import qlab
from qlab import QConfig, analysis, data
from qlab.analysis import Sensitivity

FEW = QConfig.preset("w2a32", first_last=None)


@pytest.mark.parametrize("alone", [True, False])
def test_the_layer_that_cannot_do_with_few_bits_is_found_both_ways(alone):
    prepared = calibrated(QConfig.preset("w8a32", overrides={"right": FEW}))
    table = analysis.sensitivity(prepared, [IMAGES], alone=alone, progress=False)
    values = [row.sqnr for row in table]
    assert table[0].layer == "right"
    assert values == sorted(values, reverse=not alone)
    assert ("only this layer" if alone else "all layers but this one") in table.headline
    assert "loss" not in str(table), "there were no labels"


def test_one_layer_alone_means_its_weights_and_its_input_and_nothing_else():
    net = network()
    prepared = calibrated(QConfig.w4a4(first_last=None), net)
    rows = {row.layer: row for row in analysis.sensitivity(prepared, [(IMAGES, LABELS)], progress=False)}
    with torch.no_grad():
        x = net.flatten(
            net.pool(net.relu(net.left(net.relu(net.stem(IMAGES))) + net.right(net.relu(net.stem(IMAGES)))))
        )
        source = prepared.network.quantizers.get_submodule("add").qparams
        fc = prepared.network.fc
        logits = nn.functional.linear(qlab.fake_quantize(x, source), fc.weight_quantizer(fc.weight), fc.bias)
    assert rows["fc"].sqnr == pytest.approx(analysis.sqnr(net(IMAGES), logits), abs=1e-3)
    assert rows["fc"].loss == pytest.approx(float(nn.functional.cross_entropy(logits, LABELS)), abs=1e-4)
    assert rows["fc"].accuracy == 100 * float((logits.argmax(1) == LABELS).float().mean())


def test_a_dataset_will_do_too():
    some = data.shapes10("validation").sample(6)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()
    prepared = qlab.calibrate(qlab.prepare(net, QConfig.w2a2()), some.batches(6), progress=False)
    assert analysis.sensitivity(prepared, some)[:] == analysis.sensitivity(prepared, some.batches(6))[:]


def test_the_worst_layers_stay_in_float_or_keep_more_bits():
    net = network()
    plain = QConfig.w6a6(observer="percentile", overrides={"stem": QConfig.w8a8(), "right": QConfig.w2a2()})
    rows = analysis.sensitivity(calibrated(plain, net), [IMAGES], progress=False)
    assert rows[0].layer == "right"
    kept = analysis.selective(rows, plain, 1, bits=8)
    assert kept.overrides["right"].weight.bits == kept.overrides["right"].activation.bits == 8
    assert kept.overrides["stem"] == QConfig.w8a8() and plain.overrides["right"] == QConfig.w2a2()
    in_float = analysis.selective(rows, plain, 1)
    assert calibrated(in_float, net).report().in_float == ("right",)
    with torch.no_grad():
        better, best, before = (
            analysis.sqnr(net(IMAGES), calibrated(qconfig, net)(IMAGES)) for qconfig in (kept, in_float, plain)
        )
    assert min(better, best) > before + 3
    assert analysis.selective(rows, plain, 0) == plain
    with pytest.raises(ValueError, match="worst=9: expected 0 to 4, the number of rows"):
        analysis.selective(rows, plain, 9)
    assert (
        analysis.selective([Sensitivity("fc", 1.0)], QConfig.preset("w1a1"), 1, bits=4).overrides["fc"].weight.bits == 4
    )


def test_nothing_to_look_at_is_an_error():
    with pytest.raises(ValueError, match=r"got no batch: give it at least one, for instance data.sample\(256\)"):
        analysis.sensitivity(calibrated(), [])
    with pytest.raises(RuntimeError, match="has not been calibrated"):
        analysis.sensitivity(qlab.prepare(network(), None, IMAGES[:1]), [IMAGES])
