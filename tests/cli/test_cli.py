"""The command line names every mistake in a line, and the doctor never dies of what it finds."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from stripes import stripes
from torch import nn

import qlab
from qlab import __main__ as cli
from qlab import doctor
from qlab.data import Available
from qlab.doctor import Finding
from qlab.files import read_tensors, write_tensors
from qlab.int8 import engines

# --- the frame


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    output = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"{command} " in output for command in ("doctor", "train", "quantize", "bench", "detect"))


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "qlab", "quantize", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--engine" in done.stdout, done.stderr


@pytest.mark.parametrize("words, complaint", [([], "COMMAND"), (["quantise"], "invalid choice: 'quantise'")])
def test_an_unknown_command_is_named(words, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2 and complaint in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "bench", "detect"])
def test_every_command_of_another_module_is_there(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0 and f"usage: qlab {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error, code, said",
    [
        (ValueError("bits=0: expected 1 to 16"), 1, "qlab doctor: bits=0: expected 1 to 16\n"),
        (FileNotFoundError(2, "No such file", "x.tar"), 1, "qlab doctor: [Errno 2] No such file: 'x.tar'\n"),
        (
            ModuleNotFoundError("No module named 'onnx'"),
            1,
            "No module named 'onnx'. `qlab doctor` says what is missing",
        ),
        (KeyboardInterrupt(), 130, "qlab doctor: stopped"),
    ],
)
def test_a_mistake_is_a_line_not_a_traceback(monkeypatch, capsys, error, code, said):
    def fail(args):
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    assert cli.main(["doctor"]) == code
    output = capsys.readouterr().err
    assert said in output and "Traceback" not in output


# --- quantize


@pytest.fixture
def small_course(monkeypatch):
    """A two-layer network and 40 images under the names that `qlab quantize` asks for."""

    def shapes(split="train"):
        images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        return qlab.data.Dataset(
            images,
            torch.arange(40) % 10,
            tuple("abcdefghij"),
            "forty squares",
            split,
            (0.5,) * 3,
            (0.25,) * 3,
        )

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(512, 10)
    )
    monkeypatch.setattr(qlab.data, "cifar10", shapes)
    monkeypatch.setattr(qlab.models, "load", lambda name, data: network.eval(), raising=False)


def test_quantize_says_accuracy_sizes_engine_and_the_copy_of_the_data(small_course, capsys, tmp_path):
    path = tmp_path / "int8.safetensors"
    assert cli.main(["quantize", "resnet20", "--engine", "reference", "--images", "20", "--out", str(path)]) == 0
    output = capsys.readouterr().out
    assert "resnet20, w8a8, engine reference, 40 test images of forty squares" in output
    rows = {line.split()[0]: line.split() for line in output.splitlines()[1:]}
    assert rows["float"][2] == rows["int8"][2] == "%"
    assert float(rows["int8"][3]) < float(rows["float"][3]) / 2
    assert rows["int8"][3] == f"{path.stat().st_size / 1024:.1f}"
    assert rows["saved"][1] == str(path)


def test_quantize_spares_an_engine_that_saturates_the_eighth_bit(small_course, capsys, monkeypatch):
    saturating = engines.Availability("reference", True, "works", saturates=True)
    monkeypatch.setattr(engines, "availability", lambda name: saturating)
    monkeypatch.setattr(engines, "available", lambda: {"reference": saturating})
    assert cli.main(["quantize", "resnet20", "--engine", "reference", "--images", "20"]) == 0
    assert "weights have at most 7 bits" in capsys.readouterr().out


def test_quantize_names_what_is_not_there(small_course, capsys):
    with pytest.raises(SystemExit):
        cli.main(["quantize", "resnet20", "--data", "cifar11"])
    assert "'cifar11' (choose from" in capsys.readouterr().err
    assert cli.main(["quantize", "resnet20", "--images", "1024"]) == 1
    assert "sample(1024): expected 1 to 40" in capsys.readouterr().err
    assert cli.main(["quantize", "resnet20", "--images", "20", "--qconfig", "int8"]) == 1
    assert "preset 'int8': expected w<bits>a<bits>" in capsys.readouterr().err


# --- doctor


def test_the_doctor_says_whether_the_course_can_run(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("fine", "Python", "3.12.1")])
    assert cli.main(["doctor"]) == 0
    assert "The course can run here." in capsys.readouterr().out
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("gap", "torch", "not installed", "install it")])
    assert cli.main(["doctor"]) == 1
    assert "cannot run here yet: 1 gap" in capsys.readouterr().out


def test_the_course_can_run_where_the_tests_run():
    findings = doctor.examine()
    assert [f for f in findings if f.state == "gap"] == []
    found = {f.what: f for f in findings}
    assert torch.__version__ in found["torch"].found
    assert found["engine reference"].state == "fine"
    assert sum('"auto" takes it' in f.found for f in findings) == 1


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    def machine():
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(doctor, "CHECKS", (machine, doctor.software))
    broken, python, *_ = doctor.examine()
    assert (broken.state, broken.what, broken.found) == (
        "gap",
        "machine",
        "RuntimeError: no such instruction",
    )
    assert "make lab" in broken.remedy and "report this line" in broken.remedy
    assert python.what == "Python"


def test_what_is_not_installed_is_a_gap_with_a_remedy(monkeypatch):
    def missing(package):
        raise doctor.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(doctor.metadata, "version", missing)
    gaps = {f.what: f for f in doctor.software() if f.state == "gap"}
    assert set(gaps) == {"jupyterlab", "ipywidgets", "anywidget", "matplotlib"}
    assert all("make lab" in gap.remedy for gap in gaps.values())


def test_a_torchvision_built_for_another_torch_is_found(monkeypatch):
    failed = SimpleNamespace(
        returncode=1, stdout="", stderr="Traceback\nRuntimeError: operator torchvision::nms does not exist\n"
    )
    monkeypatch.setattr(doctor.subprocess, "run", lambda *args, **options: failed)
    (finding,) = doctor.torchvision()
    assert finding.state == "hint" and "operator torchvision::nms does not exist" in finding.found
    assert "they must come from one source" in finding.remedy


def test_an_engine_that_saturates_or_does_not_work_is_a_hint(monkeypatch):
    tried = {
        "reference": engines.Availability("reference", True, "works"),
        "x86": engines.Availability("x86", True, "works", saturates=True),
        "fbgemm": engines.Availability("fbgemm", True, "works", depthwise_saturates=True),
        "qnnpack": engines.Availability("qnnpack", False, "this torch has no qnnpack kernels"),
    }
    monkeypatch.setattr(engines, "available", lambda: tried)
    monkeypatch.setattr(engines, "choose", lambda: ("x86", "it is fast; reduce_range=True mends saturation"))
    reference, x86, fbgemm, qnnpack = doctor.kernels()
    assert (reference.state, reference.found) == ("fine", "works")
    assert (x86.state, x86.found) == (
        "hint",
        'works, "auto" takes it: it is fast; reduce_range=True mends saturation',
    )
    assert (fbgemm.state, fbgemm.found) == (
        "hint",
        "works, but pairs of large products of depthwise layers saturate at 16 bits",
    )
    assert (qnnpack.state, qnnpack.found) == ("hint", "not here: this torch has no qnnpack kernels")


def test_images_that_are_not_where_they_should_be_are_a_gap(monkeypatch, tmp_path):
    monkeypatch.setenv("QLAB_CIFAR10", str(tmp_path / "nowhere.tar"))
    (finding,) = doctor.images()
    assert finding.state == "gap" and "nowhere.tar" in finding.found


def test_images_from_a_stand_in_are_a_hint_with_a_way_out(monkeypatch):
    monkeypatch.setattr(doctor, "available", lambda: Available("shapes10", "no copy here", "fetch one"))
    assert list(doctor.images()) == [Finding("hint", "images", "no copy here", "fetch one")]


def test_a_damaged_network_is_a_gap(monkeypatch):
    def damaged(key, folder):
        raise ValueError(f"{key}: the weights are damaged")

    monkeypatch.setattr(qlab.models, "manifest", lambda folder: {"resnet20-cifar10-w4a4": {}})
    monkeypatch.setattr(qlab.models, "weights", damaged)
    (finding,) = doctor.networks()
    assert (finding.state, finding.found) == ("gap", "resnet20-cifar10-w4a4: the weights are damaged")
    assert "git checkout" in finding.remedy


def test_networks_trained_with_rounding_detectors_and_language_models_are_checked_too():
    (finding,) = doctor.networks()
    assert finding.state == "fine"
    assert all(name in finding.found for name in ("resnet20-cifar10-w4a4", "ssdlite-scenes-w8a8", "granite-tiny"))


def test_what_a_single_lesson_needs_is_a_hint(monkeypatch):
    assert {finding.state for finding in doctor.extras()} == {"fine"}, "the tests' environment has all of it"
    monkeypatch.setitem(doctor.EXTRAS, "no-such-package", ("lesson 10", "llm"))
    found = list(doctor.extras())[-1]
    assert (found.state, found.found, found.remedy) == (
        "hint", "not installed: lesson 10 needs it", 'pip install "qlab[llm]"',
    )  # fmt: skip


@pytest.mark.parametrize("text, expected", [("2147483648\n", 2**31), ("max\n", 2**34), ("99999999999999\n", 2**34)])
def test_a_containers_memory_limit_counts(tmp_path, text, expected):
    (tmp_path / "memory.max").write_text(text)
    assert doctor.memory_limit(2**34, tmp_path) == expected


def test_where_there_is_no_container_the_machines_memory_counts(tmp_path):
    assert doctor.memory_limit(2**34, tmp_path) == 2**34


LONG = Finding("hint", "CIFAR-10", "not here " * 20, "download it " * 20)


@pytest.mark.parametrize("columns", [60, 100, 200])
def test_the_report_fits_the_terminal(columns):
    lines = doctor.report([LONG, Finding("fine", "x", "y")], columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert sum("->" in line for line in lines) == 1


def test_the_report_is_plain_where_the_terminal_knows_ascii_only():
    text = doctor.report([Finding("fine", "Python", "3.12"), Finding("gap", "torch", "weg – fort")], encoding="ascii")
    assert text.isascii() and "ok Python" in text and "NO torch" in text


class Tiny(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=4),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        )


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A network and a data set that train in a moment, and an empty folder to be in."""
    monkeypatch.setattr(
        qlab.data, "stripes", lambda split: stripes(1024 if split == "train" else 32, split), raising=False
    )
    monkeypatch.setitem(qlab.models.ARCHITECTURES, "tiny", Tiny)
    monkeypatch.chdir(tmp_path)
    return ["tiny", "--data", "stripes", "--epochs", "1", "--device", "cpu", "--threads", "1"]


def test_train_trains_goes_on_and_says_how_good_it_is(tiny, tmp_path, capsys):
    assert cli.main(["train", *tiny]) == 0
    said = capsys.readouterr().out
    assert "tiny on stripes: 1024 images, 1 epochs" in said and "test accuracy" in said and "(stripes)" in said
    best = tmp_path / "runs" / "tiny-stripes" / "best.safetensors"
    assert cli.main(["train", *tiny, "--init", str(best), "--out", "second"]) == 0
    assert (tmp_path / "second" / "last.safetensors").exists()


def test_train_says_when_the_weights_to_begin_with_are_another_networks(tiny, tmp_path, capsys):
    path = write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    assert cli.main(["train", *tiny, "--init", str(path)]) == 1
    assert "x.safetensors: '0.bias' is missing" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has other devices")
def test_an_integer_network_is_not_saved_over_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is a pipe: expected an ordinary file"):
        qlab.save(qlab.ptq(Tiny().eval(), [torch.randn(2, 3, 32, 32)], engine="reference"), tmp_path / "pipe")


def test_train_with_qat_goes_on_from_the_float_network(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(qlab.models, "load", lambda name, data: Tiny().eval())
    assert cli.main(["train", *tiny, "--qat", "w4a4"]) == 0
    assert "test accuracy" in capsys.readouterr().out
    prepared = tmp_path / "runs" / "tiny-stripes-w4a4" / "prepared.safetensors"
    assert prepared.exists()
    first = read_tensors(prepared)[0]
    words = ["--qat", "w4a4", "--init", str(prepared), "--out", "second", "--lr", "0", "--weight-decay", "0"]
    assert cli.main(["train", *tiny, *words]) == 0
    second = read_tensors(tmp_path / "second" / "prepared.safetensors")[0]
    name = "network.quantizers.input.scale"
    assert torch.equal(first[name], second[name]), "it went on from where the first run ended"
