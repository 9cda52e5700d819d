"""What a student has done, kept in a file: exercises tried and solved, predictions beside what was measured.

The file is ``progress.json`` beside the notebooks, or the one that QLAB_PROGRESS names::

    {"exercises": {"1.2": {"right": true, "tries": 3, "hints": 1, "solution": false}},
     "predictions": {"2a": {"question": "...", "guess": "6 bits", "measured": "...", "right": false}}}

Several notebooks may write it at once. What cannot be written is kept in memory, and the student goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from filelock import FileLock
from IPython.display import HTML

from qlab.course import lessons
from qlab.course.language import _
from qlab.files import whole

PROGRESS = "progress.json"
LOCK_SECONDS = 5  # so long another notebook may write
NOTHING = {"right": False, "tries": 0, "hints": 0, "solution": False}  # what is known of an exercise at first
PREDICTION = {"question": str, "guess": str | None, "measured": str, "right": bool | None}
EMPTY: dict[str, dict[str, dict]] = {"exercises": {}, "predictions": {}}
_UNKEPT: dict[Path, dict[str, dict[str, dict]]] = {}  # what could not be written to a file so far


def remember_exercise(name: str, **news: int) -> tuple[dict, str]:
    """Add ``news`` to what is known of an exercise: its entry, and why that is not written down, where it is not."""
    known, lost = _remember({**EMPTY, "exercises": {name: NOTHING | news}})
    return known["exercises"][name], lost


def remember_prediction(name: str, entry: dict) -> str:
    """Keep what a student said before it was shown, and what was measured. Returns "", or the words why it is not kept.

    ``entry`` has the ``question``, the ``guess`` (None for whoever had it shown without one), what was ``measured``, all
    in words, and whether the guess was ``right`` (None without one). The first time counts: whoever runs the cell again
    has seen the answer. Raises ValueError for another kind of entry.

    >>> remember_prediction("2a", {"question": "Better?", "guess": "yes", "measured": "no: 3 dB less", "right": False})
    ''
    """
    if not _is_prediction(entry):
        raise ValueError(f"prediction {name!r} is {entry}: expected {', '.join(PREDICTION)}")
    return _remember({**EMPTY, "predictions": {name: dict(entry)}})[1]


def predictions() -> dict[str, dict]:
    """Every prediction so far by its name, as :func:`remember_prediction` was given it."""
    return known()["predictions"]


def known() -> dict[str, dict[str, dict]]:
    """All that is known of this student, written or not yet. Raises ValueError for a file that is no progress file."""
    path = progress_file()
    return _both(read(path), _UNKEPT.get(path, EMPTY))


def progress() -> HTML:
    """What has been solved so far, lesson by lesson."""
    done = known()["exercises"]
    rows = []
    for lesson in lessons.LESSONS:
        names = [task.name for task in lessons.part(lesson, "exercises").EXERCISES]
        marks = "".join("●" if done.get(name, {}).get("right") else "○" for name in names)
        solved = _("{done} of {all}").format(done=marks.count("●"), all=len(marks))
        rows.append(f"<tr><td>{_('Lesson')} {lesson}</td><td aria-hidden='true'>{marks}</td><td>{solved}</td></tr>")
    return HTML(f"<table>{''.join(rows)}</table>")


def collect(files: Iterable[str | Path]) -> list[dict]:
    """For a teacher: one row a student's progress file: what was solved, the tries, hints and solutions taken, how many
    predictions were made and how many of them the measurement surprised (``qlab.course.class_page`` shows which).

    The student's name is that of the file, or, where it is still called progress.json, that of its folder. Of a file that
    cannot be read the row says why, under ``problem``, and the others count all the same.
    """
    rows = []
    for path in map(Path, files):
        done, problem = EMPTY, ""
        try:
            done = read(path, missing_is_empty=False)
        except ValueError as error:
            problem = str(error)
        count = {key: sum(entry[key] for entry in done["exercises"].values()) for key in NOTHING}
        student = path.resolve().parent.name if path.name == PROGRESS else path.stem
        row = {"student": student, "solved": count.pop("right"), **count, "exercises": sorted(done["exercises"])}
        guesses = [entry["right"] for entry in done["predictions"].values() if entry["guess"] is not None]
        row |= {"predicted": len(guesses), "surprised": guesses.count(False)}
        rows.append({**row, "file": str(path), "problem": problem})
    return rows


def progress_file() -> Path:
    """Where all of it is kept: QLAB_PROGRESS, or progress.json beside the notebooks."""
    return Path(os.environ.get("QLAB_PROGRESS", PROGRESS))


def read(path: Path, missing_is_empty: bool = True) -> dict[str, dict[str, dict]]:
    """The exercises and predictions in a file; one from before there were predictions has exercises alone.

    Raises ValueError, which names the file, for anything else.
    """
    if missing_is_empty and not path.exists():
        return EMPTY
    try:
        found = json.loads(path.read_text("utf-8"))
        done = {**EMPTY, **(found if found.keys() & EMPTY.keys() else {"exercises": found})}
        if not all(isinstance(entry.get(key), int) for entry in done["exercises"].values() for key in NOTHING):
            raise TypeError(_("an exercise in it has no {keys}").format(keys=", ".join(NOTHING)))
        if not all(map(_is_prediction, done["predictions"].values())):
            raise TypeError(_("a prediction in it has no {keys}").format(keys=", ".join(PREDICTION)))
        return done
    except (OSError, ValueError, AttributeError, TypeError) as error:
        what = _("{path} is no progress file ({error}): delete it, or give another one")
        raise ValueError(what.format(path=path, error=error)) from error


def _is_prediction(entry: dict) -> bool:
    return entry.keys() == PREDICTION.keys() and all(isinstance(entry[key], kind) for key, kind in PREDICTION.items())


def _remember(news: dict[str, dict[str, dict]]) -> tuple[dict[str, dict[str, dict]], str]:
    """Add ``news`` to what is known: all of that, and why it is not written down, where it is not.

    One process at a time reads and writes. What could not be written is kept here, for the next time.
    """
    path = progress_file()
    unkept = _UNKEPT[path] = _both(_UNKEPT.get(path, EMPTY), news)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS):
            done = _both(read(path), unkept)
            with whole(path) as part:
                part.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n", "utf-8")
    except (OSError, ValueError) as error:
        what = _("progress is not kept: {error}. QLAB_PROGRESS may name a file in another folder")
        return unkept, what.format(error=error)
    del _UNKEPT[path]
    return done, ""


def _both(done: Mapping[str, dict], more: Mapping[str, dict]) -> dict[str, dict[str, dict]]:
    """What is known from two sources together.

    Tries and hints add up, what was solved or shown stays so, and of two predictions the first one counts.
    """
    exercises = dict(done["exercises"])
    add = {key: max if isinstance(none, bool) else sum for key, none in NOTHING.items()}
    for name, entry in more["exercises"].items():
        old = exercises.get(name, NOTHING)
        exercises[name] = {key: add[key]((old[key], entry[key])) for key in NOTHING}
    return {"exercises": exercises, "predictions": {**more["predictions"], **done["predictions"]}}
