"""Small copies of CIFAR-10 in every form in which it comes, and a host on this machine that serves them."""

from __future__ import annotations

import io
import pickle
import re
import struct
import tarfile
import threading
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from qlab.data.official import CLASSES

COUNT = {"train": 6, "test": 2}  # images of each class


def class_images(split: str, label: int) -> np.ndarray:
    """Smooth colours, of which JPEG keeps most: uint8 (COUNT, 32, 32, 3)."""
    random = np.random.default_rng([label, split == "test"])
    corners = random.integers(0, 256, (COUNT[split], 2, 2, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((32, 32), Image.Resampling.BILINEAR)) for c in corners])


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    """A PNG or JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def image_files(kinds: tuple[str, ...] = ("PNG",), top: str = "") -> dict[str, bytes]:
    """File name -> content; ``kinds`` take turns in each class."""
    return {
        f"{top}{split}/{name}/{index:04}.{kinds[index % len(kinds)].lower().replace('jpeg', 'jpg')}": encoded(
            image, kinds[index % len(kinds)]
        )
        for split in COUNT
        for label, name in enumerate(CLASSES)
        for index, image in enumerate(class_images(split, label))
    }


def official_files(dump=lambda batch: pickle.dumps(batch, protocol=2), top: str = "") -> dict[str, bytes]:
    """cifar-10-batches-py with the same images in the same order; the classes take turns."""
    files = {
        f"{top}cifar-10-batches-py/readme.html": b"<html>",
        f"{top}cifar-10-batches-py/batches.meta": b"not read",
    }
    for name, split, wanted in [
        *((f"data_batch_{n}", "train", [n - 1] if n < 5 else [4, 5]) for n in range(1, 6)),
        ("test_batch", "test", range(COUNT["test"])),
    ]:
        images = [class_images(split, label)[index] for index in wanted for label in range(10)]
        data = np.stack(images).transpose(0, 3, 1, 2).reshape(len(images), 3072)
        batch = {b"batch_label": name.encode(), b"labels": list(range(10)) * len(wanted), b"data": data}
        files[f"{top}cifar-10-batches-py/{name}"] = dump(batch)
    return files


def python2_pickle(batch: dict) -> bytes:
    """A batch as Python 2 and numpy 1 wrote it in 2009: byte strings, numpy.core.multiarray, align=0."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    data, out = batch[b"data"], b"\x80\x02}("
    out += text(b"batch_label") + text(batch[b"batch_label"])
    out += text(b"labels") + b"](" + b"".join(b"K" + bytes([label]) for label in batch[b"labels"]) + b"e"
    out += text(b"data") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    out += b"(K\x01" + b"".join(b"J" + struct.pack("<i", n) for n in data.shape) + b"\x86"
    out += b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    out += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return out + b"\x89" + text(data.tobytes()) + b"tbu."


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    """The files in a folder."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tar(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    """The files in a tar, compressed as the path says."""
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    """The files in a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


@dataclass
class Host:
    """A web server on the loopback: what it has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    ranges: bool = True  # does it know Range requests?
    says_length: bool = True
    wrong_start: bool = False
    breaks_after: list[int] = field(default_factory=list)  # bytes that each connection in turn sends before it breaks
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(files: dict[str, bytes], **habits):
    """A running :class:`Host`."""
    host = Host(files, **habits)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host.asked.append((self.path, self.headers["Range"]))
            if self.path not in host.files:
                self.send_error(404)
                return
            content, start = host.files[self.path], 0
            if host.ranges and (wanted := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")):
                start = int(wanted[1])
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                first = start + host.wrong_start
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            rest = content[start:]
            if host.says_length:
                self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            with suppress(ConnectionError):  # who asked may have gone
                self.wfile.write(rest[: host.breaks_after.pop(0) if host.breaks_after else None])

        def log_message(self, *args) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    host.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
