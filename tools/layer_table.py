"""What becomes of each layer and operation: docs/layers.md, made by trying each of them.

    python tools/layer_table.py            # writes docs/layers.md
    python tools/layer_table.py --check    # says whether it is as it would be written

Each operation stands behind a convolution in a small network of its own, which is prepared, converted, saved, loaded and
written as ONNX. A test compares the file with what comes out.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import qlab
from qlab.graph.nodes import name_of
from qlab.graph.prepare import Prepared

FILE = Path(__file__).parents[1] / "docs" / "layers.md"
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ENOUGH = 20.0  # dB between the float and the integer network: fewer would be another network


@dataclass(frozen=True)
class Row:
    """An operation, and what becomes of it."""

    name: str
    becomes: str  # "int8", "float", "gone" or "refused"
    why: str = ""
    saved: bool = True
    onnx: bool = True


# --- The networks


class Function(nn.Module):
    """A function as a layer, so that the report has its name."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Around(nn.Module):
    """Convolutions, then the operation; ``inputs`` makes of the images, and the answers of two layers, what it reads."""

    def __init__(self, operation: nn.Module | Callable, inputs: Callable) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.step = operation if isinstance(operation, nn.Module) else Function(operation)
        self.inputs = inputs
        self.gain = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.weight = nn.Parameter(torch.randn(8, 8) / 8)

    def forward(self, x):
        return self.step(*self.inputs(self, self.first(x), self.second(x)))


def one(net, y, z):
    return (y,)


def two(net, y, z):
    return (y, z)


def rows(net, y, z):
    """(N, 64, 8): words of 8 numbers, as transformers have them."""
    return (y.flatten(2).transpose(1, 2),)


def channels(net, y, z):
    """(N, 8, 64), as sound has them."""
    return (y.flatten(2),)


def volume(net, y, z):
    return (y.unsqueeze(2),)


def pooled(net, y, z):
    return (y.mean((2, 3)),)


def three(net, y, z):
    return rows(net, y, z) * 3


def gained(net, y, z):
    return (y, net.gain)


def words_weight(net, y, z):
    return (*rows(net, y, z), net.weight)


def halves(net, y, z):
    return (y.flatten(2), z.flatten(2).transpose(1, 2))


def sets_part(y):
    y[:, 0] = 0
    return y


def branches(y):
    if y.sum() > 0:
        return y
    return -y


def counts_images(y):
    return y.reshape(len(y), -1)


def makes_zeros(y):
    return y + torch.zeros(y.shape[0], 1, 1, 1)


def copies(y, z):
    y.copy_(z)
    return y


def reads_number(y):
    return y * y.max().item()


LAYERS: dict[str, tuple[Callable, Callable]] = {
    "Conv2d": (lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1), one),
    "Conv2d, depthwise": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), one),
    "Conv2d, grouped": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2), one),
    "Conv2d, dilated": (lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2), one),
    'Conv2d, padding="same"': (lambda: nn.Conv2d(8, 8, 3, padding="same"), one),
    'Conv2d, padding_mode="reflect"': (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), one),
    "Conv1d": (lambda: nn.Conv1d(8, 8, 3), channels),
    "Conv3d": (lambda: nn.Conv3d(8, 8, 1), volume),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(8, 8, 2, 2), one),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(8, 8, 2, 2), channels),
    "Linear": (lambda: nn.Linear(8, 8), pooled),
    "Linear on words, (N, L, C)": (lambda: nn.Linear(8, 8), rows),
    "Bilinear": (lambda: nn.Bilinear(8, 8, 8), lambda net, y, z: (y.mean((2, 3)), z.mean((2, 3)))),
    "Embedding": (lambda: nn.Embedding(4, 8), lambda net, y, z: ((y.mean((2, 3)) > 0).long(),)),
    "MultiheadAttention": (lambda: Attention(), rows),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), rows),
    "LSTM": (lambda: Recurrent(nn.LSTM), rows),
    "GRU": (lambda: Recurrent(nn.GRU), rows),
    "RNN": (lambda: Recurrent(nn.RNN), rows),
    "BatchNorm2d behind a convolution": (lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)), one),
    "BatchNorm1d behind a linear layer": (lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), pooled),
    "BatchNorm2d elsewhere": (lambda: nn.BatchNorm2d(8), lambda net, y, z: (y.tanh(),)),
    "LayerNorm": (lambda: nn.LayerNorm(8), rows),
    "RMSNorm": (lambda: nn.RMSNorm(8), rows),
    "GroupNorm": (lambda: nn.GroupNorm(2, 8), one),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(8), one),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3), one),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), one),
    "MaxPool2d, return_indices": (lambda: Unpooled(), one),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), one),
    "AvgPool2d, divisor_override": (lambda: nn.AvgPool2d(2, divisor_override=3), one),
    "AdaptiveAvgPool2d(1)": (lambda: nn.AdaptiveAvgPool2d(1), one),
    "AdaptiveAvgPool2d(4)": (lambda: nn.AdaptiveAvgPool2d(4), one),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(2), one),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), channels),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), channels),
    "Flatten": (lambda: nn.Flatten(), one),
    "Unflatten": (lambda: nn.Unflatten(1, (2, 4)), one),
    "Fold": (lambda: nn.Fold((8, 8), (1, 1)), channels),
    "Unfold": (lambda: nn.Unfold(3), one),
    "Upsample": (lambda: nn.Upsample(scale_factor=2), one),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), one),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), one),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), one),
    "ZeroPad2d": (lambda: nn.ZeroPad2d(1), one),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d(1), one),
    "ReplicationPad2d": (lambda: nn.ReplicationPad2d(1), one),
    "ReLU": (lambda: nn.ReLU(), one),
    "ReLU6": (lambda: nn.ReLU6(), one),
    **{
        name: (getattr(nn, name), one)
        for name in (
            "LeakyReLU PReLU ELU CELU SELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Hardshrink Sigmoid Tanh Softplus "
            "Softsign LogSigmoid"
        ).split()
    },
    "GLU": (lambda: nn.GLU(1), one),
    "Threshold": (lambda: nn.Threshold(0.1, 0.0), one),
    "Softmax": (lambda: nn.Softmax(1), pooled),
    "LogSoftmax": (lambda: nn.LogSoftmax(1), pooled),
    "Dropout": (lambda: nn.Dropout(), one),
    "Dropout2d": (lambda: nn.Dropout2d(), one),
    "Identity": (lambda: nn.Identity(), one),
    "CosineSimilarity": (lambda: nn.CosineSimilarity(), two),
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, y):
        return self.attention(y, y, y, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, cls: type) -> None:
        super().__init__()
        self.cell = cls(8, 8, batch_first=True)

    def forward(self, y):
        return self.cell(y)[0]


class Unpooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.back = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, y):
        return self.back(*self.pool(y))


FUNCTIONS: dict[str, tuple[Callable, Callable]] = {
    "F.relu(x)": (F.relu, one),
    "F.relu6(x)": (F.relu6, one),
    "F.relu(x, inplace=True)": (lambda y: F.relu(y, inplace=True), one),
    "F.max_pool2d": (lambda y: F.max_pool2d(y, 2), one),
    "F.avg_pool2d": (lambda y: F.avg_pool2d(y, 2), one),
    "F.adaptive_avg_pool2d(x, 1)": (lambda y: F.adaptive_avg_pool2d(y, 1), one),
    "F.dropout(x, training=self.training)": (lambda y: F.dropout(y, 0.5, False), one),
    "F.gelu": (F.gelu, one),
    "F.silu": (F.silu, one),
    "F.hardswish": (F.hardswish, one),
    "F.leaky_relu": (F.leaky_relu, one),
    "F.softplus": (F.softplus, one),
    "F.softmax": (lambda y: F.softmax(y, 1), one),
    "F.log_softmax": (lambda y: F.log_softmax(y, 1), one),
    "F.layer_norm": (lambda y: F.layer_norm(y, (8,)), rows),
    "F.rms_norm": (lambda y: F.rms_norm(y, (8,)), rows),
    "F.group_norm": (lambda y: F.group_norm(y, 2), one),
    "F.normalize": (F.normalize, one),
    "F.linear with a parameter": (F.linear, words_weight),
    "F.conv2d with a parameter": (F.conv2d, lambda net, y, z: (y, net.weight[..., None, None])),
    "F.interpolate": (lambda y: F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False), one),
    "F.pad": (lambda y: F.pad(y, (1, 1, 1, 1)), one),
    "F.pixel_shuffle": (lambda y: F.pixel_shuffle(y, 2), one),
    "F.unfold": (lambda y: F.unfold(y, 3), one),
    "F.grid_sample": (
        lambda y, z: F.grid_sample(y, torch.tanh(z[:, :2].permute(0, 2, 3, 1)), align_corners=False),
        two,
    ),
    "F.scaled_dot_product_attention": (F.scaled_dot_product_attention, three),
    "F.one_hot": (lambda y: F.one_hot(y, 2), lambda net, y, z: ((y * 0).long(),)),
    "torch.cat": (lambda y, z: torch.cat([y, z], 1), two),
    "torch.stack": (lambda y, z: torch.stack([y, z], 1), two),
    "torch.chunk": (lambda y: torch.chunk(y, 2, 1)[0], one),
    "torch.split": (lambda y: torch.split(y, 4, 1)[1], one),
    "torch.flatten(x, 1)": (lambda y: torch.flatten(y, 1), one),
    "torch.matmul, x @ y": (lambda y, z: y @ z, halves),
    "torch.bmm": (torch.bmm, halves),
    "torch.einsum": (lambda y, z: torch.einsum("bcl,bld->bcd", y, z), halves),
    "torch.where": (lambda y, z: torch.where(y > 0, y, z), two),
    "torch.roll": (lambda y: torch.roll(y, (1, 1), (2, 3)), one),
    "torch.mean": (lambda y: torch.mean(y, (2, 3)), one),
    "torch.sum": (lambda y: torch.sum(y, (2, 3)), one),
    "torch.amax": (lambda y: torch.amax(y, (2, 3)), one),
    "torch.topk": (lambda y: torch.topk(y, 2, 1)[0], pooled),
    "torch.cumsum": (lambda y: torch.cumsum(y, 1), pooled),
    "torch.sigmoid": (torch.sigmoid, one),
    "torch.tanh": (torch.tanh, one),
    "torch.exp": (torch.exp, one),
    "torch.sqrt": (torch.sqrt, lambda net, y, z: (y.abs() + 1,)),
    "torch.clamp": (lambda y: torch.clamp(y, -1, 1), one),
    "torch.fft.rfft": (lambda y: torch.fft.rfft(y).abs(), one),
}
METHODS: dict[str, tuple[Callable, Callable]] = {
    "x + y": (lambda y, z: y + z, two),
    "x += y": (lambda y, z: y.__iadd__(z), two),
    "x + y of another shape": (lambda y, z: y + z, lambda net, y, z: (y, z.mean((2, 3), keepdim=True))),
    "x + parameter": (lambda y, gain: y + gain, gained),
    "x + 1": (lambda y: y + 1, one),
    "x - y": (lambda y, z: y - z, two),
    "x * y": (lambda y, z: y * z, two),
    "x * parameter": (lambda y, gain: y * gain, gained),
    "x * 0.5": (lambda y: y * 0.5, one),
    "x / 2": (lambda y: y / 2, one),
    "x.view(len, -1)": (lambda y: y.view(y.size(0), -1), one),
    "x.view(-1, 512)": (lambda y: y.view(-1, 512), one),
    "x.reshape": (lambda y: y.reshape(-1, 2, 4, 8, 8), one),
    "x.flatten(1)": (lambda y: y.flatten(1), one),
    "x.permute": (lambda y: y.permute(0, 2, 3, 1), one),
    "x.transpose": (lambda y: y.transpose(1, 2), one),
    "x.contiguous": (lambda y: y.contiguous(), one),
    "x.squeeze, x.unsqueeze": (lambda y: y.unsqueeze(1).squeeze(1), one),
    "x.expand": (lambda y: y.expand(-1, -1, 2, 2), lambda net, y, z: (y.mean((2, 3), keepdim=True),)),
    "x.repeat": (lambda y: y.repeat(1, 2, 1, 1), one),
    "x.mean((2, 3))": (lambda y: y.mean((2, 3)), one),
    "x.sum": (lambda y: y.sum((2, 3)), one),
    "x.max(1)": (lambda y: y.max(1)[0], one),
    "x.relu_()": (lambda y: y.relu_(), one),
    "x.mul_(0.5)": (lambda y: y.mul_(0.5), one),
    "x.clamp(min=0)": (lambda y: y.clamp(min=0), one),
    "x.masked_fill": (lambda y: y.masked_fill(y < 0, 0.0), one),
    "x.float(), x.to(dtype)": (lambda y: y.to(torch.float64).float(), one),
    "x.half()": (lambda y: y.half().float(), one),
    "x.detach()": (lambda y: y.detach(), one),
    "x.shape in a view": (lambda y: y.reshape(y.shape[0], y.shape[1], -1), one),
    "x[:, ::2]": (lambda y: y[:, ::2], one),
    "x[:, :, 1:-1, 1:-1]": (lambda y: y[:, :, 1:-1, 1:-1], one),
    "x[:, [0, 2]]": (lambda y: y[:, [0, 2]], one),
    "x[:, 0] = 0": (sets_part, one),
    "x.copy_(y)": (copies, two),
    "if x.sum() > 0": (branches, one),
    "x.max().item()": (reads_number, one),
    "len(x)": (counts_images, one),
    "torch.zeros(x.shape[0], ...)": (makes_zeros, one),
}
SECTIONS = {
    "Layers of torch.nn": LAYERS,
    "Functions": FUNCTIONS,
    "Operators and methods of tensors": METHODS,
}


# --- What becomes of them


def row(name: str, build: Callable, inputs: Callable, layer: bool) -> Row:
    """Try one operation."""
    network = Around(build() if layer else build, inputs).eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.fill_(0.5)
    try:
        prepared = qlab.prepare(network, qlab.QConfig.w8a8(reduce_range=True), X)
    except ValueError as error:
        return Row(name, "refused", first_sentence(str(error)))
    becomes, why = fate(prepared)
    int8 = qlab.convert(qlab.calibrate(prepared, [X], progress=False), "reference")
    with torch.no_grad():
        decibel = qlab.analysis.sqnr(network(X), int8(X))
    if decibel < ENOUGH:
        raise AssertionError(f"{name}: {decibel:.1f} dB are left of it in integers")
    return Row(
        name, becomes, why, works(lambda path: saved_alike(int8, path)), works(lambda p: qlab.save_onnx(int8, p))
    )


def fate(prepared: Prepared) -> tuple[str, str]:
    """What was decided of the nodes of the operation, and why those stay in float that do."""
    nodes = [node for node in prepared.network.graph.nodes if name_of(node).split(".")[0] == "step"]
    decisions = [prepared.decisions[node.name] for node in nodes if node.name in prepared.decisions]
    because = list(dict.fromkeys(d.float_because for d in decisions if not d.quantized))
    if not decisions:
        return "gone", "does nothing in eval mode"
    return ("float", "; ".join(because)) if because else ("int8", "")


def works(write: Callable[[Path], object]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            write(Path(folder) / "network")
        except ValueError:
            return False
    return True


def saved_alike(int8, path: Path) -> None:
    again = qlab.load(qlab.save(int8, path), "reference")
    if not torch.equal(again(X), int8(X)):
        raise AssertionError("loaded, it answers otherwise")


def first_sentence(message: str) -> str:
    """The message without the paths of this machine, up to where it says what to do."""
    message = re.sub(r"[^ ]*/([^/ :]+\.py):\d+", r"\1", message)
    message = message.split(". ")[0].replace("|", "\\|").replace("\n", " ")
    return message + ")" * (message.count("(") - message.count(")"))


def page() -> str:
    """docs/layers.md."""
    parts = [HEAD]
    for title, cases in SECTIONS.items():
        parts.append(f"## {title}\n\n| | becomes | why | `qlab.save` | `save_onnx` |\n| --- | --- | --- | --- | --- |")
        for name, (build, inputs) in cases.items():
            found = row(name, build, inputs, layer=cases is LAYERS)
            ticks = (
                ("", "")
                if found.becomes == "refused"
                else ("yes" if yes else "no" for yes in (found.saved, found.onnx))
            )
            parts[-1] += "\n| " + " | ".join([f"`{name}`", f"**{found.becomes}**", found.why, *ticks]) + " |"
    return "\n\n".join(parts) + "\n"


HEAD = """# What becomes of each layer

`qlab.prepare` looks at each layer and operation of a network, and `report()` says of each what it decided. This table was
made by trying them, each behind a convolution in a network of its own (`python tools/layer_table.py`; a test holds the
two together).

- **int8**: computed with integers, alone or as a part of the layer before it.
- **float**: computed in float32 between integer layers, for the reason given.
- **gone**: does nothing when nobody trains, and is taken out.
- **refused**: `prepare` raises a ValueError; it begins as written here, and goes on with what to do instead.

A block of your own that is refused can stay whole, in float: `qlab.prepare(model, qconfig, example, leaves=(MyBlock,))`.
Language models have a way of their own, `qlab.llm` (lesson 10): their linear layers get weights of few bits."""


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; the exit code says whether it is up to date"
    )
    args = parser.parse_args(words)
    new = page()
    if args.check:
        old = FILE.read_text() if FILE.exists() else ""
        changed = [line for line in new.splitlines() if line not in old.splitlines()]
        print("\n".join(changed) or f"{FILE.name} is up to date")
        return int(new != old)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(new)
    print(f"wrote {FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
