"""Which values of a tensor share one scale: all of them, those of one channel, or those of one group.

The fewer values share a scale, the tighter it fits them, and the more scales must be stored and multiplied
by. Per-channel weights: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference"
(2018). Groups of consecutive weights: Shen et al., "Q-BERT" (2020); Frantar et al., "GPTQ" (2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Granularity:
    """What :class:`PerTensor`, :class:`PerChannel` and :class:`PerGroup` share; use one of the three."""

    def of(self, shape: Sequence[int]) -> Granularity:
        """The same granularity as tensors of this shape spell it: axes are counted from the front.

        Which axis is the last depends on how many there are, so ``PerChannel(-1)`` and ``PerChannel(3)`` are equal
        only once a tensor has said so. Raises ValueError for an axis that the shape does not have.

        >>> PerChannel(-4).of((64, 3, 7, 7)), PerTensor().of((64, 3, 7, 7))
        (PerChannel(axis=0), PerTensor())
        """
        return self

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the scale of a tensor of this shape; ValueError when the two do not fit."""
        raise TypeError(f"{type(self).__name__} is no granularity: use PerTensor, PerChannel or PerGroup")

    def align(self, x: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x and the tensors of ``scale_shape(x.shape)``, viewed so that they broadcast against x."""
        return (x, *parameters)

    def blocks(self, x: torch.Tensor) -> torch.Tensor:
        """x with one row for each scale, made of the values that share it: shape (scales, values a scale).

        The order within a row is memory's where that saves a copy (a channels_last image need not be
        rearranged).
        """
        return x.permute(_memory_order(x)).reshape(1, -1)


@dataclass(frozen=True)
class PerTensor(Granularity):
    """One scale for the whole tensor.

    An image of shape (8, 3, 32, 32) has a scale of shape ():

    >>> PerTensor().scale_shape((8, 3, 32, 32))
    ()
    """

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True)
class PerChannel(Granularity):
    """One scale for every index of one axis; a negative axis counts from the end, as everywhere in torch.

    A convolution's weight (64 output channels, 3, 7, 7) has a scale of shape (64,), one for each output
    channel:

    >>> PerChannel(0).scale_shape((64, 3, 7, 7))
    (64,)
    >>> PerChannel(-1).scale_shape((64, 3, 7, 9))
    (9,)
    """

    axis: int = 0

    def __post_init__(self) -> None:
        _require_int("axis", self.axis)

    def of(self, shape: Sequence[int]) -> PerChannel:
        if not -len(shape) <= self.axis < len(shape):
            allowed = f"{-len(shape)} to {len(shape) - 1}" if len(shape) else "none: use PerTensor()"
            raise ValueError(f"axis {self.axis} is not in a tensor of shape {tuple(shape)}: its axes are {allowed}")
        return PerChannel(self.axis % len(shape))

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[self.of(shape).axis],)

    def align(self, x: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return (x, *(parameter.reshape(shape) for parameter in parameters))

    def blocks(self, x: torch.Tensor) -> torch.Tensor:
        channels = x.movedim(self.axis, 0).unsqueeze(-1)
        rest = [dim + 1 for dim in _memory_order(channels[0])] if len(channels) else range(1, channels.ndim)
        return channels.permute(0, *rest).flatten(1)


@dataclass(frozen=True)
class PerGroup(Granularity):
    """One scale for every ``size`` consecutive values of a row; a row is all that is behind the first axis.

    A linear layer's weight (4096 outputs, 11008 inputs) has 11008 / 64 = 172 scales a row, and a
    convolution's weight (64, 32, 3, 3), whose rows are 288 long, has 9 in groups of 32:

    >>> PerGroup(64).scale_shape((4096, 11008))
    (4096, 172)
    >>> PerGroup(32).scale_shape((64, 32, 3, 3))
    (64, 9)
    """

    size: int = 64

    def __post_init__(self) -> None:
        _require_int("group size", self.size)
        if self.size < 1:
            raise ValueError(f"group size {self.size}: expected at least 1 value a group, such as PerGroup(64)")

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if not shape:
            raise ValueError("PerGroup needs a tensor with rows, got one number of shape (): use PerTensor()")
        row = torch.Size(shape[1:]).numel()
        if row % self.size:
            divisors = [str(size) for size in range(1, row + 1) if row % size == 0]
            raise ValueError(
                f"group size {self.size} does not divide the {row} values a row of shape {tuple(shape)}: "
                f"expected one of {', '.join(divisors[-8:])}, or PerChannel(0) for one scale a row"
            )
        return (shape[0], row // self.size)

    def align(self, x: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        groups = x.reshape(*self.scale_shape(x.shape), self.size)
        return (groups, *(parameter.unsqueeze(-1) for parameter in parameters))

    def blocks(self, x: torch.Tensor) -> torch.Tensor:
        rows, groups = self.scale_shape(x.shape)
        return x.reshape(rows * groups, self.size)


def check_granularity(value: object) -> None:
    """ValueError when the value is none of the three granularities."""
    if not isinstance(value, (PerTensor, PerChannel, PerGroup)):
        raise ValueError(f"granularity={value!r}: expected PerTensor(), PerChannel(axis) or PerGroup(size)")


def _memory_order(x: torch.Tensor) -> list[int]:
    """The axes of x from the one with the widest strides to the one whose values are neighbours in memory."""
    return sorted(range(x.ndim), key=lambda dim: -x.stride(dim))


def _require_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} {value!r}: expected a whole number")
