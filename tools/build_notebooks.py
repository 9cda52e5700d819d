"""notebooks/source/*.py (jupytext's percent format) -> notebooks/*.ipynb, executed: `make notebooks`.

What answers a prediction, from `predict(...)` to the next heading, is folded: its output, and a text that begins with
**Explain.**

A cell tagged `exercise` holds a `check("1.1", f)`. In the lesson f's stub is put before it; in notebooks/solutions/,
which has a second copy of each lesson with exercises, f's solution is.

The same source gives the same file. What would differ from one run to the next is left out (widget models,
times of execution, versions) or, where it is what the lesson is about (a cell tagged `timing`), kept from the
last build as long as nothing else in the notebook has changed. A warning stops the build.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import re
import sys
import tempfile
import time
from html import escape
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from qlab.course import exercises
from qlab.course.language import _
from qlab.course.predict import still

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = 120
# The kernel's largest memory, KiB on Linux, bytes on macOS. Linux's getrusage would begin with that of the process that
# started the kernel, so there the kernel's own account is read.
PEAK = """import pathlib, resource
account = pathlib.Path("/proc/self/status")
lines = account.read_text().splitlines() if account.exists() else []
own = [line.split()[1] for line in lines if line.startswith("VmHWM")]
print(*own or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])"""
CHECK = re.compile(r'check\("(\d+\.\d+)", \w+\)$')
PREDICTS = re.compile(r"^predict\(", re.MULTILINE)
HEADING = re.compile(r"^#+ ", re.MULTILINE)
EXPLAINS = "**Explain.**"
ANSWERS = "answer"  # tags a cell whose output would tell what a prediction asks for: saved, it is folded


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="lessons to build, such as 00_float_to_int8 (default: all)")
    names = parser.parse_args(arguments).names
    sources = sorted((FOLDER / "source").glob("*.py"))
    if unknown := [name for name in names if name not in {source.stem for source in sources}]:
        parser.error(f"there is no lesson {unknown[0]!r}; there are: {', '.join(source.stem for source in sources)}")
    for source in sources:
        if not names or source.stem in names:
            for target in targets(source):
                start = time.perf_counter()
                changed, megabytes = build(source, target)
                name = target.relative_to(FOLDER).with_suffix("")
                verb = "written" if changed else "as it was"
                print(f"{name}: {verb}, {time.perf_counter() - start:.0f} s, {megabytes} MB", flush=True)


def targets(source: Path) -> list[Path]:
    """The notebooks that come from ``source``: the lesson, and the solved lesson when there is something to solve."""
    name = f"{source.stem}.ipynb"
    folder = source.parent.parent
    return (
        [folder / name, folder / "solutions" / name]
        if 'tags=["exercise"]' in source.read_text("utf-8")
        else [folder / name]
    )


def build(source: Path, target: Path) -> tuple[bool, int]:
    """Execute ``source`` into ``target``; returns (changed, the kernel's peak of memory in MB).

    A ``target`` that is up to date is not touched.

    Raises RuntimeError when a cell warns, and what nbclient raises when one fails.
    """
    target.parent.mkdir(exist_ok=True)
    notebook, megabytes = execute(read(source, solved=target.parent.name == "solutions"), target.parent)
    if target.exists() and without_timings(nbformat.read(target, as_version=4)) == without_timings(notebook):
        return False, megabytes
    part = target.with_suffix(".part")
    nbformat.write(notebook, part)
    part.replace(target)
    return True, megabytes


def read(source: Path, solved: bool = False) -> NotebookNode:
    """The notebook that ``source`` describes, without outputs. A cell's id follows from its text in ``source``."""
    written = jupytext.read(source, fmt="py:percent")
    notebook = nbformat.v4.new_notebook(metadata=copy.deepcopy(METADATA))
    seen: set[str] = set()
    answers = False  # does what comes now answer a prediction?
    for cell in written.cells:
        make = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        tags = {"tags": list(cell.metadata["tags"])} if cell.metadata.get("tags") else {}
        name = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        while name in seen:  # the same text twice
            name += "x"
        seen.add(name)
        if "exercise" in tags.get("tags", []):
            task = exercises.exercise(CHECK.match(cell.source)[1])
            cell.source = f"{task.source if solved else task.stub}\n\n\n{cell.source}"
            tags["tags"].append("nbval-check-output")
        elif cell.cell_type == "markdown":
            answers = answers and not HEADING.search(cell.source)
            cell.source = folded(cell.source)
        elif answers and not PREDICTS.search(cell.source) and "nbval-check-output" not in tags.get("tags", []):
            tags["tags"] = [*tags.get("tags", []), ANSWERS]
        answers = answers or bool(PREDICTS.search(cell.source))
        notebook.cells.append(make(cell.source, metadata=tags, id=name))
    return notebook


def folded(text: str) -> str:
    """The text of a cell with its explanation, up to the next heading, behind a line that opens it.

    >>> print(folded("**Explain.** Steps double."))
    <details>
    <summary><strong>Explain</strong></summary>
    <BLANKLINE>
    Steps double.
    <BLANKLINE>
    </details>
    """
    if not text.startswith(EXPLAINS):
        return text
    end = heading.start() if (heading := HEADING.search(text)) else len(text)
    inside, rest = text[len(EXPLAINS) : end].strip(), text[end:]
    details = f"<details>\n<summary><strong>Explain</strong></summary>\n\n{inside}\n\n</details>"
    return f"{details}\n\n{rest}" if rest else details


def execute(notebook: NotebookNode, folder: Path) -> tuple[NotebookNode, int]:
    """Run every cell in ``folder``, with the Python that runs this; also returns the peak of memory in MB."""
    notebook.cells.append(nbformat.v4.new_code_cell(PEAK))
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", record_timing=False, store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--IPKernelApp.log_level=40"],  # else it warns of a network that is this machine
    )  # fmt: skip
    client.execute()
    megabytes = int(notebook.cells.pop().outputs[0].text) * (1024 if sys.platform == "linux" else 1) // 10**6
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = clean(cell)
    nbformat.validate(notebook)
    return notebook, megabytes


def clean(cell: NotebookNode) -> list[NotebookNode]:
    """A cell's outputs without progress bars, and with a panel's still image in place of the panel."""
    outputs: list[NotebookNode] = []
    for output in cell.outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                raise RuntimeError(f"a cell warns, and students would see it:\n{cell.source}\n{output.text}")
            if outputs and outputs[-1].output_type == "stream":
                outputs[-1].text += output.text
                continue
        elif output.data.pop(WIDGET, None) and set(output.data) == {"text/plain"}:
            continue  # a progress bar; a panel has an image as well
        outputs.append(output)
    return [folded_output(output) for output in outputs] if ANSWERS in cell.metadata.get("tags", []) else outputs


def folded_output(output: NotebookNode) -> NotebookNode:
    """An output that a reader opens with a click, wherever the notebook is read; a cell that runs shows its own."""
    if output.output_type == "stream":
        inside = f"<pre>{escape(output.text)}</pre>"
    elif "image/jpeg" in output.data:
        inside = still(output.data["image/jpeg"].replace("\n", ""), output.metadata["image/jpeg"])
    elif "text/markdown" in output.data:  # a figure's words, below it
        inside = f"<p>{escape(output.data['text/markdown'].strip('*'))}</p>"
    else:
        return output
    html = f"<details><summary>{_('The measured answer')}</summary>{inside}</details>"
    return nbformat.v4.new_output("display_data", {"text/html": html, "text/plain": _("The measured answer")})


def without_timings(notebook: NotebookNode) -> NotebookNode:
    """The notebook without the outputs of the cells tagged `timing`."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if "timing" in cell.metadata.get("tags", []):
            cell.outputs = []
    return notebook


if __name__ == "__main__":
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
    with tempfile.TemporaryDirectory() as folder:  # what is solved here is no student's progress
        os.environ["QLAB_PROGRESS"] = os.path.join(folder, "progress.json")
        sys.exit(main())
