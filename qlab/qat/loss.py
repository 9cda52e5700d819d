"""What training with rounding minimizes: the task's loss, the distance to a teacher, the weights' error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab.affine import SMALLEST_SCALE
from qlab.graph.prepare import Prepared

TEMPERATURE = 2.0  # softens both networks' answers, so that the unlikely classes teach too (Hinton et al. 2015)


class Loss:
    """Cross-entropy with the labels, or a ``task``'s own loss; and if wanted the distance to a teacher's answers, and the
    weights' error.

    >>> import qlab
    >>> network = nn.Sequential(nn.Linear(4, 2))
    >>> prepared = qlab.calibrate(qlab.prepare(network, example=torch.zeros(1, 4)), [torch.rand(8, 4)])
    >>> loss = Loss(prepared, teacher=network, distillation=1.0)
    >>> x = torch.rand(8, 4)
    >>> round(loss(x, network(x), torch.zeros(8, dtype=torch.int64)).item(), 4)  # who answers as the teacher does
    0.0
    """

    def __init__(
        self,
        prepared: Prepared,
        label_smoothing: float = 0.0,
        teacher: nn.Module | None = None,
        distillation: float = 0.5,
        penalty: float = 0.0,
        task: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.prepared, self.teacher, self.task = prepared, teacher, task
        self.label_smoothing, self.distillation, self.penalty = label_smoothing, distillation, penalty

    def __call__(self, x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        if self.task is not None:
            value = self.task(x, logits, y)
        else:
            value = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        if self.teacher is not None:
            with torch.no_grad():
                wanted = F.log_softmax(self.teacher(x) / TEMPERATURE, 1)
            answer = F.log_softmax(logits / TEMPERATURE, 1)
            distance = F.kl_div(answer, wanted, reduction="batchmean", log_target=True) * TEMPERATURE**2
            value = value.lerp(distance, self.distillation)
        if self.penalty:
            value = value + self.penalty * weight_error(self.prepared)
        return value


def weight_error(prepared: Prepared) -> Tensor:
    """The squared error of the rounded weights relative to their squares, averaged over the layers.

    >>> import qlab
    >>> x, network = torch.rand(4, 8), nn.Sequential(nn.Linear(8, 4))
    >>> qconfigs = [qlab.QConfig.preset(name, first_last=None) for name in ("w2a8", "w8a8")]
    >>> few, many = (qlab.calibrate(qlab.prepare(network, qconfig, x), [x]) for qconfig in qconfigs)
    >>> bool(weight_error(few) > 100 * weight_error(many))
    True
    """
    errors = []
    for _, layer in prepared.weighted():
        weight, _ = layer.folded()
        rounded = layer.weight_quantizer(weight).detach()
        errors.append((weight - rounded).square().sum() / weight.detach().square().sum().clamp(min=SMALLEST_SCALE))
    return torch.stack(errors).mean()
