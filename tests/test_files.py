"""Files that are whole or not there."""

from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from qlab.files import load_weights, read_tensors, sha256, verify, write_tensors


def test_tensors_and_header_come_back(tmp_path):
    tensors = {"a": torch.arange(6).reshape(2, 3).T, "b": torch.tensor(1.5)}
    path = write_tensors(tmp_path / "new" / "x.safetensors", tensors, {"says": ["anything", 1.5]})
    back, header = read_tensors(path)
    assert header == {"says": ["anything", 1.5]}
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(3)})
    before = path.read_bytes()

    def full(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qlab.files.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"a": torch.ones(3)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_truncated_file_is_called_damaged(tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(300)})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is damaged or no safetensors file.*again"):
        read_tensors(path)


def test_a_foreign_file_is_called_foreign(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="was not written by qlab"):
        read_tensors(tmp_path / "x.safetensors")


def test_sha256_is_sha256(tmp_path):
    path = tmp_path / "big"
    path.write_bytes(bytes(range(256)) * 10_000)
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_verified_by_its_sha256(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(ValueError, match="x is missing: restore it with `git checkout -- .*x`, or install qlab again"):
        verify(path, "0" * 64)
    path.write_bytes(b"content")
    verify(path, hashlib.sha256(b"content").hexdigest())
    with pytest.raises(ValueError, match=r"x is damaged \(sha256 ed7002b439e9..., expected 000000000000...\): restore"):
        verify(path, "0" * 64)


@pytest.mark.parametrize("other, said", [
    (torch.nn.Linear(3, 2), r"run.safetensors holds the weights of another network: size mismatch for weight"),
    (torch.nn.BatchNorm1d(4), r"holds the weights of another network: Unexpected key\(s\)"),
])  # fmt: skip
def test_another_networks_weights_are_refused(other, said):
    network = torch.nn.Linear(4, 2)
    with pytest.raises(ValueError, match=said) as error:
        load_weights(network, other.state_dict(), "run.safetensors")
    assert "\n" not in str(error.value)
    load_weights(network, torch.nn.Linear(4, 2).state_dict(), "run.safetensors")
