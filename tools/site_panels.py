"""What the site's pages need so that a lesson's panels, predictions and quiz live there without a kernel.

    python tools/site_panels.py notebooks/02_clipping.ipynb build/site/live/02_clipping

Runs the cells that make them, and those that these need, in this process. For each such cell it writes ``ID.json``, which
``site/static/live.js`` reads, and beside it the frames of what the browser cannot compute (`registry.beforehand`), as WebP,
and their words. An exercise that others build on counts as solved.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import os
import re
import sys
import tempfile
import warnings
from html import unescape
from pathlib import Path

import nbformat
import numpy as np
from nbformat import NotebookNode
from PIL import Image

from qlab.course.figure import Figure
from qlab.course.language import _
from qlab.course.predict import Prediction
from qlab.course.quiz import Quiz
from qlab.course.registry import beforehand
from qlab.course.widgets import Drawn, Panel, Slider, values_of

ROOT = Path(__file__).resolve().parent.parent
LIVES = re.compile(r"^(?:panels\.\w+|predict|quiz)\(", re.MULTILINE)
DRAWN = "colours", "texts", "sliders", "values", "guess"
ASKED = "question", "among", "slider", "measured", "texts", "guess"


def main(notebook: str, folder: str) -> None:
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    os.environ.pop("QLAB_PREDICT", None)
    with tempfile.TemporaryDirectory() as scratch:  # what is solved here is no student's progress
        os.environ["QLAB_PROGRESS"] = os.path.join(scratch, "progress.json")
        for name, shown in live(nbformat.read(notebook, as_version=4)):
            spec = specify(shown, target, name)
            (target / f"{name}.json").write_text(json.dumps(spec), "utf-8")


def live(notebook: NotebookNode):
    """(a cell's id, what its last line gives) for each cell that shows a panel, a prediction or a quiz."""
    sys.path.append(str(ROOT / "tests"))
    from cells import code_cells, with_what_they_need

    cells = code_cells(notebook)
    wanted = [cell for cell in cells if LIVES.search(cell.source)]
    names: dict[str, object] = {"__name__": "__main__", "display": lambda *shown: None}
    for cell in with_what_they_need(wanted, cells) if wanted else []:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # progress bars
            given = value_of(cell.source, names)
        if cell in wanted and given is not None:  # without a package that is missing here there is nothing to predict
            yield cell.id, given


def value_of(source: str, names: dict[str, object]) -> object:
    """Run a cell; what its last line gives, or None.

    >>> value_of("x = 2\\nx + 1", {})
    3
    """
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return eval(compile(last, "<cell>", "eval"), names) if last else None


def specify(shown: object, folder: Path, name: str) -> dict:
    """All that live.js has to know of ``shown``; its pictures go into ``folder``, under ``name``.

    Raises TypeError for what it does not know.
    """
    if isinstance(shown, Prediction):
        inside = [specify(each, folder, f"{name}-{place}") for place, each in enumerate(shown.shown)]
        return {"kind": "prediction", "state": state_of(shown.question, ASKED), "marks": marks(shown), "shown": inside}
    if isinstance(shown, Quiz):
        return {"kind": "quiz", "verdicts": [_("Not quite."), _("Right.")], "questions": questions(shown)}
    if isinstance(shown, Drawn):
        (folder / f"{name}.bin").write_bytes(shown.data)
        return {"kind": "drawn", "script": f"{shown.name}.js", "state": state_of(shown, DRAWN), "data": f"{name}.bin"}
    if isinstance(shown, Panel):
        return frames(shown, folder, name)
    if isinstance(shown, Figure):
        size = save(shown, folder / f"{name}.webp")
        return {"kind": "still", "file": f"{name}.webp", "size": size, "says": says(shown)}
    if isinstance(shown, str):
        return {"kind": "text", "text": shown}
    raise TypeError(f"the cell {name} shows a {type(shown).__name__}: expected a panel, a prediction or a quiz")


def state_of(widget, names: tuple[str, ...]) -> dict:
    return {name: getattr(widget, name) for name in names}


def questions(quiz: Quiz) -> list[dict]:
    return [
        {"text": each.text, "choices": [[choice.text, choice.because, choice.right] for choice in each.choices]}
        for each in quiz.questions
    ]


def frames(panel: Panel, folder: Path, name: str) -> dict:
    """The panel's pictures, the last control moving fastest, and the words of each in a file of their own."""
    kept = beforehand(panel)
    (folder / name).mkdir(exist_ok=True)
    words, size = [], [0, 0]
    for number, values in enumerate(itertools.product(*kept.values())):
        figure = panel.draw(**dict(zip(kept, values)))
        size = save(figure, folder / name / f"{number}.webp")
        words.append(says(figure))
    (folder / f"{name}.words.json").write_text(json.dumps(words), "utf-8")
    controls = [describe(panel.controls[key], values) for key, values in kept.items()]
    note = _("{names} stand still here; in Jupyter every control moves, in finer steps.")
    still = [control["label"] for control, values in zip(controls, kept.values()) if len(values) == 1]
    figure = panel.draw(**{key: control.value for key, control in panel.controls.items()})
    figure.frame()
    return {
        "kind": "frames", "folder": name, "words": f"{name}.words.json", "controls": controls, "size": size,
        "says": says(figure), "note": note.format(names=", ".join(still)) if still else "",
    }  # fmt: skip


def describe(control, values: list) -> dict:
    """A control's label, its values in words, and the place of the one it begins with."""
    options = [each if isinstance(each, tuple) else (str(each), each) for each in getattr(control, "options", ())]
    known = {value: text for text, value in options}
    kind = "slider" if isinstance(control, Slider) else "choice" if known else "box"
    label = control.label if kind == "slider" else control.description
    said = [str(known.get(value, value)) for value in values]
    return {"kind": kind, "label": unescape(label).rstrip(":"), "said": said, "start": values.index(control.value)}


def says(figure: Figure) -> list:
    """Its finding, its words, and where its photographs are, as it was last drawn."""
    return [figure.finding, figure.alt, figure.photos()]


def save(figure: Figure, path: Path) -> list[int]:
    """The figure as a WebP; returns its width and height."""
    figure.frame()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    image.save(path, "webp", quality=80, method=3)
    return list(image.size)


def marks(prediction: Prediction) -> list[dict]:
    """Where each of the pictures would show each guess of a slider: {} for none."""
    form = prediction.question.slider
    if not form:
        return [{} for _each in prediction.shown]
    stops = values_of(Slider(**{name: form[name] for name in ("minimum", "maximum", "step")}))
    pictures = [each.figure if isinstance(each, Panel) else each for each in prediction.shown]
    return [
        {stop: place for stop in stops if isinstance(each, Figure) and (place := each.place_of(float(stop)))}
        for each in pictures
    ]


if __name__ == "__main__":
    warnings.simplefilter("error", RuntimeWarning)
    sys.exit(main(*sys.argv[1:]))
