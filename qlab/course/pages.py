"""Two pages to keep: what one student predicted and learnt, and for a teacher what a whole class did.

Each is one HTML file that needs no network, in light and dark, on screen and on paper. A wrong prediction is no minus: it is
shown first, as what was learnt, the guess beside the measured answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from qlab.course import exercises, lessons
from qlab.course.language import _
from qlab.course.progress import collect, known, read
from qlab.files import whole

PAGE = Template("""<!DOCTYPE html>
<html lang="$language">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #222222; --paper: #ffffff; --soft: #595959; --lines: #dddddd; --learnt: #0072b2; --said: #b04800; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --paper: #181818; --soft: #b0b0b0; --lines: #444444; --learnt: #6cb8ec; --said: #f0975c; }
}
body { max-width: 56rem; margin: 0 auto; padding: 1.5rem; color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.8rem; }
h2 { margin: 2rem 0 0.5rem; font-size: 1.25rem; }
article { margin: 0.8rem 0; padding: 0.4rem 1rem; border-left: 4px solid var(--lines); break-inside: avoid; }
article.learnt { border-color: var(--learnt); }
article h3 { margin: 0; font-size: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; margin: 0.3rem 0; }
dt { color: var(--soft); }
dd { margin: 0; }
.learnt dd { font-weight: bold; }
.learnt .said { color: var(--said); }
.learnt .measured { color: var(--learnt); }
div.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; }
caption { padding: 0.3rem 0; color: var(--soft); text-align: left; }
th, td { padding: 0.25rem 0.8rem 0.25rem 0; border-bottom: 1px solid var(--lines); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr { break-inside: avoid; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } div.wide { overflow: visible; } }
</style>
</head>
<body>
<main>
<h1>$title</h1>
$body
</main>
</body>
</html>
""")


@dataclass(frozen=True, repr=False)
class Page:
    """A page that has been written to ``path``. A notebook shows where, and ``words``, which say what is on it."""

    path: Path
    words: str

    def __repr__(self) -> str:
        return f"{self.path}: {self.words}"

    def _repr_html_(self) -> str:
        return f"<a href='{escape(str(self.path))}' target='_blank'>{escape(str(self.path))}</a>: {escape(self.words)}"


def portfolio(path: str | Path = "portfolio.html", student: str = "") -> Page:
    """One student's predictions beside what was measured, and the exercises solved: a page to keep, print or hand in.

    It shows what :mod:`qlab.course.progress` holds. Raises ValueError where that file is damaged, OSError where ``path``
    cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = portfolio(Path(folder) / "ada.html", student="Ada")
    """
    done = known()
    said = [(name, done["predictions"][name]) for name in sorted(done["predictions"], key=_place)]
    learnt, confirmed, shown = ([pair for pair in said if pair[1]["right"] is right] for right in (False, True, None))
    solved = sum(entry["right"] for entry in done["exercises"].values())
    every = [task for lesson in lessons.LESSONS for task in exercises.of_lesson(lesson)]
    words = _("{guesses} predictions made before the answer was shown, {learnt} of them corrected by the measurement;")
    words = words.format(guesses=len(learnt) + len(confirmed), learnt=len(learnt))
    words += " " + _("{solved} of {all} exercises solved").format(solved=solved, all=len(every))
    parts = [
        _paragraph(words + "."),
        _cards(_("What I learnt"), learnt, "learnt", _("What I expected, and what the measurement said instead.")),
        _cards(_("What I knew"), confirmed, "", _("The measurement said so too.")),
        _cards(_("What I had shown to me"), shown, "", _("Looked at without a guess.")),
        *(_solved(lesson, done["exercises"]) for lesson in lessons.LESSONS),
    ]
    if not said:
        parts.insert(1, _paragraph(_("No prediction yet: each lesson asks for some before it shows what it measured.")))
    title = _("Neural-network quantization: what I learnt")
    return _write(path, f"{student}. {title}" if student else title, parts, words)


def class_page(files: Iterable[str | Path], path: str | Path = "class.html") -> Page:
    """For a teacher: a class's progress files as one page, with the predictions that most students got wrong on top.

    Below them the exercises, those that took the most first, and one row a student (:func:`collect`). Raises OSError where
    ``path`` cannot be written; a file that cannot be read has its row, which says why.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = class_page(Path("progress").glob("*.json"), Path(folder) / "class.html")
    >>> page.words
    '0 students, 0 files that cannot be read'
    """
    files = list(map(Path, files))
    rows = collect(files)
    done = [read(file) for file, row in zip(files, rows) if not row["problem"]]
    columns = {
        "student": _("student"), "solved": _("solved"), "tries": _("tries"), "hints": _("hints"),
        "solution": _("solutions taken"), "predicted": _("predicted"), "surprised": _("surprised"), "problem": _("problem"),
    }  # fmt: skip
    students = [[row[key] for key in columns] for row in rows]
    words = _("{students} students, {problems} files that cannot be read")
    words = words.format(students=len(done), problems=len(rows) - len(done))
    parts = [
        _paragraph(words + "."),
        _heading(_("Predictions, the most surprising first")),
        _table(
            [_("prediction"), _("question"), _("guessed"), _("wrong"), _("most said"), _("measured")],
            [list(each.values()) for each in surprises(done)],
        ),
        _heading(_("Exercises, the hardest first")),
        _table(
            [_("exercise"), _("function"), _("solved"), _("tries"), _("hints"), _("solutions taken")],
            [list(each.values()) for each in stumbles(done)],
        ),
        _heading(_("Students")),
        _table(list(columns.values()), students),
    ]
    return _write(path, _("Neural-network quantization: the class"), parts, words)


def surprises(done: Sequence[dict]) -> list[dict]:
    """Which predictions surprised a class (what :func:`qlab.course.progress.read` gives for each file), the most first.

    >>> one = {"question": "Better?", "guess": "yes", "measured": "no", "right": False}
    >>> surprises([{"predictions": {"2a": one}}, {"predictions": {"2a": {**one, "guess": "no", "right": True}}}])
    [{'prediction': '2a', 'question': 'Better?', 'guessed': 2, 'wrong': 1, 'most said': 'yes (1)', 'measured': 'no'}]
    """
    rows = []
    for name in sorted({name for one in done for name in one["predictions"]}, key=_place):
        entries = [one["predictions"][name] for one in done if name in one["predictions"]]
        wrong = Counter(entry["guess"] for entry in entries if entry["right"] is False)
        most = "{} ({})".format(*wrong.most_common(1)[0]) if wrong else ""
        guessed = sum(entry["guess"] is not None for entry in entries)
        measured = Counter(entry["measured"] for entry in entries).most_common(1)[0][0]
        row = {"prediction": name, "question": entries[0]["question"], "guessed": guessed, "wrong": wrong.total()}
        rows.append({**row, "most said": most, "measured": measured})
    return sorted(rows, key=lambda row: (-row["wrong"], row["guessed"]))


def stumbles(done: Sequence[dict]) -> list[dict]:
    """Which exercises a class found hard, those first that took the most tries, hints and solutions of one who tried."""
    rows = []
    for task in (task for lesson in lessons.LESSONS for task in exercises.of_lesson(lesson)):
        entries = [one["exercises"][task.name] for one in done if task.name in one["exercises"]]
        total = {key: sum(entry[key] for entry in entries) for key in ("right", "tries", "hints", "solution")}
        row = {"exercise": task.name, "function": task.solution.__name__, "solved": total.pop("right"), **total}
        rows.append((sum(total.values()) / max(len(entries), 1), row))
    return [row for hard, row in sorted(rows, key=lambda pair: -pair[0]) if hard]


def _place(name: str) -> tuple[int, str]:
    """Where a prediction stands in the course: 10a comes after 2b."""
    number = re.match(r"\d+", name)
    return (int(number[0]) if number else 0), name


# --- HTML


def _write(path: str | Path, title: str, parts: Sequence[str], words: str) -> Page:
    body = "\n".join(filter(None, parts))
    with whole(path) as part:
        part.write_text(PAGE.substitute(language=_("en"), title=escape(title), body=body), "utf-8")
    return Page(Path(path), words)


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def _cards(title: str, said: Sequence[tuple[str, dict]], kind: str, words: str) -> str:
    """A card for each prediction: its question, the guess, and what was measured."""
    cards = []
    for name, entry in said:
        lines = [("said", _("I said"), entry["guess"]), ("measured", _("measured"), entry["measured"])]
        rows = "".join(f"<dt>{label}</dt><dd class='{k}'>{escape(text)}</dd>" for k, label, text in lines if text)
        question = escape(f"{name}. {entry['question']}")
        cards.append(f"<article class='{kind}'><h3>{question}</h3><dl>{rows}</dl></article>")
    return "\n".join([_heading(title), _paragraph(words), *cards]) if cards else ""


def _solved(lesson: int, done: dict[str, dict]) -> str:
    """A table of a lesson's exercises, when one of them was tried."""
    rows = []
    for task in exercises.of_lesson(lesson):
        entry = done.get(task.name)
        if entry and (entry["tries"] or entry["right"]):
            state = _("solved") if entry["right"] else _("tried")
            rows.append(
                [task.name, (task.solution.__doc__ or "").split("\n")[0], state, entry["tries"], entry["hints"]]
            )
    columns = [_("exercise"), _("what to write"), _("state"), _("tries"), _("hints")]
    title = (lessons.part(lesson, "exercises").__doc__ or "").split(":")[0]
    return _heading(title) + _table(columns, rows) if rows else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def cell(tag: str, value: object, number: bool) -> str:
        return f"<{tag}{' class=number' if number else ''}>{escape(str(value))}</{tag}>"

    numbers = [bool(rows) and isinstance(value, int) for value in (rows[0] if rows else columns)]
    head = "".join(cell("th", column, number) for column, number in zip(columns, numbers))
    lines = "".join("<tr>" + "".join(map(cell, ["td"] * len(row), row, numbers)) + "</tr>\n" for row in rows)
    return f"<div class='wide' tabindex='0'><table><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table></div>"
