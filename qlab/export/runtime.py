"""The same integers on onnxruntime, whose kernels are not torch's: :class:`OnnxNetwork`.

Between two layers onnxruntime does less than torch, where each operator makes a tensor, looks up its kernel and counts
who holds what. In a network of many small layers that is most of the time of one picture.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn

from qlab.export.qdq import INPUT, onnx_bytes
from qlab.int8 import engines
from qlab.int8.modules import Int8Network
from qlab.int8.reference import finite


class OnnxNetwork(nn.Module):
    """An integer network on onnxruntime's kernels, by way of :func:`save_onnx`. Call it like the network itself.

    Its answers are those of the file: biases are rounded to the grid of the sum, and a convolution's result before it
    is added, as by the engine qnnpack. It runs on the number of threads that torch has. Raises ImportError with what
    to install where onnx or onnxruntime is missing, ValueError for what has no ONNX form.
    """

    engine = "onnxruntime"

    def __init__(self, network: Int8Network) -> None:
        super().__init__()
        self._library = library()
        self._graph = onnx_bytes(network)
        self.network = network
        self._sessions: dict[int, object] = {}  # by the number of threads
        self.eval()

    @property
    def saturating(self) -> list[str]:
        """The layers whose 16-bit sums of two products can overflow: without VNNI, onnxruntime has such sums too."""
        cpu = engines.cpu()
        return [] if cpu.is_arm or cpu.vnni else self.network.can_saturate(lambda groups: True)

    def forward(self, x: Tensor) -> Tensor:
        self.network.check_input(x)
        scores = self._session().run(None, {INPUT: finite(x.detach()).contiguous().numpy()})
        return torch.from_numpy(scores[0])

    def _session(self):
        threads = torch.get_num_threads()
        if threads not in self._sessions:
            options = self._library.SessionOptions()
            options.intra_op_num_threads = threads
            self._sessions[threads] = self._library.InferenceSession(
                self._graph, options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[threads]


def library() -> ModuleType:
    """The package ``onnxruntime``, imported on the first call. Raises ImportError with what to install."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError('onnxruntime\'s kernels need the package: pip install "qlab[onnx]"') from error
    return onnxruntime
