"""Who may know whom: the rooms of qlab stand in rows, and imports point down.

A room may import those in the rows below its own and, in its row, those to its left. Imports inside functions and
under TYPE_CHECKING count too: who reads a room has to know what its types are. Inside a room all is free.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROWS = """
    cli course                                                  what people use: a shell, the notebooks
    qlab                                                        the front door: what `import qlab` offers
    bench detect llm                                            networks at work: how fast, on a video, on text
    analysis qat                                                which layer hurts; training with the rounding in place
    calibration adaptive_rounding bias_correction datafree export   after training: choose ranges, round better, save
    data models train                                           ordinary networks: they know nothing of quantization
    int8 graph                                                  integers on a processor; a whole network
    qconfig observers quantizers                                what is quantized, which range, what rounds
    codebook blocks                                             other grids; codes that share a scale by blocks
    formats granularity affine                                  one number, and who shares a scale
    tables files parallel sizes ratio batches modes extras      small things that several rooms use
"""
ORDINARY = "data", "models", "train"  # these may know each other and the lowest row, nothing in between
FOR_THE_COURSE = "matplotlib", "ipywidgets", "anywidget"  # packages that no other room imports

TABLE = [line.strip().split("  ")[0].split() for line in reversed(ROWS.strip().splitlines())]  # from the bottom up
PLACE = {room: (height, place) for height, row in enumerate(TABLE) for place, room in enumerate(row)}


def may_know(room: str, other: str) -> bool:
    """Does an import of ``other`` in ``room`` point down?"""
    if room in ORDINARY:
        return other in (*ORDINARY, *TABLE[0])
    return PLACE[other] < PLACE[room]


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Each import of a file in ``package``, as (line, full dotted name); of `from a import b` it is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def room_of(name: str) -> str:
    """The room of a dotted name: `qlab.graph.prepare` is in graph, `qlab` and `qlab.ptq` are the front door."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in PLACE else "qlab"


def complaints(root: Path) -> list[str]:
    """What is wrong with the imports of the package at ``root / "qlab"``, a line each; empty when nothing is."""
    found = []
    tools = {"tools", "tests", *(path.stem for folder in ("tools", "tests") for path in (root / folder).glob("*.py"))}
    for path in sorted((root / "qlab").rglob("*.py")):
        parts, shown = path.relative_to(root).with_suffix("").parts, path.relative_to(root).as_posix()
        room = {"__init__": "qlab", "__main__": "cli"}.get(parts[1], parts[1])
        if room not in PLACE:
            found.append(f"{shown}: the room {room!r} stands in no row of tests/test_layers.py")
            continue
        for line, name in imported(ast.parse(path.read_text("utf-8")), parts[:-1]):
            top, other, where = name.split(".")[0], room_of(name), f"{shown}:{line} imports {name}"
            if top == "qlab" and other != room and not may_know(room, other):
                found.append(f"{where}: {room} must not know {other}")
            if top in FOR_THE_COURSE and room != "course":
                found.append(f"{where}: only course shows anything")
            if top in tools:
                found.append(f"{where}: an installed qlab comes without it")
    return found


def test_every_import_points_down():
    assert complaints(ROOT) == []


def test_every_room_that_is_there_stands_in_the_table_once():
    rooms = [room for row in TABLE for room in row]
    assert len(rooms) == len(set(rooms)) == len(PLACE)
    there = {path.stem for path in (ROOT / "qlab").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__", "__main__"} <= set(rooms)
    assert set(ORDINARY) <= set(rooms)


# --- would it be seen?


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("affine.py", "from qlab.graph.prepare import prepare", "affine must not know graph"),
        ("affine.py", "import qlab.graph", "affine must not know graph"),
        ("granularity.py", "from qlab import affine", "granularity must not know affine"),
        ("affine.py", "from qlab import QParams", "affine must not know qlab"),
        ("int8/engines/cpu.py", "import qlab", "int8 must not know qlab"),
        ("int8/modules.py", "from qlab.graph import report", "int8 must not know graph"),
        ("int8/modules.py", "from ..graph.report import table", "int8 must not know graph"),
        ("int8/__init__.py", "from ..graph.report import table", "int8 must not know graph"),
        ("models/vgg.py", "from qlab.qconfig import QConfig", "models must not know qconfig"),
        ("train.py", "def f():\n    from qlab.affine import QParams", "train must not know affine"),
        ("data/store.py", "if TYPE_CHECKING:\n    from qlab.qat import fit", "data must not know qat"),
        ("bench/table.py", "from qlab.course import plots", "bench must not know course"),
        ("cli/lab.py", "from qlab.course import plots", "cli must not know course"),
        ("analysis.py", "import matplotlib.pyplot as plt", "only course shows anything"),
        ("llm/show.py", "from ipywidgets import HTML", "only course shows anything"),
        ("bench/all.py", "import bench_int8", "an installed qlab comes without it"),
        ("course/all.py", "from tools.bench_int8 import main", "an installed qlab comes without it"),
        ("magic.py", "", "the room 'magic' stands in no row"),
    ],
)
def test_an_import_that_points_up_is_seen(tmp_path, path, code, words):
    for name, text in (("tools/bench_int8.py", ""), (f"qlab/{path}", code)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (complaint,) = complaints(tmp_path)
    assert words in complaint and path in complaint


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("quantizers.py", "from qlab import observers\nfrom qlab.affine import QParams"),
        ("graph/prepare.py", "from qlab.graph.fold import fold\nfrom . import trace\nfrom .report import Report"),
        ("train.py", "from qlab.data import Dataset\nfrom qlab.files import whole\nimport torch"),
        ("course/lesson01/plots.py", "import matplotlib\nimport qlab\nfrom qlab.analysis import sqnr"),
        ("__init__.py", "from qlab.train import evaluate"),
        ("__main__.py", "from qlab.cli.main import main"),
    ],
)
def test_an_import_that_points_down_is_none_of_these(tmp_path, path, code):
    (tmp_path / "qlab" / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "qlab" / path).write_text(code)
    assert complaints(tmp_path) == []
