"""MobileNetV2 as a LiteRT (TensorFlow Lite) file, float32 and int8, through the maintained converter: litert-torch.

The converter wants an older torch than qlab, so it gets an environment of its own:

    uv venv .venv/litert && uv pip install -p .venv/litert litert-torch safetensors filelock
    uv pip install -p .venv/litert --no-deps torchvision==0.29.2
    PYTHONPATH=. .venv/litert/bin/python tools/convert_litert.py --out .

The int8 file has signed codes, one scale a channel for the weights, as LiteRT's specification of 8 bits wants it
(https://ai.google.dev/edge/litert/models/quantization_spec); torchao's PT2E mode calibrates it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import qlab
from qlab.cli import options


def main() -> int:
    """Convert, measure, print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=options.dataset, default="cifar10", help="cifar10 (default) or shapes10")
    parser.add_argument(
        "--out", type=options.new_folder, default=Path("."), help="folder for the files (default: here)"
    )
    parser.add_argument("--images", type=options.count, default=500, help="test images (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = getattr(qlab.data, args.data)
    network = qlab.models.load("mobilenet_v2", data=args.data).to(memory_format=torch.contiguous_format)
    calibration = [x.contiguous() for x, _labels in dataset("train").sample(128).batches(1)]
    test = dataset("test").sample(args.images)
    float32, int8 = convert(network, calibration, args.out)
    print(f"{len(test)} test images, {test.source}; float network {qlab.evaluate(network, test):.1f} %")
    for path in (float32, int8):
        right, milliseconds = measure(path, test.batches(1))
        print(
            f"{path.name:28} {path.stat().st_size / 1e6:5.2f} MB, {right:5.1f} % right, {milliseconds:5.2f} ms an image"
        )
    return 0


def convert(network: nn.Module, calibration: list[Tensor], folder: Path) -> tuple[Path, Path]:
    """Write both files; returns their paths."""
    import litert_torch
    from litert_torch.quantize import pt2e_quantizer, quant_config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    example = (calibration[0],)
    paths = folder / "mobilenet_v2-float32.tflite", folder / "mobilenet_v2-int8.tflite"
    litert_torch.convert(network, example).export(str(paths[0]))
    config = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = pt2e_quantizer.PT2EQuantizer().set_global(config)
    prepared = prepare_pt2e(torch.export.export(network, example).module(), quantizer)
    for x in calibration:
        prepared(x)
    quantized = convert_pt2e(prepared, fold_quantize=False)
    how = quant_config.QuantConfig(pt2e_quantizer=quantizer)
    litert_torch.convert(quantized, example, quant_config=how).export(str(paths[1]))
    return paths


def measure(path: Path, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """(right answers in percent, median milliseconds) of a file on single images, on one thread."""
    from ai_edge_litert.interpreter import Interpreter

    runtime = Interpreter(str(path), num_threads=1)
    runtime.allocate_tensors()
    (source,), (target,) = runtime.get_input_details(), runtime.get_output_details()
    right, seconds = [], []
    for x, label in batches:
        values = x.contiguous().numpy()
        if source["dtype"] is np.int8:
            scale, zero_point = source["quantization"]
            values = np.clip(np.round(values / scale) + zero_point, -128, 127).astype(np.int8)
        runtime.set_tensor(source["index"], values)
        start = time.perf_counter()
        runtime.invoke()
        seconds.append(time.perf_counter() - start)
        right.append(runtime.get_tensor(target["index"]).argmax() == int(label))
    return 100 * float(np.mean(right)), 1000 * statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
