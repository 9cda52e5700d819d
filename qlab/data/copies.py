"""Reads a copy of CIFAR-10 in whatever form it comes: folder, tar or zip; image files or official batches.

Nothing is unpacked to disk, and nothing that a file says is executed: entries that point out of their archive
are refused, and the official pickles (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images",
2009) are read by an unpickler that can build arrays, text and numbers only.
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import pickle
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TOTAL = {"train": 50_000, "test": 10_000}  # images of the whole CIFAR-10
HELD_OUT = 250  # images of each class, the last ones of train/, are the validation split
SUFFIXES = (".png", ".jpg", ".jpeg")
OFFICIAL = "cifar-10-batches-py"
BATCHES = {**{f"data_batch_{n}": "train" for n in range(1, 6)}, "test_batch": "test"}
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile)

Entry = tuple[str, Callable[[], bytes]]  # a file's name, and what reads it


def read_copy(path: Path) -> tuple[dict[str, Tensor], str]:
    """Every image of the copy of CIFAR-10 at ``path``, and which copy it is, in words.

    The dict holds "train.images" uint8 (N, 3, 32, 32) and "train.labels" int64 (N,), the same for
    "validation" and "test". A split is sorted by class, and in a class by file name or as the official
    batches have it. Raises ValueError when the archive is damaged or incomplete, or has entries that no data
    set needs.
    """
    found = Found(path)
    try:
        total = sum(TOTAL.values())
        with tqdm(desc="CIFAR-10", total=total, unit="img", delay=1, mininterval=0.5, leave=False) as bar:
            for name, read in entries(path):
                bar.update(found.take(name, read))
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}): fetch it again") from error
    found.check()
    tensors = {}
    for split in TOTAL:
        classes = [found.pixels(split, name) for name in CLASSES]
        held = min(HELD_OUT, len(classes[0]) // 2) if split == "train" else 0
        if held:
            tensors |= together("validation", [pixels[-held:] for pixels in classes])
        tensors |= together(split, [pixels[: len(pixels) - held] for pixels in classes])
    return tensors, found.source()


def together(split: str, classes: list[np.ndarray]) -> dict[str, Tensor]:
    """The images of all classes as one tensor, and their labels."""
    labels = [torch.full((len(pixels),), label) for label, pixels in enumerate(classes)]
    return {
        f"{split}.images": torch.from_numpy(np.concatenate(classes)),
        f"{split}.labels": torch.cat(labels),
    }


class Found:
    """What has been seen of a copy so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[tuple[str, str], list[tuple[str, bytes]]] = {}  # split, class -> file, its pixels
        self.kinds: Counter[str] = Counter()  # how many images were PNG, JPEG, official
        self.folders: set[str] = set()  # where train/ and test/ are; two places would mix two data sets
        self.batches: set[str] = set()

    def take(self, name: str, read: Callable[[], bytes]) -> int:
        """Read the entry if it belongs to CIFAR-10; how many images it had."""
        *top, split, folder, file = ["", "", *name.split("/")]
        image = file.lower().endswith(SUFFIXES) and not file.startswith(".")
        if image and split in TOTAL and folder in CLASSES:
            kind, pixels = decode(read(), f"{name} of {self.path}")
            self.files.setdefault((split, folder), []).append((file, pixels))
            kinds = {kind: 1}
        elif folder == OFFICIAL and file in BATCHES:
            images, labels = read_batch(read(), f"{name} of {self.path}")
            for label, class_name in enumerate(CLASSES):
                pixels = images[labels == label].tobytes()
                self.files.setdefault((BATCHES[file], class_name), []).append((file, pixels))
            self.batches.add(file)
            top, kinds = [*top, split], {OFFICIAL: len(labels)}
        else:
            return 0
        self.kinds.update(kinds)
        self.folders.add("/".join(top))
        return sum(kinds.values())

    def count(self, split: str, name: str) -> int:
        """How many images of a class there are."""
        return sum(len(pixels) for _, pixels in self.files.get((split, name), ())) // (3 * 32 * 32)

    def check(self) -> None:
        """Raise ValueError unless this is one copy, with every class and as many images in each."""
        if len(self.folders) > 1 or len(self.kinds) > 1 and self.batches:
            raise ValueError(f"{self.path} holds more than one copy of CIFAR-10: point at a single one")
        if self.batches and len(self.batches) < len(BATCHES):
            lacking = ", ".join(sorted(set(BATCHES) - self.batches))
            raise ValueError(f"{self.path} lacks {lacking} of {OFFICIAL}: the copy is incomplete, fetch it again")
        for split in TOTAL:
            counts = {name: self.count(split, name) for name in CLASSES}
            least, most = min(counts, key=counts.get), max(counts, key=counts.get)
            if counts[least] == 0:
                raise ValueError(
                    f"{self.path} has no images of the class {least} in {split}/: expected {OFFICIAL}, "
                    "or the folders train/ and test/ with PNG or JPEG files in a folder for each class "
                    f"({', '.join(CLASSES)})"
                )
            if counts[least] != counts[most]:
                raise ValueError(
                    f"{self.path} has {counts[least]} images in {split}/{least} but {counts[most]} in "
                    f"{split}/{most}: expected as many in each class. The copy is incomplete: "
                    "fetch or unpack it again"
                )

    def pixels(self, split: str, name: str) -> np.ndarray:
        """A class's images by file name, uint8 (N, 3, 32, 32); handed over, to need the memory once."""
        files = sorted(self.files.pop((split, name)))
        return np.frombuffer(b"".join(pixels for _, pixels in files), np.uint8).reshape(-1, 3, 32, 32)

    def source(self) -> str:
        """Which copy this is, in words that stand beside every accuracy measured on it."""
        png, jpeg, total = self.kinds["PNG"], self.kinds["JPEG"], sum(self.kinds.values())
        if self.batches:
            words = "official archive"
        elif png and jpeg:
            words = f"mixed copy ({png:,} PNG, {jpeg:,} JPEG)"
        else:
            words = "PNG copy" if png else "JPEG copy"
        whole = sum(TOTAL.values())
        return f"CIFAR-10, {words}" + (f", {total:,} of {whole:,} images" if total != whole else "")


def decode(data: bytes, what: str) -> tuple[str, bytes]:
    """The format ("PNG" or "JPEG") and the pixels (3, 32, 32) of an image file."""
    from PIL import Image  # here: `import qlab` does without it

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            kind, size, pixels = image.format, image.size, np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a broken file
        raise ValueError(f"{what} is not a whole image ({error}): the copy is damaged, fetch it again") from error
    if size != (32, 32):
        raise ValueError(f"{what} is {size[0]}x{size[1]} pixels: CIFAR-10 has images of 32x32")
    return kind, pixels.transpose(2, 0, 1).tobytes()


# --- the official batches: pickles, of which only arrays, text and numbers are let in


class Unpickler(pickle.Unpickler):
    """Builds numpy arrays and plain values; refuses a pickle that asks for more: it could run code."""

    def find_class(self, module: str, name: str) -> Callable:
        module = module.replace("numpy._core", "numpy.core")
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): lambda code, align, copy: np.dtype(code, align=bool(align), copy=bool(copy)),
            ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes in an old pickle
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no copy of CIFAR-10 needs")
        return allowed[module, name]


def read_batch(data: bytes, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3072), red, green, blue, and labels (N,) of one official batch."""
    try:
        batch = Unpickler(io.BytesIO(data), encoding="bytes").load()
        images, labels = batch[b"data"], np.asarray(batch[b"labels"], dtype=np.int64)
        fits = images.dtype == np.uint8 and images.shape == (len(labels), 3072) and labels.ndim == 1
    except Exception as error:  # noqa: BLE001: a damaged pickle can end in any of them
        raise ValueError(f"{what} is not an official CIFAR-10 batch ({error}): fetch it again") from error
    if not fits or len(labels) and not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise ValueError(
            f"{what} has other arrays than an official CIFAR-10 batch: expected uint8 (N, 3072), labels 0 to 9"
        )
    return images, labels


# --- folders and archives


def entries(path: Path) -> Iterator[Entry]:
    """The files in a folder, a tar or a zip, one after the other."""
    if path.is_dir():
        yield from folder_entries(path)
    elif zipfile.is_zipfile(path):
        yield from zip_entries(path)
    elif tarfile.is_tarfile(path):
        yield from tar_entries(path)
    else:
        raise ValueError(
            f"{path} is no folder and no tar or zip archive that can be opened: "
            "expected .tar, .tar.gz, .tgz, .tar.xz or .zip. If it was downloaded, fetch it again"
        )


def folder_entries(root: Path) -> Iterator[Entry]:
    """The files of the copy in ``root`` itself, or in a folder in it, as cifar10/train/cat/0001.png."""
    for folder in copy_folders(root):
        for file in sorted(folder.iterdir()):
            if file.is_file():
                yield file.relative_to(root.parent).as_posix(), file.read_bytes


def copy_folders(root: Path) -> list[Path]:
    """The folders under ``root`` that hold the files of a copy: classes, or official batches."""
    tops = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
    classes = [top / split / name for top in tops for split in TOTAL for name in CLASSES]
    official = [top for top in tops if top.name == OFFICIAL]
    return official + [folder for folder in classes if folder.is_dir()]


def tar_entries(path: Path) -> Iterator[Entry]:
    """The files in a tar, however it is compressed."""
    with tarfile.open(path) as archive:
        for member in archive:
            refuse_unsafe(path, member.name, link=not (member.isfile() or member.isdir()))
            if member.isfile():
                yield member.name, lambda member=member: archive.extractfile(member).read()


def zip_entries(path: Path) -> Iterator[Entry]:
    """The files in a zip."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            refuse_unsafe(path, info.filename, link=stat.S_ISLNK(info.external_attr >> 16))
            if not info.is_dir():
                yield info.filename, lambda info=info: archive.read(info)


def refuse_unsafe(path: Path, name: str, link: bool) -> None:
    """Raise ValueError for an entry that would reach out of the folder where the archive is unpacked."""
    outside = re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name)
    if link or outside:
        kind = "a link or a device" if link else "a path out of its folder"
        raise ValueError(f"{path} holds {name!r}, {kind}: no honest copy of CIFAR-10 does. Get it from another place")
