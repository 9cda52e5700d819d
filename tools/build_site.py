"""The whole course as a web site whose panels live without a kernel: `make site`.

    python tools/build_site.py                       # every lesson, into build/site/html
    python tools/build_site.py 01_rounding --serve 8000

The lessons are the notebooks as they are committed, executed. `tools/site_panels.py` runs what their panels need; that is
done again only where a notebook or the package has changed. `site/conf.py` is Sphinx's. The site needs a file server and
nothing else: no page asks another host for anything.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import hashlib
import http.server
import io
import os
import re
import shutil
import subprocess
import sys
import time
from html import escape
from pathlib import Path
from types import ModuleType

import nbformat
from nbformat import NotebookNode
from PIL import Image

import qlab
from qlab.cli import options
from qlab.course import exercises
from qlab.course.language import _

ROOT = Path(__file__).resolve().parent.parent
JPEG = re.compile(r'src="data:image/jpeg;base64,([^"]+)"')
CHECK = re.compile(r'^check\("(\d+\.\d+)"', re.MULTILINE)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="lessons, such as 00_float_to_int8 (default: all)")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", help="where they are")
    parser.add_argument("--target", type=Path, default=ROOT / "build" / "site", help="the site goes into its html/")
    parser.add_argument(
        "--serve", type=options.number(1, 65535), metavar="PORT", help="then show it at http://127.0.0.1:PORT"
    )
    chosen = parser.parse_args(arguments)
    notebooks = sorted(chosen.notebooks.glob("*.ipynb"))
    known = ", ".join(path.stem for path in notebooks)
    if unknown := [name for name in chosen.names if name not in {path.stem for path in notebooks}]:
        parser.error(f"there is no lesson {unknown[0]!r}; there are: {known}")
    build([path for path in notebooks if not chosen.names or path.stem in chosen.names], chosen.target)
    if chosen.serve is not None:
        serve(chosen.target / "html", chosen.serve)


def build(notebooks: list[Path], target: Path) -> Path:
    """Build a site of these lessons; returns the folder that holds it."""
    pages, extra = target / "pages", target / "extra"
    for folder in (pages, extra, target / "html"):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "site", pages, ignore=shutil.ignore_patterns("__pycache__"))
    (pages / "lessons").mkdir()
    (extra / "lessons").mkdir(parents=True)
    for path in notebooks:
        start = time.perf_counter()
        live = panels_of(path, target / "live" / path.stem)
        shutil.copytree(live, extra / "live" / path.stem, ignore=shutil.ignore_patterns("made-from"))
        shutil.copy(path, extra / "lessons")
        page = page_of(path, live, extra / "live" / path.stem)
        nbformat.write(page, pages / "lessons" / path.name)
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s", flush=True)
    (pages / "api.md").write_text((pages / "api.md").read_text("utf-8") + reference(), "utf-8")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(pages),
        str(target / "html"),
    ]
    subprocess.run(command, check=True)
    return target / "html"


def solved(notebook: Path) -> Path:
    """The same lesson with its exercises solved, where there is one."""
    other = notebook.parent / "solutions" / notebook.name
    return other if other.exists() else notebook


def panels_of(notebook: Path, folder: Path) -> Path:
    """The folder with what the lesson's panels need, made anew if the lesson or the package has changed."""
    digest = hashlib.sha256(solved(notebook).read_bytes())
    for path in [Path(__file__).with_name("site_panels.py"), *sorted((ROOT / "qlab").rglob("*.py"))]:
        digest.update(path.read_bytes())
    stamp = folder / "made-from"
    if not (stamp.exists() and stamp.read_text() == digest.hexdigest()):
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, str(Path(__file__).with_name("site_panels.py")), str(solved(notebook)), str(folder)]
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": paths}
        subprocess.run(command, check=True, cwd=notebook.parent, env=environment)
        stamp.write_text(digest.hexdigest())
    return folder


def page_of(path: Path, live: Path, pictures: Path) -> NotebookNode:
    """The lesson as Sphinx reads it: pictures beside the page, places for what lives, hints and solutions folded."""
    notebook = nbformat.read(path, as_version=4)
    answers = {cell.id: cell.source for cell in nbformat.read(solved(path), as_version=4).cells}
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type != "code":
            continue
        cell.outputs = [still(output, pictures) for output in cell.outputs]
        if (live / f"{cell.id}.json").exists():
            inside = "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)
            place = f'<div class="qlab-live" data-live="../live/{path.stem}/{cell.id}.json">{inside}</div>'
            cell.outputs = [html(place)]
        if "exercise" in cell.metadata.get("tags", []):
            cells.append(help_with(cell, answers[cell.id]))
    cells.insert(1, nbformat.v4.new_markdown_cell(_to_jupyter(path.name)))
    notebook.cells = cells
    return notebook


def _to_jupyter(name: str) -> str:
    words = _(
        "Everything on this page moves without Python. To run and change its code, {link} and open it in Jupyter."
    )
    link = f'<a href="{name}" download>{_("download the lesson")}</a>'
    return f'<p class="qlab-note">{words.format(link=link)}</p>'


def help_with(cell: NotebookNode, answer: str) -> NotebookNode:
    """Below an exercise: its hints and its solution, each behind a line that opens it."""
    task = CHECK.search(cell.source)
    hints = exercises.exercise(task[1]).hints if task else ()
    code = answer[: CHECK.search(answer).start()].rstrip() if CHECK.search(answer) else answer
    folds = [(f"{_('Hint')} {number}", text) for number, text in enumerate(hints, 1)]
    folds.append((_("A solution"), f"```python\n{code}\n```"))
    parts = [f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>" for title, text in folds]
    note = _("Your own answer is judged in Jupyter: download the lesson above.")
    return nbformat.v4.new_markdown_cell("\n\n".join([f'<p class="qlab-note">{note}</p>', *parts]))


def still(output: NotebookNode, folder: Path) -> NotebookNode:
    """An output with its pictures as files in ``folder``, described, and loaded when a reader comes near."""
    data = output.get("data", {})
    if "image/jpeg" in data:
        shown = output.metadata["image/jpeg"]
        size = f'width="{shown["width"]}" height="{shown["height"]}"'
        picture = f'<img src="data:image/jpeg;base64,{data["image/jpeg"]}" alt="{escape(shown["alt"])}" {size}>'
        return html(outside(picture, folder))
    if "text/html" in data:
        return html(outside(data["text/html"], folder))
    return output


def html(text: str) -> NotebookNode:
    return nbformat.v4.new_output("display_data", {"text/html": text})


def outside(text: str, folder: Path) -> str:
    """HTML with each JPEG in it moved into a WebP file of ``folder``."""

    def move(found: re.Match) -> str:
        jpeg = base64.b64decode(found[1])
        name = f"{hashlib.sha256(jpeg).hexdigest()[:12]}.webp"
        Image.open(io.BytesIO(jpeg)).save(folder / name, "webp", quality=80)
        return f'src="../live/{folder.name}/{name}" loading="lazy"'

    return JPEG.sub(move, text)


def reference() -> str:
    """The public names, each with its docstring: first those of qlab itself, then room by room."""
    found = {name: getattr(qlab, name) for name in sorted(qlab.__all__, key=str.lower) if name != "course"}
    rooms = {name: thing for name, thing in found.items() if isinstance(thing, ModuleType)}
    directives = {
        name: f".. autoclass:: {name}\n   :members:" if isinstance(thing, type) else f".. autofunction:: {name}"
        for name, thing in found.items() if name not in rooms
    }  # fmt: skip
    own = "\n\n".join([".. currentmodule:: qlab", *directives.values()])
    parts = [f"```{{eval-rst}}\n{own}\n```"]
    for name, room in rooms.items():
        more = "\n   :imported-members:" if hasattr(room, "__path__") else ""  # a folder's names come from its files
        rst = f".. automodule:: qlab.{name}\n   :members:{more}"
        parts.append(f"## qlab.{name}\n\n```{{eval-rst}}\n{rst}\n```")
    return "\n\n".join(["", *parts, ""])


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that says nothing of what it serves."""

    def log_message(self, *words) -> None: ...


def serve(folder: Path, port: int) -> None:
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", port), functools.partial(Quiet, directory=str(folder))
    ) as server:
        print(f"qlab: the site is at http://127.0.0.1:{server.server_port}/ ; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
