"""Damage and forge files of every kind that qlab reads, and see that nothing worse comes of it than an error in words.

    python tools/fuzz_files.py --seconds 60 --seed 0
    python tools/fuzz_files.py --seconds 60 --seed 7 --kinds networks images

Each file is a valid one with a few changes: bits, cuts, pieces twice, other values in a header (whose checksums are then
made anew), other shapes, other opcodes. Each is read in a child process of its own, in bounded memory and time. Allowed is
the right answer, and a ValueError or an OSError that names the file; all else is a finding, and kept in --keep.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import pickletools
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from safetensors.torch import save as safetensors_of
from torch import nn

import qlab
from qlab import models
from qlab.data import copies
from qlab.data.official import read_batch
from qlab.export import calls, checks
from qlab.files import read_tensors

MEMORY = 1 << 30  # bytes that one file may take, beyond what Python, torch and qlab have taken before
SECONDS = 20  # of computing that one file may take
X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
VALUES = (
    0, 1, -1, 2, 7, 255, 256, 65_536, 10**9, 2**31, 2**63, -(2**63), 10**30, 0.0, 1.5, -0.5, 1e-40, 1e300, float("nan"),
    float("inf"), True, False, None, "", "x", "__init__", "Linear", "Transformer", "weight", "../x", "é", [], {}, [[]], [0],
    [1, 1], [10**6] * 3, {"input": 0}, {"input": 99}, "0 or __import__('os').system('touch evil')", "9" * 5000,
)  # fmt: skip


# --- Changes


def damaged(data: bytes, dice: random.Random) -> bytes:
    """The bytes with one to four of the changes that disks, networks and editors make."""
    data = bytearray(data)
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        if not data:
            return b""
        place, length = dice.randrange(len(data)), dice.choice([1, 2, 4, 8, 64, 512])
        change = dice.randrange(7)
        if change <= 1:
            data[place] ^= 1 << dice.randrange(8)
        elif change == 2:
            data[place : place + length] = dice.randbytes(length)
        elif change == 3:
            data[place : place + length] = bytes([dice.choice([0, 255, 127, 128])]) * length
        elif change == 4:
            del data[place:]
        elif change == 5:
            del data[place : place + length]
        else:
            data[place:place] = data[place : place + length] * dice.choice([1, 2, 100])
    return bytes(data)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The way to every value in a JSON object."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def edited(header: dict, dice: random.Random) -> dict:
    """The JSON object with one to three values changed, gone, doubled, swapped or called otherwise."""
    header = copy.deepcopy(header)
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        *way, last = dice.choice([place for place in places(header) if place] or [("x",)])
        parent = header
        for key in way:
            parent = parent[key]
        change = dice.randrange(8)
        if not isinstance(parent, (dict, list)) or (isinstance(parent, dict) and last not in parent):
            header["x"] = dice.choice(VALUES)
        elif change <= 3:
            parent[last] = copy.deepcopy(dice.choice(VALUES))
        elif change == 4:
            del parent[last]
        elif change == 5 and type(parent[last]) in (int, float):
            parent[last] += dice.choice([-1, 1, 0.5, 1000])
        elif isinstance(parent, list):
            parent.insert(dice.randrange(len(parent) + 1), copy.deepcopy(parent[last]))
        else:
            parent[dice.choice(["x", *map(str, parent)])] = parent[last]
    return header


def edited_tensors(tensors: dict, dice: random.Random) -> dict:
    """The tensors with one of them in another shape, type or name, gone, or with other numbers."""
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    name = dice.choice(sorted(tensors))
    tensor, change = tensors.pop(name), dice.randrange(8)
    if change == 0:
        tensors[dice.choice(["x", "99.weight", "1.bias", "0.weight", *tensors])] = tensor
    elif change == 1:
        tensors[name] = tensor.flatten()[: dice.randrange(tensor.numel() + 1)].clone()
    elif change == 2:
        tensors[name] = tensor.to(dice.choice([torch.int8, torch.uint8, torch.float64, torch.float16, torch.int64]))
    elif change == 3 and tensor.is_floating_point():
        tensors[name] = tensor * dice.choice([float("nan"), float("inf"), 0.0, -1.0, 1e30, 1e-30])
    elif change == 4:
        tensors[name] = tensor.unsqueeze(0).repeat(dice.choice([1, 2, 3]), *[1] * tensor.ndim)
    elif change == 5:
        tensors[name] = tensor.transpose(0, -1).contiguous() if tensor.ndim else tensor.reshape(1)
    elif change == 6:
        tensors[name] = tensor.flip(0) if tensor.ndim else tensor
    return tensors


def safetensors(tensors: dict, header: object, dice: random.Random) -> bytes:
    """A file as write_tensors makes it, of headers that it would refuse too."""
    words = json.dumps(header)
    if dice.random() < 0.05:
        words = dice.choice(
            ["[" * 10_000, '{"a":' * 3000, words.replace("{", '{"format": 2, ', 1), words[:-1], "3", ""]
        )
    return safetensors_of(tensors, {"qlab": words})


def repacked(data: bytes, dice: random.Random) -> bytes:
    """A safetensors file with changes in its own header: names, types, shapes, where the bytes are."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.dumps(edited(json.loads(data[8 : 8 + length]), dice)).encode()
    except ValueError:
        return damaged(data, dice)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


# --- What is read, and what is right


# Each kind is a function that writes a changed file into a folder, and gives what reads it, and its name in errors. What
# reads it raises AssertionError where the answer is not the right one.
Case = tuple[Callable[[], None], str]


class Net(nn.Module):
    """Every kind of step: convolutions, an addition, pooling, concatenation, a linear layer, layers in float."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.act, self.pool, self.norm = nn.SiLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 8)
        self.more = nn.Sequential(nn.Conv2d(8, 8, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        x = self.pool(torch.cat([x, self.act(x) * 2.0], 1))
        return self.head(self.more(self.norm(x)))


def network_file() -> tuple[dict, dict]:
    """(tensors, header) of a small integer network."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = qlab.save(qlab.ptq(Net().eval(), [X], engine="reference"), Path(folder) / "x")
        tensors, header = read_tensors(path)
        return {name: tensor.clone() for name, tensor in tensors.items()}, header


def networks(folder: Path, dice: random.Random) -> Case:
    """Saved integer networks, of format 2 and 1. Right: saved again, they are the same file, and they run."""
    tensors, header = SEEDS["network"]
    path, forged = folder / "net.safetensors", dice.random() < 0.7
    if forged:
        header = edited(header, dice) if dice.random() < 0.7 else copy.deepcopy(header)
        tensors = edited_tensors(tensors, dice) if dice.random() < 0.4 else tensors
        if dice.random() < 0.3:
            header["format"], header["inner"] = 1, header.pop("fusible", [])
            header.pop("sha256", None)
            for layer in header.get("layers") or ():
                if isinstance(layer, list) and len(layer) == 3 and isinstance(layer[2], dict):
                    layer[2].pop("bias", None)
        else:
            with contextlib.suppress(Exception):
                header["sha256"] = checks.digest(header, tensors)
    data = safetensors(tensors, header, dice)
    if not forged or dice.random() < 0.1:
        data = dice.choice([damaged, damaged, repacked])(data, dice)
    path.write_bytes(data)
    engine = dice.choice(["reference", "reference", "auto"])

    def read() -> None:
        network = qlab.load(path, engine)
        found, said = read_tensors(path)
        again, said_again = read_tensors(qlab.save(network, folder / "again.safetensors"))
        for each in (said, said_again):
            each.update(format=2, sha256="", fusible=each.pop("inner", each.get("fusible")))
            for layer in each["layers"]:
                layer[2].pop("bias", None) if "bits" in layer[2] else None
        assert sorted(found) == sorted(again) and all(torch.equal(found[name], again[name]) for name in found)
        said["layers"], said_again["layers"] = (_given(each["layers"], said["layers"]) for each in (said, said_again))
        assert json.dumps(said, sort_keys=True) == json.dumps(said_again, sort_keys=True)
        x = torch.linspace(-1, 1, 2 * int(np.prod(said["input_shape"]))).reshape(2, *said["input_shape"])
        with contextlib.suppress(ValueError):  # NaN on the way: a forged float layer may give it
            assert network(x).dtype is torch.float32

    return read, str(path)


def _given(layers: list, asked: list) -> list:
    """The layers, those of torch.nn with no other arguments than the file gave: the others have their defaults."""
    given = copy.deepcopy(layers)
    for layer, other in zip(given, asked):
        if layer[0] == "float" and "class" in layer[2]:
            names = other[2]["arguments"]
            layer[2]["arguments"] = {n: v for n, v in layer[2]["arguments"].items() if n in names}
    return given


ARGUMENTS = (
    0, 1, -1, 2, 3, 4, 8, -2, 64, 1000, 2**31, 0.5, 2.0, -1.0, 1e-6, 1e30, True, False, None, "mean", "nearest", "bilinear",
    "reflect", "ij", "b c h w -> b h w c", "shape", "mT", {"input": 0}, {"input": 1}, {"input": 7}, {"ellipsis": True},
    {"slice": [None, 3, None]}, {"slice": [1, None, 2]}, {"slice": [None, None, -1]}, {"slice": [5, 2, None]}, {"infinity": -1},
    {"dtype": "int64"}, {"dtype": "bool"}, {"dtype": "float64"}, {"tuple": [0, 1]}, {"tuple": [2, 8, 8]}, [1, 2], [0, 2, 1], [-1],
    [2, 2], [10**6, 10**6], {"dict": {"dim": 1}}, {"tuple": [{"input": 0}, {"input": 0}]}, [{"input": 0}, {"input": 0}],
)  # fmt: skip
KEYWORDS = (
    "dim axis keepdim size shape start end step mode value scale_factor align_corners eps weight bias input dtype inplace out "
    "device dims shifts other approximate is_causal ord p correction diagonal num_classes padding stride groups descending"
).split()


def steps(folder: Path, dice: random.Random) -> Case:
    """Saved networks with other calls in float. Right: what is let through runs, is saved again as the same file, and is
    written as ONNX that answers alike, or refused by a ValueError."""
    tensors, header = SEEDS["steps"][dice.randrange(len(SEEDS["steps"]))]
    header, path = copy.deepcopy(header), folder / "net.safetensors"
    called = [place for place, layer in enumerate(header["layers"]) if {"function", "method"} & layer[2].keys()]
    for place in dice.sample(called, min(len(called), dice.choice([0, 1, 1, 1, 2]))):
        _change_call(header["layers"][place][2], dice)
        if dice.random() < 0.1:
            reads = header["steps"][place][1]
            reads.append(dice.randrange(place + 1))
    header["sha256"] = checks.digest(header, tensors)
    path.write_bytes(safetensors_of(tensors, {"qlab": json.dumps(header)}))

    def read() -> None:
        network = qlab.load(path, "reference")
        _, again = read_tensors(qlab.save(network, folder / "again.safetensors"))
        for one, other in zip(header["layers"], again["layers"]):
            sides = [{**layer[2], "keywords": layer[2].get("keywords") or {}} for layer in (one, other)]
            assert one[:2] == other[:2] and sides[0] == sides[1], f"saved again, {one} is {other}"
        answers = {}
        for batch in (2, 3):
            x = torch.linspace(-1, 1, batch * int(np.prod(header["input_shape"]))).reshape(
                batch, *header["input_shape"]
            )
            with contextlib.suppress(ValueError):  # NaN on the way
                answers[x] = network(x)
        try:
            written = qlab.save_onnx(network, folder / "net.onnx")
        except ValueError:
            return
        session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
        for x, answer in answers.items():
            given = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
            both = answer.isfinite() & given.isfinite() if given.shape == answer.shape else None
            assert both is not None, f"ONNX gives {tuple(given.shape)}, the network {tuple(answer.shape)}"
            assert qlab.analysis.sqnr(answer[both], given[both]) > 20, "ONNX gives something else"

    return read, str(path)


def _change_call(options: dict, dice: random.Random) -> None:
    """Another function or method, or another argument, more or fewer of them, other keywords."""
    change = dice.randrange(6)
    if change <= 1:
        options.pop("function", None), options.pop("method", None)
        kind = dice.choice(["function", "method"])
        options[kind] = dice.choice(sorted(calls.METHODS if kind == "method" else calls.FUNCTIONS))
        options.setdefault("keywords", {})
    elif change <= 3 and options["arguments"]:
        options["arguments"] = edited_arguments(options["arguments"], dice)
    elif change == 4:
        options["arguments"].insert(dice.randrange(len(options["arguments"]) + 1), dice.choice(ARGUMENTS))
    else:
        keywords = options.setdefault("keywords", {})
        keywords[dice.choice([*KEYWORDS, *keywords])] = dice.choice(ARGUMENTS)
    if dice.random() < 0.2 and len(options["arguments"]) > 1:
        options["arguments"].pop()


def edited_arguments(arguments: list, dice: random.Random) -> list:
    """With one value anywhere in them replaced."""
    arguments = copy.deepcopy(arguments)
    *way, last = dice.choice([place for place in places(arguments) if place])
    parent = arguments
    for key in way:
        parent = parent[key]
    if isinstance(parent, dict) and type(parent[last]) is int and dice.random() < 0.5:
        parent[last] += dice.choice([-1, 1])
    else:
        parent[last] = copy.deepcopy(dice.choice(ARGUMENTS))
    return arguments


def step_files() -> list[tuple[dict, dict]]:
    """(tensors, header) of networks whose float steps are calls of all kinds: those of the tests."""
    from steps import STEPS, Step, X

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS.values():
            network = qlab.ptq(Step(step).eval(), [X], qlab.QConfig.w8a8(reduce_range=True), engine="reference")
            tensors, header = read_tensors(qlab.save(network, Path(folder) / "x"))
            found.append(({name: tensor.clone() for name, tensor in tensors.items()}, header))
    return found


def checkpoints(folder: Path, dice: random.Random) -> Case:
    """Weight files, for which a manifest vouches. Right: the tensors are those that the file says."""
    tensors, header = SEEDS["checkpoint"]
    path = folder / "vgg-shapes10.safetensors"
    forged = dice.random() < 0.5
    data = safetensors(edited_tensors(tensors, dice) if forged else tensors, header, dice)
    if not forged:
        data = dice.choice([damaged, repacked])(data, dice)
    path.write_bytes(data)
    vouched = dice.random() < 0.8  # the forger has changed the manifest too
    known = hashlib.sha256(data).hexdigest() if vouched else SEEDS["sha256"]
    (folder / "manifest.json").write_text(json.dumps({"vgg-shapes10": {"file": path.name, "sha256": known}}))

    def read() -> None:
        models.FOLDER = folder
        state = models.load("vgg", "shapes10").state_dict()
        found = read_tensors(path)[0]
        assert all(
            name in found or name.endswith("num_batches_tracked") for name in state
        )  # which eval mode never reads
        assert all(torch.equal(state[name], found[name].to(state[name].dtype)) for name in found)
        assert vouched or data == SEEDS["checkpoint bytes"]

    return read, str(folder)


def manifests(folder: Path, dice: random.Random) -> Case:
    """Manifests. Right: the entries are those that any reader of JSON finds, the weights the committed ones."""
    path = folder / "manifest.json"
    (folder / "vgg-shapes10.safetensors").symlink_to(SEEDS["vgg"])
    entries = SEEDS["manifest"]
    if dice.random() < 0.6:
        data = json.dumps(edited(entries, dice)).encode()
    else:
        data = damaged(json.dumps(entries).encode(), dice)
    path.write_bytes(data)

    def read() -> None:
        assert models.manifest(folder) == json.loads(data)
        weights = models.weights("vgg-shapes10", folder)
        assert all(torch.equal(weights[name], tensor) for name, tensor in SEEDS["checkpoint"][0].items())

    return read, str(folder)


PIECES = [
    b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R", b"c_codecs\nencode\nX\x02\x00\x00\x00abX\x08\x00\x00\x00punycode\x86R",
    b"r\xff\xff\xff\x7f", b"\x8a\xff" + b"\xff" * 255, b"cos\nsystem\nU\x04true\x85R", b"(I99999\nl", b"(]}tt", b"0", b"2", b"1",
    b"N" * 1000, b")" + b"\x86" * 50, b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"B\xff\xff\xff\xff", b"T\xff\xff\xff\x7f",
    b"K\x0b", b"K\xff", b"\x88", b"J\xff\xff\xff\xff", b"e", b"u", b"b", b".", b"}", b"]", b"(", b"t", b"R", b"a", b"s",
]  # fmt: skip


def batches(folder: Path, dice: random.Random) -> Case:
    """Official batches. Right: the arrays that Python's own unpickler gives, which sees only what was let through.

    It looks at the lengths of frames, which say nothing about the arrays: it gets the pickle without them. The one in
    Python, since the one in C takes 1.5 GB for a far place in its memo.
    """
    data = bytearray(dice.choice(SEEDS["batches"]))
    for _ in range(dice.choice([0, 1, 1, 2, 3])):  # mostly among the instructions, not among the pixels
        place = (
            dice.randrange(min(400, len(data))) if dice.random() < 0.7 else dice.randrange(len(data) - 200, len(data))
        )
        if dice.random() < 0.5:
            data[place:place] = dice.choice(PIECES)
        else:
            data[place : place + dice.choice([1, 2, 4])] = dice.choice(PIECES)
    data = damaged(bytes(data), dice) if dice.random() < 0.5 else bytes(data)
    (folder / "data_batch_1").write_bytes(data)

    def read() -> None:
        images, labels = read_batch(data, "data_batch_1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            places = [place for opcode, _, place in pickletools.genops(data) if opcode.name == "FRAME"]
            parts = [data[start:end] for start, end in zip([0, *(place + 9 for place in places)], [*places, len(data)])]
            batch = pickle._Unpickler(io.BytesIO(b"".join(parts)), encoding="bytes").load()
        assert np.array_equal(images, batch[b"data"]) and labels.tolist() == batch[b"labels"]

    return read, "data_batch_1"


def archives(folder: Path, dice: random.Random) -> Case:
    """Tar and zip archives. Right: the images of each split and class are those that were packed, in whatever order."""
    name = dice.choice(sorted(SEEDS["archives"]))
    data, path = SEEDS["archives"][name], folder / name
    if name.endswith((".tar.gz", ".tar.xz")) and dice.random() < 0.5:  # beneath the compression, which has a checksum
        module = gzip if name.endswith("gz") else lzma
        path.write_bytes(module.compress(headers_changed(module.decompress(data), dice)))
    elif name.endswith(".tar") and dice.random() < 0.5:
        path.write_bytes(headers_changed(data, dice))
    else:
        path.write_bytes(damaged(data, dice))
    right = SEEDS["classes"]

    def read() -> None:
        tensors, _ = copies.read_copy(path)
        assert classes_of(tensors) == right, "other images"

    return read, str(path)


def headers_changed(data: bytes, dice: random.Random) -> bytes:
    """A tar with changes in one header, whose checksum is then made anew: sizes, types, names, entries twice."""
    data = bytearray(data)
    for _ in range(dice.choice([1, 1, 2])):
        place = 512 * dice.randrange(len(data) // 512)
        if data[place + 257 : place + 262] != b"ustar":
            continue
        head = data[place : place + 512]
        change = dice.randrange(5)
        if change == 0:
            head[124:136] = dice.choice(
                [b"77777777777\0", b"00000000000\0", b"\x80" + b"\xff" * 11, b"00000001000\0", b"x" * 12]
            )
        elif change == 1:
            head[156:157] = dice.choice(
                [b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"D", b"\0"]
            )
        elif change == 2:
            head[:100] = dice.choice([b"../x", b"/etc/x", b"train/cat/0001.png", b"a" * 100, b"\xff\xfe"]).ljust(
                100, b"\0"
            )
        elif change == 3:
            head[dice.randrange(100)] ^= 1 << dice.randrange(8)
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        if change == 4:
            data[place:place] = data[place : place + 512 * dice.choice([1, 2, 5, 20])]
        else:
            data[place : place + 512] = head
    return bytes(data)


def classes_of(tensors: dict) -> dict:
    """Split and class -> its images, sorted; validation is a part of train."""
    found: dict = {}
    for split in ("train", "validation", "test"):
        for image, label in zip(tensors.get(f"{split}.images", ()), tensors.get(f"{split}.labels", ())):
            key = ("train" if split == "validation" else split, int(label))
            found.setdefault(key, []).append(image.numpy().tobytes())
    return {key: sorted(images) for key, images in found.items()}


def images(folder: Path, dice: random.Random) -> Case:
    """PNG and JPEG files. Right: for PNG, whose parts have checksums, what Pillow gives; JPEG has none, any 32x32 pixels."""
    kind = dice.choice(["PNG", "PNG", "JPEG"])
    data = SEEDS[kind]
    data = png_changed(data, dice) if kind == "PNG" and dice.random() < 0.5 else damaged(data, dice)
    (folder / "0001.png").write_bytes(data)

    def read() -> None:
        found, pixels = copies.decode(data, "0001.png")
        with Image.open(io.BytesIO(data)) as image:
            again = np.asarray(image.convert("RGB")).transpose(2, 0, 1).tobytes()
        assert pixels == again and len(pixels) == 3072 and found in ("PNG", "JPEG")
        assert found == "JPEG" or data != SEEDS["PNG"] or pixels == SEEDS["PNG pixels"]

    return read, "0001.png"


def png_changed(data: bytes, dice: random.Random) -> bytes:
    """A PNG with other parts, whose checksums are right: sizes, depths, pixels that end early, long comments."""
    parts, place = [], 8
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        parts.append([data[place + 4 : place + 8], data[place + 8 : place + 8 + length]])
        place += 12 + length
    part = dice.choice(parts)
    change = dice.randrange(5)
    if change == 0:
        size = dice.choice([0, 1, 31, 32, 33, 8000, 60_000, 2**31 - 1])
        parts[0][1] = struct.pack(">II", dice.choice([32, size]), size) + parts[0][1][8:]
    elif change == 1:
        parts[0][1] = (
            parts[0][1][:8] + bytes(dice.choice([0, 1, 2, 3, 4, 6, 8, 16, 255]) for _ in range(2)) + parts[0][1][10:]
        )
    elif change == 2:
        part[1] = damaged(part[1], dice)
    elif change == 3:
        parts.insert(dice.randrange(len(parts) + 1), [dice.choice([b"zTXt", b"iCCP", b"tRNS", b"PLTE", b"IDAT", b"acTL"]),
                     b"x\0\0" + zlib.compress(bytes(dice.choice([10, 10**6])))])  # fmt: skip
    else:
        parts.remove(part)
    out = data[:8]
    for kind, body in parts:
        out += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return out


KINDS = {kind.__name__: kind for kind in (networks, steps, checkpoints, batches, archives, images, manifests)}
SEEDS: dict = {}


def prepare_seeds() -> None:
    """The valid files that all others are made of."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from copies_of_cifar import encoded, image_files, official_files, python2_pickle, write_tar, write_zip

    SEEDS["network"], SEEDS["steps"] = network_file(), step_files()
    entry = models.manifest()["vgg-shapes10"]
    SEEDS["vgg"], SEEDS["manifest"], SEEDS["sha256"] = models.FOLDER / entry["file"], models.manifest(), entry["sha256"]
    tensors, header = read_tensors(SEEDS["vgg"])
    SEEDS["checkpoint"] = {name: tensor.clone() for name, tensor in tensors.items()}, header
    SEEDS["checkpoint bytes"] = SEEDS["vgg"].read_bytes()
    official = {name: data for name, data in official_files().items() if name.endswith("data_batch_5")}
    old = {name: data for name, data in official_files(python2_pickle).items() if name.endswith("data_batch_5")}
    four = official_files(lambda batch: pickle.dumps(batch, 4))
    SEEDS["batches"] = [*official.values(), *old.values(), four["cifar-10-batches-py/data_batch_5"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for suffix in (".tar", ".tar.gz", ".tar.xz", ".zip"):
            write = write_zip if suffix == ".zip" else write_tar
            write(folder / f"images{suffix}", image_files(top="cifar10/"))
            if suffix != ".tar":  # the pixels of official batches have no checksum of their own
                write(folder / f"official{suffix}", official_files(python2_pickle))
        with zipfile.ZipFile(folder / "deflated.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file, data in image_files().items():
                archive.writestr(file, data)
        SEEDS["archives"] = {path.name: path.read_bytes() for path in folder.iterdir()}
        SEEDS["classes"] = classes_of(copies.read_copy(folder / "images.tar")[0])
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    SEEDS["PNG"], SEEDS["JPEG"] = encoded(pixels, "PNG"), encoded(pixels, "JPEG")
    SEEDS["PNG pixels"] = pixels.transpose(2, 0, 1).tobytes()


# --- One file, one child


def outcome(read: Callable[[], None], name: str) -> str:
    """ "right", "refused", or what went wrong, in words."""
    try:
        read()
    except (ValueError, OSError) as error:
        unnamed = name not in str(error) or isinstance(error, UnicodeError)
        return f"an error without the file's name: {error!r:.300}" if unnamed or len(str(error)) > 2000 else "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}\n{traceback.format_exc()[-1500:]}"
    return "right"


def in_child(read: Callable[[], None], name: str) -> str:
    """The outcome, in a process that ends when it takes too much memory or time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(20 * SECONDS)  # where it waits, on a pipe for instance
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            words = outcome(read, name)
        os.write(writer, words.encode("utf-8", "replace")[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        words = said.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return words or f"ended with {status} without a word"


def fuzz(seconds: float, seed: int, kinds: list[str], keep: Path | None) -> dict[str, Counter]:
    """Changed files of these kinds in turn, for so long; how often each outcome was. Findings are said, and kept."""
    counts = {kind: Counter() for kind in kinds}
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        kind, dice = kinds[number % len(kinds)], random.Random(f"{seed} {number}")
        with tempfile.TemporaryDirectory(prefix="qlab-fuzz-") as name:
            read, shown = KINDS[kind](Path(name), dice)
            words = in_child(read, shown)
            counts[kind][words if words in ("right", "refused") else "findings"] += 1
            if words not in ("right", "refused"):
                print(f"{kind}, seed {seed}, file {number}: {words}\n", flush=True)
                if keep is not None:
                    kept = keep / f"{kind}-{seed}-{number}"
                    kept.mkdir(parents=True, exist_ok=True)
                    for file in Path(name).iterdir():
                        (kept / file.name).write_bytes(file.read_bytes())
        number += 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--keep", type=Path, help="a folder for the files of the findings")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    prepare_seeds()
    qlab.int8.engines.choose()  # once, not in every child
    counts = fuzz(args.seconds, args.seed, args.kinds, args.keep)
    for kind, count in counts.items():
        print(f"{kind:12} {count.total():6} files: {count['right']} right, {count['refused']} refused, "
              f"{count['findings']} findings")  # fmt: skip
    return 1 if any(count["findings"] for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
