"""The files in a tar or a zip that may come from anybody: nothing is unpacked to disk, and everything has an end.

Entries that point out of their archive are refused, and links and devices. What an archive unpacks to is bounded, in
bytes and in entries, so that a small file cannot fill the memory. All that can go wrong ends in a ValueError or an
OSError that names the archive.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from qlab.files import regular

MOST_BYTES = 1 << 30  # in all entries together; CIFAR-10 has 0.2 billion
MOST_ENTRIES = 200_000  # CIFAR-10 has 60,000 and its folders
MOST_NAME = 1 << 13  # bytes in which a tar says an entry's name, times and rights
NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}  # by how a file begins
HONEST = "no honest copy of CIFAR-10 does. Get it from another place"

Entry = tuple[str, Callable[[int], bytes]]  # a file's name, and what reads it if it has at most so many bytes


class Refused(ValueError):
    """An archive that is whole, and that nobody should read."""


def archive_entries(path: Path) -> Iterator[Entry]:
    """The files in a tar, however it is compressed, or in a zip, one after the other."""
    regular(path)
    with guarded(path):
        yield from zip_entries(path) if zipfile.is_zipfile(path) else tar_entries(path)


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Whatever a library meets in a damaged or forged archive becomes a ValueError in words."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # it may not be read
        words = str(error)[:200] or type(error).__name__
        raise ValueError(f"{path} is damaged or incomplete ({words}): fetch it again") from error


def read_at_most(file: BinaryIO, most: int, what: str) -> bytes:
    """The whole content of ``file``; ValueError when it has more bytes than ``most``."""
    content = file.read(most + 1)
    if len(content) > most:
        raise Refused(f"{what} has more than {most:,} bytes: no file of CIFAR-10 does. Get it from another place")
    return content


def refuse_unsafe(path: Path, name: str, link: bool) -> None:
    """Raise ValueError for an entry that would reach out of the folder where the archive is unpacked."""
    outside = re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name)
    if link or outside:
        raise Refused(
            f"{path} holds {name!r}, {'a link or a device' if link else 'a path out of its folder'}: {HONEST}"
        )


def refuse_endless(path: Path, count: int, size: int) -> None:
    """Raise ValueError for an archive that unpacks to far more than CIFAR-10."""
    if count > MOST_ENTRIES or size > MOST_BYTES:
        raise Refused(f"{path} unpacks to more than {MOST_BYTES:,} bytes or {MOST_ENTRIES:,} entries: {HONEST}")


# --- tar


class Bounded:
    """What tarfile reads from: a decompressed stream that ends with an error after ``MOST_BYTES``."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.tell = file, path, file.tell
        self.last = b""  # what was read last

    def read(self, size: int) -> bytes:
        refuse_endless(self.path, 0, self.tell() + size)
        self.last = self.file.read(size)
        return self.last

    def seek(self, place: int) -> int:
        refuse_endless(self.path, 0, place)
        return self.file.seek(place)

    def finish(self) -> None:
        """Read on to the end, where a compressed file has its checksum; a tar ends in zeros."""
        while not self.last.strip(b"\0"):
            if not self.read(1 << 20):
                return
        raise ValueError("no entry begins where one should")


class Member(tarfile.TarInfo):
    """An entry of a tar; what stands before it, and tarfile takes into memory, has to be short."""

    __slots__ = ()

    def _proc_member(self, archive: tarfile.TarFile):
        """Where tarfile lets a subclass see to an entry of its own kind."""
        long = self.type in NAMES and self.size > MOST_NAME or len(archive.pax_headers) > 100
        if long or self.type == tarfile.GNUTYPE_SPARSE:
            self._refuse()
        return super()._proc_member(archive)

    def _refuse(self, *_) -> None:
        raise ValueError(f"a header of {self.size:,} bytes, or a file with holes")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse


def tar_entries(path: Path) -> Iterator[Entry]:
    """The files in a tar."""
    with open(path, "rb") as raw:
        start = raw.read(6)
    unpack = next((unpack for magic, unpack in COMPRESSED.items() if start.startswith(magic)), open)
    with unpack(path, "rb") as file:
        stream = Bounded(file, path)
        try:
            archive = tarfile.open(fileobj=stream, mode="r:", tarinfo=Member)  # noqa: SIM115 - `stream` is closed below
        except tarfile.ReadError as error:
            raise Refused(
                f"{path} is no folder and no tar or zip archive that can be opened: "
                "expected .tar, .tar.gz, .tgz, .tar.xz or .zip. If it was downloaded, fetch it again"
            ) from error
        for number, member in enumerate(archive):
            refuse_endless(path, number, member.offset_data + member.size)
            refuse_unsafe(path, member.name, link=not (member.isfile() or member.isdir()))
            if member.isfile():
                yield member.name, partial(_read, path, archive.extractfile, member, member.name)
        stream.finish()


def _read(path: Path, open_entry: Callable, entry: object, name: str, most: int) -> bytes:
    with guarded(path), open_entry(entry) as file:
        return read_at_most(file, most, f"{name} of {path}")


# --- zip


def zip_entries(path: Path) -> Iterator[Entry]:
    """The files in a zip."""
    refuse_endless(path, *_listed(path))
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        refuse_endless(path, len(infos), sum(info.file_size for info in infos))
        for info in infos:
            refuse_unsafe(path, info.filename, link=stat.S_ISLNK(info.external_attr >> 16))
            if info.flag_bits & 1:
                raise Refused(f"{path} is encrypted: unpack it, and let QLAB_CIFAR10 name the folder")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Refused(
                    f"{path} is packed by method {info.compress_type}, which is not read here: unpack it, and let "
                    "QLAB_CIFAR10 name the folder"
                )
            if not info.is_dir():
                yield info.filename, partial(_read, path, archive.open, info, info.filename)


def _listed(path: Path) -> tuple[int, int]:
    """How many entries the zip can list at most, and its size: zipfile takes the list into memory."""
    count, size, before = 0, 0, b""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            count += (before + block).count(b"PK\x01\x02")
            size, before = size + len(block), block[-3:]
    return count, size
