"""JupyterLab knows each of the course's settings, and every way to install the course writes them."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "jupyter_settings.py"
SETTINGS = runpy.run_path(str(SCRIPT))["SETTINGS"]


def schema(plugin: str) -> dict:
    """What JupyterLab says of the settings of a plugin, such as ``@jupyterlab/notebook-extension:tracker``."""
    package, name = plugin.split(":")
    share = Path(sys.prefix) / "share" / "jupyter"
    own, others = share / "lab" / "schemas" / package, share / "labextensions" / package / "schemas" / package
    return json.loads(
        next(path for path in (own / f"{name}.json", others / f"{name}.json") if path.exists()).read_text()
    )


@pytest.mark.parametrize("plugin", SETTINGS)
def test_jupyterlab_knows_each_setting_and_has_another_default(plugin):
    known = schema(plugin)["properties"]
    for name, value in SETTINGS[plugin].items():
        assert known[name]["default"] != value


def test_they_are_written_where_jupyterlab_looks(tmp_path):
    code = f"import sys, runpy; sys.prefix = {str(tmp_path)!r}; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    subprocess.run([sys.executable, "-c", code], check=True)
    path = tmp_path / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    assert json.loads(path.read_text()) == SETTINGS


@pytest.mark.parametrize("name", ["tools/install.py", "binder/postBuild", "README.md"])
def test_every_way_to_install_the_course_writes_them(name):
    """The installer for make and Windows, postBuild for Binder, the README for conda."""
    assert "tools/jupyter_settings.py" in (ROOT / name).read_text("utf-8")
