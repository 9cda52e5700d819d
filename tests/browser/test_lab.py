"""Lesson 0 in JupyterLab in a real browser: all cells run, nothing complains, the slider moves the figure."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "artifacts"
LESSON = "00_float_to_int8.ipynb"
QUIET_SETTINGS = {"fetchNews": "false", "checkForUpdates": False}  # a news pop-up would cover the page

READY = """async () => {
    const app = window.jupyterapp;
    await app.restored;
    while (!app.shell.currentWidget?.sessionContext?.session?.kernel)
        await new Promise(done => setTimeout(done, 100));
    const panel = app.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.info;
}"""
RUN_ALL = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory, chromium) -> Iterator[str]:
    """The address of a JupyterLab that shows a copy of the lesson, with settings of its own."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "lessons").mkdir()
    shutil.copy(ROOT / "notebooks" / LESSON, folder / "lessons")
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(QUIET_SETTINGS))
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
        f"--ServerApp.root_dir={folder / 'lessons'}",
    ]  # fmt: skip
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/api", server, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


def wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def page(lab, chromium, tmp_path_factory):
    """The lesson, opened and run from the first cell to the last."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=chromium, headless=True,
            args=["--no-sandbox", "--disable-dev-shm-usage"], viewport={"width": 1280, "height": 900},
        )  # fmt: skip
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith((lab, "data:", "blob:")) else
                page.complaints.append(f"a request leaves this computer: {request.url}"))  # fmt: skip
        page.goto(f"{lab}/lab/tree/{LESSON}?reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        page.evaluate(READY)
        page.set_default_timeout(180_000)
        page.evaluate(RUN_ALL)
        page.set_default_timeout(20_000)
        yield page
        ARTIFACTS.mkdir(exist_ok=True)
        page.screenshot(path=ARTIFACTS / "lesson_00.png")
        context.close()


def outputs(page) -> list[dict]:
    """Every output of every cell, as the notebook in the browser has it."""
    return page.evaluate("""() => window.jupyterapp.shell.currentWidget.content.widgets
        .filter(cell => cell.model.type === 'code').flatMap(cell => cell.model.sharedModel.getOutputs())""")


def test_every_cell_ran_and_nothing_complains(page):
    counts = page.evaluate("""() => window.jupyterapp.shell.currentWidget.content.widgets
        .filter(cell => cell.model.type === 'code').map(cell => cell.model.executionCount)""")
    assert counts == list(range(1, len(counts) + 1))
    shown = outputs(page)
    assert [output for output in shown if output["output_type"] == "error"] == []
    assert [output["text"] for output in shown if output.get("name") == "stderr"] == []
    assert page.get_by_text("Error displaying widget").count() == 0
    assert page.complaints == []


def picture_of(page) -> str:
    """What the panel shows: its picture's address is new for each picture."""
    return page.locator(".jupyter-widgets img").get_attribute("src")


def await_words(page, words: str) -> None:
    page.get_by_role("status").filter(has_text=words).wait_for()


def test_dragging_the_slider_changes_the_picture_and_its_words(page):
    slider = page.get_by_label("bits of weights and activations")
    slider.scroll_into_view_if_needed()
    await_words(page, "with 8 bits")
    before = picture_of(page)
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] - 8, middle)
    page.mouse.down()
    for step in range(1, 21):
        page.mouse.move(box["x"] + (box["width"] - 8) * (1 - step / 20) + 4, middle)
        page.wait_for_timeout(20)
    page.mouse.up()
    await_words(page, "with 2 bits")
    assert picture_of(page) != before
    assert page.get_by_role("alert").count() == 0, "an error in a callback fails no cell; the panel says it"


def test_the_keyboard_moves_the_slider_and_not_the_notebook(page):
    slider = page.get_by_label("bits of weights and activations")
    slider.fill("5")
    await_words(page, "with 5 bits")
    before = picture_of(page)
    slider.focus()
    page.keyboard.press("ArrowRight")
    await_words(page, "with 6 bits")
    assert picture_of(page) != before
    assert slider.evaluate("element => element === document.activeElement")
