"""Archives from anybody: what is in them is read, bounded; what is wrong with them is said."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from copies_of_cifar import write_tar, write_zip

from qlab.data import archives
from qlab.data.archives import archive_entries

FILES = {"a/1.txt": b"one", "b/2.txt": b"two" * 100}


def content(path: Path, most: int = 1000) -> dict[str, bytes]:
    return {name: read(most) for name, read in archive_entries(path)}


def made(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_the_content_of_every_kind_of_archive(tmp_path):
    tar = write_tar(tmp_path / "a.tar", FILES)
    paths = [tar, write_zip(tmp_path / "a.zip", FILES)]
    paths += [made(tmp_path / module.__name__, module.compress(tar.read_bytes())) for module in (gzip, bz2, lzma)]
    deflated = tmp_path / "b.zip"
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    for path in [*paths, deflated]:
        assert content(path) == FILES


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_a_file_longer_than_asked_for_is_not_read(tmp_path, write):
    with pytest.raises(ValueError, match=r"b/2.txt of .*/a has more than 299 bytes: no file of CIFAR-10 does"):
        content(write(tmp_path / "a", FILES), most=299)


def zeros(compress, size: int) -> bytes:
    """A compressed tar with one file of ``size`` zeros."""
    member = tarfile.TarInfo("a")
    member.size = size
    return compress(member.tobuf() + bytes(size + 1024))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_that_unpacks_to_too_much_is_left(tmp_path, compress, monkeypatch):
    monkeypatch.setattr(archives, "MOST_BYTES", 20_000_000)
    path = made(tmp_path / "a", zeros(compress, 30_000_000))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match="a unpacks to more than 20,000,000 bytes or 200,000 entries: no honest copy"
        ):
            content(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6  # of the 30: xz looks back over 8
    finally:
        tracemalloc.stop()


def test_a_zip_that_unpacks_to_too_much_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_BYTES", 20_000_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(str(number), bytes(9_000_000))
    with pytest.raises(ValueError, match="a.zip unpacks to more than 20,000,000 bytes"):
        content(tmp_path / "a.zip", most=10**8)


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_too_many_entries_are_refused_before_they_fill_the_memory(tmp_path, write, monkeypatch):
    path = write(tmp_path / "a", {str(number): b"" for number in range(60)})
    assert len(content(path)) == 60
    monkeypatch.setattr(archives, "MOST_ENTRIES", 50)
    if write is write_zip:
        monkeypatch.setattr(zipfile, "ZipFile", lambda path: pytest.fail("the list was taken into memory"))
    with pytest.raises(ValueError, match="a unpacks to more than .* or 50 entries"):
        content(path)


def headers(kind: bytes, size: int) -> bytes:
    """A tar whose first header says that ``size`` bytes of names follow, and a file."""
    head = tarfile.TarInfo("x")
    head.type, head.size = kind, size
    return gzip.compress(head.tobuf() + bytes(-(-size // 512) * 512) + tarfile.TarInfo("a").tobuf() + bytes(1024))


@pytest.mark.parametrize("kind", archives.NAMES)
def test_a_name_of_megabytes_is_not_taken_into_memory(tmp_path, kind):
    path = made(tmp_path / "a", headers(kind, 50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="a is damaged or incomplete .a header of 50,000,000 bytes"):
            content(path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", "old"])
def test_files_with_holes_are_refused(tmp_path, version):
    member = tarfile.TarInfo("a")
    member.pax_headers = {
        "0.0": {"GNU.sparse.size": "9", "GNU.sparse.offset": "0", "GNU.sparse.numbytes": "0"},
        "0.1": {"GNU.sparse.size": "9", "GNU.sparse.map": "0,0"},
        "1.0": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"},
        "old": {},
    }[version]
    if version == "old":
        member.type = tarfile.GNUTYPE_SPARSE
    path = made(tmp_path / "a", member.tobuf(tarfile.PAX_FORMAT) + bytes(2048))
    with pytest.raises(ValueError, match="a is damaged or incomplete .* or a file with holes"):
        content(path)


def test_long_names_come_back_whole(tmp_path):
    name = "train/" + "x" * 300
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        assert content(tmp_path / "a.tar") == {name: b""}


def flagged(path: Path, place: int, value: int) -> Path:
    """A zip in which two bytes of every header are ``value``, in the list at ``place``, before the file two earlier."""
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x01\x02", place), (b"PK\x03\x04", place - 2)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset : at + offset + 2] = value.to_bytes(2, "little")
            at = data.find(magic, at + 4)
    return made(path, bytes(data))


def test_an_encrypted_zip_says_what_to_do(tmp_path):
    path = flagged(write_zip(tmp_path / "a.zip", FILES), 8, 1)
    with pytest.raises(ValueError, match="a.zip is encrypted: unpack it, and let QLAB_CIFAR10 name the folder"):
        content(path)


@pytest.mark.parametrize("method", [9, 12, 14, 99])
def test_an_unusual_zip_says_what_to_do(tmp_path, method):
    path = flagged(write_zip(tmp_path / "a.zip", FILES), 10, method)
    with pytest.raises(ValueError, match=f"a.zip is packed by method {method}, which is not read here: unpack it"):
        content(path)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_half_an_archive_is_called_damaged(tmp_path, compress, cut):
    tar = write_tar(tmp_path / "a.tar", FILES).read_bytes()
    whole = compress(tar + bytes(50_000))
    path = made(tmp_path / "a.tar", whole[: int(cut * len(whole))])
    with pytest.raises(ValueError, match="a.tar (is damaged or incomplete .*: fetch it again|is no folder and no tar)"):
        content(path)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_the_checksum_at_the_end_of_a_compressed_tar_is_looked_at(tmp_path, compress):
    whole = compress(write_tar(tmp_path / "a.tar", FILES).read_bytes())
    place = len(whole) - 8 if compress is gzip.compress else len(whole) // 2
    path = made(tmp_path / "a.tar", whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match="a.tar is damaged or incomplete .*: fetch it again"):
        content(path)


def test_a_tar_that_goes_on_after_a_damaged_header_is_called_damaged(tmp_path):
    data = bytearray(write_tar(tmp_path / "a.tar", FILES).read_bytes())
    data[1024 + 3] ^= 1  # in the name of the second file
    with pytest.raises(ValueError, match="a.tar is damaged or incomplete .no entry begins where one should."):
        content(made(tmp_path / "a.tar", bytes(data)))


def test_a_reader_that_runs_out_of_memory_says_so(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(archives.Bounded, "read", full)
    with pytest.raises(ValueError, match=r"a.tar is damaged or incomplete \(MemoryError\): fetch it again"):
        content(write_tar(tmp_path / "a.tar", FILES))


def test_an_archive_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.tar"):
        content(tmp_path / "none.tar")
