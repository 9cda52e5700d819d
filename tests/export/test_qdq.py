"""The ONNX file computes what the integer network computes, step by step, and a reader recognises the network in it."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import qlab
from qlab import QConfig, QuantSpec, models
from qlab.data import shapes10
from qlab.extras import remedy
from qlab.int8 import engines
from qlab.int8.modules import Dequantize
from qlab.int8.reference import Engine

IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def int8(model: nn.Module, qconfig: QConfig | None = None, x: Tensor = IMAGES):
    return qlab.ptq(model.eval(), [x], qconfig or QConfig.w8a8(reduce_range=True), engine="reference")


def session(model, optimized: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def answers(path, x: Tensor, optimized: bool = True) -> Tensor:
    """What onnxruntime says: ``optimized`` with integer kernels, otherwise node by node, in float between the grids."""
    return torch.from_numpy(session(path, optimized).run(None, {"input": x.contiguous().numpy()})[0])


def all_values(path, x: Tensor) -> dict[str, Tensor]:
    """Every value of the graph by name, computed node by node."""
    model = onnx.load(path)
    outputs = {output.name for output in model.graph.output}
    for node in model.graph.node:
        if node.output[0] not in outputs:
            model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    ready = session(onnx.shape_inference.infer_shapes(model).SerializeToString(), optimized=False)
    names = [output.name for output in ready.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, ready.run(names, {"input": x.contiguous().numpy()}))))


def off_by(network, path, x: Tensor) -> dict[str, float]:
    """For each step, given what the ONNX graph had before it: by how much the two differ, in steps of its grid."""
    found, engine, seen, off = all_values(path, x), Engine(), {0: x}, {}
    for step in network.program.steps:
        layer, grid = network.layers[step.layer], network.program.grids[step.output]
        kernel = layer.kernel(engine, [network.program.grids[value] for value in step.inputs], grid)
        expected = kernel(*(seen[value] for value in step.inputs))
        name = layer.name + ".codes" if grid else layer.name
        if step is network.program.steps[-1]:
            name = "output"
        value = expected if isinstance(layer, Dequantize) and name != "output" else found[name]
        seen[step.output] = value
        size = 1.0 if grid else 1e-4 * float(expected.abs().max())
        off[layer.name] = float((value.double() - expected.double()).abs().max()) / size
    return off


# --- the networks of the course


@pytest.fixture(scope="module", params=[*models.ARCHITECTURES, "resnet20-w4a4"])
def trained(request, tmp_path_factory):
    """(network on the reference, ONNX file, images, labels) of a trained network."""
    name, _, preset = request.param.partition("-")
    test = shapes10("test").sample(128)
    x, labels = next(test.batches(128))
    if preset:
        network = qlab.convert(qlab.qat.load(name, preset, data="shapes10"), "reference")
    else:
        network = int8(models.load(name, data="shapes10"), x=x[:32])  # the same images: no accuracy is claimed
    path = qlab.save_onnx(network, tmp_path_factory.mktemp("onnx") / f"{request.param}.onnx")
    return network, path, x, labels


def test_onnxruntime_gives_the_answers_of_the_engine_that_has_the_same_rules(trained):
    """qnnpack too has int32 biases, if finer ones, and rounds every sum; engines that round less differ where two classes
    are close.
    """
    network, path, x, labels = trained
    said = answers(path, x)
    with torch.inference_mode():
        if engines.availability("qnnpack").usable:
            expected = network.on("qnnpack")(x)
            assert (said.argmax(1) == expected.argmax(1)).float().mean() >= 0.99
            assert qlab.analysis.sqnr(expected, said) > 32
        expected = network(x)
    assert (said.argmax(1) == expected.argmax(1)).float().mean() >= 0.9
    right = [float((scores.argmax(1) == labels).float().mean()) for scores in (said, expected)]
    assert abs(right[0] - right[1]) <= 0.04


def test_every_step_is_within_one_code_of_the_reference(trained):
    network, path, x, _labels = trained
    off = off_by(network, path, x[:8])
    assert len(off) == len(network.layers)
    assert max(off.values()) <= 1


def test_integer_kernels_compute_what_the_graph_says_node_by_node(trained):
    """onnxruntime puts an integer kernel in the place of each group of nodes. 7 bits keep its sums from saturating."""
    _network, path, x, _labels = trained
    fused, plain = answers(path, x[:64]), answers(path, x[:64], optimized=False)
    assert (fused.argmax(1) == plain.argmax(1)).float().mean() >= 0.98


def test_the_file_holds_the_weights_as_integers(trained):
    network, path, _x, _labels = trained
    assert path.stat().st_size < 1.1 * network.size_bytes + 200 * 1024  # the rest is names


# --- every kind of step


class Shortcut(nn.Module):
    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.one, self.two, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), relu

    def forward(self, x):
        y = self.one(x)
        y = y + self.two(y)
        return torch.relu(y) if self.relu else y


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        return self.last(torch.cat([torch.relu(self.one(x)), 3 * self.two(x)], 1))


class Twice(nn.Module):
    """One layer that is called two times."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.output(self.output(x))


def layers(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *modules)


NETWORKS = {
    "conv": lambda: layers(nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), dilation=2, groups=2)),
    "depthwise": lambda: layers(nn.ReLU6(), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4)),
    "add": lambda: Shortcut(relu=False),
    "add-relu": lambda: Shortcut(relu=True),
    "cat": Branches,
    "twice": Twice,
    "max_pool": lambda: layers(nn.MaxPool2d(3, 2, 1)),
    "max_pool-ceil": lambda: layers(nn.MaxPool2d((3, 2), (2, 3), (1, 0), ceil_mode=True)),
    "max_pool-dilated": lambda: layers(nn.MaxPool2d(2, 1, dilation=2)),
    "avg_pool": lambda: layers(nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 2, 1)),
    "avg_pool-inside": lambda: layers(nn.AvgPool2d(3, 2, 1, count_include_pad=False, ceil_mode=True)),
    "avg_pool-ceil": lambda: layers(nn.AvgPool2d(3, 2, ceil_mode=True)),
    "global_pool": lambda: layers(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
    "adaptive": lambda: layers(nn.AdaptiveAvgPool2d((7, 2)), nn.Flatten(2), nn.Linear(14, 5, bias=False)),
    "rows": lambda: layers(nn.Flatten(2), nn.ReLU(), nn.Linear(14 * 14, 5)),
    "relu-apart": lambda: layers(nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 2, 1)),
}  # fmt: skip


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_every_kind_is_within_one_step(tmp_path, name, bits):
    qconfig = QConfig.w4a4(first_last=None) if bits == 4 else QConfig.w8a8()
    network = int8(NETWORKS[name](), qconfig)
    path = qlab.save_onnx(network, tmp_path / "net.onnx")
    if name != "twice":  # there a name stands for two values
        assert max(off_by(network, path, IMAGES).values()) <= 1
    said, expected = answers(path, IMAGES, optimized=False), network(IMAGES)
    step = network.program.grids[network.program.steps[-1].inputs[0]].scale
    assert said.shape == expected.shape
    assert ((said - expected).abs() / step).mean() < 0.3


@pytest.mark.parametrize("layer", [
    nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.ELU(0.7),
    nn.LeakyReLU(0.2), nn.Softmax(dim=1), nn.Identity(), nn.Dropout(), nn.LayerNorm(14),
    nn.LayerNorm((14, 14), bias=False),
    nn.LayerNorm(14, elementwise_affine=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False),
    nn.Conv2d(4, 2, 3, 2),
    nn.Linear(14, 3), nn.MaxPool2d(3, ceil_mode=True), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(7), nn.Flatten(),
], ids=lambda layer: str(layer)[:40])  # fmt: skip
def test_a_layer_in_float_computes_what_torch_computes(tmp_path, layer):
    if isinstance(layer, nn.BatchNorm2d):
        layer.running_mean, layer.running_var = torch.randn(4), torch.rand(4) + 0.5
    model = layers(nn.SiLU(), layer, nn.Tanh())
    network = int8(model, QConfig.w8a8(overrides={"2": None}))
    path = qlab.save_onnx(network, tmp_path / "net.onnx")
    assert max(off_by(network, path, IMAGES).values()) <= 1
    assert torch.allclose(answers(path, IMAGES, optimized=False), network(IMAGES), atol=0.1)


class Functions(nn.Module):
    def forward(self, x):
        return torch.cat([x * 2.0, 1.0 - x, x + x], 1)


def test_functions_in_float_are_written_too(tmp_path):
    network = int8(layers(nn.SiLU(), Functions()))
    path = qlab.save_onnx(network, tmp_path / "net.onnx")
    assert torch.allclose(answers(path, IMAGES), network(IMAGES), atol=0.1)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_alone_may_be_integers(tmp_path, bits):
    model = layers(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3, bias=False))
    network = int8(model, QConfig.preset(f"w{bits}a32"))
    said = answers(qlab.save_onnx(network, tmp_path / "net.onnx"), IMAGES)
    assert torch.allclose(said, network(IMAGES), atol=1e-5)


# --- grids and biases


def test_codes_of_few_bits_stay_on_their_grid_for_inputs_beyond_the_range(tmp_path):
    network = int8(layers(nn.ReLU(), nn.Conv2d(4, 2, 1)), QConfig.w4a4(first_last=None))
    path = qlab.save_onnx(network, tmp_path / "net.onnx")
    found = all_values(path, 100 * IMAGES)
    assert found["0.codes"].max() == 15 and found["input_1.quantize.codes"].max() == 15
    assert max(off_by(network, path, 100 * IMAGES).values()) <= 1


def test_a_bias_is_exact_to_a_fraction_of_a_step_although_codes_are_few(tmp_path):
    """With 2-bit weights a step of the sum is large; larger codes with a finer scale are the same weights."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    network = int8(model, QConfig(weight=QuantSpec(2, signed=True, symmetric=True), first_last=None))
    model = onnx.load(qlab.save_onnx(network, tmp_path / "net.onnx"))
    stored = {c.name: torch.from_numpy(onnx.numpy_helper.to_array(c).copy()) for c in model.graph.initializer}
    layer = next(layer for layer in network.layers if layer.name == "2")
    assert torch.allclose(
        stored["2.weight"] * stored["2.weight_scale"][:, None, None, None],
        layer.weight * layer.scale.expand(4)[:, None, None, None],
    )
    assert layer.weight.abs().max() <= 2 < stored["2.weight"].abs().max() <= 64
    bias = stored["2.bias"] * stored["2.bias_scale"]
    assert (bias - layer.bias).abs().max() <= 0.51 * stored["2.bias_scale"].max()
    assert stored["2.weight"].dtype == torch.int8 and stored["2.bias"].dtype == torch.int32


@pytest.mark.parametrize("scale", [2e-38, 1e3])
def test_a_dead_channel_still_gives_its_bias(tmp_path, scale):
    """Its codes are all 0; whatever its scale is, the bias must not be rounded away nor overflow."""
    network = int8(nn.Sequential(nn.Conv2d(3, 4, 3)))
    layer = next(layer for layer in network.layers if layer.op == "conv2d")
    layer.weight[1], layer.scale[1], layer.bias[1] = 0, scale, 0.3
    path = qlab.save_onnx(network.on("reference"), tmp_path / "net.onnx")
    grid = network.program.grids[network.program.steps[-1].inputs[0]]
    expected = qlab.fake_quantize(torch.tensor(0.3), grid)
    assert torch.allclose(answers(path, IMAGES)[:, 1], expected, atol=1e-6)


def test_a_bias_beyond_32_bits_is_kept(tmp_path):
    network = int8(nn.Sequential(nn.Conv2d(3, 4, 3)))
    layer = next(layer for layer in network.layers if layer.op == "conv2d")
    layer.scale[1], layer.bias[1] = 1e-12, 0.3
    path = qlab.save_onnx(network.on("reference"), tmp_path / "net.onnx")
    assert max(off_by(network.on("reference"), path, IMAGES).values()) <= 1


# --- what a reader sees


def test_a_reader_recognises_the_network(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    network = int8(model, QConfig.w8a8())
    graph = onnx.load(qlab.save_onnx(network, tmp_path / "new" / "net.onnx")).graph
    compute = [node.op_type for node in graph.node if "Linear" not in node.op_type]
    assert compute == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert [node.name for node in graph.node if node.op_type == "Conv"] == ["0"]
    assert [(v.name, v.type.tensor_type.shape.dim[0].dim_param) for v in (*graph.input, *graph.output)] == [
        ("input", "batch"), ("output", "batch"),
    ]  # fmt: skip
    types = {c.name: onnx.TensorProto.DataType.Name(c.data_type) for c in graph.initializer}
    assert types["0.weight"] == "INT8" and types["0.bias"] == "INT32" and types["0.zero_point"] == "UINT8"
    assert next(list(c.dims) for c in graph.initializer if c.name == "0.weight_scale") == [4]


def test_every_name_stands_for_one_thing(tmp_path):
    """A layer is called twice, and is called "output" too."""
    path = qlab.save_onnx(int8(Twice()), tmp_path / "net.onnx")
    graph = onnx.load(path).graph
    names = [output for node in graph.node for output in node.output] + [c.name for c in graph.initializer]
    assert len(names) == len(set(names))
    assert {"output_2.weight", "output_3.weight"} <= set(names)


def test_the_headline_goes_with_the_file(tmp_path):
    model = onnx.load(qlab.save_onnx(int8(layers()), tmp_path / "net.onnx"))
    assert model.producer_name == "qlab" and "layers" in model.metadata_props[0].value
    assert model.opset_import[0].version == 17


@pytest.mark.parametrize("count", [1, 5])
def test_the_batch_may_have_any_size(tmp_path, count):
    network = int8(NETWORKS["global_pool"]())
    path = qlab.save_onnx(network, tmp_path / "net.onnx")
    assert torch.allclose(answers(path, IMAGES[:count]), network(IMAGES[:count]), atol=0.05)


# --- what cannot be


def test_only_integer_networks_are_written(tmp_path):
    with pytest.raises(TypeError, match="ONNX is made of what qlab.convert or qlab.ptq gave, not of a Conv2d"):
        qlab.save_onnx(nn.Conv2d(3, 4, 3), tmp_path / "net.onnx")


@pytest.mark.parametrize("module, words", [
    (nn.AdaptiveMaxPool2d(3), "1 stays in float and is 'AdaptiveMaxPool2d', for which qlab knows no ONNX form: it comes down to torch's adaptive_max_pool2d"),
    (nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), "1 stays in float and is 'Conv2d', for which .*: it comes down to"),
    (nn.AvgPool2d(5, 4, 1, ceil_mode=True), "1: average pooling with ceil_mode, padding and count_include_pad"),
])  # fmt: skip
def test_a_step_without_an_onnx_form_is_named_and_nothing_is_written(tmp_path, module, words):
    path = tmp_path / "net.onnx"
    path.write_text("what was there")
    with pytest.raises(ValueError, match=words):
        qlab.save_onnx(int8(layers(module)), path)
    assert path.read_text() == "what was there" and list(tmp_path.iterdir()) == [path]


class Sorted(nn.Module):
    def forward(self, x):
        return x.sort(1)[0]


def test_a_function_without_an_onnx_form_is_named(tmp_path):
    with pytest.raises(ValueError, match="stays in float and is '.*', for which qlab knows no ONNX form"):
        qlab.save_onnx(int8(layers(Sorted())), tmp_path / "net.onnx")


def test_a_missing_package_is_named_with_what_to_install(tmp_path, monkeypatch):
    network = int8(layers())
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=re.escape(f"ONNX files need the package onnx: {remedy('onnx')}")):
        qlab.save_onnx(network, tmp_path / "net.onnx")


# --- on onnxruntime


def test_a_network_on_onnxruntime_gives_what_the_file_gives(trained):
    network, path, x, _labels = trained
    on_onnxruntime = qlab.OnnxNetwork(network)
    for batch in (x, x[:1].contiguous(), x[:3].requires_grad_()):
        scores = on_onnxruntime(batch)
        assert scores.dtype is torch.float32 and torch.equal(scores, answers(path, batch.detach()))
    assert qlab.bench.memory_bytes(on_onnxruntime) == network.size_bytes


def test_a_network_on_onnxruntime_takes_as_many_threads_as_torch():
    on_onnxruntime, before = qlab.OnnxNetwork(int8(layers())), torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            on_onnxruntime(IMAGES)
    finally:
        torch.set_num_threads(before)
    assert list(on_onnxruntime._sessions) == [1, 2]
    assert on_onnxruntime._sessions[2].get_session_options().intra_op_num_threads == 2


def test_what_is_no_image_is_refused_on_onnxruntime_too():
    on_onnxruntime = qlab.OnnxNetwork(int8(layers()))
    with pytest.raises(ValueError, match=r"the input is torch.float32 \(8, 4, 16, 16\): this network takes"):
        on_onnxruntime(torch.zeros(8, 4, 16, 16))
    with pytest.raises(ValueError, match="the input holds 6144 NaN and 0 infinite values"):
        on_onnxruntime(IMAGES * torch.nan)
    with pytest.raises(TypeError, match="not of a Conv2d"):
        qlab.OnnxNetwork(nn.Conv2d(3, 4, 3))


def test_rows_run_on_onnxruntime_as_images_do():
    rows = torch.randn(6, 5)
    network = int8(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), x=rows)
    assert qlab.analysis.sqnr(network(rows), qlab.OnnxNetwork(network)(rows)) > 20


@pytest.mark.parametrize("arm, vnni, saturates", [
    (False, True, False), (False, False, True), (False, None, True), (True, False, False),
])  # fmt: skip
def test_onnxruntime_saturates_on_x86_without_vnni(arm, vnni, saturates, monkeypatch):
    monkeypatch.setattr(engines, "cpu", lambda: SimpleNamespace(is_arm=arm, vnni=vnni))
    wide, narrow = int8(layers(), QConfig.w8a8()), int8(layers())
    assert qlab.OnnxNetwork(wide).saturating == (["0"] if saturates else [])
    assert qlab.OnnxNetwork(narrow).saturating == []


def test_without_onnxruntime_its_network_says_what_to_install(monkeypatch):
    network = int8(layers())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=re.escape(f"onnxruntime's kernels need the package: {remedy('onnx')}")):
        qlab.OnnxNetwork(network)


# --- torch.export


def test_torch_export_follows_the_reference_bit_for_bit(tmp_path):
    model = layers(
        nn.AvgPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(16, 3)
    )
    network = int8(model)
    expected = network(IMAGES)
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (IMAGES,), dynamic_shapes=({0: batch},)).module()
    assert torch.equal(program(IMAGES), expected) and torch.equal(network(IMAGES), expected)
    assert torch.equal(program(IMAGES[:3]), expected[:3])


def test_torch_export_before_the_first_image_is_refused():
    """What the kernels make of an image's size would be made while there are no numbers, and be wrong silently."""
    with pytest.raises(Exception, match="run this network once on real images of that size"):
        torch.export.export(int8(layers()).on("reference"), (IMAGES,))


def test_a_graph_that_cannot_run_is_refused_in_words(tmp_path):
    """Parts of the batch itself: their number is written into the graph."""

    class TwoViews(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            a, b = self.conv(torch.cat([x, x.flip(3)], 0)).chunk(2, 0)
            return a + b

    int8 = qlab.ptq(TwoViews(), [torch.randn(4, 3, 8, 8)], engine="reference")
    with pytest.raises(ValueError, match="this network has no valid ONNX graph; nothing is written"):
        qlab.save_onnx(int8, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())
