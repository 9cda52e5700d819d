"""qlab/int8/engines is the only folder that touches torch's integer kernels, which upstream is taking away."""

from __future__ import annotations

import ast
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import qlab

PACKAGE = Path(qlab.__file__).parent
FOLDER = PACKAGE / "int8" / "engines"

# Names of torch's integer kernels, of the tensors that carry a grid, and of the engines behind both.
KERNELS = [
    "*ops.quantized*", "*ops.onednn*", "*ops.mkldnn*", "*backends.quantized*", "*ao.quantization*", "*ao.nn*",
    "*nn.quantized*", "*nn.intrinsic*", "torchao*", "*_int8pack*", "*_int4pack*", "*_int_mm*", "*_dyn_quant_*",
    "*fbgemm*", "*qconv*", "*qlinear*", "*_prepack*", "*.quantize_per_*", "*_quantized_tensor*", "*affine_quantized*",
    "*.int_repr", "*.q_scale", "*.q_zero_point", "*.q_per_channel*", "*.is_quantized", "*.quint*", "*.qint*",
]  # fmt: skip


def touched(source: str) -> list[str]:
    """Names of integer kernels in a piece of code; what comments and docstrings say is not code."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            names.append(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            names.append(".".join(ast.unparse(argument).strip("'") for argument in node.args[:2]))
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in KERNELS)]


def test_no_other_folder_touches_the_integer_kernels_of_torch():
    found = {str(path.relative_to(PACKAGE)): touched(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    assert {place for place, names in found.items() if names} == {
        str((FOLDER / name).relative_to(PACKAGE)) for name in ("choice.py", "matmul.py", "onednn.py", "quantized.py")
    }


@pytest.mark.parametrize(
    "line",
    [
        "torch.ops.quantized.conv2d(q, packed, 1.0, 0)",
        "torch.ops.onednn.qlinear_pointwise.default",
        "ops = torch.ops; ops.quantized.add",
        "torch.ops.aten._weight_int8pack_mm(x, codes, scale)",
        "torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)",
        "torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, 32, scales)",
        "torch._int_mm(a, b)",
        "torch.quantize_per_tensor(x, 1.0, 0, torch.uint8)",
        "torch.quantize_per_channel(x, scales, zeros, 0, torch.uint8)",
        "torch._make_per_channel_quantized_tensor(codes, scales, zeros, 0)",
        "x.to(torch.quint8)",
        "dtype = torch.qint8",
        "getattr(torch, 'qint32')",
        "torch.backends.quantized.engine = 'fbgemm'",
        "from torch.backends import quantized",
        "from torch.ao.quantization import quantize_fx",
        "import torchao",
        "q.int_repr()",
    ],
)
def test_a_kernel_that_is_used_elsewhere_is_found(line):
    assert touched(f"import torch\n{line}")


@pytest.mark.parametrize(
    "line",
    [
        "'torch.ops.quantized is what the engines use'",
        "x = 1  # torch.quint8",
        "decision.quantized",
        "qlab.quantize(x, qp).dequantize()",
        "torch.ops.aten.hardtanh_backward(gradient, codes, 0.0, 1.0)",
        "engines.int8_weight_product(x, codes, scale)",
    ],
)
def test_words_and_floats_are_no_kernels(line):
    assert not touched(f"import torch\n{line}")
