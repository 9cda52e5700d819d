"""A network node by node, and with some of its rounding only."""

from __future__ import annotations

import pytest
import torch
from residual import IMAGES, calibrated, network
from torch import fx

import qlab
from qlab.graph.run import Stepper, as_float, walk

BATCHES = [IMAGES[:5], IMAGES[5:]]


def traced() -> fx.GraphModule:
    return fx.symbolic_trace(network())


def rounding_now(prepared) -> set[str]:
    return {name for name, quantizer in prepared.quantizers() if quantizer.mode == "quantize"}


# --- stepping


def test_the_last_step_gives_what_the_network_gives_for_each_batch():
    net = traced()
    stepper = Stepper(net, BATCHES)
    with torch.no_grad():
        for node in net.graph.nodes:
            given = stepper.step(node)
        assert all(map(torch.equal, given, map(net, BATCHES)))


def test_a_value_is_kept_until_its_last_reader_has_run():
    net = traced()
    stepper, nodes = Stepper(net, BATCHES), list(net.graph.nodes)
    for place, node in enumerate(nodes):
        stepper.step(node)
        for before in nodes[: place + 1]:
            read_later = any(reader in nodes[place + 1 :] for reader in before.users)
            kept = [value is not None for value in stepper._values[before]]
            assert kept == [read_later or not before.users] * len(BATCHES), (before, node)


def test_the_inputs_of_a_node_are_what_the_node_before_gave():
    net = traced()
    stepper, given = Stepper(net, BATCHES), []
    for node in net.graph.nodes:
        if node.target == "left":
            assert all(map(torch.equal, stepper.inputs(node), given))
        given = stepper.step(node)


def test_the_rest_gives_the_networks_answer_and_leaves_the_stepper_where_it_is():
    net = traced()
    stepper = Stepper(net, BATCHES)
    with torch.no_grad():
        answers = [net(x) for x in BATCHES]
        assert torch.equal(stepper.rest(1), answers[1]), "before the first step"
        for node in net.graph.nodes:
            stepper.step(node)
            for index in (0, 1, 0):
                assert torch.equal(stepper.rest(index), answers[index]), node


def test_a_layer_that_is_changed_between_two_steps_changes_what_comes_after():
    net = traced()
    stepper = Stepper(net, BATCHES)
    with torch.no_grad():
        for node in net.graph.nodes:
            if node.target == "fc":
                net.fc.weight.zero_()
            given = stepper.step(node)
    assert torch.equal(given[1], net.fc.bias.detach().expand(3, -1))


# --- the float network, and the walk


def test_the_float_side_of_the_walk_is_the_float_network_whatever_was_mended():
    net = network()
    prepared = calibrated(net=net)
    for layer in dict(prepared.weighted()).values():
        layer.keep_original()
        with torch.no_grad():
            layer.weight.mul_(0.5)
            layer.bias.add_(1)
    with torch.no_grad():
        torch.testing.assert_close(as_float(prepared)(IMAGES), net(IMAGES), atol=1e-5, rtol=1e-4)
        *_, last = walk(prepared, [IMAGES])
        torch.testing.assert_close(last.targets[0], net(IMAGES), atol=1e-5, rtol=1e-4)


def test_the_float_network_is_a_copy():
    prepared = calibrated()
    with torch.no_grad():
        before = prepared(IMAGES)
        for parameter in as_float(prepared).parameters():
            parameter.zero_()
        assert torch.equal(prepared(IMAGES), before) and len(rounding_now(prepared)) > 4


def test_a_walk_stops_at_each_layer_with_what_reads_it():
    stops = list(walk(calibrated(), BATCHES))
    assert [(stop.name, stop.activation) for stop in stops] == [
        ("stem", "relu"), ("left", ""), ("right", ""), ("fc", "")
    ]  # fmt: skip
    assert all([len(x) for x in stop.targets] == [5, 3] for stop in stops)


def test_what_was_changed_at_a_stop_is_what_later_stops_see():
    prepared = calibrated()
    for stop in walk(prepared, [IMAGES]):
        if stop.name == "fc":
            rounded = stop.inputs[0]
        else:
            with torch.no_grad():
                stop.layer.weight.zero_()
                stop.layer.bias.zero_()
    assert not rounded.any() and prepared.training is False


# --- some of the rounding


@pytest.mark.parametrize("weights, activations, expected", [
    (False, False, set()),
    (True, False, {"stem.weight_quantizer", "left.weight_quantizer", "right.weight_quantizer", "fc.weight_quantizer"}),
    (["left"], False, {"left.weight_quantizer"}),
    (False, ["left", "right"], {"quantizers.stem"}),
    (["fc"], ["stem"], {"fc.weight_quantizer", "quantizers.input"}),
])  # fmt: skip
def test_only_what_is_named_is_rounded_inside_and_everything_again_behind(weights, activations, expected):
    prepared = calibrated()
    everything = rounding_now(prepared)
    with prepared.quantizing(weights, activations):
        assert rounding_now(prepared) == expected
        assert {quantizer.mode for _, quantizer in prepared.quantizers()} <= {"quantize", "off"}
    assert rounding_now(prepared) == everything


def test_all_and_none_are_the_quantized_and_the_float_network():
    net = network()
    prepared = calibrated(net=net)
    with torch.no_grad():
        with prepared.quantizing():
            inside = prepared(IMAGES)
        assert torch.equal(inside, prepared(IMAGES))
        with prepared.quantizing(False, False):
            torch.testing.assert_close(prepared(IMAGES), net(IMAGES), atol=1e-5, rtol=1e-4)


def test_modes_come_back_also_when_it_breaks_inside():
    prepared = calibrated().train()
    prepared.network.left.eval()
    one = next(quantizer for _, quantizer in prepared.quantizers())
    one.mode = "observe"
    before = {name: module.training for name, module in prepared.named_modules()}
    with pytest.raises(KeyError), prepared.quantizing(weights=["fc"]):
        assert not any(module.training for module in prepared.modules())
        raise KeyError
    assert one.mode == "observe"
    assert {name: module.training for name, module in prepared.named_modules()} == before


@pytest.mark.parametrize("part", ["weights", "activations"])
def test_a_name_that_is_no_layer_is_refused(part):
    prepared = qlab.prepare(network(), None, IMAGES[:1])
    with pytest.raises(
        ValueError, match="'conv' is no layer with quantized weights: expected one of stem, left, right, fc"
    ):
        prepared.quantizing(**{part: ["stem", "conv"]})
