"""Every lesson in JupyterLab in a real browser: its panels and questions appear, and each control moves its figure.

A lesson is opened with the cells that show a panel or its questions, and with what these need. The rest of its code is
nbval's part of `make test`.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from cells import code_cells, shows, with_what_they_need
from lab import CLOSE, IMAGE, await_another_image, image_of, jupyterlab, open_notebook, page_of, run_all
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "artifacts"
LESSONS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def app(tmp_path_factory, chromium):
    """JupyterLab on a copy of the lessons. All are opened in this one page: loading it costs seconds each time."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "lessons").mkdir()
    for lesson in LESSONS:
        nbformat.write(with_panels(ROOT / "notebooks" / lesson), folder / "lessons" / lesson)
    with jupyterlab(folder) as address, page_of(address, chromium, folder / "profile") as page:
        yield page


def with_panels(path: Path) -> nbformat.NotebookNode:
    """The lesson at ``path`` without the code that neither a panel nor the questions, its last cell, need."""
    lesson = nbformat.read(path, as_version=4)
    *cells, questions = code_cells(lesson)
    kept = with_what_they_need([*filter(shows, cells), questions], [*cells, questions])
    lesson.cells = [cell for cell in lesson.cells if cell.cell_type == "markdown" or cell in kept]
    return lesson


@pytest.fixture(scope="module", params=LESSONS, ids=lambda name: name[:2])
def page(app, request):
    """A lesson, opened and run."""
    app.complaints.clear()
    open_notebook(app, request.param)
    run_all(app)
    yield app
    app.evaluate(CLOSE)  # one kernel at a time: a student's computer has room for no more


def outputs(page) -> list[dict]:
    """Every output of every cell, as the notebook in the browser has it."""
    return page.evaluate("""() => window.jupyterapp.shell.currentWidget.content.widgets
        .filter(cell => cell.model.type === 'code').flatMap(cell => cell.model.sharedModel.getOutputs())""")


QUESTIONS = ".jp-OutputArea-output .qlab-question"
COVERED = ".jp-OutputArea-output .qlab-covered"


def questions(page) -> list:
    """Every prediction of the lesson."""
    from playwright.sync_api import expect

    given = sum("<details>" in str(output.get("data", {}).get("text/html", "")) for output in outputs(page))
    assert given, "a lesson without a prediction"
    expect(page.locator(QUESTIONS)).to_have_count(given, timeout=60_000)
    return page.locator(QUESTIONS).all()


def test_nothing_is_seen_before_a_guess_and_the_guess_stands_beside_what_was_measured(page):
    """First, while nothing is open yet. By keyboard, mouse and without a guess, in turns."""
    from playwright.sync_api import expect

    asked = questions(page)
    assert not any(covered.is_visible() for covered in page.locator(COVERED).all())
    for number, question in enumerate(asked):
        question.scroll_into_view_if_needed()
        commit, show = (question.get_by_role("button", name=name) for name in ("That is my guess", "Show me"))
        assert commit.is_disabled()
        form = question.locator("input").first
        if number % 3 == 2:
            show.click()
        elif number % 3 == 1 or form.get_attribute("type") == "radio":
            form.focus()
            page.keyboard.press("Space" if form.get_attribute("type") == "radio" else "ArrowRight")
            page.keyboard.press("Enter")
        else:
            form.fill(form.get_attribute("max"))
            commit.click()
        said = question.locator(".qlab-said")
        expect(said).to_contain_text("Measured: ")
        assert ("You said: " in said.inner_text()) == (number % 3 != 2)
        assert form.is_disabled() and not commit.is_visible()
    shown = [covered for covered in page.locator(COVERED).all() if covered.locator("> *").count()]
    assert all(covered.is_visible() for covered in shown)


def guess_everything(page) -> None:
    """Open what is still covered."""
    for question in questions(page):
        button = question.get_by_role("button", name="Show me")
        if button.is_visible():
            button.click()


PANELS = ".jp-OutputArea-output :is(.widget-vbox:has(> .qlab-image), .qlab-explorable)"
FIGURES = ":is(.jp-OutputArea-output, .jp-OutputArea-output *):not(.widget-vbox) > .qlab-image"
QUIZ = ".jp-OutputArea-output .widget-vbox:has(> .widget-vbox .widget-radio)"


def panels(page) -> list:
    """Every panel of the lesson: an image with its controls and words. They appear a while after their cells ran."""
    from playwright.sync_api import expect

    guess_everything(page)
    given = sum({WIDGET, "image/jpeg"} <= set(output.get("data", {})) for output in outputs(page))
    expect(page.locator(f"{PANELS}:not({COVERED} *), {FIGURES}")).to_have_count(given, timeout=60_000)
    given = page.locator(f"{PANELS}:not({COVERED} *)").count()
    given += page.locator(f"{COVERED} > :is(.widget-vbox:has(> .qlab-image), .qlab-explorable)").count()
    assert given, "a lesson without a panel"
    expect(page.locator(PANELS)).to_have_count(given, timeout=60_000)
    return page.locator(PANELS).all()


def movable(page) -> list:
    """The panels with a control. (A figure that a prediction covers has none.)"""
    controls = ":is(input[type=range], select, input[type=checkbox])"
    return [panel for panel in panels(page) if panel.locator(controls).count()]


def test_every_cell_ran_and_nothing_complains(page):
    counts = page.evaluate("""() => window.jupyterapp.shell.currentWidget.content.widgets
        .filter(cell => cell.model.type === 'code').map(cell => cell.model.executionCount)""")
    assert counts == list(range(1, len(counts) + 1))
    panels(page)
    shown = outputs(page)
    assert [output for output in shown if output["output_type"] == "error"] == []
    assert [output["text"] for output in shown if output.get("name") == "stderr"] == []
    assert page.get_by_text("Error displaying widget").count() == 0
    assert page.complaints == []


def test_every_control_moves_its_figure(page, request):
    for number, panel in enumerate(movable(page)):
        panel.scroll_into_view_if_needed()
        for slider in panel.locator("input[type=range]").all():
            least, most, now = (float(slider.evaluate(f"input => input.{end}")) for end in ("min", "max", "value"))
            before = image_of(panel)
            slider.fill(f"{least if now == most else most:g}")
            await_another_image(panel, before)
        for choice in panel.locator("select").all():
            before = image_of(panel)
            choice.select_option(index=int(not choice.evaluate("list => list.selectedIndex")))  # another than now
            await_another_image(panel, before)
        for box in panel.locator("input[type=checkbox]").all():
            before = image_of(panel)
            box.click()
            await_another_image(panel, before)
        assert panel.locator("em[role=status]").inner_text()
        ARTIFACTS.mkdir(exist_ok=True)
        lesson = request.node.callspec.params["page"].removesuffix(".ipynb")
        panel.screenshot(path=ARTIFACTS / f"{lesson}_{number}.png")
    assert page.get_by_role("alert").count() == 0, "an error in a callback fails no cell; the panel says it"


def test_every_question_explains_its_answers(page):
    from playwright.sync_api import expect

    questions = page.locator(QUIZ).locator("> .widget-vbox").all()
    assert len(questions) == 3
    for question in questions:
        answers = question.locator("input[type=radio]").all()
        explanations = [""]
        for answer in answers:
            answer.click()
            said = question.get_by_role("status").filter(has_text=re.compile("Right|Not quite"))
            expect(said).not_to_have_text(explanations[-1], timeout=60_000)
            explanations.append(said.inner_text())
        assert len(set(explanations)) == 1 + len(answers)
        assert sum(text.startswith("Right") for text in explanations) == 1


def test_dragging_and_the_keyboard_move_a_slider_and_not_the_notebook(page):
    panel = movable(page)[0]
    slider = panel.locator("input[type=range]").first
    slider.scroll_into_view_if_needed()
    most = slider.evaluate("input => input.max")
    if slider.input_value() != most:
        before = image_of(panel)
        slider.fill(most)
        await_another_image(panel, before)
    before = image_of(panel)
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] - 8, middle)
    page.mouse.down()
    for step in range(1, 11):
        page.mouse.move(box["x"] + (box["width"] - 8) * (1 - step / 10) + 4, middle)
        page.wait_for_timeout(20)
    page.mouse.up()
    await_another_image(panel, before)
    page.wait_for_timeout(300)
    least = float(slider.evaluate("input => input.min"))
    assert float(slider.input_value()) == least
    before = image_of(panel)
    slider.focus()
    page.keyboard.press("ArrowRight")
    await_another_image(panel, before)
    assert float(slider.input_value()) > least
    assert slider.evaluate("element => element === document.activeElement")


@pytest.mark.parametrize("page", ["01_rounding.ipynb"], ids=["01"], indirect=True)
def test_a_bit_can_be_clicked_and_reached_from_the_keyboard(page):
    formats = page.locator(".qlab-explorable:has([role=toolbar])")
    formats.get_by_label("number").fill("1")
    title, words = formats.locator("strong[role=status]"), formats.locator("em[role=status]")
    sign = formats.get_by_role("button", name="float16 bit 15 sign, 0", exact=True)
    sign.click()
    assert title.inner_text().startswith("-1: with at most 16 bits, exact in bfloat16, float16")
    assert "fp8 e4m3 stores -1; int8 stores -1." in words.inner_text()
    assert (
        formats.get_by_role("button", name="float32 bit 31 sign, 1", exact=True).get_attribute("aria-pressed") == "true"
    )
    for key in ("ArrowRight", "Space"):  # the next bit is the highest of the exponent
        page.keyboard.press(key)
    assert formats.get_by_role("button", name="float16 bit 14 exponent, 1", exact=True).evaluate(
        "bit => bit === document.activeElement"
    )
    assert title.inner_text() == "-inf: fp8 e4m3 and int8 have no infinity"
    formats.get_by_role("button", name="float16 bit 0 fraction, 0", exact=True).click()
    assert title.inner_text().startswith("nan, not a number")
    assert "int8 has no pattern for it" in words.inner_text()
    formats.get_by_label("number").fill("0.5")
    assert title.inner_text().startswith("0.5: with at most 16 bits, exact in bfloat16")


@pytest.mark.parametrize("page", ["00_float_to_int8.ipynb"], ids=["00"], indirect=True)
def test_in_a_dark_jupyterlab_a_sheet_is_dark_and_a_photograph_stays_as_it_is(page):
    panel = next(panel for panel in movable(page) if panel.locator(".qlab-image > span").count())
    (light, photos), switch = (
        shown_of(panel),
        "theme => jupyterapp.commands.execute('apputils:change-theme', { theme })",
    )
    page.evaluate(switch, "JupyterLab Dark")
    try:
        panel.locator(".qlab-image > span").first.wait_for(state="visible")
        page.wait_for_function("() => !document.querySelector('#jupyterlab-splash')")  # it lies over all for a while
        dark, same = shown_of(panel)
    finally:
        page.evaluate(switch, "JupyterLab Light")
    assert np.median(light) > 250 and np.median(dark) < 30
    assert len(photos) == len(same) > 1
    assert all(np.abs(one - other).mean() < 3 for one, other in zip(photos, same))


PARTS = "spans => spans.map(({ style }) => [style.left, style.top, style.width, style.height].map(parseFloat))"


def shown_of(panel) -> tuple[np.ndarray, list[np.ndarray]]:
    """The pixels of a panel's image as the browser shows it, and those of each photograph on it."""
    whole = np.asarray(Image.open(io.BytesIO(panel.locator(".qlab-image").screenshot())).convert("RGB"), float)
    pixels = np.array([*whole.shape[1::-1]] * 2) / 100
    places = [np.round(part * pixels).astype(int) for part in panel.locator(".qlab-image > span").evaluate_all(PARTS)]
    return whole, [whole[top + 3 : top + high - 3, left + 3 : left + wide - 3] for left, top, wide, high in places]


BUSY = """async () => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    window.answered = false;
    window.busy = kernel.requestExecute({ code: "while True: pass" }).done.finally(() => { window.answered = true; });
    while (kernel.status !== "busy") await new Promise(done => setTimeout(done, 20));
}"""
DRAG = """async ([slider, panel]) => {
    const image = IMAGE;
    const shown = new Set();
    const count = Math.min(Math.round((slider.max - slider.min) / slider.step) + 1, 50);
    const values = Array.from({ length: count }, (_, i) => +slider.min + (slider.max - slider.min) * i / (count - 1));
    const start = performance.now();
    for (const value of values) {
        slider.value = value;
        slider.dispatchEvent(new Event("input", { bubbles: true }));
        await new Promise(requestAnimationFrame);
        shown.add(image(panel));
    }
    return [shown.size, count, performance.now() - start];
}""".replace("IMAGE", IMAGE)


@pytest.mark.parametrize("page", ["01_rounding.ipynb", "02_clipping.ipynb"], ids=["01", "02"], indirect=True)
def test_what_the_browser_computes_does_not_wait_for_the_kernel(page):
    """As on Binder, where a kernel answers late; here it does not answer at all."""
    drawn = page.locator(".qlab-explorable:has(canvas)")
    assert drawn.count()
    kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
    page.evaluate(BUSY)
    try:
        for panel in drawn.all():
            slider = panel.locator("input[type=range]").last
            images, count, ms = page.evaluate(DRAG, [slider.element_handle(), panel.element_handle()])
            assert images > 0.8 * count > 4, "each step of a drag shows another image"
            print(f"{1000 * count / ms:.0f} frames a second")  # pytest -s shows it
        assert not page.evaluate("() => window.answered")
    finally:
        page.evaluate(f"() => {kernel}.interrupt()")
        page.evaluate("() => window.busy.catch(() => {})")


@pytest.mark.parametrize("page", ["11_detection.ipynb"], ids=["11"], indirect=True)
def test_the_live_panel_runs_until_it_is_stopped(page):
    panel = next(panel for panel in panels(page) if panel.get_by_role("button", name="start").count())
    start, stop = (panel.get_by_role("button", name=name) for name in ("start", "stop"))
    panel.scroll_into_view_if_needed()
    assert stop.is_disabled()
    start.click()
    for _ in range(3):
        await_another_image(panel, image_of(panel))
    slider = panel.locator("input[type=range]")
    slider.fill("95")
    page.wait_for_function("panel => panel.innerText.includes('at least 95 %')", arg=panel.element_handle())
    assert start.is_disabled()
    stop.click()
    page.wait_for_function("button => !button.disabled", arg=start.element_handle())
    before = image_of(panel)
    page.wait_for_timeout(1000)
    assert image_of(panel) == before and panel.get_by_role("alert").count() == 0


def test_axe_finds_nothing_serious_in_panels_and_questions(page):
    """JupyterLab's own faults are not ours to mend, so its frame is left out."""
    from axe_playwright_python.sync_playwright import Axe

    # JupyterLab's body is 0 pixels high, so that axe takes all text for hidden and skips its contrast.
    panels(page)
    style = page.add_style_tag(content="html, body { height: 100vh; }")
    ours = {"include": [[PANELS], [QUIZ], [QUESTIONS]]}
    found = Axe().run(page, context=ours).response
    style.evaluate("style => style.remove()")
    assert {rule["id"] for rule in found["passes"]} >= {"label", "color-contrast"}, "axe saw no panel"
    serious = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
    assert [(rule["id"], node["html"][:200]) for rule in serious for node in rule["nodes"]] == []
