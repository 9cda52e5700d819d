"""A notebook that was saved and is opened again shows its panels, and they follow their controls."""

from __future__ import annotations

import nbformat
import pytest
from lab import CLOSE, SAVE, await_another_image, image_of, jupyterlab, open_notebook, page_of, run_all

LESSON = "a_lesson.ipynb"
# The one place that knows where panels are made: one that the kernel draws, one that the browser does.
CELLS = (
    "from qlab.course.lesson01.panels import rounding\nfrom qlab.course.lesson07.panels import one_weight",
    "one_weight()",
    "rounding()",
    "from qlab.course.predict import Choices, Prediction\n"
    "which = Choices('0z', 'Which way?', among=('up', 'down'), measured='by 3')\n"
    "Prediction(which, ('the secret',), 1, 'down: by 3')",
    "Prediction(which, ('the other secret',), 1, 'down: by 3')",
)
PANELS = ".jp-OutputArea-output :is(.widget-vbox:has(> .qlab-image), .qlab-explorable)"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory, chromium):
    """The notebook, run, saved, closed with its kernel, and opened again."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "lessons").mkdir()
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}  # else JupyterLab asks for one
    lesson = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(lesson, folder / "lessons" / LESSON)
    with jupyterlab(folder) as address, page_of(address, chromium, folder / "profile") as page:
        open_notebook(page, LESSON)
        run_all(page)
        panels(page)
        page.locator(".qlab-question").first.get_by_label("up").check()
        page.locator(".qlab-question").first.get_by_role("button", name="That is my guess").click()
        page.evaluate(SAVE)
        page.evaluate(CLOSE)
        open_notebook(page, LESSON)
        yield page


def panels(page) -> list:
    from playwright.sync_api import expect

    expect(page.locator(PANELS)).to_have_count(2, timeout=60_000)
    return page.locator(PANELS).all()


def test_panels_are_there_before_anything_has_run(page):
    assert [bool(image_of(panel)) for panel in panels(page)] == [True, True]
    assert all(panel.locator("em[role=status]").inner_text() for panel in panels(page))
    assert page.get_by_text("Error displaying widget").count() == 0
    assert page.complaints == []


def test_a_guess_is_still_there_and_what_has_none_is_still_covered(page):
    guessed, asked = page.locator(".qlab-question").all()
    assert "You said: up." in guessed.inner_text() and "Measured: down: by 3." in guessed.inner_text()
    assert (
        page.get_by_text("the secret", exact=True).is_visible()
        and not page.get_by_text("the other secret", exact=True).is_visible()
    )
    asked.get_by_role("button", name="Show me").click()  # no kernel has run
    assert page.get_by_text("the other secret", exact=True).is_visible()


def test_what_the_browser_draws_follows_its_sliders_without_a_kernels_help(page):
    drawn = panels(page)[1]
    before = image_of(drawn)
    drawn.locator("input[type=range]").first.fill("6")
    await_another_image(drawn, before)


def test_what_the_kernel_draws_is_alive_again_when_its_cell_has_run(page):
    run_all(page)
    first = panels(page)[0]
    before = image_of(first)
    slider = first.locator("input[type=range]").first
    slider.fill(slider.evaluate("input => input.min"))
    await_another_image(first, before)
    assert page.get_by_role("alert").count() == 0
