"""The benchmarks beside other libraries: who fails or is wrong is named, and everybody computes the same."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import qlab
from qlab.bench import check_output
from qlab.files import write_tensors

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    """Imports a module of tools/ as it is when its scripts run."""
    monkeypatch.syspath_prepend(TOOLS)
    yield importlib.import_module
    for name in [name for name in sys.modules if (TOOLS / f"{name}.py").exists()]:
        sys.modules.pop(name, None)


@pytest.fixture
def network() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return network.eval().to(memory_format=torch.channels_last)


def batches(count: int = 2) -> list[torch.Tensor]:
    return [torch.randn(8, 3, 8, 8).contiguous(memory_format=torch.channels_last) for _ in range(count)]


@pytest.fixture
def task(tool, network, tmp_path):
    return tool("baselines").Task(network, batches(), 1, tmp_path)


@pytest.fixture
def course(monkeypatch, network):
    """The small network and a few images, under the names that the tools ask for."""

    def noise(split="train"):
        images = torch.randint(0, 256, (1024, 3, 8, 8), dtype=torch.uint8)
        labels, moments = torch.arange(1024) % 10, ((0.5,) * 3, (0.3,) * 3)
        return qlab.data.Dataset(images, labels, tuple("abcdefghij"), "noise", split, *moments)

    monkeypatch.setattr(qlab.data, "cifar10", noise)
    monkeypatch.setattr(qlab.models, "load", lambda name, data: network)


# --- who fails is named


def missing(task):
    raise ModuleNotFoundError("No module named 'fastest'")


def broken(task):
    def bind(x):
        raise RuntimeError("no kernel for this shape\nand a long trace")

    return bind


def wrong(task):
    return lambda x: lambda: torch.zeros(len(x), 10)


def test_what_is_missing_or_broken_or_wrong_is_named_and_not_timed(tool, task):
    bench_int8, baselines = tool("bench_int8"), tool("baselines")
    makers = {"float": baselines.eager, "missing": missing, "broken": broken, "wrong": wrong}
    ready, not_built = bench_int8.build({**makers, "bf16": baselines.bfloat16}, task)
    comparison, not_timed = bench_int8.measure(ready, batches()[0], threads=1, rounds=2)
    assert list(comparison) == ["float", "bf16"]
    why = "ModuleNotFoundError: No module named 'fastest' (`make bench` installs it)"
    assert not_built == {"missing": why}
    assert not_timed["broken"] == "RuntimeError: no kernel for this shape"
    assert not_timed["wrong"].startswith("ValueError: 'wrong' gives wrong outputs: its SQNR against")


def test_a_captured_network_is_timed_beside_the_plain_one_where_the_engine_can_be_captured(tool, task):
    bench_int8, baselines = tool("bench_int8"), tool("baselines")
    engine = next(name for name in qlab.int8.engines.QUANTIZED if qlab.int8.engines.availability(name).usable)
    makers = {"float": baselines.eager} | {
        f"{name} captured": partial(bench_int8.captured, engine=name) for name in (engine, "reference")
    }
    comparison, not_timed = bench_int8.measure(bench_int8.build(makers, task)[0], batches()[0], threads=1, rounds=2)
    assert list(comparison) == ["float", f"{engine} captured"]
    assert not_timed["reference captured"].startswith("ValueError: engine 'reference' cannot be captured")


def test_the_report_names_them_too(tool, course, monkeypatch, tmp_path, capsys):
    bench_int8, baselines = tool("bench_int8"), tool("baselines")
    everybody = {"fp32": baselines.eager, "missing": missing, "wrong": wrong}
    monkeypatch.setattr(bench_int8, "all_baselines", lambda: everybody)
    json_path, plot_path = tmp_path / "speed.json", tmp_path / "speed.png"
    words = ["--batch-size", "2", "8", "--rounds", "2", "--only", "missing", "wrong", "reference"]
    assert bench_int8.main([*words, "--json", str(json_path), "--plot", str(plot_path)]) == 0
    output = capsys.readouterr().out
    assert output.count("\nresnet20, batch ") == 2 and output.count("\nint8 qlab reference ") == 2
    assert output.count("without missing: ModuleNotFoundError") == 2
    assert output.count("without wrong: ValueError: 'wrong' gives wrong outputs") == 2

    written = json.loads(json_path.read_text(), parse_constant=pytest.fail)  # Infinity and NaN are no JSON
    assert [run["batch"] for run in written["runs"]] == [2, 8] and written["data"] == "noise"
    assert [row["name"] for row in written["runs"][0]["rows"]] == ["fp32", "int8 qlab reference"]
    assert set(written["runs"][1]["left_out"]) == {"missing", "wrong"}
    assert plot_path.read_bytes().startswith(b"\x89PNG") and "quickest is" in bench_int8.title(written)


def test_ptq_that_gives_a_wrong_network_is_named_and_not_timed(tool, task, network):
    bench_ptq = tool("bench_ptq")
    zeros = lambda x: torch.zeros(len(x), 10)  # noqa: E731
    calls = {"right": lambda: network, "wrong": lambda: zeros, "missing": partial(missing, task)}
    with torch.no_grad():
        comparison, left_out = bench_ptq.measure(calls, task, batches()[0], rounds=2)
    assert list(comparison) == ["right"] and comparison["right"].images == 16
    assert set(left_out) == {"wrong", "missing"} and "gives wrong outputs" in left_out["wrong"]


def test_ptq_is_timed_with_every_observer_beside_torch_ao(tool, course, capsys):
    bench_ptq = tool("bench_ptq")
    assert bench_ptq.main(["--images", "16", "--batch-size", "8", "--rounds", "1", "--threads", "1"]) == 0
    output = capsys.readouterr().out
    assert "resnet20 quantized with 16 images, 1 thread, " in output
    for name in ("torch.ao FX histogram", "torch.ao FX minmax", *(f"qlab {o}" for o in bench_ptq.OBSERVERS)):
        assert name in output


def test_a_step_of_qat_is_timed_beside_the_other_libraries_and_none_is_left_out(tool, course, capsys):
    bench_qat = tool("bench_qat")
    assert bench_qat.main(["--batch-size", "8", "--rounds", "1", "--threads", "1"]) == 0
    output = capsys.readouterr().out
    assert "resnet20, a training step: batch 8, 1 thread, " in output
    for name in ("fp32", "qlab LSQ", "qlab PACT", "qlab straight through", "torch.ao FX"):
        assert f"\n{name} " in output


def test_a_step_whose_loss_is_wrong_is_named_and_not_timed(tool, network):
    bench_qat = tool("bench_qat")
    x, y = batches(1)[0], torch.arange(8)
    makers = {
        "fp32": network.train,
        "wrong": lambda: nn.Sequential(network, Louder()),
        "missing": partial(missing, None),
    }
    comparison, left_out = bench_qat.measure(makers, x, y, rounds=1)
    assert list(comparison) == ["fp32"]
    assert set(left_out) == {"wrong", "missing"} and "its loss is" in left_out["wrong"]


class Louder(nn.Module):
    def forward(self, x):
        return 50 * x


@pytest.mark.parametrize("name", ["bench_int8", "bench_ptq", "bench_qat"])
def test_without_trained_weights_the_tools_say_what_is_missing(tool, monkeypatch, capsys, name):
    def load(network, data):
        raise ValueError(f"no trained weights for '{network}-{data}': there are vgg-cifar10")

    monkeypatch.setattr(qlab.models, "load", load)
    assert tool(name).main(["--threads", "1"]) == 1
    assert "nothing to measure: no trained weights for 'resnet20-cifar10'" in capsys.readouterr().err


# --- everybody computes the same network


def own_peers() -> list[str]:
    """Those that need no torchao and no C++ compiler: torch's own, and onnxruntime, which the tests have."""
    sys.path.insert(0, str(TOOLS))
    try:
        baselines = importlib.import_module("baselines")
        return [name for name in baselines.all_baselines() if "Inductor" not in name and "torch.compile" not in name]
    finally:
        sys.path.remove(str(TOOLS))
        sys.modules.pop("baselines")


@pytest.mark.parametrize("name", own_peers())
def test_a_peer_computes_the_same_network(tool, task, name):
    baselines = tool("baselines")
    with baselines.silenced(), torch.no_grad():
        bind = baselines.all_baselines()[name](task)
        for x in (batches()[0], batches()[0][:1]):  # it must not be tied to the batch it was made with
            output = bind(x)().clone()
            assert check_output(name, output, task.network(x)) > (15 if "int8" in name else 30)


def test_qlabs_integers_are_timed_on_onnxruntime_too(tool, task):
    bind = tool("bench_int8").on_onnxruntime(task)
    for x in (batches()[0], batches()[0][:1]):
        assert check_output("onnxruntime", bind(x)(), task.network(x)) > 15


def test_the_minmax_form_of_torch_ao_uses_no_histogram(tool, task):
    baselines = tool("baselines")
    backend = baselines.fx_backends()[0]
    with baselines.silenced(), torch.no_grad():
        x = batches()[0]
        outputs = [baselines.fx_convert(task, backend, histogram)(x) for histogram in (True, False)]
    assert not torch.equal(*outputs)
    for output in outputs:
        check_output("torch.ao", output, task.network(x))


def test_the_first_is_the_float_network_in_channels_last(tool):
    bench_int8 = tool("bench_int8")
    assert list(bench_int8.chosen(["onednn_plain"])) == ["fp32 eager channels_last", "int8 qlab onednn_plain"]
    names = list(bench_int8.chosen(None))
    assert names[0] == "fp32 eager channels_last"
    assert {f"int8 qlab {name}" for name in (*qlab.int8.engines.NAMES, "onnxruntime")} < set(names)


# --- deployment


def test_a_download_takes_its_bits(tool):
    line = tool("bench_deploy").on_the_way("int8", 100_000_000)
    assert line == "int8      100.0 MB:   80.0 s at 10 Mbit/s,    8.0 s at 100 Mbit/s"


def test_one_large_layer_is_timed_in_float_and_on_engines(tool):
    said = tool("bench_deploy").first_linear(rounds=1, inputs=64, outputs=32)
    assert said.startswith("one linear layer, 64 to 32, one image\n  float32 ") and "1.00 times as fast" in said


def test_without_enough_memory_nothing_is_started(tool, monkeypatch, capsys):
    bench_deploy = tool("bench_deploy")
    monkeypatch.setattr(bench_deploy, "NEEDED", 1e18)
    assert bench_deploy.main([]) == 1
    assert "needs 1e+09 GB of memory" in capsys.readouterr().err


def test_what_was_written_is_read_again_in_a_process_of_its_own(tool, tmp_path, network):
    bench_deploy = tool("bench_deploy")
    int8 = qlab.ptq(network, batches(), qlab.QConfig.w8a8(reduce_range=True), engine="reference")
    files = bench_deploy.write(network, int8, tmp_path)
    assert list(files) == ["float32", "int8", "ONNX"] and all(path.exists() for path in files.values())
    assert bench_deploy.read("int8", files["int8"]).size_bytes == int8.size_bytes


# --- the detector


def test_the_detectors_benchmark_says_map_speed_and_frames_dropped(tool, monkeypatch, capsys):
    bench_detect = tool("bench_detect")
    qat = qlab.detect.load_qat()
    monkeypatch.setattr(bench_detect, "networks", lambda: {"int8 QAT": qat})
    monkeypatch.setattr(bench_detect, "usable", lambda: ["reference"])
    words = ["--scenes", "4", "--rounds", "1", "--seconds", "0.1", "--engine", "reference"]
    assert bench_detect.main([*words, "--threads", str(torch.get_num_threads())]) == 0
    output = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split() for line in output.splitlines() if "%" in line}
    assert set(rows) == {"float", "int8 QAT"}
    for row in rows.values():
        easy, _percent, strict, _percent, kib = row[-5:]
        assert 0 < float(strict) < float(easy) <= 100 and float(kib) > 100
    assert "frames seen" in output and "speed-up" in output


def test_the_detectors_ptq_is_per_tensor_and_per_channel(tool):
    made = tool("bench_detect").configs()
    shared = {name: type(config.weight.granularity) for name, config in made.items()}
    assert shared == {"int8 PTQ, per tensor": qlab.PerTensor, "int8 PTQ, per channel": qlab.PerChannel}
    assert {config.weight.bits for config in made.values()} == {7}


@pytest.mark.parametrize("qat, file", [(False, "all/best.safetensors"), (True, "prepared.safetensors")])
def test_a_trained_detector_is_adopted_with_its_figures(tool, monkeypatch, tmp_path, qat, file):
    train_detector, network = tool("train_detector"), importlib.import_module("qlab.detect.network")
    name = "ssdlite-scenes-w8a8" if qat else "ssdlite-scenes"
    weights = (network.CHECKPOINTS / f"{name}.safetensors").read_bytes()
    (tmp_path / "run" / file).parent.mkdir(parents=True)
    (tmp_path / "run" / file).write_bytes(weights)
    for module in (train_detector, network):
        monkeypatch.setattr(module, "CHECKPOINTS", tmp_path / "adopted")
    monkeypatch.setattr(train_detector, "IMAGES", 4)
    entry = train_detector.adopt(name, tmp_path / "run", qat)
    assert (tmp_path / "adopted" / entry["file"]).read_bytes() == weights
    assert entry == json.loads((tmp_path / "adopted" / "manifest.json").read_text())[name]
    assert 0 < entry["test"] <= 100 and entry["command"].endswith("--qat" if qat else "detector.py")


@pytest.mark.parametrize("preset, file", [("", "best.safetensors"), ("-w4a4", "prepared.safetensors")])
def test_a_trained_network_is_adopted_with_its_figures(tool, monkeypatch, tmp_path, preset, file):
    adopt_checkpoint, committed = tool("adopt_checkpoint"), qlab.models.FOLDER
    name, few = f"resnet20-shapes10{preset}", qlab.data.shapes10("test").sample(40)
    weights = (committed / f"{name}.safetensors").read_bytes()
    monkeypatch.setattr(qlab.models, "FOLDER", tmp_path / "adopted")
    monkeypatch.setattr(qlab.data, "shapes10", lambda split: few)
    (tmp_path / "adopted").mkdir()
    shutil.copy(committed / "manifest.json", tmp_path / "adopted")

    def run(folder: str, command: str) -> dict:
        (tmp_path / folder / name).mkdir(parents=True)
        (tmp_path / folder / name / file).write_bytes(weights)
        about = {"command": command, "source": "shapes10"}
        history = [{"epoch": epoch, "validation": right} for epoch, right in ((1, 91.239), (2, 93.0), (3, 92.0))]
        header = {"about": about, "plan": {"epochs": 3, "seed": 5}, "history": history}
        write_tensors(tmp_path / folder / name / "last.safetensors", {"none": torch.zeros(1)}, header)
        return adopt_checkpoint.adopt(tmp_path / folder / name)

    entry = run("first", "qlab train resnet20 --threads 1 --lr 0.1 --out runs/x --device cpu")
    assert (tmp_path / "adopted" / entry["file"]).read_bytes() == weights
    assert entry == json.loads((tmp_path / "adopted" / "manifest.json").read_text())[name]
    assert entry["command"] == "qlab train resnet20 --lr 0.1", "what changes no weight is left out"
    assert (entry["epochs"], entry["seed"], entry["validation"]) == ("2 of 3", 5, 93.0)
    assert 80 < entry["test"] <= 100 and "goes_on_from" not in entry
    assert entry.get("qconfig") == (preset[1:] or None)
    again = run("second", f"qlab train resnet20 --init {tmp_path / 'first' / name / file} --lr 0.01")
    assert again["goes_on_from"] == entry and again["command"].split()[4] == entry["file"]


PANEL_LESSON = """# %%
import time
from qlab.course.figure import Figure
from qlab.course.widgets import Panel, Slider

image = Figure((2, 1))


def draw(bits, fine, late):
    if late:
        time.sleep(0.05)
    image.finding = f"{bits} bits, {fine}"
    return image


Panel(
    draw, bits=Slider(value=2, minimum=2, maximum=4), fine=Slider(value=0, minimum=0, maximum=5, step=0.05),
    late=Slider(value=0),
)
"""


def test_a_panel_is_timed_over_all_its_values_and_a_slow_redraw_shows(tool, tmp_path):
    redraw = tool("bench_redraw")
    redraw.MOST = 5
    source = tmp_path / "77_lesson.py"
    source.write_text(PANEL_LESSON)
    (panel,) = redraw.panels_of(source)
    assert len(panel.choices["bits"]) == 3 and len(panel.choices["fine"]) > redraw.MOST
    seconds = list(redraw.redraws(panel))
    assert len(seconds) == 2 * (3 + redraw.MOST + 2)
    assert sum(each > 0.05 for each in seconds) >= 3 + redraw.MOST, "with late at its end every redraw waits"


def test_what_a_panel_raises_is_not_timed(tool, tmp_path):
    redraw = tool("bench_redraw")
    source = tmp_path / "77_lesson.py"
    source.write_text(PANEL_LESSON.replace("time.sleep(0.05)", "raise ArithmeticError('too late')"))
    with pytest.raises(ArithmeticError, match="too late"):
        list(redraw.redraws(redraw.panels_of(source)[0]))


def test_a_lesson_that_is_not_there_has_no_redraws(tool, capsys):
    assert tool("bench_redraw").main(["01", "55"]) == 2
    assert "no lesson 55: expected numbers such as 05" in capsys.readouterr().err


# --- what each engine makes of a trained network


@pytest.fixture
def trained(monkeypatch, network):
    """The small network and a few images of noise under the names that the tool asks for."""

    def noise(split="train"):
        images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
        labels = torch.arange(40) % 10
        return qlab.data.Dataset(images, labels, tuple("abcdefghij"), "noise", split, (0.5,) * 3, (0.3,) * 3)

    monkeypatch.setattr(qlab.data.Dataset, "sample", lambda self, count, seed=0: self)
    monkeypatch.setattr(qlab.data, "cifar10", noise)
    monkeypatch.setattr(qlab.models, "load", lambda name, data: network)


def test_every_engine_that_works_here_has_a_line(tool, trained, capsys):
    wide = ["--network", "resnet20", "--drop", "100", "--agreement", "0"]
    assert tool("bench_engines").main(wide) == 0
    lines = capsys.readouterr().out.splitlines()
    usable = {name for name, engine in qlab.int8.engines.available().items() if engine.usable}
    assert lines[0].startswith("40 test images of noise")
    assert {line.split()[1] for line in lines[2:-1]} == usable | {"float"}
    assert lines[-1].startswith("0 of them lose more than 100 points")


def test_every_observer_has_a_row_and_is_compared_with_min_max(tool, trained, capsys):
    module = tool("bench_observers")
    assert module.main(["--network", "resnet20", "--calibrations", "1", "--images", "20"]) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert "vs minmax" in title and [row.split()[2] for row in rows] == list(module.OBSERVERS)
    assert rows[0].split()[5:7] == ["0.00", "0.00"] and all(float(row.split()[7]) > 20 for row in rows)  # dB


def test_the_error_of_a_difference_counts_each_image_once(tool):
    """The same images with two calibrations are no more images."""
    lost = torch.tensor([1.0, 0.0, 0.0, -1.0])
    mean, error = tool("bench_observers").in_points([lost, lost])
    assert mean == 0 and error == pytest.approx(100 * float(lost.std()) / 2)


def test_an_engine_that_answers_otherwise_is_counted(tool, trained, capsys, monkeypatch):
    module = tool("bench_engines")
    convert = qlab.convert

    def other(prepared, name):
        int8 = convert(prepared, name)
        return int8 if name != "reference" else nn.Sequential(int8, Backwards())

    monkeypatch.setattr(qlab, "convert", other)
    assert module.main(["--network", "resnet20", "--drop", "100", "--agreement", "60"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 of them lose")


class Backwards(nn.Module):
    def forward(self, scores):
        return -scores
