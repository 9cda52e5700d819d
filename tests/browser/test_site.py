"""The course as a web site: whoever opens it without Python can move, predict and answer as in Jupyter."""

from __future__ import annotations

import base64
import functools
import gzip
import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
import torch

from qlab.course.figure import Figure
from qlab.course.lesson01 import exercises, panels

ROOT = Path(__file__).resolve().parents[2]
VALUES = "torch.linspace(-1, 1, 200) ** 3"
PLAYED = f"""panels.rounding()
---
panels.rounding_errors({VALUES})
---
figure = Figure((3, 2), "three bits are enough")
figure.alt = "A straight line."
figure
---
quiz(1)"""
ASKED = """predict("2a", panels.clipping(torch.linspace(0, 1, 300) ** 2), "a table", answer=2, percent=61.0)"""
IMPORTS = """import torch

from qlab.course.figure import Figure
from qlab.course.lesson{lesson:02} import panels
from qlab.course.predict import predict
from qlab.course.quiz import quiz"""
HEAVIEST = 300_000  # bytes of a page, as a host sends it, before a panel is touched
TOO_SMALL = "() => document.documentElement.scrollWidth > innerWidth"


def cell(text: str, **metadata) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(text, metadata=metadata)


def lesson(path: Path, number: int, cells: list[nbformat.NotebookNode]) -> None:
    long = " + ".join(["x_{bits}"] * 20)  # wider than a phone
    title = nbformat.v4.new_markdown_cell(
        f"# {number}. A lesson\n\nA step is $s = \\frac{{1}}{{2^b}}$ wide.\n\n$$\n{long}\n$$"
    )
    notebook = nbformat.v4.new_notebook(
        cells=[title, cell(IMPORTS.format(lesson=number)), *cells], metadata={"language_info": {"name": "python"}}
    )
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def tool():
    for package in ("sphinx_book_theme", "myst_nb", "latex2mathml"):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "tools" / "build_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tool, tmp_path_factory) -> Path:
    """A site of two lessons, and of the reference."""
    notebooks = tmp_path_factory.mktemp("notebooks")
    task = exercises.EXERCISES[0]
    played = [cell(text) for text in PLAYED.split("\n---\n")]
    data, metadata = Figure((3, 2), "three bits are enough").still()
    data["image/jpeg"] = base64.b64encode(data["image/jpeg"]).decode()
    played[2].outputs = [nbformat.v4.new_output("display_data", data, metadata=metadata)]
    exercise = cell(f'{task.stub}\n\n\ncheck("{task.name}", {task.solution.__name__})', tags=["exercise"])
    lesson(notebooks / "01_played.ipynb", 1, [*played, exercise])
    solved = cell(f'{task.source}\n\n\ncheck("{task.name}", {task.solution.__name__})', tags=["exercise"])
    solved.id = exercise.id
    copy = nbformat.read(notebooks / "01_played.ipynb", as_version=4)
    copy.cells[-1] = solved
    (notebooks / "solutions").mkdir()
    nbformat.write(copy, notebooks / "solutions" / "01_played.ipynb")
    lesson(notebooks / "02_asked.ipynb", 2, [cell(ASKED)])
    return tool.build(sorted(notebooks.glob("*.ipynb")), tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def address(tool, site) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(tool.Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(address, chromium) -> Iterator:
    """A phone's page; ``complaints`` of it are a list, ``loaded`` the addresses that it asked for."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
        page.complaints, page.loaded = [], []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("response", lambda answer: page.complaints.append(answer.url) if answer.status >= 400 else None)
        page.on("request", lambda request: page.loaded.append(request.url))
        yield page
        browser.close()


def live(page, kind: str):
    """The first place of this kind, once a reader has come to it and it lives."""
    for place in page.locator(".qlab-live").all():
        place.scroll_into_view_if_needed()
    return page.locator(f'.qlab-live[data-kind="{kind}"]').first


def open_page(page, address: str) -> None:
    page.loaded.clear()
    page.complaints.clear()
    page.goto(address, wait_until="networkidle")


def weight(site: Path, address: str, loaded: list[str]) -> int:
    """What these addresses weigh, text compressed as GitHub Pages and every other host does it."""
    files = [site / url.removeprefix(f"{address}/").split("?")[0] for url in loaded]
    return sum(
        len(path.read_bytes()) if path.suffix == ".webp" else len(gzip.compress(path.read_bytes())) for path in files
    )


def serious(page) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found if each["impact"] in ("serious", "critical")]


pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    "name", ["index.html", "api.html", "lessons/01_played.html", "lessons/02_asked.html", "search.html?q=round"]
)
def test_a_page_is_light_asks_no_other_host_and_fits_a_phone(page, site, address, name):
    open_page(page, f"{address}/{name}")
    assert not [url for url in page.loaded if not url.startswith(address)]
    if "search" in name:
        page.wait_for_selector(".search li")
    else:
        assert weight(site, address, page.loaded) < HEAVIEST
    assert not page.evaluate(TOO_SMALL)
    assert page.complaints == []


def test_a_panel_that_the_browser_computes_follows_its_slider(page, address):
    open_page(page, f"{address}/lessons/01_played.html")
    panel = live(page, "drawn")
    panel.get_by_role("slider", name="bits").fill("5")
    expected = panels.rounding()
    figure = expected.draw(**{**expected.values, "bits": 5})
    assert panel.locator(".qlab-sheet > strong").inner_text() == figure.finding


def test_a_panel_of_frames_shows_the_picture_and_the_words_that_python_gives(page, site, address):
    open_page(page, f"{address}/lessons/01_played.html")
    panel = live(page, "frames")
    frames = next(site.glob("live/01_played/*/0.webp")).parent
    expected = panels.rounding_errors(torch.linspace(-1, 1, 200) ** 3)
    assert len(list(frames.iterdir())) == len(expected.choices["bits"])
    assert panel.locator("em").inner_text() == expected.figure.alt
    before = panel.locator("img").get_attribute("src")
    assert not [url for url in page.loaded if "words" in url]  # nobody has asked for them
    for place, bits in enumerate(expected.choices["bits"]):
        figure = expected.draw(bits=bits)
        panel.get_by_role("slider", name="bits").fill(str(place))
        page.wait_for_function(
            "([em, words]) => em.textContent === words", arg=[panel.locator("em").element_handle(), figure.alt]
        )
        assert panel.locator("output").inner_text() == str(bits)
        assert panel.locator("img").get_attribute("alt") == figure.finding
        assert panel.locator("img").get_attribute("src").endswith(f"/{place}.webp")
    assert panel.locator("img").get_attribute("src") != before
    assert page.complaints == []


def test_a_quiz_explains_and_remembers_what_was_answered(page, address):
    open_page(page, f"{address}/lessons/01_played.html")
    question = exercises.QUIZ[0]
    right = next(choice for choice in question.choices if choice.right)
    asked = live(page, "quiz").locator("fieldset").first
    asked.get_by_label(right.text, exact=True).check()
    assert asked.get_by_role("status").inner_text() == f"Right. {right.because}"
    open_page(page, f"{address}/lessons/01_played.html")
    assert live(page, "quiz").locator("fieldset").first.get_by_label(right.text, exact=True).is_checked()


def test_what_a_prediction_covers_stays_covered_until_there_is_a_guess_and_stays_open(page, address):
    open_page(page, f"{address}/lessons/02_asked.html")
    asked = live(page, "prediction")
    table = asked.get_by_text("a table", exact=True)
    assert not table.is_visible() and "Measured" not in asked.inner_text()
    asked.get_by_role("radio").first.check()
    asked.get_by_role("button").first.click()
    assert table.is_visible() and asked.get_by_role("slider", name="bits").is_visible()
    assert "You said: with the limit at the largest value" in asked.inner_text()
    assert "61" in asked.inner_text()
    open_page(page, f"{address}/lessons/02_asked.html")
    assert live(page, "prediction").get_by_text("a table", exact=True).is_visible()


def test_hints_and_solutions_are_folded_formulas_set_and_pictures_described(page, address):
    open_page(page, f"{address}/lessons/01_played.html")
    solution = page.locator("details").last
    assert not solution.locator("pre").is_visible()
    solution.locator("summary").click()
    assert "return" in solution.locator("pre").inner_text()
    assert page.locator("math mfrac").count() == 1
    assert page.locator('img[alt^="three bits are enough"]').get_attribute("src").endswith(".webp")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, address, theme):
    page.emulate_media(color_scheme=theme)
    for name in ("index.html", "lessons/01_played.html", "lessons/02_asked.html"):
        open_page(page, f"{address}/{name}")
        for place in page.locator(".qlab-live").all():
            place.scroll_into_view_if_needed()
            place.locator("xpath=self::*[@data-kind]").wait_for()
        assert serious(page) == []


def test_in_the_dark_a_picture_is_turned_over_as_in_jupyter(page, address):
    turned = "image => getComputedStyle(image).filter.startsWith('invert')"
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        open_page(page, f"{address}/lessons/01_played.html")
        assert live(page, "frames").locator("img").evaluate(turned) == (theme == "dark")


def test_the_reference_has_every_public_name(site):
    import qlab

    text = (site / "api.html").read_text("utf-8")
    own = [name for name in qlab.__all__ if name != "course" and not hasattr(getattr(qlab, name), "__file__")]
    assert [name for name in own if f">{name}</span>" not in text] == []


def test_a_lesson_can_be_downloaded_as_it_is(site):
    assert json.loads((site / "lessons" / "01_played.ipynb").read_text("utf-8"))["cells"]
