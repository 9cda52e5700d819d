"""A student's portfolio shows a wrong prediction as what was learnt; a class's page what surprised most."""

from __future__ import annotations

import re
from html import unescape

import pytest

from qlab import course
from qlab.course import exercises, progress
from qlab.course.exercises import check

WRONG = {"question": "Is 4 < 6?", "guess": "6 bits", "measured": "4 bits: 40.1 dB", "right": False}
RIGHT = {"question": "Better?", "guess": "yes", "measured": "yes: 3 dB more", "right": True}
SHOWN = {"question": "Faster?", "guess": None, "measured": "no: as fast", "right": None}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Nobody has done anything yet; pages go here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QLAB_PROGRESS", "progress.json")
    return tmp_path


def learn(monkeypatch, student, **said):
    """What a student of that name has said."""
    monkeypatch.setenv("QLAB_PROGRESS", f"{student}.json")
    for name, entry in said.items():
        progress.remember_prediction(name.strip("_"), entry)


def text(page):
    """The page's words, without its tags and style."""
    html = page.path.read_text("utf-8")
    return unescape(re.sub(r"\s+", " ", re.sub(r"<style>.*</style>|<[^>]+>", " ", html, flags=re.DOTALL)))


def test_wrong_predictions_come_first_as_what_was_learnt_each_beside_what_was_measured(monkeypatch):
    learn(monkeypatch, "ada", _10a=WRONG, _2b=WRONG, _2a=RIGHT, _3a=SHOWN)
    page = course.portfolio(student="Ada")
    assert page.path.name == "portfolio.html" and page.words.startswith(
        "3 predictions made before the answer was shown"
    )
    words = text(page)
    order = [
        "Ada",
        "What I learnt",
        "2b. Is 4 < 6?",
        "6 bits",
        "4 bits: 40.1 dB",
        "10a. Is",
        "What I knew",
        "2a. Better?",
    ]
    order += ["What I had shown to me", "3a. Faster?", "no: as fast"]
    places = [words.index(part, words.index("2 of them")) if part != "Ada" else words.index(part) for part in order]
    assert places == sorted(places)
    assert "I said" not in words[words.index("3a.") :], "nothing was said"


def test_the_exercises_tried_stand_below_lesson_by_lesson(monkeypatch):
    check("1.2", exercises.exercise("1.2").mistakes[0])
    check("1.1", exercises.exercise("1.1").solution)
    words = text(course.portfolio())
    assert "No prediction yet" in words and "1 of " in words and "What I learnt" not in words
    assert re.search(r"Lesson 1, numbers with few bits .* 1\.1 .* solved 1 0 1\.2 .* tried 1 0 $", words)


def test_a_page_needs_no_network_and_nothing_of_a_student_is_markup(monkeypatch):
    learn(monkeypatch, "ada", _2a={**WRONG, "guess": "<script>alert(1)</script>"})
    for page in (course.portfolio(student="<b>Ada</b>"), course.class_page(["ada.json"])):
        html = page.path.read_text("utf-8")
        assert not re.search(r"<script|<link|<img|<b>|https?:|url\(|@import", html)
        assert "<script>alert(1)</script>" in text(page)


def test_a_notebook_links_to_the_page():
    page = course.portfolio("my <own>.html")
    assert page._repr_html_().startswith(
        "<a href='my &lt;own&gt;.html' target='_blank'>my &lt;own&gt;.html</a>: 0 pred"
    )
    assert repr(page).startswith("my <own>.html: 0 predictions")


def test_a_class_page_begins_with_the_predictions_that_most_got_wrong(monkeypatch):
    learn(monkeypatch, "ada", _2a=RIGHT, _2b=WRONG, _3a=SHOWN)
    learn(monkeypatch, "bob", _2a={**RIGHT, "guess": "no", "right": False}, _2b={**WRONG, "guess": "8 bits"})
    learn(monkeypatch, "eve", _2b={**WRONG, "guess": "8 bits"})
    check("1.1", exercises.exercise("1.1").mistakes[0])
    check("1.1", exercises.exercise("1.1").solution)
    page = course.class_page(["ada.json", "bob.json", "eve.json", "nobody.json"])
    assert page.words == "3 students, 1 files that cannot be read"
    words = text(page)
    assert re.search(
        r"2b Is 4 < 6\? 3 3 8 bits \(2\) 4 bits: 40.1 dB 2a Better\? 2 1 no \(1\) yes: .* 3a Faster\? 0 0", words
    )
    assert "1.1 step 1 2 0 0" in words and "1.2" not in words
    assert re.search(
        r"ada 0 0 0 0 2 1 bob 0 0 0 0 2 2 eve 1 2 0 0 1 1 nobody 0 .* nobody.json is no progress file", words
    )


def test_a_page_of_nobody_has_no_rows():
    assert "0 students" in text(course.class_page([]))


@pytest.mark.browser
def test_pages_can_be_read_by_everybody_in_light_in_dark_and_on_paper(monkeypatch, chromium, folder):
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    learn(monkeypatch, "ada", _2b=WRONG, _2a=RIGHT, _3a=SHOWN)
    check("1.1", exercises.exercise("1.1").solution)
    pages = [course.portfolio(student="Ada"), course.class_page(["ada.json", "nobody.json"])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 600, "height": 800})
        paper = "() => getComputedStyle(document.body).backgroundColor"
        for path in (each.path for each in pages):
            page.goto((folder / path).as_uri())
            for scheme, colour in {"light": "rgb(255, 255, 255)", "dark": "rgb(24, 24, 24)"}.items():
                page.emulate_media(media="screen", color_scheme=scheme)
                assert page.evaluate(paper) == colour
                assert [rule["id"] for rule in Axe().run(page).response["violations"]] == []
            page.emulate_media(media="print", color_scheme="dark")
            assert page.evaluate(paper) == "rgb(255, 255, 255)", "no black sheets from the printer"
        browser.close()
