"""Files that are whole or not there, and believed only after a look at them."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qlab import files
from qlab.files import (
    check_tensors,
    load_weights,
    parse_json,
    read_json,
    read_tensors,
    regular,
    sha256,
    verify,
    whole,
    write_tensors,
)

linux = pytest.mark.skipif(sys.platform == "win32", reason="rights, pipes and process numbers are those of Unix")


@pytest.fixture
def umask():
    """Sets the umask; it is put back afterwards."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- Writing


def test_tensors_and_header_come_back(tmp_path):
    tensors = {"a": torch.arange(6).reshape(2, 3).T, "b": torch.tensor(1.5)}
    path = write_tensors(tmp_path / "new" / "x.safetensors", tensors, {"says": ["anything", 1.5]})
    back, header = read_tensors(path)
    assert header == {"says": ["anything", 1.5]}
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@linux
@pytest.mark.parametrize("mask, expected", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_rights_that_the_umask_leaves_it(tmp_path, umask, mask, expected):
    umask(mask)
    assert mode(write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(3)})) == expected


@linux
def test_a_file_that_is_replaced_keeps_its_rights(tmp_path, umask):
    path = write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(3)})
    path.chmod(0o640)
    write_tensors(path, {"a": torch.ones(3)})
    assert mode(path) == 0o640 and read_tensors(path)[0]["a"].sum() == 3


def test_an_error_in_between_leaves_the_old_file_and_no_rest(tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(3)})
    before = path.read_bytes()
    with pytest.raises(KeyError), whole(path) as part:
        part.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    resource = pytest.importorskip("resource", reason="a limit on the size of files stands in for the full disk")
    path = write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(3)})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"cannot write {path} .File too large.") as caught:
            write_tensors(path, {"a": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_tensors(tmp_path / "file" / "x.safetensors", {})


def test_a_header_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the header of .*x.safetensors holds NaN or infinity"):
        write_tensors(tmp_path / "x.safetensors", {}, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_would_not_be_read_again_is_not_written(tmp_path):
    with pytest.raises(
        ValueError, match="the header of .*x.safetensors has 5,0.* bytes, and more than 4,194,304 are not"
    ):
        write_tensors(tmp_path / "x.safetensors", {}, {"words": "x" * 5_000_000})
    assert list(tmp_path.iterdir()) == []


@linux
def test_a_link_is_followed_to_what_it_names(tmp_path):
    (tmp_path / "real").mkdir()
    link, real = tmp_path / "link.safetensors", tmp_path / "real" / "x.safetensors"
    link.symlink_to(real)
    for value in (0.0, 1.0):  # it names nothing yet, then a file
        write_tensors(link, {"a": torch.full((3,), value)})
        assert link.is_symlink() and not real.is_symlink() and read_tensors(real)[0]["a"].sum() == 3 * value
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link.safetensors", "real", "x.safetensors"]


@linux
def test_links_in_a_circle_are_an_error(tmp_path):
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / one).symlink_to(tmp_path / other)
    with pytest.raises(OSError, match="a"), whole(tmp_path / "a"):
        pytest.fail("there is nowhere to write to")
    assert (tmp_path / "a").is_symlink()


def special(folder: Path, kind: str) -> Path:
    """A folder, a pipe, a link to a pipe, or a device (root gets a copy of it, lest the real one is replaced)."""
    path = folder / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "device" and os.geteuid():
        return Path("/dev/null")
    elif kind == "device":
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.stat("/dev/null").st_rdev)
        except PermissionError:
            pytest.skip("root without the right to make a device, as in some containers")
    else:
        os.mkfifo(folder / "pipe")
        if kind == "link":
            path.symlink_to(folder / "pipe")
    return path


SPECIAL = [("folder", "a folder"), ("pipe", "a pipe"), ("link", "a pipe"), ("device", "a device")]


@linux
@pytest.mark.parametrize("kind, words", SPECIAL)
def test_what_is_no_ordinary_file_is_never_replaced(tmp_path, kind, words):
    path = special(tmp_path, kind)
    before = path.lstat()
    with pytest.raises(OSError, match=f"{path} is {words}: expected an ordinary file"):
        write_tensors(path, {"a": torch.zeros(3)})
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)


@linux
@pytest.mark.parametrize("read", [regular, read_tensors, read_json, sha256])
@pytest.mark.parametrize("kind, words", SPECIAL)
def test_what_is_no_ordinary_file_is_not_read_either(tmp_path, read, kind, words):
    path = special(tmp_path, kind)
    with pytest.raises(OSError, match=f"{path} is {words}: expected an ordinary file"):
        read(path)


KILLED = """
import sys, time
from qlab.files import whole
with whole(sys.argv[1]) as part:
    part.write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


@linux
def test_what_a_killed_writer_left_goes_with_the_next_write_and_a_living_ones_stays(tmp_path):
    command = [sys.executable, "-c", KILLED]
    killed, living = (
        subprocess.Popen([*command, tmp_path / name], stdout=subprocess.PIPE, text=True) for name in ("a", "b")
    )
    with killed, living:
        try:
            assert [process.stdout.readline() for process in (killed, living)] == ["ready\n"] * 2
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            assert len(list(tmp_path.iterdir())) == 2
            path = write_tensors(tmp_path / "x.safetensors", {})
            (part,) = set(tmp_path.iterdir()) - {path}
            assert f"-{living.pid}-" in part.name
        finally:
            living.kill()
            living.wait()
    write_tensors(path, {})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("days, stays", [(0.9, True), (1.1, False)])
def test_what_another_machines_writer_left_goes_after_a_day(tmp_path, days, stays):
    part = tmp_path / ".qlab-00000000-1-00000000.part"
    part.touch()
    os.utime(part, (time.time() - days * files.DAY,) * 2)
    write_tensors(tmp_path / "x.safetensors", {})
    assert part.exists() == stays


def test_only_what_bears_our_pattern_is_swept(tmp_path):
    names = ["cifar10.tgz.part", ".qlab-notes.part", ".tmpAbCdEf", "x.999999999.part", ".qlab-00000000-1-0.part"]
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    path = write_tensors(tmp_path / "x.safetensors", {})
    assert {other.name for other in tmp_path.iterdir()} == {*names, path.name}


# --- Reading


def test_a_truncated_file_is_called_damaged(tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(300)})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="x.safetensors is damaged or no safetensors file.*again"):
        read_tensors(path)


def test_a_foreign_file_is_called_foreign(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="x.safetensors was not written by qlab"):
        read_tensors(tmp_path / "x.safetensors")


def test_a_header_without_end_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((10**9).to_bytes(8, "little"))
    with pytest.raises(
        ValueError, match="x.safetensors is damaged or no safetensors file .its header has 1,000,000,000"
    ):
        read_tensors(path)


NO_JSON = {
    "cut off": ('{"a": 1', "Expecting"),
    "no text": (b"\xff\xfe\xfd", "codec can't decode"),
    "NaN": ('{"a": NaN}', "NaN is no finite number"),
    "infinity": ('{"a": -Infinity}', "-Infinity is no finite number"),
    "too large a number": ('{"a": 1e999}', "1e999 is no finite number"),
    "too long a number": ('{"a": ' + "9" * 5000 + "}", "9{20}... has more than 18 digits"),
    "a key twice": ('{"a": {"b": 1, "b": 2}}', "the key 'b' stands there twice"),
    "deep": ('{"a":' * 100_000, "recursion"),
    "a list": ("[1]", "it is a list"),
}


@pytest.mark.parametrize("fault", NO_JSON)
def test_json_is_strict(tmp_path, fault):
    text, words = NO_JSON[fault]
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"{path} is damaged .*{words}.*: expected a JSON object"):
        read_json(path)


def test_json_keeps_what_it_can_hold():
    assert parse_json('{"a": [-999999999999999999, 1.5e-5, true, null, "x"]}', "it") == {
        "a": [-999999999999999999, 1.5e-5, True, None, "x"]
    }


def test_a_json_file_has_an_end(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1}' + " " * 100)
    assert read_json(tmp_path / "x.json") == {"a": 1}
    with pytest.raises(ValueError, match="x.json is longer than 100 bytes: expected a JSON file"):
        read_json(tmp_path / "x.json", most=100)


@pytest.mark.parametrize(
    "found, words",
    [
        ({}, "net: 'a' is missing"),
        ({"a": torch.zeros(2), "b": torch.zeros(1)}, "net: 'b' is one tensor too many"),
        ({"a": torch.zeros(2, 1)}, r"net: 'a' is float32 \(2, 1\), expected float32 \(2,\)"),
        ({"a": torch.zeros(2).double()}, r"net: 'a' is float64 \(2,\), expected float32 \(2,\)"),
        ({"a": torch.tensor([0.0, float("nan")])}, "net: 'a' holds NaN or infinity"),
        ({"a": torch.tensor([0.0, float("inf")])}, "net: 'a' holds NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit_are_named(found, words):
    with pytest.raises(ValueError, match=words):
        check_tensors(found, {"a": torch.empty(2, device="meta")}, "net")


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
