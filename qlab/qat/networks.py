"""The committed networks that were trained with rounding, and the configurations to train with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qlab import models
from qlab.graph.prepare import Prepared, prepare
from qlab.qconfig import QConfig, QuantSpec


def qconfig(preset: str) -> QConfig:
    """The configuration to train with: ranges chosen by least squared error to start from.

    Activations of 8 bits get 7, so that the trained network runs on every engine: with 8 the sums of a processor
    without VNNI saturate (here training makes up for the bit; after training, ``reduce_range`` takes it from the
    weights). Weights of fewer bits get the lowest code too, which is one of four where there are 2 bits. Beside
    activations of 1 bit the ``shortcuts`` keep 8.

    Args:
        preset: "w4a4" and the like, as in :meth:`qlab.QConfig.preset`.

    Raises:
        ValueError: That is no preset.

    >>> from qlab import qat
    >>> qat.qconfig("w8a8").activation.bits, qat.qconfig("w4a4").activation.bits
    (7, 4)
    """
    config = QConfig.preset(preset, observer="mse")
    given: Any = config.elementwise
    elementwise = replace(given, bits=7)
    if config.activation is not None:
        bits = min(config.activation.bits, 7)
        config = replace(config, activation=replace(elementwise, bits=bits))
        if bits == 1:
            config = replace(config, shortcuts=8)
    config = replace(config, elementwise=elementwise)
    if isinstance(config.weight, QuantSpec):  # binary weights have no range to choose
        narrow = config.weight.bits >= 8
        config = replace(config, weight=replace(config.weight, observer="mse", narrow_range=narrow))
    return config


def load(name: str, preset: str, data: str = "cifar10") -> Prepared:
    """A committed network that was trained with rounding, in eval mode, ready for :func:`qlab.convert`.

    Args:
        name: One of qlab.models, such as "resnet20".
        preset: With which bits, such as "w4a4".
        data: On which images: "cifar10" or "shapes10".

    Raises:
        ValueError: There is none (the message names those that there are), or its file is damaged (sha256).

    >>> from qlab import qat
    >>> prepared = qat.load("resnet20", "w2a2")
    >>> dict(prepared.weighted())["layer1.0.conv1"].weight_quantizer.qparams.bits
    2
    """
    return models.trained(lambda: prepare(models.build(name), qconfig(preset)), f"{name}-{data}-{preset}")
