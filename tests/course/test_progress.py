"""What a student did is kept, whatever happens to the file; a teacher reads a class of them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from qlab.course import exercises
from qlab.course import progress as kept
from qlab.course.exercises import check, collect, hint, progress, solution
from qlab.course.judging import Kind


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """Nobody has solved anything yet."""
    path = tmp_path / "progress.json"
    monkeypatch.setenv("QLAB_PROGRESS", str(path))
    return path


def test_progress_counts_what_was_solved_and_survives(fresh):
    assert "0 of 5" in progress().data
    check("1.1", lambda lo, hi, bits: 0.0)
    check("1.1", exercises.exercise("1.1").solution)
    check("1.1", lambda lo, hi, bits: None)
    assert "1 of 5" in progress().data
    hint("1.2")
    assert "return" in solution("1.2").data
    assert json.loads(fresh.read_text()) == {
        "exercises": {
            "1.1": {"right": True, "tries": 2, "hints": 0, "solution": False},
            "1.2": {"right": False, "tries": 0, "hints": 1, "solution": True},
        },
        "predictions": {},
    }
    assert {path.name for path in fresh.parent.iterdir()} == {"progress.json", ".progress.json.lock"}


def test_a_teacher_collects_progress_files_into_one_table(fresh, tmp_path):
    check("1.1", exercises.exercise("1.1").solution)
    (tmp_path / "ada.json").write_text(fresh.read_text())
    (tmp_path / "bob.json").write_text("{}")
    rows = collect(sorted(tmp_path.glob("???.json")))
    assert [(row["student"], row["solved"], row["tries"]) for row in rows] == [("ada", 1, 1), ("bob", 0, 0)]


SAID = {"question": "How many bits?", "guess": "6 bits", "measured": "4 bits are enough", "right": False}
SHOWN = {**SAID, "guess": None, "right": None}


def test_predictions_are_kept_beside_the_exercises(fresh):
    check("1.1", exercises.exercise("1.1").solution)
    assert kept.remember_prediction("2a", SAID) == "" == kept.remember_prediction("2b", SHOWN)
    assert kept.predictions() == {"2a": SAID, "2b": SHOWN}
    row = collect([fresh])[0]
    assert "1 of 5" in progress().data and (row["solved"], row["predicted"], row["surprised"]) == (1, 1, 1)


@pytest.mark.parametrize("first", [SAID, SHOWN])
def test_the_first_guess_counts_since_later_ones_have_seen_the_answer(first):
    kept.remember_prediction("2a", first)
    kept.remember_prediction("2a", {**SAID, "guess": "4 bits", "right": True})
    assert kept.predictions() == {"2a": first}


@pytest.mark.parametrize("entry", [{}, {**SAID, "right": "no"}, {**SAID, "guess": 6}, {**SAID, "more": ""}])
def test_a_prediction_of_another_kind_is_refused(entry, fresh):
    with pytest.raises(ValueError, match="prediction '2a' is .+: expected question, guess, measured, right"):
        kept.remember_prediction("2a", entry)
    assert not fresh.exists()


def test_a_file_from_before_there_were_predictions_is_read_and_goes_on(fresh):
    fresh.write_text('{"1.1": {"right": true, "tries": 2, "hints": 0, "solution": false}}')
    assert "1 of 5" in progress().data and kept.predictions() == {} and collect([fresh])[0]["solved"] == 1
    kept.remember_prediction("2a", SAID)
    assert "1 of 5" in progress().data and kept.predictions() == {"2a": SAID}
    assert json.loads(fresh.read_text()).keys() == {"exercises", "predictions"}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"1.1": {}}',
        '{"1.1": 3}',
        '{"exercises": []}',
        '{"predictions": {"2a": {"question": "Why?"}}}',
        '{"predictions": {"2a": 1}}',
    ],
)
def test_a_damaged_progress_file_is_named(fresh, content):
    fresh.write_text(content)
    with pytest.raises(ValueError, match=r"progress.json is no progress file \(.+\): delete it"):
        progress()
    assert "is no progress file" in collect([fresh])[0]["problem"]
    verdict = check("1.1", exercises.exercise("1.1").solution)
    assert verdict.right and "progress is not kept" in verdict.message and "delete it" in verdict.message
    assert fresh.read_text() == content, "a damaged file is not written over"


def test_one_bad_file_does_not_keep_a_teacher_from_the_others(fresh, tmp_path):
    check("1.1", exercises.exercise("1.1").solution)
    (tmp_path / "bad.json").write_text('{"1.1": {"right": true, "tries": "many", "hints": 0, "solution": false}}')
    bad, nobody, good = collect([tmp_path / "bad.json", tmp_path / "nobody.json", fresh])
    assert (
        "bad.json is no progress file (an exercise in it has no right, tries" in bad["problem"] and bad["solved"] == 0
    )
    assert "nobody.json is no progress file" in nobody["problem"] and bad.keys() == nobody.keys() == good.keys()
    assert good["problem"] == "" and good["solved"] == 1


def test_files_that_kept_their_name_are_told_apart_by_their_folders(fresh, tmp_path):
    check("1.1", exercises.exercise("1.1").solution)
    for name in ("ada", "bob"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.json").write_text(fresh.read_text())
    assert [row["student"] for row in collect(sorted(tmp_path.glob("*/progress.json")))] == ["ada", "bob"]


@pytest.fixture(params=["full", "read-only", "no folder"])
def unwritable(request, fresh, monkeypatch, tmp_path):
    """Progress cannot be written, until ``unwritable()`` is called."""
    if request.param == "no folder":
        (tmp_path / "file").touch()
        monkeypatch.setenv("QLAB_PROGRESS", str(tmp_path / "file" / "progress.json"))
    number, name = {"full": (errno.ENOSPC, "whole"), "read-only": (errno.EACCES, "FileLock")}.get(
        request.param, (0, "")
    )

    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number), "progress.json")

    if name:
        monkeypatch.setattr(kept, name, fail)
    yield monkeypatch.undo
    kept._UNKEPT.clear()


def test_where_progress_cannot_be_written_the_answer_comes_all_the_same(unwritable, fresh):
    right, wrong = exercises.exercise("1.1").solution, lambda lo, hi, bits: 0.0
    assert check("1.1", right).right and check("1.1", wrong).kind is Kind.WRONG
    said = [check("1.1", right).message, hint("1.1").data, hint("1.1").data, solution("1.1").data]
    assert all("progress is not kept: " in text and "QLAB_PROGRESS may name" in text for text in said)
    assert "**1/" in said[1] and "**2/" in said[2] and "return" in said[3]
    assert "progress is not kept" in kept.remember_prediction("2a", SAID) and kept.predictions() == {"2a": SAID}
    assert not fresh.exists() and "1 of 5" in progress().data


def test_what_could_not_be_written_is_written_later(unwritable, fresh, monkeypatch):
    check("1.1", exercises.exercise("1.1").solution)
    unkept = kept._UNKEPT.pop(kept.progress_file())
    unwritable()
    monkeypatch.setenv("QLAB_PROGRESS", str(fresh))
    kept._UNKEPT[fresh] = unkept
    assert "progress" not in hint("1.2").data
    done = json.loads(fresh.read_text())["exercises"]
    assert {name: entry["right"] for name, entry in done.items()} == {"1.1": True, "1.2": False}
    assert kept._UNKEPT == {}


def test_two_notebooks_at_once_lose_nothing(fresh):
    code = "from qlab.course.exercises import hint; print(flush=True); input(); [hint('1.1') for _ in range(30)]"
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {**os.environ, "QLAB_PROGRESS": str(fresh)}}
    both = [subprocess.Popen([sys.executable, "-c", code], **options) for _ in range(2)]
    for process in both:
        process.stdout.readline()  # it is ready
    for process in both:
        process.stdin.write(b"\n")
        process.stdin.close()
    assert [process.wait(120) for process in both] == [0, 0]
    for process in both:
        process.stdout.close()
    assert json.loads(fresh.read_text())["exercises"]["1.1"]["hints"] == 60
