"""Fetches one large file: goes on where it stopped, and believes nothing that it has not checked."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import BinaryIO

from tqdm.auto import tqdm

from qlab.data.store import NoRoom, cannot_write, need_space

ATTEMPTS = 5
TIMEOUT = 30  # seconds without a byte
BLOCK = 1 << 18  # bytes


@dataclass(frozen=True)
class Remote:
    """A file on the net: where it is, its name here, its size in bytes, and its md5 if one was published."""

    url: str
    file: str
    size: int
    md5: str | None = None


def download(remote: Remote, folder: Path) -> Path:
    """Fetch ``remote`` into ``folder``, with a bar; then the file is there, whole and checked, or not at all.

    What has come stays in <file>.part, and the next call goes on from there. Raises ConnectionError when the
    host cannot be reached or keeps breaking off, ValueError when it has another file, NoRoom (an OSError)
    when the disk is full.
    """
    part = folder / f"{remote.file}.part"
    need_space(folder, remote.size - came(part))
    for attempt in range(ATTEMPTS):
        before = came(part)
        if before >= remote.size:
            break
        if attempt:
            broke = f"the connection broke after {before:,} of {remote.size:,} bytes"
            print(f"CIFAR-10: {broke}: going on from there", flush=True)
        try:
            receive(remote, part)
        except NoRoom:
            raise
        except (OSError, http.client.HTTPException) as error:  # all that a network can do
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            if getattr(error, "code", None) == 416:  # nothing there from where we are: it became shorter
                part.unlink()
                words = f"{remote.url} has fewer bytes than came before: it is another file now"
                raise ValueError(words) from error
            if came(part) <= before:  # not one byte came: another attempt would not help
                raise ConnectionError(f"{remote.url} cannot be reached ({error})") from error
    if came(part) < remote.size:
        raise ConnectionError(
            f"{remote.url} broke off after {came(part):,} of {remote.size:,} bytes. "
            "They are kept: call again to go on from there"
        )
    check(remote, part)
    return part.replace(folder / remote.file)


def came(part: Path) -> int:
    """How many bytes are there already."""
    return part.stat().st_size if part.exists() else 0


def receive(remote: Remote, part: Path) -> None:
    """One connection: ask for what is missing, and append it until the end or until it breaks off."""
    headers = {"User-Agent": "qlab", "Range": f"bytes={came(part)}-"}
    request = urllib.request.Request(remote.url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        start, total = extent(response.headers, remote)
        if total != remote.size or start not in (0, came(part)):
            raise ValueError(f"{remote.url} has {total:,} bytes, expected {remote.size:,}: it is another file now")
        bar = tqdm(desc=remote.file, total=total, initial=start, unit="B", unit_scale=True, leave=False)
        # Unbuffered, so that a full disk shows at the block that found it so.
        with bar, open(part, "ab" if start else "wb", buffering=0) as file:
            while (block := response.read(BLOCK)) and (start := start + len(block)) <= total:
                append(file, block, part)
                bar.update(len(block))
    if block:  # it did not say where it ends
        part.unlink()
        raise ValueError(f"{remote.url} sends more than the {total:,} bytes expected: it was thrown away")


def extent(headers: Message, remote: Remote) -> tuple[int, int]:
    """Where in the file the answer begins, and how many bytes the file has; a host need not say."""
    if found := re.fullmatch(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15})", headers.get("Content-Range", "")):
        return int(found[1]), int(found[2])
    length = headers.get("Content-Length", "")  # a host that knows no ranges sends everything anew
    return 0, int(length) if re.fullmatch(r"[0-9]{1,15}", length) else remote.size


def append(file: BinaryIO, block: bytes, part: Path) -> None:
    """Write the block; when the disk is full, give back what the half download took."""
    try:
        while block:
            block = block[file.write(block) :]
    except OSError as error:
        file.truncate(0)
        raise cannot_write(part, error) from error


def check(remote: Remote, part: Path) -> None:
    """Raise ValueError, and throw the download away, when it is not the file that was expected."""
    digest = hashlib.md5(usedforsecurity=False)  # the only checksum that was ever published for these files
    with open(part, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if came(part) == remote.size and remote.md5 in (None, digest.hexdigest()):
        return
    size = came(part)
    part.unlink()
    raise ValueError(
        f"{remote.url} came with {size:,} bytes and the md5 {digest.hexdigest()}, "
        f"expected {remote.size:,} and {remote.md5 or 'any'}: it was thrown away"
    )
