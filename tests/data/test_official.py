"""The official batches are read, and nothing that a pickle asks for is done."""

from __future__ import annotations

import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from copies_of_cifar import python2_pickle

from qlab.data import official
from qlab.data.official import read_batch

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3072)).astype(np.uint8)
BATCH = {b"batch_label": b"one", b"labels": list(range(10)) * 2, b"data": IMAGES, b"filenames": [b"x.png"] * 20}


def written(protocol: int, **changes) -> bytes:
    return pickle.dumps(BATCH | {name.encode(): value for name, value in changes.items()}, protocol)


@pytest.mark.parametrize(
    "data",
    [python2_pickle(BATCH), written(2), written(3), written(4), written(2, data=np.asfortranarray(IMAGES)),
     written(2).replace(b"q\x00", b"r\xff\xff\xff\x7f", 1)],
    ids=["Python 2", "protocol 2", "protocol 3", "protocol 4", "by columns", "a place far off in the memo"],
)  # fmt: skip
def test_every_way_to_write_a_batch_gives_its_images_and_labels(data):
    assert pickle.loads(data, encoding="bytes")[b"labels"] == BATCH[b"labels"] if b"\xff\x7f" not in data else True
    images, labels = read_batch(data, "it")
    assert images.dtype == np.uint8 and np.array_equal(images, IMAGES)
    assert labels.dtype == np.int64 and labels.tolist() == BATCH[b"labels"]


def edited(old: bytes, new: bytes) -> bytes:
    data = python2_pickle(BATCH)
    assert data.count(old) == 1
    return data.replace(old, new)


def text(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value


STATE = b"(K\x03" + text(b"|") + b"NNN"
# A tuple of the same tuple twice, a hundred times: to be hashed it would be gone through 2**100 times.
PAIRS = b")" + b"q\x00h\x00\x86" * 100
OTHER = r"has other arrays than an official CIFAR-10 batch: expected uint8 \(N, 3072\), labels 0 to 9"
NONE = "is not an official CIFAR-10 batch"
FORGED = {
    "a type of pointers": (edited(text(b"u1"), text(b"O8")), OTHER),
    "uint8 whose state says pointers": (edited(STATE, b"(K\x03" + text(b"O") + b"NNN"), OTHER),
    "uint8 with fields": (edited(STATE, b"(K\x03" + text(b"|") + b"N" + text(b"a") + b"\x85}"), OTHER),
    "no state of the type": (edited(STATE + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb", b""), NONE),
    "punycode": (b"\x80\x02c_codecs\nencode\nX\x04\x00\x00\x00abcdX\x08\x00\x00\x00punycode\x86R.", "than latin1"),
    "a command": (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00trueq\x00\x85R.", r"it asks for os.system, which no copy"),
    "a command, protocol 4": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "it asks for os.system"),
    "a command, protocol 0": (b"ios\nsystem\n.", "it has the instruction INST, which no copy of CIFAR-10 needs"),
    "a class of its own": (b"\x80\x02cnumpy\ndtype\n)\x81.", "it has the instruction NEWOBJ"),
    "a reducer that is called again": (b"\x80\x02cnumpy\ndtype\n)R)R.", NONE),
    "a key that hashes for ever": (b"\x80\x02}(" + PAIRS + b"Ntu.", NONE),
    "a pair as a key": (b"\x80\x02}" + PAIRS + b"Ns.", "a key is no text"),
    "an extension": (b"\x80\x02\x82\x01.", "it has the instruction EXT1"),
    "no end": (b"\x80\x02]", NONE),
    "nothing": (b"", NONE),
    "a name from nowhere": (b"\x80\x02h\x07.", NONE),
    "a mark from nowhere": (b"\x80\x02t.", NONE),
    "too many instructions": (b"\x80\x02" + b"N" * 300_000 + b".", "it has more than 200,000 instructions"),
    "more rows than bytes": (edited(b"J\x14\0\0\0J\0\x0c\0\0", b"J\xff\xff\xff\x7fJ\0\x0c\0\0"), OTHER),
    "fewer bytes than rows": (written(2, labels=[1] * 21), OTHER),
    "floats": (written(2, data=IMAGES.astype(np.float32)), OTHER),
    "labels that are true": (written(2, labels=[True] * 20), OTHER),
    "labels below 0": (written(2, labels=[-1] * 20), OTHER),
    "labels of 70 bits": (written(2, labels=[1 << 70] * 20), NONE),
    "labels that are no list": (written(2, labels=3), OTHER),
    "a text for an array": (written(2, data=b"x"), NONE),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_batch_is_refused_and_does_nothing(kind):
    data, words = FORGED[kind]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"^batch 3 (is not|has other).*{words}|^batch 3 {words}"):
            read_batch(data, "batch 3")
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_a_batch_of_more_than_64_mb_is_refused(monkeypatch):
    monkeypatch.setattr(official, "MOST", 1000)
    with pytest.raises(ValueError, match="it has more than 1,000 bytes"):
        read_batch(written(2), "it")


def test_an_error_stays_short_whatever_the_file_says():
    with pytest.raises(ValueError) as caught:
        read_batch(b"S" + b"x" * 100_000 + b"\n.", "it")
    assert len(str(caught.value)) < 400
