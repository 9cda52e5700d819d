"""The tiny model that lies in the package: as good as its manifest says, and refused when it is damaged."""

from __future__ import annotations

import pytest

from qlab import llm
from qlab.llm import granite


def test_the_tiny_model_is_as_good_as_its_manifest_says():
    entry = llm.manifest()["granite-tiny"]
    found = llm.perplexity(llm.tiny(), llm.windows("test", 24))
    # other windows, and another Python's library: the same kind of text
    assert 0.75 * entry["test_perplexity"] < found < 1.35 * entry["test_perplexity"]
    assert entry["test_perplexity"] < 4


def test_damaged_weights_are_refused(monkeypatch, tmp_path):
    for name in ("granite-tiny.safetensors", "manifest.json"):
        (tmp_path / name).write_bytes((granite.FOLDER / name).read_bytes())
    with (tmp_path / "granite-tiny.safetensors").open("ab") as file:
        file.write(b"x")
    monkeypatch.setattr(granite, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="granite-tiny.safetensors is damaged .*git checkout"):
        llm.tiny()
