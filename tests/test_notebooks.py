"""The committed notebooks are what their sources say, executed, clean and small; and the builder keeps them so.

That they run, and that marked outputs come out the same, is nbval's part of `make test`.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
SOURCES = sorted((NOTEBOOKS / "source").glob("*.py"))
LESSONS = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
LARGEST = 1_000_000  # bytes: what a reader on GitHub waits for, and what every change of a figure adds to the clone
MARKED = "nbval-check-output"
FORBIDDEN = {"interact", "interactive", "interactive_output", "interact_manual", "Output"}

spec = importlib.util.spec_from_file_location("build_notebooks", ROOT / "tools" / "build_notebooks.py")
builder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(builder)


def notebook_of(source: Path) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{source.stem}.ipynb", as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# --- the notebooks


def test_every_notebook_has_a_source():
    assert SOURCES
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {path.stem for path in SOURCES}


@LESSONS
def test_source_and_notebook_agree(source):
    def written(notebook):
        return [(cell.id, cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]

    assert written(notebook_of(source)) == written(builder.read(source)), "run `make notebooks`"
    assert notebook_of(source).metadata == builder.METADATA


@LESSONS
def test_every_cell_was_executed_in_order(source):
    """nbval compares no cell without an execution count, whatever its mark says."""
    counts = [cell.execution_count for cell in code_cells(notebook_of(source))]
    assert counts == list(range(1, len(counts) + 1))


@LESSONS
def test_some_outputs_are_compared_and_none_of_them_depends_on_the_machine(source):
    marked = [cell for cell in code_cells(notebook_of(source)) if MARKED in cell.metadata.get("tags", [])]
    assert marked
    for cell in marked:
        assert cell.outputs and all(output.output_type == "stream" for output in cell.outputs)
        assert "timing" not in cell.metadata.tags


@LESSONS
def test_no_saved_output_is_a_warning_an_error_or_a_widget_without_its_kernel(source):
    for cell in code_cells(notebook_of(source)):
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr"
            assert builder.WIDGET not in output.get("data", {})


@LESSONS
def test_every_picture_has_alt_text(source):
    data = [output for cell in code_cells(notebook_of(source)) for output in cell.outputs if "data" in output]
    pictures = [(kind, output) for output in data for kind in output.data if kind.startswith("image/")]
    assert pictures
    for kind, output in pictures:
        assert len(output.metadata[kind]["alt"]) > 40
        assert output.data["text/plain"] == output.metadata[kind]["alt"]


@LESSONS
def test_a_notebook_is_small(source):
    assert (NOTEBOOKS / f"{source.stem}.ipynb").stat().st_size < LARGEST


@LESSONS
def test_a_lesson_says_what_it_is_for_how_long_it_takes_and_where_it_comes_from(source):
    text = "\n".join(cell.source for cell in notebook_of(source).cells if cell.cell_type == "markdown")
    for words in ("**After this lesson you can**", "**Time:**", "**You need:**", "**Predict.**", "**Move**", "**Explain.**",
                  "## What to remember", "## Papers"):
        assert words in text


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "qlab" / "course").glob("*.py"))], ids=lambda path: path.name)
def test_neither_interact_nor_output_is_used(path):
    """Both hang nbclient, and a function under `interact` that raises fails no test."""
    tree = ast.parse(path.read_text("utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names & FORBIDDEN == set()


# --- the builder

LESSON = """# %% [markdown]
# # A lesson

# %% tags=["nbval-check-output"]
print("one")
print("two")

# %% tags=["timing"]
import time
print(time.perf_counter_ns())

# %%
from IPython.display import display
view = {"application/vnd.jupyter.widget-view+json": {"version_major": 2, "version_minor": 0, "model_id": "this kernel's"}}
display(view | {"text/plain": "calibrating: 13 %"}, raw=True)
panel = view | {"image/jpeg": "/9j/", "text/plain": "A still picture"}
display(panel, raw=True, metadata={"image/jpeg": {"alt": "A still picture"}})
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lessons")
    (folder / "lesson.py").write_text(LESSON)
    assert builder.build(folder / "lesson.py", folder / "lesson.ipynb")
    return folder / "lesson.py", folder / "lesson.ipynb"


def test_a_notebook_is_built_executed_and_clean(built):
    notebook = nbformat.read(built[1], as_version=4)
    _, marked, _, panel = notebook.cells
    assert [output.text for output in marked.outputs] == ["one\ntwo\n"]
    assert marked.execution_count == 1 and marked.metadata == {"tags": ["nbval-check-output"]}
    (output,) = panel.outputs  # neither the progress bar nor the widget
    assert set(output.data) == {"image/jpeg", "text/plain"}
    assert output.metadata["image/jpeg"]["alt"] == "A still picture"
    assert notebook.metadata == builder.METADATA


def test_a_second_build_changes_no_byte_although_the_time_did(built):
    before = built[1].read_bytes()
    assert not builder.build(*built)
    assert built[1].read_bytes() == before


def test_only_changes_of_the_rest_renew_a_timing(built):
    old = nbformat.read(built[1], as_version=4)
    new = nbformat.read(built[1], as_version=4)
    new.cells[2].outputs[0].text = "0\n"
    assert builder.without_timings(new) == builder.without_timings(old)
    new.cells[1].outputs[0].text = "three\n"
    assert builder.without_timings(new) != builder.without_timings(old)


def test_a_cell_keeps_its_id_when_another_comes_before_it(tmp_path):
    def ids(text):
        path = tmp_path / "lesson.py"
        path.write_text(text)
        return [cell.id for cell in builder.read(path).cells]

    same_twice = "# %%\nx = 1\n\n# %%\nx = 1\n"
    assert ids("# %%\ny = 0\n\n" + same_twice)[1:] == ids(same_twice)
    assert len(set(ids(same_twice))) == 2


@pytest.mark.parametrize("code, error, words", [
    ("import warnings\nwarnings.warn('old')", RuntimeError, "a cell warns, and students would see it:\nimport warnings"),
    ("1 / 0", Exception, "ZeroDivisionError"),
])  # fmt: skip
def test_a_cell_that_warns_or_fails_stops_the_build(tmp_path, code, error, words):
    (tmp_path / "lesson.py").write_text(f"# %%\n{code}\n")
    with pytest.raises(error, match=words):
        builder.build(tmp_path / "lesson.py", tmp_path / "lesson.ipynb")
    assert not (tmp_path / "lesson.ipynb").exists()


def test_make_notebooks_builds_the_lessons_it_is_asked_for(built, monkeypatch, capsys):
    folder = built[0].parent / "notebooks"
    (folder / "source").mkdir(parents=True)
    for name in ("00_one", "01_two"):
        (folder / "source" / f"{name}.py").write_text("# %%\nprint(1)\n")
    monkeypatch.setattr(builder, "FOLDER", folder)
    builder.main(["01_two"])
    assert capsys.readouterr().out.startswith("01_two: written, ")
    assert [path.name for path in folder.glob("*.ipynb")] == ["01_two.ipynb"]
