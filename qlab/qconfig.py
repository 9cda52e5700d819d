"""What is quantized, and how: one :class:`Spec` a tensor, one :class:`QConfig` a network.

:class:`QuantSpec` asks for equal steps, :class:`Binary`, :class:`Ternary`, :class:`KMeans` and :class:`SmallFloat`
for other values (:mod:`qlab.codebook`). :mod:`qlab.quantizers` makes what a spec asks for.

``w4a8`` is the field's shorthand: weights with 4 bits, activations (the numbers that flow between layers)
with 8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from qlab.affine import QParams, check_bits, grid_limits
from qlab.formats import float_format
from qlab.granularity import Granularity, PerChannel, PerTensor, check_granularity


class Spec:
    """What all specs have. Use one of them: :class:`QuantSpec`, or one of the other values."""

    for_activations: ClassVar[bool] = True  # or is it made from weights, and holds for them alone?

    @property
    def bits(self) -> int:
        """Of one code."""
        raise NotImplementedError

    @property
    def granularity(self) -> Granularity:
        """Who shares a scale, or a table of values."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """In words, of a grid whose steps are not even."""
        return ""

    @property
    def observer(self) -> str | Callable:
        """Who chooses the range; empty where nobody has to."""
        return ""


@dataclass(frozen=True)
class QuantSpec(Spec):
    """How one tensor is quantized: the grid's width, its form, who shares a scale, and who chooses the range.

    ``observer`` is a name from :mod:`qlab.observers` ("minmax", "moving_average", "percentile", "mse",
    "entropy") or any callable that makes an observer from a spec; "dynamic" takes the range anew from each
    batch at run time.

    >>> QuantSpec(bits=4, signed=True, symmetric=True, granularity=PerChannel(0))
    QuantSpec(bits=4, signed=True, symmetric=True, granularity=PerChannel(axis=0), observer='minmax',
    narrow_range=False)
    """

    bits: int = 8
    signed: bool = False
    symmetric: bool = False
    granularity: Granularity = PerTensor()
    observer: str | Callable = "minmax"
    narrow_range: bool = False

    def __post_init__(self) -> None:
        grid_limits(self.bits, self.signed, self.narrow_range)  # raises where there is no such grid
        check_granularity(self.granularity)
        if self.bits == 1 and self.signed and self.symmetric:
            raise ValueError("bits=1, signed and symmetric: its codes are -1 and 0; expected at least 2 bits")

    def qparams(self, scale: Tensor, zero_point: Tensor) -> QParams:
        """The grid of this form with the given scale and zero point."""
        return QParams(scale, zero_point, self.bits, self.signed, self.granularity, self.narrow_range)


@dataclass(frozen=True)
class Binary(Spec):
    """One bit: sign(w) times the mean magnitude of the channel (XNOR-Net), or with PerTensor() of the layer (DoReFa).

    Both are taken anew from the weights at each forward pass, since training moves them.

    >>> Binary().bits, Binary(PerTensor())
    (1, Binary(granularity=PerTensor()))
    """

    granularity: Granularity = PerChannel(0)
    bits: ClassVar[int] = 1
    name: ClassVar[str] = "binary"
    for_activations: ClassVar[bool] = False


@dataclass(frozen=True)
class Ternary(Spec):
    """-1, 0 or 1 times a scale, taken anew from the weights at each forward pass. TWN's own form is per layer.

    >>> Ternary(PerTensor()).bits
    2
    """

    granularity: Granularity = PerChannel(0)
    bits: ClassVar[int] = 2
    name: ClassVar[str] = "ternary"
    for_activations: ClassVar[bool] = False


@dataclass(frozen=True)
class KMeans(Spec):
    """A table of 2**bits values for a layer (Deep Compression), or for each channel; 32 bits a value are stored too.

    >>> KMeans(4)
    KMeans(bits=4, granularity=PerTensor())
    """

    bits: int = 4
    granularity: Granularity = PerTensor()
    name: ClassVar[str] = "k-means"
    for_activations: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_bits(self.bits, most=8)


@dataclass(frozen=True)
class SmallFloat(Spec):
    """The values of a smaller float (:mod:`qlab.formats`). Those of 8 bits are scaled so that the largest magnitude is
    the format's largest.

    >>> SmallFloat("e5m2").bits, SmallFloat("bfloat16").bits
    (8, 16)
    """

    format: str = "e4m3"
    granularity: Granularity = PerTensor()

    def __post_init__(self) -> None:
        float_format(self.format)  # raises where there is no such format

    @property
    def bits(self) -> int:
        """8 or 16."""
        return 8 * float_format(self.format).itemsize

    @property
    def name(self) -> str:
        """The format."""
        return self.format

    @property
    def observer(self) -> str:
        """How the scale is chosen; empty when there is none."""
        return "largest magnitude" if self.bits == 8 else ""


WEIGHT = QuantSpec(8, signed=True, symmetric=True, granularity=PerChannel(0), narrow_range=True)


@dataclass(frozen=True)
class QConfig:
    """How a network is quantized: its weights, its activations, and the exceptions.

    - ``weight``: the spec of every weight. ``activation``: the spec
      of every input of a convolution or linear layer; None leaves activations in float (weight-only, W4A32).
    - ``elementwise``: the spec of the tensors that are only carried (added, pooled, concatenated, given out).
      Sums of few bits lose more than they save, so it stays at 8 bits; with 8-bit activations the two are one
      and the same.
    - ``first_last``: the bits of the first and the last layer when the others have fewer (usual since DoReFa,
      Zhou et al. 2016); None treats them like the others.
    - ``shortcuts``: the bits of the 1x1 convolutions that lead a shortcut past other layers, to an addition. All
      that the network remembers from block to block goes through them, so binary networks keep them wide (Liu et
      al., "Bi-Real Net", 2018); None treats them like the others.
    - ``overrides``: {layer name or module type: another QConfig, or None to leave the layer in float}. A name
      beats a type; the name of a block ("layer1") holds for all that is inside it.

    >>> QConfig.w4a8().weight.bits, QConfig.w4a8().activation.bits
    (4, 8)
    >>> QConfig.w8a8(overrides={"fc": None}).layer("fc", nn.Linear(4, 2)) is None
    True
    """

    weight: Spec = WEIGHT
    activation: Spec | None = QuantSpec(8)
    elementwise: Spec = QuantSpec(8)
    first_last: int | None = 8
    shortcuts: int | None = None
    overrides: Mapping[str | type, QConfig | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in ("activation", "elementwise"):
            spec = getattr(self, role)
            if spec is not None and not spec.for_activations:
                raise ValueError(
                    f"{role}={spec}: its values are made from weights and hold for them alone; expected a "
                    "QuantSpec such as QuantSpec(bits=1), or a SmallFloat"
                )
        for key, value in self.overrides.items():
            if not isinstance(key, (str, type)):
                raise ValueError(f"overrides key {key!r}: expected a layer's name or a module type such as nn.Linear")
            if value is not None and not isinstance(value, QConfig):
                raise ValueError(
                    f"overrides[{key!r}] = {value!r}: expected a QConfig, or None to leave the layer in float"
                )

    @classmethod
    def preset(
        cls, name: str, *, observer: str | Callable = "minmax", reduce_range: bool = False, **changes: Any
    ) -> QConfig:
        """The configuration that a shorthand such as "w8a8" or "w4a32" names.

        Args:
            name: w<bits of weights>a<bits of activations>. w1 means :class:`Binary`, as one bit of equal steps around 0
                is none; a32 leaves activations in float.
            observer: Chooses the range of the activations: a name, or a callable, as in :class:`QuantSpec`.
            reduce_range: Give 8-bit weights 7 bits, so that two products, 2 * 255 * 63 at most, fit the 16 bits in
                which a processor without VNNI adds them up (a weight has a scale for each channel and needs the bit
                less than an activation).
            changes: Fields of QConfig.

        Raises:
            ValueError: That is no shorthand, or there is no such number of bits.

        >>> from qlab import QConfig
        >>> QConfig.preset("w3a3").weight.granularity
        PerChannel(axis=0)
        """
        match = re.fullmatch(r"w(\d+)a(\d+)", name)
        if match is None:
            raise ValueError(f"preset {name!r}: expected w<bits>a<bits>, such as 'w8a8' or 'w4a32'")
        weight_bits, activation_bits = int(match[1]), int(match[2])
        elementwise = QuantSpec(observer=observer)
        activation = None if activation_bits == 32 else replace(elementwise, bits=activation_bits)
        fields: dict[str, Any] = {"weight": Binary(), "activation": activation, "elementwise": elementwise}
        if weight_bits > 1:
            fields["weight"] = replace(WEIGHT, bits=min(weight_bits, 7) if reduce_range else weight_bits)
        if reduce_range:
            fields["first_last"] = 7
        return cls(**{**fields, **changes})

    @classmethod
    def w8a8(cls, **changes: Any) -> QConfig:
        """8-bit weights and activations: what int8 processors run."""
        return cls.preset("w8a8", **changes)

    @classmethod
    def w6a6(cls, **changes: Any) -> QConfig:
        """6-bit weights and activations."""
        return cls.preset("w6a6", **changes)

    @classmethod
    def w4a8(cls, **changes: Any) -> QConfig:
        """4-bit weights, 8-bit activations."""
        return cls.preset("w4a8", **changes)

    @classmethod
    def w4a4(cls, **changes: Any) -> QConfig:
        """4-bit weights and activations."""
        return cls.preset("w4a4", **changes)

    @classmethod
    def w3a3(cls, **changes: Any) -> QConfig:
        """3-bit weights and activations."""
        return cls.preset("w3a3", **changes)

    @classmethod
    def w2a2(cls, **changes: Any) -> QConfig:
        """2-bit weights and activations."""
        return cls.preset("w2a2", **changes)

    def layer(self, name: str, module: nn.Module, *, edge: bool = False, shortcut: bool = False) -> QConfig | None:
        """The configuration of one layer: the override that fits it best, else this one; None means float.

        ``edge`` says that the layer is the network's first or last, ``shortcut`` that it leads past others: it gets
        at least ``first_last`` or ``shortcuts`` bits, unless an override names it.
        """
        path = name.split(".")
        keys: list[str | type] = [".".join(path[:end]) for end in range(len(path), 0, -1)]
        keys += [key for key in self.overrides if isinstance(key, type) and isinstance(module, key)]
        for key in keys:
            if key in self.overrides:
                return self.overrides[key]
        bits = max((edge and self.first_last) or 0, (shortcut and self.shortcuts) or 0)
        return self.at_least(bits) if bits else self

    def at_least(self, bits: int) -> QConfig:
        """The same configuration with no spec below ``bits``, nor activations above what the elementwise has.

        Another spec with fewer bits gives way to the default one of equal steps.

        >>> QConfig.preset("w1a1").at_least(8).weight == QConfig.w8a8().weight
        True
        """

        def widen(spec: Spec, most: int) -> Spec:
            if spec.bits >= min(bits, most):
                return spec
            return replace(spec if isinstance(spec, QuantSpec) else WEIGHT, bits=min(bits, most))

        activation = None if self.activation is None else widen(self.activation, self.elementwise.bits)
        return replace(self, weight=widen(self.weight, bits), activation=activation)
