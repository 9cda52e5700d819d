"""A JupyterLab of the tests' own, a browser that shows it, and what a reader does there."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

READY = """async () => {
    const app = window.jupyterapp;
    while (!app.shell.currentWidget?.sessionContext?.session?.kernel)
        await new Promise(done => setTimeout(done, 100));
    const panel = app.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.info;
}"""
OPEN = (
    "async path => { await window.jupyterapp.commands.execute('docmanager:open', { path }); }"  # gives no widget back
)
CLOSE = """async () => {
    const panel = window.jupyterapp.shell.currentWidget;
    await panel.sessionContext.shutdown();
    panel.dispose();
}"""
SAVE = "() => window.jupyterapp.shell.currentWidget.context.save()"
RUN_ALL = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"

# An image's address is new for each image; a canvas gives its pixels, and bits are written on their buttons.
IMAGE = """panel => panel.querySelector("img")?.src ?? panel.querySelector("canvas")?.toDataURL()
    ?? panel.querySelector(".qlab-sheet").innerText"""


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab on ``folder / "lessons"``, with the course's settings."""
    runpy.run_path(str(ROOT / "tools" / "jupyter_settings.py"))["write"](folder / "defaults")
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"windowingMode": "none"}))  # else a cell out of sight may not be in the page
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--IdentityProvider.token=", "--ServerApp.password=", "--LabApp.expose_app_in_browser=True",
        f"--ServerApp.root_dir={folder / 'lessons'}", f"--LabApp.app_settings_dir={folder / 'defaults'}",
    ]  # fmt: skip
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/api", server, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


def wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@contextmanager
def page_of(address: str, chromium: str, profile: Path) -> Iterator:
    """A browser's page with the JupyterLab at ``address``, no document open; ``complaints`` of it are a list."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, headless=True,
            args=["--no-sandbox", "--disable-dev-shm-usage"], viewport={"width": 1280, "height": 900},
        )  # fmt: skip
        page = context.new_page()
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:")) else
                page.complaints.append(f"a request leaves this computer: {request.url}"))  # fmt: skip
        page.set_default_timeout(60_000)
        page.goto(f"{address}/lab?reset")
        page.wait_for_function("() => window.jupyterapp")
        page.evaluate("() => window.jupyterapp.restored")
        yield page
        context.close()


def open_notebook(page, path: str) -> None:
    """Open a notebook beside those that are open, and wait until its kernel answers."""
    page.evaluate(OPEN, path)
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    page.evaluate(READY)


def run_all(page) -> None:
    """Run every cell of the notebook in front, and wait for the last."""
    page.set_default_timeout(300_000)
    page.evaluate(RUN_ALL)
    page.set_default_timeout(60_000)


def image_of(panel) -> str:
    """What a panel shows, as text that is another for another picture."""
    return panel.evaluate(IMAGE)


def await_another_image(panel, before: str) -> None:
    """Wait until the panel shows another picture than ``before``."""
    changed = f"([panel, before]) => ({IMAGE})(panel) !== before"
    panel.page.wait_for_function(changed, arg=[panel.element_handle(), before])
