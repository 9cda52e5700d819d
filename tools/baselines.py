"""Other libraries' ways to run a network on a processor, as the benchmarks beside this file measure them.

Every peer starts from the same weights and the same calibration images, is set up as its documentation
advises for this processor, and gets its input in the layout that it likes best before the clock runs.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from qlab.int8 import engines

Call = Callable[[], Tensor]
Bind = Callable[[Tensor], Call]  # a batch -> what is timed; specialized to the batch's shape where that helps

# That the baselines are deprecated is known. Every other warning is news, and stays visible.
KNOWN_WARNINGS = [
    (DeprecationWarning, r"torch\.ao\.quantization is deprecated"),
    (DeprecationWarning, r"You are using the legacy TorchScript-based ONNX export"),
    (DeprecationWarning, r"The feature will be removed\. Please remove usage of this function"),  # torch.onnx
    (Warning, r"`torch\.jit\.\w+` is (deprecated|not supported)"),  # of another category in every release
    (UserWarning, r"torch\.quantize_per_tensor, .* are deprecated"),
    (UserWarning, r"Please use quant_min and quant_max to specify the range for observers"),
    (UserWarning, r"To copy construct from a tensor"),  # inside torch's own lowering of int8 convolutions
]


@contextmanager
def silenced() -> Iterator[None]:
    """Keep the known complaints about deprecated baselines from the screen."""
    pytree = logging.getLogger("torch.utils._pytree")  # says that torchao registers a type in the old way
    level = pytree.level
    with warnings.catch_warnings():
        for category, message in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message, category)
        pytree.setLevel(logging.ERROR)
        yield
        pytree.setLevel(level)


@dataclass(eq=False)
class Task:
    """What every peer is given: a float network (channels_last, eval mode), calibration batches, a thread
    count.
    """

    network: nn.Module
    calibration: Sequence[Tensor]
    threads: int
    folder: Path  # for the files that a library wants to have

    @cached_property
    def reduce_range(self) -> bool:
        """Without VNNI, pairs of 8-bit products saturate: every library advises 7 bits of one of the two there."""
        return not engines.cpu().is_arm and not engines.cpu().vnni

    @cached_property
    def fx(self) -> dict[str, nn.Module]:
        """The networks that torch.ao's FX mode has converted, by backend."""
        return {}


def eager(task: Task) -> Bind:
    """The network as it is."""
    return lambda x: partial(task.network, x)


def eager_contiguous(task: Task) -> Bind:
    """The network in torch's default layout (N, C, H, W)."""
    network = copy.deepcopy(task.network).to(memory_format=torch.contiguous_format)
    return lambda x: partial(network, x.contiguous())


def frozen(task: Task) -> Bind:
    """torch.jit: traced, its weights made constants."""
    return partial(_trace, task.network)


def compiled(task: Task) -> Bind:
    """torch.compile, its weights made constants."""
    return partial(_compile, copy.deepcopy(task.network))


def bfloat16(task: Task) -> Bind:
    """The network in bfloat16; the input is converted before the clock runs."""
    network = copy.deepcopy(task.network).bfloat16()
    return lambda x: partial(network, x.bfloat16())


def fx(task: Task, backend: str) -> Bind:
    """torch.ao.quantization in FX mode, eager."""
    network = _fx_network(task, backend)
    return lambda x: partial(network, x)


def fx_frozen(task: Task, backend: str) -> Bind:
    """The same, traced and frozen by torch.jit: no Python around the operators.

    Freezing packs the weights anew, for the engine that is set then: without it another one's kernels would run.
    """
    network = _fx_network(task, backend)

    def bind(x: Tensor) -> Call:
        torch.backends.quantized.engine = backend
        return _trace(network, x)

    return bind


def pt2e(task: Task) -> Bind:
    """torchao's PT2E with the X86InductorQuantizer, compiled by Inductor."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    if engines.cpu().is_arm:
        raise RuntimeError("the X86InductorQuantizer needs an x86 processor")
    batch = torch.export.Dim("batch", min=1, max=4096)
    # strict: the quantizer finds convolution + addition + relu by what only the strict tracer writes down
    example, shapes = (task.calibration[0],), ({0: batch},)
    exported = torch.export.export(task.network, example, dynamic_shapes=shapes, strict=True)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=task.reduce_range))
    prepared = prepare_pt2e(exported.module(), quantizer)
    for x in task.calibration:
        prepared(x)
    return partial(_compile, convert_pt2e(prepared))


def ort_float(task: Task) -> Bind:
    """onnxruntime, float32."""
    return _session(task, _onnx_file(task))


def ort_int8(task: Task) -> Bind:
    """onnxruntime with its own static quantization: QDQ, uint8 activations, int8 weights per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        batches = iter(task.calibration)

        def get_next(self):
            x = next(self.batches, None)
            return None if x is None else {"x": x.contiguous().numpy()}

    source = _onnx_file(task)
    ready, int8 = source.with_name("ready.onnx"), source.with_name("int8.onnx")
    quant_pre_process(source, ready)
    quantize_static(
        ready, int8, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=task.reduce_range,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return _session(task, int8)


def fx_convert(task: Task, backend: str, histogram: bool = True) -> nn.Module:
    """torch.ao's FX mode: prepare, calibrate, convert. ``histogram``: its default observer, else min-max."""
    from torch.ao.quantization import MinMaxObserver, QConfig, get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = backend
    mapping = get_default_qconfig_mapping(backend)
    if not histogram:
        default = mapping.global_qconfig
        reduce_range = default.activation.p.keywords.get("reduce_range", False)
        activation = MinMaxObserver.with_args(reduce_range=reduce_range)
        mapping = mapping.set_global(QConfig(activation=activation, weight=default.weight))
    prepared = prepare_fx(copy.deepcopy(task.network), mapping, (task.calibration[0],))
    for x in task.calibration:
        prepared(x)
    return convert_fx(prepared)


def fx_backends() -> list[str]:
    """torch.ao's backends for this processor. "x86" means fbgemm, except with VNNI, where it means oneDNN."""
    if engines.cpu().is_arm:
        return ["qnnpack"]
    return ["x86", "fbgemm"] if engines.cpu().vnni else ["x86"]


def all_baselines() -> dict[str, Callable[[Task], Bind]]:
    """Every peer by name; the first is the baseline."""
    baselines: dict[str, Callable[[Task], Bind]] = {
        "fp32 eager channels_last": eager,
        "fp32 eager": eager_contiguous,
        "fp32 torch.jit frozen": frozen,
        "fp32 torch.compile": compiled,
        "bf16 eager channels_last": bfloat16,
    }
    for backend in fx_backends():
        baselines[f"int8 torch.ao FX {backend}"] = partial(fx, backend=backend)
        baselines[f"int8 torch.ao FX {backend} frozen"] = partial(fx_frozen, backend=backend)
    return {
        **baselines,
        "int8 torchao PT2E + Inductor": pt2e,
        "fp32 onnxruntime": ort_float,
        "int8 onnxruntime": ort_int8,
    }


def _fx_network(task: Task, backend: str) -> nn.Module:
    if backend not in task.fx:
        task.fx[backend] = fx_convert(task, backend)
    return task.fx[backend]


def _trace(network: nn.Module, x: Tensor) -> Call:
    return partial(torch.jit.freeze(torch.jit.trace(network, x)), x)


def _compile(network: Callable[[Tensor], Tensor], x: Tensor) -> Call:
    """Compiled for this batch size alone, with the weights as constants, which is Inductor's fastest form."""
    from torch._inductor import config

    call = partial(torch.compile(network, dynamic=False), x)
    with config.patch(freezing=True):
        call()
    return call


def _onnx_file(task: Task) -> Path:
    path = task.folder / "float.onnx"
    if not path.exists():
        axes = {"x": {0: "batch"}, "y": {0: "batch"}}
        options = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes, "dynamo": False}
        torch.onnx.export(task.network, (task.calibration[0],), str(path), **options)
    return path


def _session(task: Task, path: Path) -> Bind:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def bind(x: Tensor) -> Call:
        """From a tensor of torch to one, in each call, as all others do."""
        return lambda: torch.from_numpy(session.run(None, {"x": x.contiguous().numpy()})[0])

    return bind
