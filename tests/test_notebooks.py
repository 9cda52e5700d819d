"""The committed notebooks are what their sources say, executed, clean and small; the builder keeps them so.

That the lessons run, and that marked outputs come out the same, is nbval's part of `make test`. A solved copy differs
from its lesson in the exercises alone, and these run here.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from cells import code_cells, gives, split, uses, with_what_they_need

from qlab.course.predict import of_lesson

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
SOURCES = sorted((NOTEBOOKS / "source").glob("*.py"))
LARGEST = 1_000_000  # bytes: a reader on GitHub waits for them, and each new figure adds them to the clone
MARKED = "nbval-check-output"
FORBIDDEN = {"interact", "interactive", "interactive_output", "interact_manual", "Output"}

spec = importlib.util.spec_from_file_location("build_notebooks", ROOT / "tools" / "build_notebooks.py")
builder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(builder)

BUILT = {target: source for source in SOURCES for target in builder.targets(source)}
EACH = pytest.mark.parametrize("path", BUILT, ids=lambda path: str(path.relative_to(NOTEBOOKS).with_suffix("")))


def saved(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


# --- the notebooks


def test_every_notebook_has_a_source():
    assert SOURCES
    assert {*NOTEBOOKS.glob("*.ipynb"), *NOTEBOOKS.glob("solutions/*.ipynb")} == set(BUILT)


@EACH
def test_source_and_notebook_agree(path):
    def written(notebook):
        return [(cell.id, cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in notebook.cells]

    wanted = builder.read(BUILT[path], solved=path.parent.name == "solutions")
    assert written(saved(path)) == written(wanted), "run `make notebooks`"
    assert saved(path).metadata == builder.METADATA


@EACH
def test_every_cell_was_executed_in_order(path):
    """nbval compares no cell without an execution count, whatever its mark says."""
    counts = [cell.execution_count for cell in code_cells(saved(path))]
    assert counts == list(range(1, len(counts) + 1))


@EACH
def test_some_outputs_are_compared_and_none_of_them_depends_on_the_machine(path):
    marked = [cell for cell in code_cells(saved(path)) if MARKED in cell.metadata.get("tags", [])]
    assert marked
    for cell in marked:
        kind = "execute_result" if "exercise" in cell.metadata.tags else "stream"
        assert cell.outputs and all(output.output_type == kind for output in cell.outputs)
        assert "timing" not in cell.metadata.tags


@EACH
def test_no_saved_output_is_a_warning_an_error_or_a_widget_without_its_kernel(path):
    for cell in code_cells(saved(path)):
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr"
            assert builder.WIDGET not in output.get("data", {})


@EACH
def test_every_image_has_alt_text(path):
    data = [output for cell in code_cells(saved(path)) for output in cell.outputs if "data" in output]
    images = [(kind, output) for output in data for kind in output.data if kind.startswith("image/")]
    html = "".join(output.data.get("text/html", "") for output in data)
    stills = re.findall(r'<img src="data:image/jpeg;base64,[^"]+" alt="([^"]*)"', html)
    assert len(stills) == html.count("<img") and all(len(words) > 40 for words in stills)
    assert images or stills
    for kind, output in images:
        assert len(output.metadata[kind]["alt"]) > 40
        assert output.data["text/plain"] == output.metadata[kind]["alt"]


@EACH
def test_a_notebook_is_small(path):
    assert path.stat().st_size < LARGEST


@EACH
def test_a_lesson_says_what_it_is_for_how_long_it_takes_and_where_it_comes_from(path):
    text = "\n".join(cell.source for cell in saved(path).cells if cell.cell_type == "markdown")
    bold = "After this lesson you can", "Time:", "You need:"
    parts = (
        *(f"**{words}**" for words in bold),
        "<summary><strong>Explain</strong>",
        "## What to remember",
        "## For teachers",
        "## Papers",
    )
    assert [part for part in parts if part not in text] == []


@EACH
def test_every_prediction_of_a_lesson_is_asked_once_and_folded(path):
    cells = code_cells(saved(path))
    asked = [(name, cell) for cell in cells for name in re.findall(r'^predict\(\s*"(\w+)"', cell.source, re.MULTILINE)]
    assert [name for name, _ in asked] == [each.name for each in of_lesson(int(path.stem[:2]))]
    for _, cell in asked:
        (output,) = cell.outputs
        assert "<details>" in output.data["text/html"] and set(output.data) == {"text/html", "text/plain"}
    texts = [cell.source for cell in saved(path).cells if cell.cell_type == "markdown"]
    assert not any("**Predict.**" in text or "**Explain.**" in text for text in texts), "neither is left open"


@EACH
def test_what_answers_a_prediction_is_folded(path):
    for cell in code_cells(saved(path)):
        if builder.ANSWERS in cell.metadata.get("tags", []):
            assert all("<details>" in output.data["text/html"] for output in cell.outputs)


@EACH
def test_an_exercise_is_open_in_the_lesson_and_right_in_the_solutions(path):
    expected = "right: " if path.parent.name == "solutions" else "not attempted: "
    cells = [cell for cell in code_cells(saved(path)) if "exercise" in cell.metadata.get("tags", [])]
    assert [c.source for c in cells if not c.outputs[0].data["text/plain"].startswith(expected)] == []


@EACH
def test_an_exercise_needs_the_first_imports_alone_and_nothing_needs_an_exercise(path):
    """So a lesson runs to its end with open exercises, and of a solved copy only these have to run."""

    imports, exercises, others = split(saved(path))
    for cell in exercises:
        assert uses(cell.source) <= gives(imports) | gives(cell.source)
    solved = set().union(*(gives(cell.source) for cell in exercises))
    # yours("10.3", push_error) puts the solution in the place of what is open
    sources = [re.sub(r"(\byours\(\"[\d.]+\"), \w+\)", r"\1)", cell.source) for cell in others]
    assert solved and [source for source in sources if uses(source) & solved] == []


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("solutions/*.ipynb")), ids=lambda path: path.stem)
def test_a_solved_exercise_comes_out_as_it_was_saved(path):
    imports, exercises, _ = split(saved(path))
    space: dict = {}
    exec(imports, space)
    for cell in exercises:
        *lines, last = ast.parse(cell.source).body
        exec(compile(ast.Module(lines, []), cell.id, "exec"), space)
        assert repr(eval(ast.unparse(last), space)) == cell.outputs[0].data["text/plain"]


def test_what_a_cell_needs_is_found_through_functions_and_other_cells():
    define = "def f():\n    return math.pi * x[0]"
    sources = "import math", "x = [1]", define, "y = len([2])", "x[0] = 3", "f()", "x = [4]"
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    assert with_what_they_need([cells[5]], cells) == [*cells[:3], *cells[4:6]]
    assert with_what_they_need([cells[3]], cells) == [cells[3]]


COURSE = sorted((ROOT / "qlab" / "course").rglob("*.py"))


def names_in(code: str) -> set[str]:
    """Every name that code reads, writes, imports or looks up in an object."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return names | {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_neither_interact_nor_output_is_used():
    """Both hang nbclient, and a function under `interact` that raises fails no test."""
    used = {path: names_in(path.read_text("utf-8")) & FORBIDDEN for path in [*SOURCES, *COURSE]}
    assert len(used) > 28 and {str(path): names for path, names in used.items() if names} == {}
    for code in ("interact(f)", "widgets.interact(f)", "from ipywidgets import interact as show"):
        assert names_in(code) & FORBIDDEN


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
model = {"version_major": 2, "version_minor": 0, "model_id": "this kernel's"}
view = {"application/vnd.jupyter.widget-view+json": model}
display(view | {"text/plain": "calibrating: 13 %"}, raw=True)
panel = view | {"image/jpeg": "/9j/", "text/plain": "A still image"}
display(panel, raw=True, metadata={"image/jpeg": {"alt": "A still image"}})
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lessons")
    (folder / "lesson.py").write_text(LESSON)
    changed, megabytes = builder.build(folder / "lesson.py", folder / "lesson.ipynb")
    assert changed and 20 < megabytes < 2000
    return folder / "lesson.py", folder / "lesson.ipynb"


def test_an_exercise_becomes_a_stub_in_the_lesson_and_its_solution_in_the_other_copy(tmp_path):
    source = tmp_path / "source" / "lesson.py"
    source.parent.mkdir()
    source.write_text('# %% tags=["exercise"]\ncheck("1.1", step)\n')
    assert builder.targets(source) == [tmp_path / "lesson.ipynb", tmp_path / "solutions" / "lesson.ipynb"]
    (lesson,), (solved,) = builder.read(source).cells, builder.read(source, solved=True).cells
    for cell in (lesson, solved):
        assert cell.source.startswith("def step(lo, hi, bits):") and cell.source.endswith('check("1.1", step)')
        assert cell.metadata.tags == ["exercise", "nbval-check-output"]
    assert "..." in lesson.source and "return" not in lesson.source and "return" in solved.source
    assert lesson.id == solved.id


def test_a_notebook_is_built_executed_and_clean(built):
    notebook = nbformat.read(built[1], as_version=4)
    _, marked, _, panel = notebook.cells
    assert [output.text for output in marked.outputs] == ["one\ntwo\n"]
    assert marked.execution_count == 1 and marked.metadata == {"tags": ["nbval-check-output"]}
    (output,) = panel.outputs  # neither the progress bar nor the widget
    assert set(output.data) == {"image/jpeg", "text/plain"}
    assert output.metadata["image/jpeg"]["alt"] == "A still image"
    assert notebook.metadata == builder.METADATA


ANSWERED = """# %%
predict = print
predict("0a")

# %% [markdown]
# **Explain.** It is <42>.

# %%
print("It is <42>.")

# %% tags=["nbval-check-output"]
print("compared")

# %% [markdown]
# **Explain.** And 43.
#
# ## The next section
#
# **Explain.** Not at the beginning of a cell.

# %%
print("after the heading")
"""


def test_what_answers_a_prediction_is_folded_up_to_the_next_heading(tmp_path):
    (tmp_path / "lesson.py").write_text(ANSWERED)
    builder.build(tmp_path / "lesson.py", tmp_path / "lesson.ipynb")
    asked, explains, answer, compared, again, after = nbformat.read(tmp_path / "lesson.ipynb", as_version=4).cells
    fold = "<details>\n<summary><strong>Explain</strong></summary>\n\n{}\n\n</details>"
    assert explains.source == fold.format("It is <42>.")
    assert again.source.startswith(fold.format("And 43.") + "\n\n## The next section")
    assert answer.metadata == {"tags": ["answer"]} and answer.outputs[0].data == {
        "text/html": "<details><summary>The measured answer</summary><pre>It is &lt;42&gt;.\n</pre></details>",
        "text/plain": "The measured answer",
    }
    for open_one, words in ((asked, "0a\n"), (compared, "compared\n"), (after, "after the heading\n")):
        assert open_one.outputs[0].text == words


def test_a_second_build_changes_no_byte_although_the_time_did(built):
    before = built[1].read_bytes()
    assert not builder.build(*built)[0]
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
    ("import warnings\nwarnings.warn('old')", RuntimeError, "a cell warns, .*:\nimport warnings"),
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
    with pytest.raises(SystemExit):
        builder.main(["two"])
    assert "there is no lesson 'two'; there are: 00_one, 01_two" in capsys.readouterr().err
