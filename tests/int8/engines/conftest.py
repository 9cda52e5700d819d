"""What the tests of several files need."""

from __future__ import annotations

import pytest

from qlab.int8 import engines


@pytest.fixture
def other_machine(monkeypatch):
    """Forget what was found out about this machine, before and after a test that pretends it is another."""

    def forget():
        for function in (engines.availability, engines.choose, engines.cpu):
            function.cache_clear()

    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()
