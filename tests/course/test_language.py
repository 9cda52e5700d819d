"""All that a student reads can be translated."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlab import course

COURSE = Path(course.__file__).parent


def texts_of(tree: ast.AST) -> Iterator[ast.AST]:
    """What a student will read: titles, descriptions, labels of controls and axes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            yield from [node.value] if node.targets[0].attr in ("finding", "alt") else []
        if isinstance(node, ast.keyword) and node.arg in ("label", "xlabel", "ylabel", "title"):
            yield node.value
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_texts"):
            yield from next(part.values for part in ast.walk(node) if isinstance(part, ast.Dict))


def is_translated(node: ast.AST) -> bool:
    return not isinstance(node, ast.JoinedStr) and not (isinstance(node, ast.Constant) and node.value)


def test_what_a_student_reads_can_be_translated():
    found = [
        f"{path.relative_to(COURSE)}:{node.lineno}: {ast.unparse(node)}"
        for path in sorted(COURSE.rglob("*.py"))
        for node in texts_of(ast.parse(path.read_text("utf-8"))) if not is_translated(node)
    ]  # fmt: skip
    assert found == []


@pytest.mark.parametrize("code, translated", [
    ("def wave_texts():\n    return {'time': 'time'}", False), ("def wave_texts():\n    return {'x': _('x')}", True),
    ("figure.alt = f'{x} bits'", False), ("Slider(label='bits')", False), ("ax.set(xlabel=_('bits'))", True),
    ("figure.finding = words.format(bits=3)", True), ("self.alt = ''", True),
])  # fmt: skip
def test_a_text_that_cannot_be_translated_is_found(code, translated):
    assert [is_translated(node) for node in texts_of(ast.parse(code))] == [translated]
