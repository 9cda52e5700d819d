"""The doctor says whether the course can run here, and never dies of what it finds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import qlab
from qlab.cli import doctor
from qlab.cli.doctor import Finding
from qlab.cli.main import main
from qlab.data import Available
from qlab.int8 import engines


def test_the_doctor_says_whether_the_course_can_run(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("fine", "Python", "3.12.1")])
    assert main(["doctor"]) == 0
    assert "The course can run here." in capsys.readouterr().out
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("gap", "torch", "not installed", "install it")])
    assert main(["doctor"]) == 1
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
