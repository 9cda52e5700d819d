"""The classifiers of torchvision, with random weights: float -> int8 -> file -> ONNX, and what each step leaves of them.

    python tools/bench_foreign.py [name ...]

A line for each network: how many dB of the float network's answers are left in integers, after save and load, and in
onnxruntime; and which kinds of layers stay in float. Weights are random, so these figures say that nothing breaks; what
8 bits cost a trained network is another question.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import onnxruntime
import torch
import torchvision
from torch import Tensor, nn

import qlab
from qlab.analysis import sqnr

SIZES = {"inception_v3": 128, "maxvit_t": 224, "vit_b_32": 224}  # pixels; 64 for all others
NAMES = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 "
    "mobilenet_v2 mobilenet_v3_small mobilenet_v3_large regnet_y_400mf regnet_x_400mf resnet18 resnext50_32x4d "
    "shufflenet_v2_x0_5 squeezenet1_0 swin_t swin_v2_t vgg11_bn vit_b_32 wide_resnet50_2"
).split()


def build(name: str, x: Tensor) -> nn.Module:
    """The network with random weights; its BatchNorms know what passes through it."""
    torch.manual_seed(0)
    slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = getattr(torchvision.models, name)(weights=None, num_classes=10, **slow).eval()  # auxiliary heads rest
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train().momentum = None
        elif isinstance(module, nn.Linear) and not module.weight.any():  # a head that begins with zeros says nothing
            nn.init.normal_(module.weight, std=0.02)
    with torch.no_grad():
        for _ in range(2):
            model(x)
    return model.eval()


@torch.no_grad()
def measure(name: str, folder: Path) -> str:
    """The line of one network."""
    size = SIZES.get(name, 64)
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    model, begin = build(name, x), time.perf_counter()
    expected = model(x)
    int8 = qlab.ptq(model, [x], engine="reference")
    words = [f"{name:20} int8 {sqnr(expected, int8(x)):5.1f} dB"]
    for what, way in (("loaded", by_file), ("ONNX", by_onnx)):
        try:
            words.append(f"{what} {sqnr(expected, way(int8, x, folder)):5.1f} dB")
        except ValueError as error:
            words.append(f"{what} refused: {str(error)[:200]}")
    kinds = Counter(row.kind for row in int8.report() if row.float_because)
    in_float = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    return f"{'; '.join(words)}; {time.perf_counter() - begin:.0f} s; in float: {in_float or 'none'}"


def by_file(int8: qlab.graph.convert.Int8Network, x: Tensor, folder: Path) -> Tensor:
    """The answers of the network that was saved and loaded."""
    return qlab.load(qlab.save(int8, folder / "net.safetensors"), engine="reference")(x)


def by_onnx(int8: qlab.graph.convert.Int8Network, x: Tensor, folder: Path) -> Tensor:
    """The answers of onnxruntime."""
    path = qlab.save_onnx(int8, folder / "net.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or NAMES:
            print(measure(name, Path(folder)), flush=True)
