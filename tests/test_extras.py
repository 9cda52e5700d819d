"""What a message about a missing package advises works where it is read, and never fetches a stranger's project."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from qlab import extras


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with an installer, from which qlab runs."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "install.py").touch()
    monkeypatch.setattr(extras, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize("system, command", [("posix", "python3 tools/install.py"), ("nt", r"py tools\install.py")])
def test_a_clone_with_an_environment_of_its_own_has_an_installer(clone, monkeypatch, system, command):
    monkeypatch.setattr(sys, "prefix", str(clone / ".venv"))
    monkeypatch.setattr(extras, "os", SimpleNamespace(name=system))
    assert extras.remedy("video") == f"{command} video"
    assert extras.remedy("llm", "onnx") == f"{command} llm onnx"


def test_a_clone_in_another_environment_is_installed_into_that_one(clone, monkeypatch):
    """With conda and on Binder, the installer would fill a .venv that nobody uses."""
    monkeypatch.setattr(sys, "prefix", str(clone.parent / "conda"))
    assert extras.remedy("llm", "onnx") == f'pip install -e "{clone}[llm,onnx]"'


def test_without_a_clone_pip_is_told_the_name_of_the_distribution(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "FOLDER", tmp_path)
    assert extras.remedy("llm") == 'pip install "qlab-course[llm]"'
