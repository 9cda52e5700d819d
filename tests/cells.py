"""What the code cells of a notebook need of each other."""

from __future__ import annotations

import ast
import builtins
import re
import symtable

from nbformat import NotebookNode


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def uses(source: str) -> set[str]:
    """The names that a cell looks up in the notebook, in its functions too, without Python's own."""
    return _uses(symtable.symtable(source, "cell", "exec")) - {*dir(builtins)}


def _uses(table: symtable.SymbolTable) -> set[str]:
    module = table.get_type() == "module"
    found = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (module or s.is_global())}
    return found.union(*(_uses(child) for child in table.get_children()))


def gives(source: str) -> set[str]:
    """The names that a cell gives to those after it."""
    symbols = symtable.symtable(source, "cell", "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def changes(source: str) -> set[str]:
    """The names of what a cell stores something in, as in ``networks["int8"] = ...``."""
    stores = [node for node in ast.walk(ast.parse(source)) if isinstance(getattr(node, "ctx", None), ast.Store)]
    return {node.value.id for node in stores if isinstance(getattr(node, "value", None), ast.Name)}


def split(notebook: NotebookNode) -> tuple[str, list[NotebookNode], list[NotebookNode]]:
    """What the first cell imports, the exercises, and all other cells with code."""
    cells = code_cells(notebook)
    exercises = [cell for cell in cells if "exercise" in cell.metadata.get("tags", [])]
    body = ast.parse(cells[0].source).body
    imports = [ast.unparse(line) for line in body if isinstance(line, ast.Import | ast.ImportFrom)]
    return "\n".join(imports), exercises, [cell for cell in cells if cell not in exercises]


def shows(cell: NotebookNode) -> bool:
    """Whether a cell showed an image when it was saved, or asked a question before it showed one."""
    data = [output.get("data", {}) for output in cell.outputs]
    asks = re.search(r"^predict\(", cell.source, re.MULTILINE)
    return bool(asks) or any("image/jpeg" in each or "<img" in each.get("text/html", "") for each in data)


def with_what_they_need(wanted: list[NotebookNode], cells: list[NotebookNode]) -> list[NotebookNode]:
    """The ``wanted`` ones of ``cells``, and those up to the last of them that give or change a name which they lack."""
    cells = cells[: 1 + max(cells.index(cell) for cell in wanted)]
    kept: list[NotebookNode] = []
    grown = wanted
    while grown != kept:  # a function looks up its names when it is called: so the cells after it count too
        kept = grown
        lacking = set().union(*(uses(cell.source) - gives(cell.source) for cell in kept))
        grown = [cell for cell in cells if cell in kept or (gives(cell.source) | changes(cell.source)) & lacking]
    return kept
