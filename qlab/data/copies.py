"""Reads a copy of CIFAR-10 in whatever form it comes: folder, tar or zip; image files or official batches.

Nothing is unpacked to disk, nothing that a file says is executed, and no file is larger than what it should hold: a copy
may come from anybody.
"""

from __future__ import annotations

import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from qlab.data.archives import Entry, archive_entries, read_at_most
from qlab.data.official import CLASSES, MOST, read_batch
from qlab.files import AGAIN

TOTAL = {"train": 50_000, "test": 10_000}  # images of the whole CIFAR-10
HELD_OUT = 250  # images of each class, the last ones of train/, are the validation split
SUFFIXES = (".png", ".jpg", ".jpeg")
OFFICIAL = "cifar-10-batches-py"
BATCHES = {**{f"data_batch_{n}": "train" for n in range(1, 6)}, "test_batch": "test"}
MOST_IMAGE = 1 << 18  # bytes of an image file of 32x32 pixels, with whatever a camera or a program adds


def read_copy(path: Path) -> tuple[dict[str, Tensor], str]:
    """Every image of the copy of CIFAR-10 at ``path``, and which copy it is, in words.

    The dict holds "train.images" uint8 (N, 3, 32, 32) and "train.labels" int64 (N,), the same for
    "validation" and "test". A split is sorted by class, and in a class by file name or as the official
    batches have it. Raises ValueError when the archive is damaged or incomplete, or has entries that no data
    set needs.
    """
    found, total = Found(path), sum(TOTAL.values())
    with tqdm(desc="CIFAR-10", total=total, unit="img", delay=1, mininterval=0.5, leave=False) as bar:
        for name, read in folder_entries(path) if path.is_dir() else archive_entries(path):
            bar.update(found.take(name, read))
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
        self.names: set[str] = set()
        self.images: Counter[str] = Counter()  # how many there are of each split

    def take(self, name: str, read: Callable[[int], bytes]) -> int:
        """Read the entry if it belongs to CIFAR-10; how many images it had."""
        *top, split, folder, file = ["", "", *name.split("/")]
        image = file.lower().endswith(SUFFIXES) and not file.startswith(".")
        if image and split in TOTAL and folder in CLASSES:
            kind, pixels = decode(read(MOST_IMAGE), f"{name} of {self.path}")
            self.files.setdefault((split, folder), []).append((file, pixels))
            kinds = {kind: 1}
        elif folder == OFFICIAL and file in BATCHES:
            images, labels = read_batch(read(MOST), f"{name} of {self.path}")
            for label, class_name in enumerate(CLASSES):
                pixels = images[labels == label].tobytes()
                self.files.setdefault((BATCHES[file], class_name), []).append((file, pixels))
            self.batches.add(file)
            top, split, kinds = [*top, split], BATCHES[file], {OFFICIAL: len(labels)}
        else:
            return 0
        self.kinds.update(kinds)
        self.folders.add("/".join(top))
        self.images[split] += sum(kinds.values())
        self.refuse_surplus(name, split)
        self.names.add(name)
        return sum(kinds.values())

    def refuse_surplus(self, name: str, split: str) -> None:
        """Raise ValueError for a second copy, a second file of the same name, and more images than CIFAR-10 has."""
        if len(self.folders) > 1 or len(self.kinds) > 1 and self.batches:
            raise ValueError(f"{self.path} holds more than one copy of CIFAR-10: point at a single one")
        if name in self.names:
            raise ValueError(f"{self.path} holds {name!r} twice, and nothing says which one is meant: {AGAIN}")
        if self.images[split] > TOTAL[split]:
            raise ValueError(f"{self.path} has more than {TOTAL[split]:,} images in {split}/: it is no CIFAR-10")

    def count(self, split: str, name: str) -> int:
        """How many images of a class there are."""
        return sum(len(pixels) for _, pixels in self.files.get((split, name), ())) // (3 * 32 * 32)

    def check(self) -> None:
        """Raise ValueError unless every class is there, with as many images as the others."""
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
    """The format ("PNG" or "JPEG") and the pixels (3, 32, 32) of an image file, whose size is looked at first."""
    from PIL import Image  # here: `import qlab` does without it

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            size = image.size
            if size == (32, 32):
                if image.format == "PNG":
                    check_png(data)
                kind, pixels = "PNG" if image.format == "PNG" else "JPEG", np.asarray(image.convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{what} is far too large ({error}): CIFAR-10 has images of 32x32") from error
    except Exception as error:
        words = str(error) or type(error).__name__
        raise ValueError(f"{what} is not a whole image ({words}): the copy is damaged, fetch it again") from error
    if size != (32, 32):
        raise ValueError(f"{what} is {size[0]}x{size[1]} pixels: CIFAR-10 has images of 32x32")
    return kind, pixels.transpose(2, 0, 1).tobytes()


def check_png(data: bytes) -> None:
    """Raise ValueError where a checksum of the PNG file is wrong: Pillow does not look at those of the pixels."""
    place, kind = 8, b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        end = place + 8 + length
        if int.from_bytes(data[end : end + 4], "big") != zlib.crc32(data[place + 4 : end]) or end + 4 > len(data):
            raise ValueError(f"its part at byte {place} is cut off or has a wrong checksum")
        place = end + 4


# --- folders


def folder_entries(root: Path) -> Iterator[Entry]:
    """The files of the copy in ``root`` itself, or in a folder in it, as cifar10/train/cat/0001.png."""
    for folder in copy_folders(root):
        for file in sorted(folder.iterdir()):
            if file.is_file():
                yield file.relative_to(root.parent).as_posix(), lambda most, file=file: read_file(root, file, most)


def read_file(root: Path, file: Path, most: int) -> bytes:
    """The content of a file of the folder ``root``, if it has at most so many bytes."""
    with open(file, "rb") as opened:
        return read_at_most(opened, most, f"{file.relative_to(root.parent).as_posix()} of {root}")


def copy_folders(root: Path) -> list[Path]:
    """The folders under ``root`` that hold the files of a copy: classes, or official batches."""
    tops = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
    classes = [top / split / name for top in tops for split in TOTAL for name in CLASSES]
    official = [top for top in tops if top.name == OFFICIAL]
    return official + [folder for folder in classes if folder.is_dir()]
