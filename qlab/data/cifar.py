"""CIFAR-10: 60,000 colour images of 32x32 pixels in ten classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from torch import Tensor

from qlab.data.dataset import Dataset
from qlab.data.download import Remote, download
from qlab.data.official import CLASSES
from qlab.data.shapes import shapes10_kept
from qlab.data.store import NoRoom, data_folder, decode_into, lock, open_stored, stored

WHOLE = 60_000  # images
SPLITS = ("train", "validation", "test")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# The first two hold the same images as PNG files. fast.ai publishes the md5 of the second one
# (fastai/data/checks.txt) but not of the first, which is smaller: that has to show known images.
# The last is the author's own, and slow.
REMOTES = (
    Remote("https://s3.amazonaws.com/fast-ai-imageclas/cifar10.tgz", "cifar10.tgz", 135_107_811),
    Remote(
        "https://s3.amazonaws.com/fast-ai-sample/cifar10.tgz",
        "cifar10-sample.tgz",
        168_168_549,
        "a5f8c31371b63a406b23368042812d3c",
    ),
    Remote(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "cifar-10-python.tar.gz",
        170_498_071,
        "c58f30108f718f92721af3b95e74349a",
    ),
)
# One image of each class of the official train/: the first 16 digits of the sha256 of its 3x32x32 bytes.
KNOWN = (
    "04150281f7c48086 e3476dc9938705d2 6ef454bc21ed42ff 03380462bd84f233 c952347b33c1f013 "
    "42876894841fe77d e052de7deb775f78 2d66d962e259f3ac 62b3e606cd58e25c 4f33c2fba21752ac"
).split()
WAYS_OUT = (
    "Three ways out: (1) set QLAB_CIFAR10 to a copy that you have, an archive or a folder; "
    "(2) connect to the internet and call qlab.data.cifar10() again, which fetches 135 MB; "
    "(3) use qlab.data.shapes10(), which needs neither"
)


def cifar10(split: str = "train") -> Dataset:
    """CIFAR-10's "train" (47,500 images), "validation" (2,500: 250 of each class) or "test" (10,000).

    It comes from the copy that ``QLAB_CIFAR10`` names (a folder, .tar, .tar.gz, .tgz, .tar.xz or .zip that
    holds train/<class>/ and test/<class>/ with PNG or JPEG files, or the official cifar-10-batches-py), else
    from the data folder, else from the net, which takes minutes. It is decoded once; ``source`` says which
    copy it is. Raises ValueError or OSError that say what is wrong with the copy, or how to get one.

    >>> cifar10("tests")
    Traceback (most recent call last):
    ValueError: split 'tests': expected one of 'train', 'validation', 'test'
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(map(repr, SPLITS))}")
    path = find_copy()
    if path is None or not stored(path).exists():
        with lock(data_folder()):  # another process may have done it meanwhile
            path = find_copy() or fetch()
            if not stored(path).exists():
                decode_found(path)
    tensors, source = open_stored(stored(path))
    if f"{split}.images" not in tensors:
        raise ValueError(f"{path} has too few images for a {split} split: expected 5,000 a class in train/")
    return Dataset(tensors[f"{split}.images"], tensors[f"{split}.labels"], CLASSES, source, split, MEAN, STD)


def at_hand(split: str = "train") -> Dataset:
    """CIFAR-10 when there is a copy of it here, else shapes10; ``source`` says which. Never goes to the net.

    >>> len(at_hand("test").classes)
    10
    """
    return cifar10(split) if find_copy() else shapes10_kept(split)


@dataclass(frozen=True)
class Available:
    """What :func:`at_hand` gives: its ``name``, where it was ``found``, a ``remedy`` if it is a stand-in."""

    name: str  # "cifar10" or "shapes10", as in qlab.models.load(..., data=name)
    found: str
    remedy: str = ""


def available() -> Available:
    """What :func:`at_hand` gives, not decoded yet. Raises FileNotFoundError when QLAB_CIFAR10 points nowhere.

    >>> available().name in ("cifar10", "shapes10")
    True
    """
    path = find_copy()
    if path is None:
        return Available("shapes10", f"no copy of CIFAR-10 in {data_folder()}: the lessons run on shapes10", WAYS_OUT)
    file = stored(path)
    what = open_stored(file)[1] if file.exists() else "not decoded yet, which takes about 15 s once"
    return Available("cifar10", f"{path} ({what})")


def find_copy() -> Path | None:
    """The copy of CIFAR-10 that is here: what QLAB_CIFAR10 names, else one in the data folder, else None."""
    if named := os.environ.get("QLAB_CIFAR10"):
        path = Path(named).expanduser()
        if not path.exists():
            raise FileNotFoundError(
                f"QLAB_CIFAR10 is {named!r}, and there is no such file or folder: "
                "let it name a copy of CIFAR-10, or unset it"
            )
        return path
    return next((path for remote in REMOTES if (path := data_folder() / remote.file).is_file()), None)


def fetch() -> Path:
    """Download CIFAR-10 from the first host that has it, and decode it, saying each step; the archive."""
    reasons = []
    for remote in REMOTES:
        folder = data_folder()
        print(f"CIFAR-10: fetching {remote.url} ({remote.size / 1e6:.0f} MB) into {folder}", flush=True)
        try:
            path = download(remote, folder)
            try:
                decode(path)
            except ValueError:
                path.unlink()
                raise
            return path
        except NoRoom:  # other hosts would not help
            raise
        except (ValueError, OSError) as error:
            print(f"CIFAR-10: not from {urlsplit(remote.url).netloc}: {error}", flush=True)
            reasons.append(f"- {error}")
    words = ["there is no copy of CIFAR-10 here, and none could be fetched:", *reasons, WAYS_OUT]
    raise ConnectionError("\n".join(words))


def decode_found(path: Path) -> None:
    """Decode the copy; where one that was fetched is damaged, say how to have it fetched anew."""
    try:
        decode(path)
    except ValueError as error:
        if path.parent != data_folder():
            raise
        raise ValueError(f"{error}. Delete {path}, and the next call fetches CIFAR-10 anew") from error


def decode(path: Path) -> None:
    """Decode the copy; one that was fetched without a checksum has to prove itself."""
    unproved = [data_folder() / remote.file for remote in REMOTES if remote.md5 is None]
    decode_into(stored(path), path, whole_and_official if path in unproved else None)


def whole_and_official(tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless these are 60,000 images, with the known ones among them bit for bit."""
    count = sum(len(tensor) for name, tensor in tensors.items() if name.endswith("labels"))
    if count != WHOLE:
        raise ValueError(f"it has {count:,} images, expected {WHOLE:,}")
    digests = set()
    for split in ("train", "validation"):
        images = tensors[f"{split}.images"].numpy()
        digests.update(hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in images)
    if lacking := [name for name, digest in zip(CLASSES, KNOWN) if digest not in digests]:
        raise ValueError(f"its {', '.join(lacking)} images are not the official ones: changed, or stored anew")
