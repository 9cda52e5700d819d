"""Where the noise comes from, layer by layer."""

from __future__ import annotations

import math

import pytest
import torch
from residual import IMAGES, LABELS, calibrated, network
from torch import Tensor

import qlab
from qlab import QConfig, analysis
from qlab.qconfig import SmallFloat


def test_each_layers_sqnr_is_that_of_its_tensors_in_the_two_networks():
    prepared = calibrated(QConfig.w4a4(first_last=None))
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def watch(name: str, inputs: tuple, output: Tensor) -> None:
        seen.setdefault(name, []).append((inputs[0].clone(), output.clone()))

    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: watch(name, inputs, output))
        for name, layer in prepared.weighted()
    ]
    with torch.no_grad():
        prepared(IMAGES)
        for _, quantizer in prepared.quantizers():
            quantizer.mode = "off"
        prepared(IMAGES)
    for _, quantizer in prepared.quantizers():
        quantizer.mode = "quantize"
    for hook in hooks:
        hook.remove()
    table = analysis.layer_sqnr(prepared, [IMAGES[:3], (IMAGES[3:], LABELS[3:])], progress=False)
    assert [row.layer for row in table] == ["stem", "left", "right", "fc"]
    for row in table:
        (quantized_in, quantized_out), (float_in, float_out) = seen[row.layer]
        weight = prepared.network.get_submodule(row.layer).weight
        assert row.input == pytest.approx(analysis.sqnr(float_in, quantized_in), abs=1e-3)
        assert row.output == pytest.approx(analysis.sqnr(float_out, quantized_out), abs=1e-3)
        assert row.weight == pytest.approx(
            analysis.sqnr(weight, dict(prepared.weighted())[row.layer].weight_quantizer(weight))
        )
    assert "weights, input, output" in str(table) and "<td" in table._repr_html_()


def test_more_bits_more_decibel_and_float_is_without_noise():
    few, many = (
        analysis.layer_sqnr(calibrated(QConfig.preset(name, first_last=None)), [IMAGES]) for name in ("w4a4", "w8a8")
    )
    assert all(a.output < b.output for a, b in zip(few, many))
    half = SmallFloat("bfloat16")
    assert all(40 < row.output < 60 for row in analysis.layer_sqnr(calibrated(QConfig(half, half, half)), [IMAGES]))
    weights_alone = analysis.layer_sqnr(calibrated(QConfig.preset("w4a32")), [IMAGES])
    assert weights_alone[0].input == math.inf


def test_looking_changes_nothing():
    prepared = calibrated(QConfig.w4a4()).train()
    before = {name: tensor.clone() for name, tensor in prepared.state_dict().items()}
    modes = [quantizer.mode for _, quantizer in prepared.quantizers()]
    analysis.layer_sqnr(prepared, [IMAGES], progress=False)
    analysis.sensitivity(prepared, [(IMAGES, LABELS)], progress=False)
    assert prepared.training and modes == [quantizer.mode for _, quantizer in prepared.quantizers()]
    assert all(torch.equal(before[name], tensor) for name, tensor in prepared.state_dict().items())


def test_nothing_to_look_at_is_an_error():
    with pytest.raises(ValueError, match=r"got no batch: give it at least one, for instance data.sample\(256\)"):
        analysis.layer_sqnr(calibrated(), [])
    with pytest.raises(RuntimeError, match="has not been calibrated"):
        analysis.layer_sqnr(qlab.prepare(network(), None, IMAGES[:1]), [IMAGES])
