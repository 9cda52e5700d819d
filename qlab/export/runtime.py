"""The same integers on onnxruntime, whose kernels are not torch's: :class:`OnnxNetwork`.

Between two layers onnxruntime does less than torch, where each operator makes a tensor, looks up its kernel and counts
who holds what. In a network of many small layers that is most of the time of one image.
"""

from __future__ import annotations

from math import isfinite
from types import ModuleType

import torch
from torch import Tensor, nn

from qlab.export.operators import library as onnx_library
from qlab.export.qdq import BATCH, INPUT, OUTPUT, onnx_model
from qlab.extras import remedy
from qlab.int8 import engines
from qlab.int8.modules import Int8Network
from qlab.int8.reference import finite


class OnnxNetwork(nn.Module):
    """An integer network on onnxruntime's kernels, by way of :func:`save_onnx`. Call it like the network itself.

    Its answers are those of the file: biases are rounded to the grid of the sum, and a convolution's result before it
    is added, as by the engine qnnpack. It runs on the number of threads that torch has.

    Args:
        network: What :func:`qlab.convert` or :func:`qlab.ptq` gave.

    Raises:
        ImportError: onnx or onnxruntime is missing; the message says what to install.
        ValueError: A step has no ONNX form.

    >>> import qlab, torch
    >>> x, network = torch.rand(4, 3, 8, 8), torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    >>> int8 = qlab.ptq(network, [x], engine="reference")
    >>> qlab.analysis.sqnr(int8(x), qlab.OnnxNetwork(int8)(x)) > 30  # dB
    True
    """

    engine = "onnxruntime"

    def __init__(self, network: Int8Network) -> None:
        super().__init__()
        self._library = library()
        model = onnx_model(network)
        self._last = len(network.program.input_shape) == 3  # images: channels come last, as they lie in memory
        self._graph = (_with_channels_last(model) if self._last else model).SerializeToString()
        self.network = network
        self._shape: torch.Size | None = None  # what was checked
        self._sessions: dict[int, object] = {}  # by the number of threads
        self.eval()

    @property
    def saturating(self) -> list[str]:
        """The layers whose 16-bit sums of two products can overflow: without VNNI, onnxruntime has such sums too."""
        cpu = engines.cpu()
        return [] if cpu.is_arm or cpu.vnni else self.network.can_saturate(lambda groups: True)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape != self._shape or x.dtype is not torch.float32:
            self.network.check_input(x)
            self._shape = x.shape
        session = self._sessions.get(torch.get_num_threads()) or self._start()
        array = (x.detach() if x.requires_grad else x).numpy()
        if self._last:  # by numpy, whose views cost less than torch's
            array = array.transpose(0, 2, 3, 1)
        flat = array.reshape(-1)
        if not isfinite(flat.dot(flat)):  # the cheapest look at every number
            finite(x.detach())  # the thorough one, which says what is wrong
        return torch.from_numpy(session.run((OUTPUT,), {INPUT: array})[0])

    def _start(self):
        threads, options = torch.get_num_threads(), self._library.SessionOptions()
        options.intra_op_num_threads = threads
        session = self._library.InferenceSession(self._graph, options, providers=["CPUExecutionProvider"])
        return self._sessions.setdefault(threads, session)


def _with_channels_last(model):
    """The graph of an onnx.ModelProto that takes images with their channels last: two copies less."""
    helper, graph, inner = onnx_library().helper, model.graph, f"{INPUT}, channels first"
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == INPUT:
                node.input[place] = inner
    graph.node.insert(0, helper.make_node("Transpose", [INPUT], [inner], perm=[0, 3, 1, 2]))
    _, channels, *sides = (dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim)
    kind = graph.input[0].type.tensor_type.elem_type
    graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT, kind, [BATCH, *sides, channels]))
    return model


def library() -> ModuleType:
    """The package ``onnxruntime``, imported on the first call. Raises ImportError with what to install."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"onnxruntime's kernels need the package: {remedy('onnx')}") from error
    return onnxruntime
