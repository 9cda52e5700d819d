"""GPTQ: round one column of a weight matrix after the other, and let those to come make up for the error.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: accurate post-training quantization for generative pre-trained
transformers" (2023), algorithm 1; the idea is that of optimal brain surgeon (Hassibi and Stork 1993). What
counts is the layer's *output* on real inputs, so the inputs' second moments, the Hessian x^T x, say how much of a column's
error another column can take over.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qlab.affine import QParams
from qlab.granularity import Granularity, PerGroup
from qlab.llm.layers import weight_qparams


def gptq_quantize(
    weight: Tensor, hessian: Tensor, bits: int = 4, granularity: Granularity = PerGroup(64), damp: float = 0.01
) -> tuple[Tensor, QParams]:
    """Codes for a weight (N, K) that keep the error of its *output* small, for inputs with x^T x = ``hessian`` (K, K).

    A group's grid is chosen when its turn comes, from the weights as they are then; with PerChannel(0) one grid a row
    serves from the first column to the last. ``damp``: this share of the Hessian's mean diagonal is added to it, or it
    might have no inverse.

    Returns (codes, (N, K), int8 or uint8; their grids), as :func:`qlab.llm.quantize_weight` does; what that refuses is
    refused here too.

    >>> inputs, weight = torch.randn(200, 64), torch.randn(8, 64)
    >>> codes, grids = gptq_quantize(weight, inputs.T @ inputs, bits=3)
    >>> codes.shape, grids.scale.shape
    (torch.Size([8, 64]), torch.Size([8, 1]))
    """
    weight = weight.detach().float().clone()
    granularity.scale_shape(weight.shape)  # raises where groups do not divide the rows
    inverse = inverse_factor(hessian, damp)
    size = granularity.size if isinstance(granularity, PerGroup) else weight.shape[1]
    codes, scales, zeros = torch.empty_like(weight), [], []
    for start in range(0, weight.shape[1], size):
        block, factor = weight[:, start : start + size], inverse[start : start + size]
        qp = weight_qparams(block, bits, granularity)
        errors = _round_block(block, factor[:, start : start + size], qp, codes[:, start : start + size])
        weight[:, start + size :] -= errors @ factor[:, start + size :]
        scales.append(qp.scale)
        zeros.append(qp.zero_point)
    if isinstance(granularity, PerGroup):
        qp = replace(qp, scale=torch.cat(scales, 1), zero_point=torch.cat(zeros, 1))
    return codes.to(torch.int8 if qp.signed else torch.uint8), qp


def _round_block(block: Tensor, factor: Tensor, qp: QParams, codes: Tensor) -> Tensor:
    """Round the columns of a block from left to right (in place); the errors that later columns make up for."""
    scale, zero_point = qp.scale.reshape(len(block)), qp.zero_point.reshape(len(block)).float()
    errors = torch.empty_like(block)
    for column in range(block.shape[1]):
        code = (block[:, column] / scale).round_().add_(zero_point).clamp_(qp.qmin, qp.qmax)
        errors[:, column] = (block[:, column] - (code - zero_point) * scale) / factor[column, column]
        block[:, column + 1 :] -= errors[:, column, None] * factor[column, column + 1 :]
        codes[:, column] = code
    return errors


def inverse_factor(hessian: Tensor, damp: float) -> Tensor:
    """The upper triangular U with U^T U = H^-1, for a damped H. Inputs that are always 0 get a diagonal of 1."""
    hessian = hessian.double().clone()
    diagonal = hessian.diagonal()
    diagonal += damp * diagonal.mean()
    diagonal[diagonal == 0] = 1
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True).float()
