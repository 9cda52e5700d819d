"""What rounds a tensor in a prepared network: one :class:`Quantizer` on each edge and behind each weight.

:func:`build` makes the one that a spec asks for. All have the same interface: ``observe()``, then tensors pass and are
looked at, then ``freeze()``; from there on what passes is rounded. Training has two more, whose grids move
(:mod:`qlab.qat.lsq`). The gradient passes straight through the rounding (Bengio et al. 2013).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qlab import observers
from qlab.affine import SMALLEST_SCALE, QParams, dequantize, fake_quantize, quantize
from qlab.codebook import binary, kmeans, look_up, mean_magnitude, round_to_float, ternary
from qlab.formats import float_format
from qlab.qconfig import Binary, KMeans, QuantSpec, SmallFloat, Spec, Ternary

CLIP = 3.0  # in units of a binary weight's scale: beyond it no gradient passes


class Quantizer(nn.Module):
    """Rounds what passes to the values that its ``spec`` names; :func:`build` makes one.

    - ``mode`` is "quantize"; or "observe": values pass and are looked at; or "off": they pass.
    - ``fusible`` marks an edge inside convolution + addition, and ``fused`` says that the two are one step there,
      which does not round between them.
    - ``needs_data``: can it only be used after calibration? ``found`` names the tensors that calibration finds; they
      are None until then, and a state dict brings them.
    """

    kind = "quantizer"  # what it is as a node of a graph
    needs_data = True
    found: tuple[str, ...] = ()

    def __init__(self, spec: Spec, *, fusible: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.fusible = self.fused = fusible
        self.mode = "quantize"
        for name in self.found:
            self.register_buffer(name, None)

    @property
    def qparams(self) -> QParams | None:
        """The grid; None where no constant scale and zero point describe it. RuntimeError before calibration."""
        self.require_calibration()
        return None

    def require_calibration(self) -> None:
        """Raise RuntimeError before calibration."""
        if any(getattr(self, name) is None for name in self.found):
            raise RuntimeError(
                "this network has not been calibrated, so no grid is known: call qlab.calibrate(prepared, batches) first"
            )

    def observe(self) -> None:
        """Begin to observe, forgetting what was seen before."""
        self.mode = "observe"

    def look_at(self, x: Tensor) -> None:
        """Take in the values of ``x``. Here: there is nothing to find."""

    def freeze(self) -> None:
        """End observing: what was seen decides, from now on values are rounded."""
        self.mode = "quantize"

    def rounded(self, x: Tensor) -> Tensor:
        """``x`` rounded, in its type, with a gradient."""
        raise TypeError(f"{type(self).__name__} rounds nothing: use quantizers.build(spec)")

    def integers(self, w: Tensor) -> tuple[Tensor, QParams]:
        """(codes, grid) of weights. Raises ValueError where they are not integers times a scale."""
        raise ValueError(
            f"weights of {self.spec} are not integers times a scale, so no integer kernel computes with them: expected "
            "a QuantSpec, Binary() or Ternary()"
        )

    @property
    def no_kernel(self) -> str:
        """Why integer kernels cannot take activations that it rounds, and the way out; for a grid of None."""
        return (
            f"values of {self.spec.name} are not equally spaced: no integer kernel takes them: choose QuantSpec(8) and "
            "calibrate; or stay with the prepared network"
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "quantize":
            return x if self.fused else self.rounded(x)
        if self.mode == "observe":
            self.look_at(x.detach())
        return x

    def extra_repr(self) -> str:
        return repr(self.spec)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        for name in self.found:  # a fresh quantizer has found nothing yet: make room for what comes
            if getattr(self, name) is None and prefix + name in state_dict:
                room = torch.empty_like(state_dict[prefix + name])
                setattr(self, name, nn.Parameter(room) if name in self._parameters else room)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.renew()

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.renew()
        return self

    def renew(self) -> None:
        """Forget what was made of the tensors: others were loaded, or they moved to another device or type."""


class AffineQuantizer(Quantizer):
    """Rounds to the grid of a :class:`qlab.QParams`, whose range an observer chooses.

    >>> quantizer = AffineQuantizer(QuantSpec(2))
    >>> quantizer.observe(); _ = quantizer(torch.tensor([0.0, 6.0])); quantizer.freeze()
    >>> quantizer(torch.tensor([0.9, 5.0])), quantizer.qparams.scale
    (tensor([0., 4.]), tensor(2.))
    """

    spec: QuantSpec
    found = ("scale", "zero_point")

    def __init__(self, spec: QuantSpec, *, fusible: bool = False) -> None:
        super().__init__(spec, fusible=fusible)
        self.observer = observers.build(spec)
        self._qparams: QParams | None = None  # made once from the buffers, since a training step is made of these

    @property
    def qparams(self) -> QParams:
        """The grid; raises RuntimeError before calibration."""
        if self._qparams is None:
            self.require_calibration()
            self._qparams = self.spec.qparams(self.scale, self.zero_point)
        return self._qparams

    @qparams.setter
    def qparams(self, value: QParams) -> None:
        self.scale, self.zero_point = value.scale, value.zero_point
        self._qparams = None

    def observe(self) -> None:
        self.observer = observers.build(self.spec)
        super().observe()

    def look_at(self, x: Tensor) -> None:
        self.observer(x)

    def freeze(self) -> None:
        self.qparams = self.observer.qparams()
        super().freeze()

    def rounded(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.qparams)

    def integers(self, w: Tensor) -> tuple[Tensor, QParams]:
        return quantize(w.detach(), self.qparams), self.qparams

    def renew(self) -> None:
        self._qparams = None


class DynamicQuantizer(Quantizer):
    """Takes its range anew from each batch that it rounds: nothing to calibrate, but a search for the ends every time.

    PerTensor() shares one range among the batch, PerChannel(0) gives each image its own.

    >>> quantizer = DynamicQuantizer(QuantSpec(2, observer="dynamic"))
    >>> quantizer(torch.tensor([0.9, 3.0])), quantizer(torch.tensor([0.9, 0.3]))
    (tensor([1., 3.]), tensor([0.9000, 0.3000]))
    """

    spec: QuantSpec
    needs_data = False
    no_kernel = (
        'their range is taken anew from each batch (observer="dynamic"), kernels need a constant one: choose another '
        'observer, such as "minmax", and calibrate; or stay with the prepared network'
    )

    def rounded(self, x: Tensor) -> Tensor:
        return fake_quantize(x, observers.grid_of(x.detach(), self.spec))

    def integers(self, w: Tensor) -> tuple[Tensor, QParams]:
        grid = observers.grid_of(w.detach(), self.spec)
        return quantize(w.detach(), grid), grid


class BinaryQuantizer(Quantizer):
    """Signs times a scale. The gradient passes straight through, but is 0 beyond 3 times the scale.

    Hubara et al. (2016) stop the gradient at abs(w) > 1, where the network's weights are kept within -1 and 1. With
    BatchNorm folded into them weights have any size, each channel its own, so the limit is measured in units of the
    channel's scale. At 3 it holds up what no longer can change sign soon (2 % of normally spread weights), while at 1
    it would hold 42 % of them where they happen to be.

    >>> w = torch.tensor([[0.5, -1.5, 0.1, 9.9]], requires_grad=True)
    >>> rounded = BinaryQuantizer(Binary())(w)
    >>> rounded.sum().backward(); rounded.detach(), w.grad
    (tensor([[ 3., -3.,  3.,  3.]]), tensor([[1., 1., 1., 0.]]))
    """

    spec: Binary
    needs_data = False

    def integers(self, w: Tensor) -> tuple[Tensor, QParams]:
        return binary(w.detach(), self.spec.granularity)

    def rounded(self, w: Tensor) -> Tensor:
        view, scale = self.spec.granularity.align(w, mean_magnitude(w.detach(), self.spec.granularity))
        values = torch.where(view < 0, -scale, scale).to(w.dtype)  # as dequantized codes, without making them
        return straight_through(values, view, CLIP * scale).reshape(w.shape)


class TernaryQuantizer(Quantizer):
    """Codes -1, 0, 1 times a scale; the gradient passes straight through, as in TWN (section 2.3).

    >>> TernaryQuantizer(Ternary())(torch.tensor([[0.1, -0.3, 1.0, -2.0]]))
    tensor([[ 0.0000,  0.0000,  1.5000, -1.5000]])
    """

    spec: Ternary
    needs_data = False

    def integers(self, w: Tensor) -> tuple[Tensor, QParams]:
        return ternary(w.detach(), self.spec.granularity)

    def rounded(self, w: Tensor) -> Tensor:
        return straight_through(dequantize(*self.integers(w)).to(w.dtype), w)


class KMeansQuantizer(Quantizer):
    """A table of values, the parameter ``centroids``, and each weight's place in it, which stays as calibrated.

    In training the table learns and the weights that it replaces do not: their gradient is 0.

    >>> quantizer, w = KMeansQuantizer(KMeans(1)), torch.tensor([0.0, 1.0, 9.0, 10.0])
    >>> quantizer.observe(); _ = quantizer(w); quantizer.freeze()
    >>> quantizer(w)
    tensor([0.5000, 0.5000, 9.5000, 9.5000], grad_fn=<ViewBackward0>)
    """

    spec: KMeans
    found = ("centroids", "codes")

    def __init__(self, spec: KMeans, *, fusible: bool = False) -> None:
        super().__init__(spec, fusible=fusible)
        del self.centroids
        self.register_parameter("centroids", None)

    def look_at(self, x: Tensor) -> None:
        centroids, codes = kmeans(x, self.spec.bits, self.spec.granularity)
        self.centroids, self.codes = nn.Parameter(centroids.detach()), codes

    def rounded(self, w: Tensor) -> Tensor:
        self.require_calibration()
        return look_up(self.centroids, self.codes, self.spec.granularity).to(w.dtype)


class FloatQuantizer(Quantizer):
    """Rounds to a smaller float, with a scale if it has 8 bits; straight through, 0 where x was clipped.

    >>> FloatQuantizer(SmallFloat("bfloat16"))(torch.tensor([1.0, 1.001, 1.007]))
    tensor([1.0000, 1.0000, 1.0078])
    """

    spec: SmallFloat

    def __init__(self, spec: SmallFloat, *, fusible: bool = False) -> None:
        self.needs_data = spec.bits == 8
        self.found = ("scale",) if self.needs_data else ()
        super().__init__(spec, fusible=fusible)
        self._largest: Tensor | None = None

    def observe(self) -> None:
        self._largest = None
        super().observe()

    def look_at(self, x: Tensor) -> None:
        granularity = self.spec.granularity
        largest = granularity.blocks(x.abs().float()).amax(1).reshape(granularity.scale_shape(x.shape))
        if not bool(largest.isfinite().all()):
            raise ValueError(
                f"{self.spec}: the data hold NaN or infinite values; expected finite numbers. Find the "
                "layer or the image they come from"
            )
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)

    def freeze(self) -> None:
        if self.needs_data:
            if self._largest is None:
                raise ValueError(f"{self.spec} has seen no data: calibrate with qlab.calibrate(prepared, batches)")
            scale = self._largest / torch.finfo(float_format(self.spec.format)).max
            self.scale = torch.where(scale < SMALLEST_SCALE, 1.0, scale)
        super().freeze()

    def rounded(self, x: Tensor) -> Tensor:
        if not self.needs_data:
            return straight_through(round_to_float(x, self.spec.format), x)
        self.require_calibration()
        view, scale = self.spec.granularity.align(x, self.scale)
        values = round_to_float(view.float() / scale, self.spec.format) * scale
        limit = torch.finfo(float_format(self.spec.format)).max * scale
        return straight_through(values.to(x.dtype), view, limit).reshape(x.shape)


QUANTIZERS: dict[type[Spec], type[Quantizer]] = {
    QuantSpec: AffineQuantizer,
    Binary: BinaryQuantizer,
    Ternary: TernaryQuantizer,
    KMeans: KMeansQuantizer,
    SmallFloat: FloatQuantizer,
}


def build(spec: Spec, *, fusible: bool = False) -> Quantizer:
    """The quantizer that a spec asks for.

    >>> quantizer = build(QuantSpec(2))
    >>> quantizer.observe(); _ = quantizer(torch.tensor([0.0, 3.0])); quantizer.freeze()
    >>> quantizer(torch.tensor([0.9, 5.0]))
    tensor([1., 3.])

    Raises ValueError for what is no spec of :mod:`qlab.qconfig`.
    """
    if type(spec) not in QUANTIZERS:
        known = ", ".join(one.__name__ for one in QUANTIZERS)
        raise ValueError(f"spec {spec!r}: expected one of {known} (qlab.qconfig)")
    if getattr(spec, "observer", None) == "dynamic":
        return DynamicQuantizer(spec, fusible=fusible)
    return QUANTIZERS[type(spec)](spec, fusible=fusible)


def straight_through(rounded: Tensor, x: Tensor, limit: Tensor | float | None = None) -> Tensor:
    """``rounded``, to the bit, with the gradient of x: 1, and 0 where the magnitude of x exceeds ``limit``.

    >>> x = torch.tensor([0.4, -5.0], requires_grad=True)
    >>> straight_through(x.round(), x, limit=2.0).sum().backward(); x.grad
    tensor([1., 0.])
    """
    passed = x if limit is None else torch.where(x.abs() <= limit, x, x.detach())
    return rounded.detach() + (passed - passed.detach())
