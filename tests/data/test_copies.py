"""CIFAR-10 from every kind of copy; what is wrong with a copy is said, and leaves nothing behind."""

from __future__ import annotations

import errno
import gzip
import os
import pickle
import struct
import tarfile
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from copies_of_cifar import (
    COUNT,
    class_images,
    encoded,
    image_files,
    official_files,
    python2_pickle,
    serve,
    write_folder,
    write_tar,
    write_zip,
)
from PIL import Image

from qlab.data import Available, at_hand, available, cifar, cifar10, copies, store
from qlab.data.copies import read_copy
from qlab.data.official import CLASSES
from qlab.files import read_tensors, write_tensors

home = cifar
REAL_REMOTES = home.REMOTES


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch) -> Path:
    """An empty data folder, no copy named, and no way out to the net."""
    monkeypatch.setenv("QLAB_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("QLAB_CIFAR10", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(home, "REMOTES", ())
    return tmp_path / "data"


@pytest.fixture
def named(monkeypatch):
    """Lets QLAB_CIFAR10 name a copy."""
    return lambda path: monkeypatch.setenv("QLAB_CIFAR10", str(path)) or path


def kept(folder: Path) -> list[str]:
    """What is in the data folder, but for the lock."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") if folder.exists() else []


def expected(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What every lossless copy has to give: classes in order, validation half of so small a train/."""
    half = COUNT["train"] // 2
    part = {"train": slice(0, half), "validation": slice(half, None), "test": slice(None)}[split]
    classes = [class_images("test" if split == "test" else "train", label)[part] for label in range(10)]
    images = torch.from_numpy(np.concatenate(classes)).permute(0, 3, 1, 2)
    return images, torch.arange(10).repeat_interleave(len(classes[0]))


# --- every form of a copy

FORMS = {
    "folder": lambda p: write_folder(p / "mine", image_files()),
    "folder in a folder": lambda p: write_folder(p / "mine", image_files(top="cifar10/")),
    "official folder": lambda p: write_folder(p / "mine", official_files()),
    "official folder itself": lambda p: write_folder(p / "mine", official_files()) / "cifar-10-batches-py",
    "tar": lambda p: write_tar(p / "a.tar", image_files()),
    "tar.gz": lambda p: write_tar(p / "a.tar.gz", image_files(top="cifar10/")),
    "tgz": lambda p: write_tar(p / "a.tgz", image_files(top="./")),
    "tar.xz": lambda p: write_tar(p / "a.tar.xz", image_files(top="deep/er/")),
    "zip": lambda p: write_zip(p / "a.zip", image_files(top="cifar10/")),
    "official tar.gz": lambda p: write_tar(p / "b.tar.gz", official_files()),
    "official zip": lambda p: write_zip(p / "b.zip", official_files(top="x/")),
    "official, Python 2": lambda p: write_tar(p / "b.tar", official_files(python2_pickle)),
    "official, protocol 4": lambda p: write_tar(p / "b.tar", official_files(lambda batch: pickle.dumps(batch, 4))),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_copy_gives_the_same_images(form, tmp_path, named, data):
    named(FORMS[form](tmp_path))
    for split in ("train", "validation", "test"):
        some = cifar10(split)
        images, labels = expected(split)
        assert torch.equal(some.images, images) and torch.equal(some.labels, labels)
        kind = "official archive" if "official" in form else "PNG copy"
        assert some.source == f"CIFAR-10, {kind}, 80 of 60,000 images"
        assert (some.split, some.classes) == (split, CLASSES)
    assert len(kept(data)) == 1


def test_jpeg_and_mixed_copies_are_called_so(tmp_path):
    jpeg, source = read_copy(write_folder(tmp_path / "jpeg", image_files(("JPEG",))))
    assert source == "CIFAR-10, JPEG copy, 80 of 60,000 images"
    error = (jpeg["test.images"].float() - expected("test")[0].float()).abs().mean()
    assert 0 < error < 10  # smooth images survive JPEG, but not exactly
    _, source = read_copy(write_folder(tmp_path / "mixed", image_files(("JPEG", "PNG"))))
    assert source == "CIFAR-10, mixed copy (40 PNG, 40 JPEG), 80 of 60,000 images"


def test_a_whole_copy_holds_out_250_of_each_class_and_has_no_number_in_its_name(tmp_path, monkeypatch):
    blank = encoded(np.zeros((32, 32, 3), np.uint8), "PNG")
    files = {
        f"{s}/{name}/{i:03}.png": blank for s, n in (("train", 600), ("test", 1)) for name in CLASSES for i in range(n)
    }
    monkeypatch.setattr(copies, "decode", lambda data, what: ("PNG", bytes(3072)))
    monkeypatch.setattr(copies, "TOTAL", {"train": 6000, "test": 10})
    tensors, source = read_copy(write_zip(tmp_path / "a.zip", files))
    assert {name: len(t) for name, t in tensors.items() if "labels" in name} == {
        "train.labels": 3500,
        "validation.labels": 2500,
        "test.labels": 10,
    }
    assert source == "CIFAR-10, PNG copy"


def test_images_of_a_folder_are_sorted_by_file_name_whatever_their_kind(tmp_path, named):
    root = named(write_folder(tmp_path / "mixed", image_files(("PNG", "JPEG"))))
    by_name = [sorted((root / "train" / name).iterdir()) for name in CLASSES]
    plain = np.stack([np.asarray(Image.open(file).convert("RGB")) for files in by_name for file in files[:3]])
    assert torch.equal(cifar10("train").images, torch.from_numpy(plain).permute(0, 3, 1, 2))


def test_grey_and_palette_images_become_red_green_blue(tmp_path):
    files = image_files()
    grey = np.full((32, 32), 77, np.uint8)
    files["test/cat/0000.png"] = encoded(grey, "PNG")
    tensors, _ = read_copy(write_zip(tmp_path / "a.zip", files))
    assert (tensors["test.images"][6] == 77).all()


def test_files_that_are_no_images_are_passed_over(tmp_path):
    extra = {
        "labels.txt": b"x",
        "train/cat/notes.txt": b"x",
        "__MACOSX/train/cat/._0000.png": b"x",
        "train/cow/1.png": b"x",
    }
    tensors, _ = read_copy(write_zip(tmp_path / "a.zip", image_files() | extra))
    assert torch.equal(tensors["test.images"], expected("test")[0])


# --- decoded once


def test_a_copy_is_decoded_once_and_then_mapped(tmp_path, named, monkeypatch, capsys):
    named(write_zip(tmp_path / "a.zip", image_files()))
    cifar10("test")
    assert "CIFAR-10: decoding" in capsys.readouterr().out
    monkeypatch.setattr(store, "read_copy", lambda path: pytest.fail("decoded twice"))
    some = cifar10("test")
    assert capsys.readouterr().out == ""
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(store.stored(tmp_path / "a.zip")) in maps.read_text()
    some.images[0] = 0  # a mapping is private: nobody else sees this
    assert torch.equal(cifar10("test").images, expected("test")[0])


def test_a_copy_that_changed_is_decoded_anew_and_the_old_one_goes(tmp_path, named, data):
    path = named(write_zip(tmp_path / "a.zip", image_files()))
    cifar10("test")
    before = kept(data)
    (data / f"{before[0]}.123.part").write_bytes(b"half")  # of a process that was killed
    os.utime(path, ns=(1, 1))
    cifar10("test")
    assert len(kept(data)) == 1 and kept(data) != before


def test_a_folder_that_got_another_image_is_decoded_anew(tmp_path, named):
    root = named(write_folder(tmp_path / "mine", image_files()))
    assert len(cifar10("test")) == 20
    for name in CLASSES:
        (root / "test" / name / "9999.png").write_bytes(encoded(np.zeros((32, 32, 3), np.uint8), "PNG"))
        os.utime(root / "test" / name, ns=(1, 1))  # file systems tell time in steps
    assert len(cifar10("test")) == 30


def test_two_copies_are_kept_side_by_side(tmp_path, named, data):
    for kind in ("PNG", "JPEG"):
        named(write_zip(tmp_path / f"{kind}.zip", image_files((kind,))))
        assert kind in cifar10("test").source
    assert len(kept(data)) == 2


def test_of_several_that_come_first_at_once_one_decodes(tmp_path, named, monkeypatch):
    named(write_zip(tmp_path / "a.zip", image_files()))
    decoded, real = [], store.read_copy
    monkeypatch.setattr(store, "read_copy", lambda path: decoded.append(path) or real(path))
    sizes: list[int] = []
    threads = [threading.Thread(target=lambda: sizes.append(len(cifar10("test")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [20] * 4 and len(decoded) == 1


def test_a_damaged_decoded_file_says_what_to_do(tmp_path, named, data):
    named(write_zip(tmp_path / "a.zip", image_files()))
    cifar10("test")
    file = data / kept(data)[0]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"is damaged.*Delete {file}: it will be decoded again"):
        cifar10("test")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda tensors, header: header.clear(), "holds test.images, .*: expected decoded images"),
        (lambda tensors, header: tensors.pop("test.labels"), "holds test.images, .*: expected decoded images"),
        (lambda tensors, header: tensors.clear(), "holds nothing: expected decoded images"),
        (
            lambda tensors, header: tensors.update({"test.images": torch.zeros(20, 3, 9, 9).byte()}),
            "holds other tensors",
        ),
        (lambda tensors, header: tensors.update({"test.labels": torch.zeros(19).long()}), "holds other tensors"),
        (lambda tensors, header: tensors["test.labels"].fill_(10), "holds labels that are no class of CIFAR-10"),
    ],
)
def test_a_decoded_file_with_other_things_in_it_is_refused(tmp_path, named, data, change, words):
    named(write_zip(tmp_path / "a.zip", image_files()))
    cifar10("test")
    file = data / kept(data)[0]
    tensors, header = read_tensors(file)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors, header)
    write_tensors(file, tensors, header)
    with pytest.raises(ValueError, match=f"{file} {words}.* Delete {file}: it will be decoded again"):
        cifar10("test")


# --- what may be wrong with a copy

CAT = "train/cat/0003.png"


def without(prefix: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.startswith(prefix)}


def halved(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def bytes_of(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


class Evil:
    """A pickle that would run a command."""

    def __reduce__(self):
        return os.system, ("echo ran > evil",)


def plain_png(width: int, height: int) -> bytes:
    """A small file that is a large black image."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = (
        zlib.compress(bytes((width + 7) // 8 + 1)) if height > 10_000 else zlib.compress(bytes(width // 8 + 1) * height)
    )
    parts = (b"IHDR", head), (b"IDAT", rows), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def changed(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def twice(path: Path, other: Path) -> Path:
    """A tar with every file of the other one twice, the last one first."""
    with tarfile.open(other) as archive, tarfile.open(path, "w") as both:
        for member in [*reversed(archive.getmembers()), *archive.getmembers()]:
            both.addfile(member, archive.extractfile(member))
    return path


FAULTS = {
    "truncated image": (
        lambda p: write_tar(p / "a.tar", image_files() | {CAT: image_files()[CAT][:90]}),
        rf"{CAT} of .*a.tar is not a whole image .*: the copy is damaged, fetch it again",
    ),
    "truncated JPEG": (
        lambda p: write_folder(
            p / "a",
            image_files(("JPEG",)) | {"test/dog/0000.jpg": image_files(("JPEG",))["test/dog/0000.jpg"][:500]},
        ),
        r"a/test/dog/0000.jpg of .* is not a whole image \(.*[tT]runcated",
    ),
    "empty image": (
        lambda p: write_folder(p / "a", image_files() | {CAT: b""}),
        "0003.png of .* is not a whole image",
    ),
    "another format": (
        lambda p: write_folder(p / "a", image_files() | {CAT: encoded(np.zeros((32, 32, 3), np.uint8), "GIF")}),
        "0003.png of .* is not a whole image",
    ),
    "another size": (
        lambda p: write_zip(p / "a.zip", image_files() | {CAT: encoded(np.zeros((16, 24, 3), np.uint8), "PNG")}),
        "is 24x16 pixels: CIFAR-10 has images of 32x32",
    ),
    "8000x8000 pixels": (
        lambda p: write_zip(p / "a.zip", image_files() | {CAT: plain_png(8000, 8000)}),
        "0003.png of .* is 8000x8000 pixels: CIFAR-10 has images of 32x32",
    ),
    "a billion pixels": (
        lambda p: write_folder(p / "a", image_files() | {CAT: plain_png(40_000, 25_000)}),
        "0003.png of .* is far too large .*: CIFAR-10 has images of 32x32",
    ),
    "a wrong bit in a PNG file": (
        lambda p: write_folder(p / "a", image_files() | {CAT: changed(image_files()[CAT], 60)}),
        "0003.png of .* is not a whole image .its part at byte 33 is cut off or has a wrong checksum",
    ),
    "an image file of megabytes": (
        lambda p: write_tar(p / "a.tgz", image_files() | {CAT: image_files()[CAT] + bytes(1 << 20)}),
        "0003.png of .*a.tgz has more than 262,144 bytes: no file of CIFAR-10 does",
    ),
    "an image file of megabytes in a folder": (
        lambda p: write_folder(p / "a", image_files() | {CAT: image_files()[CAT] + bytes(1 << 20)}),
        "0003.png of .* has more than 262,144 bytes",
    ),
    "a name twice": (
        lambda p: twice(p / "a.tar", write_tar(p / "b.tar", image_files())),
        "a.tar holds 'train/airplane/0000.png' twice, and nothing says which one is meant: fetch",
    ),
    "a batch twice": (
        lambda p: twice(p / "a.tar", write_tar(p / "b.tar", official_files())),
        "a.tar holds 'cifar-10-batches-py/data_batch_1' twice",
    ),
    "more images than CIFAR-10 has": (
        lambda p: write_zip(
            p / "a.zip", dict.fromkeys((f"test/cat/{i}.png" for i in range(10_001)), image_files()[CAT])
        ),
        "a.zip has more than 10,000 images in test/: it is no CIFAR-10",
    ),
    "missing class": (
        lambda p: write_folder(p / "a", without("test/horse", image_files())),
        r"has no images of the class horse in test/: expected cifar-10-batches-py, or the folders train/",
    ),
    "empty folder": (
        lambda p: write_folder(p / "a", {"x": b""}),
        "has no images of the class airplane in train/",
    ),
    "fewer images": (
        lambda p: write_folder(p / "a", without(CAT, image_files())),
        "has 5 images in train/cat but 6 in train/airplane: expected as many in each class",
    ),
    "two copies": (
        lambda p: write_zip(p / "a.zip", image_files(top="a/") | image_files(top="b/")),
        "holds more than one copy of CIFAR-10: point at a single one",
    ),
    "two kinds of copies": (
        lambda p: write_zip(p / "a.zip", image_files() | official_files()),
        "holds more than one copy of CIFAR-10",
    ),
    "missing batch": (
        lambda p: write_zip(p / "a.zip", without("cifar-10-batches-py/data_batch_3", official_files())),
        "lacks data_batch_3 of cifar-10-batches-py: the copy is incomplete",
    ),
    "pickle with code": (
        lambda p: write_tar(p / "a.tar", official_files(lambda batch: pickle.dumps(batch | {b"x": Evil()}, 2))),
        r"data_batch_1 of .* is not an official CIFAR-10 batch \(it asks for \w+.system, which no",
    ),
    "truncated pickle": (
        lambda p: write_tar(p / "a.tar", official_files(lambda batch: pickle.dumps(batch, 2)[:1000])),
        "is not an official CIFAR-10 batch .*: fetch it again",
    ),
    "other pickle": (
        lambda p: write_tar(p / "a.tar", official_files(lambda batch: pickle.dumps([1, 2], 2))),
        "is not an official CIFAR-10 batch",
    ),
    "CIFAR-100 labels": (
        lambda p: write_tar(
            p / "a.tar",
            official_files(lambda batch: pickle.dumps(batch | {b"labels": [99] * len(batch[b"labels"])}, 2)),
        ),
        "has other arrays than an official CIFAR-10 batch: expected uint8 .N, 3072., labels 0 to 9",
    ),
    "other shape": (
        lambda p: write_tar(
            p / "a.tar",
            official_files(lambda batch: pickle.dumps(batch | {b"data": batch[b"data"][:, :100]}, 2)),
        ),
        "has other arrays than an official CIFAR-10 batch",
    ),
    "half a tar.gz": (
        lambda p: halved(write_tar(p / "a.tar.gz", image_files())),
        "a.tar.gz is damaged or incomplete .*: fetch it again",
    ),
    "half a tar.xz": (
        lambda p: halved(write_tar(p / "a.tar.xz", image_files())),
        "a.tar.xz is damaged or incomplete",
    ),
    "half a tar": (
        lambda p: halved(write_tar(p / "a.tar", image_files())),
        "a.tar (is damaged or incomplete|has)",
    ),
    "half a zip": (
        lambda p: halved(write_zip(p / "a.zip", image_files())),
        "a.zip is no folder and no tar or zip archive",
    ),
    "zip with a changed byte": (
        lambda p: bytes_of(
            p / "a.zip",
            write_zip(p / "b.zip", image_files()).read_bytes().replace(b"IDAT", b"IDAT"[::-1], 1),
        ),
        r"a.zip is damaged or incomplete \(Bad CRC-32",
    ),
    "gzip of something else": (
        lambda p: bytes_of(p / "a.tgz", gzip.compress(b"hello")),
        "a.tgz is no folder and no tar or zip",
    ),
    "a page instead of an archive": (
        lambda p: bytes_of(p / "a.tgz", b"<html>please log in"),
        "a.tgz is no folder and no tar or zip archive that can be opened: expected .tar, .tar.gz",
    ),
    "path upwards": (
        lambda p: write_tar(p / "a.tar", {"train/../../../etc/passwd": b"x"} | image_files()),
        r"holds 'train/../../../etc/passwd', a path out of its folder: no honest copy of CIFAR-10 does",
    ),
    "absolute path": (
        lambda p: write_tar(p / "a.tgz", {"/etc/passwd": b"x"}),
        "holds '/etc/passwd', a path out of its folder",
    ),
    "zip path upwards": (
        lambda p: write_zip(p / "a.zip", {"../x.png": b"x"}),
        "holds '../x.png', a path out of its folder",
    ),
    "Windows drive": (
        lambda p: write_zip(p / "a.zip", {"C:/x.png": b"x"}),
        "holds 'C:/x.png', a path out of its folder",
    ),
    "Windows path upwards": (
        lambda p: write_tar(p / "a.tar", {"a\\..\\x.png": b"x"}),
        "a path out of its folder",
    ),
    "link": (
        lambda p: write_tar(p / "a.tar", image_files(), {"train/cat/9.png": "/etc/passwd"}),
        "holds 'train/cat/9.png', a link or a device",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_copy_is_refused_in_words_and_leaves_nothing(fault, tmp_path, named, data, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a pickle's command would leave its mark
    make, words = FAULTS[fault]
    named(make(tmp_path))
    with pytest.raises(ValueError, match=words):
        cifar10("test")
    assert kept(data) == [] and not (tmp_path / "evil").exists()


def test_the_evil_pickle_of_these_tests_is_evil(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Evil(), 2))
    assert (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_of_every_kind_are_refused(tmp_path, kind):
    member = tarfile.TarInfo("train/cat/1.png")
    member.type, member.linkname = kind, "x"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member)
    with pytest.raises(ValueError, match="a link or a device"):
        read_copy(tmp_path / "a.tar")


def test_a_link_in_a_zip_is_refused(tmp_path):
    import zipfile

    info = zipfile.ZipInfo("train/cat/1.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="a link or a device"):
        read_copy(tmp_path / "a.zip")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other pipes")
def test_a_pipe_is_refused_and_in_a_folder_passed_over(tmp_path, named, data):
    os.mkfifo(tmp_path / "a.tar")
    named(tmp_path / "a.tar")
    with pytest.raises(OSError, match="a.tar is a pipe: expected an ordinary file"):
        cifar10("test")
    assert kept(data) == []
    root = named(write_folder(tmp_path / "mine", image_files()))
    os.mkfifo(root / "test" / "cat" / "9.png")
    assert len(cifar10("test")) == 20


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
def test_a_device_is_no_copy(named, data):
    named("/dev/zero")
    with pytest.raises(OSError, match="/dev/zero is a device: expected an ordinary file"):
        cifar10("test")
    assert kept(data) == []


def test_a_damaged_archive_that_was_fetched_says_how_to_have_it_fetched_anew(data, monkeypatch):
    monkeypatch.setattr(home, "REMOTES", (home.Remote("http://x/y", "cifar10.tgz", 1, "0" * 32),))
    data.mkdir()
    path = halved(write_tar(data / "cifar10.tgz", image_files()))
    words = f"cifar10.tgz is damaged or incomplete .*. Delete {path}, and the next call fetches CIFAR-10 anew"
    with pytest.raises(ValueError, match=words):
        cifar10("test")
    assert kept(data) == ["cifar10.tgz"]


def test_a_fault_leaves_the_cache_of_another_copy_as_it_is(tmp_path, named, data):
    named(write_zip(tmp_path / "good.zip", image_files()))
    cifar10("test")
    before = {name: (data / name).read_bytes() for name in kept(data)}
    named(halved(write_tar(tmp_path / "bad.tgz", image_files())))
    with pytest.raises(ValueError):
        cifar10("test")
    assert {name: (data / name).read_bytes() for name in kept(data)} == before


def test_an_unknown_split_is_named(tmp_path, named):
    named(write_zip(tmp_path / "a.zip", image_files()))
    with pytest.raises(ValueError, match="split 'val': expected one of 'train', 'validation', 'test'"):
        cifar10("val")


def test_a_copy_of_one_image_a_class_has_no_validation_split(tmp_path, named):
    files = {name: content for name, content in image_files().items() if name.endswith("0000.png")}
    named(write_zip(tmp_path / "a.zip", files))
    assert len(cifar10("train")) == 10
    with pytest.raises(ValueError, match="too few images for a validation split: expected 5,000 a class"):
        cifar10("validation")


@pytest.mark.parametrize("ask", [cifar10, at_hand, lambda split: available()])
def test_a_setting_that_points_nowhere_is_an_error_and_not_a_fallback(ask, named):
    named("/no/such/cifar.tgz")
    with pytest.raises(
        FileNotFoundError, match="QLAB_CIFAR10 is '/no/such/cifar.tgz', and there is no such file or folder"
    ):
        ask("test")


# --- a full disk


def test_a_disk_without_room_for_the_decoded_file_is_said(tmp_path, named, data, monkeypatch):
    named(write_zip(tmp_path / "a.zip", image_files()))
    monkeypatch.setattr(store.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(
        OSError, match="the disk is full: .*data needs 0 MB more and has 0 MB. Make room, or set QLAB_DATA"
    ) as caught:
        cifar10("test")
    assert caught.value.errno == errno.ENOSPC and kept(data) == []


def test_a_disk_that_becomes_full_while_the_file_is_written(tmp_path, named, data):
    resource = pytest.importorskip("resource", reason="a limit on the size of files stands in for the full disk")
    named(write_zip(tmp_path / "a.zip", image_files()))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(store.NoRoom, match="cannot write .*safetensors .*Make room, or set QLAB_DATA"):
            cifar10("test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept(data) == []
    assert len(cifar10("test")) == 20


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path, named, monkeypatch):
    named(write_zip(tmp_path / "a.zip", image_files()))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLAB_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(OSError, match="cannot keep images in .*file.data .*: set QLAB_DATA to another folder"):
        cifar10("test")


# --- where images are kept


def test_in_a_clone_images_are_kept_in_its_data_folder(monkeypatch):
    monkeypatch.delenv("QLAB_DATA")
    assert store.data_folder() == Path(__file__).parents[2] / "data"


@pytest.mark.parametrize(
    "platform, setting, place",
    [
        ("linux", {}, ".cache/qlab"),
        ("linux", {"XDG_CACHE_HOME": "/var/x"}, "/var/x/qlab"),
        ("darwin", {}, "Library/Caches/qlab"),
        ("win32", {"LOCALAPPDATA": "/c/Local"}, "/c/Local/qlab"),
        ("win32", {}, "AppData/Local/qlab"),
    ],
)
def test_an_installed_package_keeps_them_in_the_users_cache(tmp_path, monkeypatch, platform, setting, place):
    for name in ("QLAB_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store, "__file__", str(tmp_path / "site-packages" / "qlab" / "data" / "store.py"))
    monkeypatch.setattr(store.sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert store.data_folder() == tmp_path / place


# --- which data set is at hand


def test_without_a_copy_the_lessons_run_on_shapes10_and_nothing_is_fetched(data, monkeypatch):
    monkeypatch.setattr(home, "fetch", lambda: pytest.fail("went to the net"))
    found = available()
    assert found.name == "shapes10" and f"no copy of CIFAR-10 in {data}" in found.found
    assert "QLAB_CIFAR10" in found.remedy
    assert not data.exists()
    assert at_hand("validation").source == "shapes10"
    assert [name.partition("-")[0] for name in kept(data)] == ["shapes10"]


def test_with_a_copy_they_run_on_it(tmp_path, named):
    path = named(write_zip(tmp_path / "a.zip", image_files()))
    assert available() == Available("cifar10", f"{path} (not decoded yet, which takes about 15 s once)")
    assert at_hand("test").source == "CIFAR-10, PNG copy, 80 of 60,000 images"
    assert available() == Available("cifar10", f"{path} (CIFAR-10, PNG copy, 80 of 60,000 images)")


def test_an_archive_in_the_data_folder_is_a_copy_too(data, monkeypatch):
    monkeypatch.setattr(home, "REMOTES", (home.Remote("http://x/y", "cifar-10-python.tar.gz", 1, "0" * 32),))
    data.mkdir()
    write_tar(data / "cifar-10-python.tar.gz", official_files())
    assert at_hand("test").source.startswith("CIFAR-10, official archive")


def test_the_archive_of_a_host_without_a_checksum_is_checked_in_the_data_folder_too(data, monkeypatch):
    monkeypatch.setattr(home, "REMOTES", (home.Remote("http://x/y", "cifar10.tgz", 1),))
    data.mkdir()
    write_tar(data / "cifar10.tgz", image_files())
    with pytest.raises(ValueError, match="it has 80 images, expected 60,000"):
        cifar10("test")
    assert kept(data) == ["cifar10.tgz"]


def test_a_copy_that_is_named_goes_before_one_in_the_data_folder(tmp_path, named, data, monkeypatch):
    monkeypatch.setattr(home, "REMOTES", (home.Remote("http://x/y", "cifar10.tgz", 1),))
    data.mkdir()
    write_tar(data / "cifar10.tgz", official_files())
    named(write_zip(tmp_path / "a.zip", image_files()))
    assert "PNG copy" in cifar10("test").source


# --- from the net


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """A PNG mirror without a checksum, one with it, and the official host, all on one server."""
    mirror = write_tar(tmp_path / "m.tgz", image_files(top="cifar10/")).read_bytes()
    official = write_tar(tmp_path / "o.tgz", official_files()).read_bytes()
    with serve({"/mirror": mirror, "/second": mirror, "/official": official}) as host:
        import hashlib

        def remote(name, content, md5=True):
            return home.Remote(
                f"{host.url}/{name}",
                f"{name}.tgz",
                len(content),
                hashlib.md5(content).hexdigest() if md5 else None,
            )

        monkeypatch.setattr(
            home,
            "REMOTES",
            (remote("mirror", mirror, False), remote("second", mirror), remote("official", official)),
        )
        monkeypatch.setattr(home, "WHOLE", 80)
        first = [
            home.hashlib.sha256(p.transpose(2, 0, 1).tobytes()).hexdigest()[:16]
            for p in (class_images("train", c)[0] for c in range(10))
        ]
        monkeypatch.setattr(home, "KNOWN", first)
        yield host


def asked(host) -> list[str]:
    return [path for path, _ in host.asked]


def test_the_first_host_that_has_it_is_taken_and_every_step_is_said(hosts, data, capsys):
    assert cifar10("test").source == "CIFAR-10, PNG copy, 80 of 60,000 images"
    assert asked(hosts) == ["/mirror"]
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said] == ["fetching", "decoding"]
    assert hosts.url + "/mirror" in said[0] and str(data) in said[0]
    cifar10("train")
    assert asked(hosts) == ["/mirror"]  # it is at hand now
    assert at_hand("train").source.startswith("CIFAR-10, PNG copy")


def test_a_host_that_fails_is_named_and_the_next_one_asked(hosts, data, capsys):
    hosts.files.pop("/mirror")
    hosts.files["/second"] = bytes(len(hosts.files["/second"]))
    assert cifar10("test").source == "CIFAR-10, official archive, 80 of 60,000 images"
    assert asked(hosts) == ["/mirror", "/second", "/official"]
    said = capsys.readouterr().out
    assert "CIFAR-10: not from 127.0.0.1" in said and "404" in said and "thrown away" in said
    assert [name for name in kept(data) if name.endswith("tgz")] == ["official.tgz"]


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"KNOWN": ["0" * 16] * 10},
            "its airplane, automobile, .*, truck images are not the official ones",
        ),
        ({"WHOLE": 60_000}, "it has 80 images, expected 60,000"),
    ],
)
def test_a_mirror_without_a_checksum_must_have_the_official_images(hosts, data, monkeypatch, capsys, change, words):
    import re

    for name, value in change.items():
        monkeypatch.setattr(home, name, value)
    monkeypatch.setattr(home, "REMOTES", (home.REMOTES[0], home.REMOTES[2]))
    assert "official archive" in cifar10("test").source
    assert re.search(words, capsys.readouterr().out)
    assert not (data / "mirror.tgz").exists() and len(kept(data)) == 2


def test_without_a_network_the_error_tells_the_three_ways_out(data, monkeypatch, capsys):
    monkeypatch.setattr(
        home,
        "REMOTES",
        tuple(
            replace(r, url=f"http://127.0.0.1:9/{r.file}")
            for r in (
                home.Remote("", "cifar10.tgz", 1000),
                home.Remote("", "cifar-10-python.tar.gz", 1000, "0" * 32),
            )
        ),
    )
    with pytest.raises(ConnectionError) as caught:
        cifar10("test")
    words = str(caught.value)
    for way_out in ("QLAB_CIFAR10", "connect to the internet", "qlab.data.shapes10()"):
        assert way_out in words
    assert "127.0.0.1:9/cifar10.tgz cannot be reached" in words and "cifar-10-python.tar.gz cannot be reached" in words
    assert kept(data) == []


def test_no_other_host_is_asked_when_the_disk_is_full(hosts, data, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(store.NoRoom, match="the disk is full"):
        cifar10("test")
    assert hosts.asked == [] and kept(data) == []


def test_a_half_download_is_kept_and_gone_on_with_in_the_next_call(hosts, data, monkeypatch):
    monkeypatch.setattr(home, "REMOTES", home.REMOTES[1:2])
    hosts.breaks_after = [1000] * 5
    with pytest.raises(ConnectionError, match="broke off after 5,000 of"):
        cifar10("test")
    assert kept(data) == ["second.tgz.part"] and available().name == "shapes10"
    assert "PNG copy" in cifar10("test").source
    assert hosts.asked[-1] == ("/second", "bytes=5000-")


def test_the_readme_of_the_data_folder_names_the_hosts_and_how_they_are_checked():
    text = (Path(__file__).parents[2] / "data" / "README.md").read_text("utf-8")
    for remote in REAL_REMOTES:
        assert remote.url in text and (remote.md5 or "a known one of each class bit for bit") in text
