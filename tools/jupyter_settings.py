"""JupyterLab's settings for the course, into the environment that runs this: `python tools/jupyter_settings.py`.

The installer (`make lab`) and Binder call it. What a reader sets in JupyterLab's menus goes before them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SETTINGS = {
    # A lesson that was saved and is opened again shows its panels, not "model not found" in the place of each.
    "@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": True},
    # A closed lesson gives its memory back: on Binder there is room for three.
    "@jupyterlab/notebook-extension:tracker": {"kernelShutdown": True},
    # No question about news and updates over the first page that a student sees.
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}


def write(folder: Path) -> Path:
    """Write the settings into JupyterLab's ``folder`` of settings."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "overrides.json"
    path.write_text(json.dumps(SETTINGS, indent=2) + "\n", "utf-8")
    return path


if __name__ == "__main__":
    write(Path(sys.prefix) / "share" / "jupyter" / "lab" / "settings")
