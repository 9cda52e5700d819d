"""Quantization-aware training: the network learns with the rounding in place, and its grids learn too.

- Straight through: rounding passes the gradient as if it were not there (Bengio et al. 2013; Jacob et al. 2018).
- LSQ: a scale is a weight like any other. Its gradient leads to where rounding and clipping together cost least
  (Esser et al., "Learned step size quantization", 2020). Where 0 is inside the range, the zero point learns too
  (Bhalgat et al., "LSQ+", 2020).
- PACT: only what is clipped moves the clipping point (Choi et al., "PACT", 2018).
- BatchNorm trains along, folded into the weights before they are rounded, as it will be in the integer network
  (Jacob et al. 2018, section 3.2); near the end its statistics stand still (Krishnamoorthi 2018, section 3.2.2).
- Distillation: the float network's answers teach more than labels do (Hinton et al. 2015; Mishra and Marr 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab import models, parallel
from qlab import train as loop
from qlab.affine import SMALLEST_SCALE, QParams, grid_limits
from qlab.calibration import calibrate
from qlab.codebook import GridQuantizer
from qlab.files import read_tensors, write_tensors
from qlab.granularity import PerChannel
from qlab.graph.prepare import FakeQuantizer, Prepared, QuantConv2d, prepare
from qlab.graph.trace import kind_of
from qlab.observers import MinMax, MovingAverageMinMax
from qlab.qconfig import QConfig, QuantSpec

if TYPE_CHECKING:
    from qlab.data import Dataset

METHODS = ("lsq", "pact", "straight_through")
PLAN = loop.Plan(epochs=15, lr=0.04, weight_decay=1e-4, shrink=0.0)
LIMIT = 0.02  # the share by which a learned scale may change in one step
TEMPERATURE = 2.0  # softens both networks' answers, so that the unlikely classes teach too (Hinton et al. 2015)


def qconfig(preset: str) -> QConfig:
    """The configuration to train with: "w4a4" and the like, ranges chosen by least squared error to start from.

    Activations of 8 bits get 7, so that the trained network runs on every engine: with 8 the sums of a processor
    without VNNI saturate (here training makes up for the bit; after training, ``reduce_range`` takes it from the
    weights). Weights of fewer bits get the lowest code too, which is one of four where there are 2 bits. Beside
    activations of 1 bit the ``shortcuts`` keep 8.

    >>> qconfig("w8a8").activation.bits, qconfig("w4a4").activation.bits
    (7, 4)
    """
    config = QConfig.preset(preset, observer="mse")
    elementwise = replace(config.elementwise, bits=7)
    if config.activation is not None:
        config = replace(config, activation=replace(elementwise, bits=min(config.activation.bits, 7)))
        if config.activation.bits == 1:
            config = replace(config, shortcuts=8)
    config = replace(config, elementwise=elementwise)
    if isinstance(config.weight, QuantSpec):  # binary weights have no range to choose
        narrow = config.weight.bits >= 8
        config = replace(config, weight=replace(config.weight, observer="mse", narrow_range=narrow))
    return config


def load(name: str, preset: str, data: str = "cifar10") -> Prepared:
    """The committed network ``name`` trained with the rounding of ``preset``, in eval mode, ready for qlab.convert.

    Raises ValueError when there is none, or when its file is damaged (sha256).
    """
    return models.trained(lambda: prepare(models.ARCHITECTURES[name](), qconfig(preset)), f"{name}-{data}-{preset}")


def fit(
    prepared: Prepared,
    train: Dataset | Iterable[tuple[Tensor, Tensor]],
    validation: Dataset | None = None,
    plan: loop.Plan = PLAN,
    *,
    method: str = "lsq",
    teacher: nn.Module | None = None,
    distillation: float = 0.5,
    penalty: float = 0.0,
    freeze_ranges: float = 0.5,
    freeze_batchnorm: float = 0.97,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    progress: bool = True,
    about: dict | None = None,
) -> list[dict]:
    """Train a calibrated network in place with its rounding; returns one row an epoch, like ``qlab.train.fit``.

    ``train`` is a Dataset, or batches (x, y) that are gone through once an epoch. ``method`` says how the grids move:
    "lsq" learns every scale; "pact" learns the activations' upper ends; "straight_through" lets the grids follow the
    largest values until the share ``freeze_ranges`` of the training is done. The BatchNorms' statistics stand still
    after ``freeze_batchnorm``: late, since with few bits and a learning rate that is not tiny yet, a network that is no
    longer normalized diverges. A ``teacher``, the float network, gets the share ``distillation`` of the loss, and
    ``penalty`` weighs the weights' relative quantization error in it. ``loss(x, output, y)`` takes the place of the
    labels' cross-entropy, for networks that do not classify; such a network has no teacher here. Afterwards
    ``prepared`` is an ordinary prepared network, ready for qlab.convert; with a ``folder`` (as in qlab.train.fit) it is
    that of the best epoch. Raises RuntimeError before calibration, ValueError for an unknown method, a share outside 0
    to 1, or a loss beside a teacher.
    """
    if loss is not None and teacher is not None:
        raise ValueError("a teacher teaches classes, and a loss of your own takes their place: give one of the two")
    shares = dict(distillation=distillation, freeze_ranges=freeze_ranges, freeze_batchnorm=freeze_batchnorm)
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share}: expected a share from 0 to 1")
    data = train if hasattr(train, "batches") else _Batches(train)
    plan = plan if data is train else replace(plan, batch_size=data.size)
    prepared.to(device, memory_format=torch.channels_last)
    start(prepared, (x for x, _ in data.batches(plan.batch_size, shuffle=True, seed=plan.seed)), method)
    try:
        history = loop.fit(
            prepared, data, validation, plan, folder=folder, device=device, progress=progress, about=about,
            loss=Loss(prepared, plan.label_smoothing, teacher and teacher.to(device).eval(), distillation, penalty, loss),
            on_step=lambda progress: _freeze(prepared, progress >= freeze_ranges, progress >= freeze_batchnorm),
        )  # fmt: skip
        if folder is not None and history:
            prepared.load_state_dict(read_tensors(folder / "best.safetensors", device)[0])
    except BaseException:
        with suppress(ValueError):  # what diverged has no grid; that it did is the error to show
            finish(prepared)
        raise
    finish(prepared)
    return history


def train(
    network: nn.Module,
    preset: str,
    train: Dataset,
    validation: Dataset,
    plan: loop.Plan = PLAN,
    *,
    folder: Path,
    initial: Path | None = None,
    **options,
) -> tuple[Prepared, list[dict]]:
    """Prepare, calibrate and train a float network, which also is the teacher: what `qlab train --qat` does.

    ``initial``, the prepared.safetensors of an earlier run, is gone on from instead. That run had the same bits, or
    float activations ("w1a32" before "w1a1"): grids that it lacks are chosen anew, those that it has are kept; another
    raises ValueError. Returns the trained network, also saved as prepared.safetensors in ``folder``, and its history.
    """
    prepared = prepare(network, qconfig(preset))
    sample = train.sample(1024).batches(128)
    if initial is None:
        calibrate(prepared, sample)
    else:
        _go_on(prepared, _earlier(initial, preset), sample)
    history = fit(prepared, train, validation, plan, teacher=network, folder=folder, **options)
    if parallel.place()[0] == 0:
        write_tensors(folder / "prepared.safetensors", prepared.state_dict(), {"qconfig": preset})
    return prepared, history


def _earlier(path: Path, preset: str) -> dict[str, Tensor]:
    """What the run that left this file has learned, if ``preset`` can go on from it. The first files do not say."""
    initial, header = read_tensors(path)
    expected = dict.fromkeys((preset, f"{preset.partition('a')[0]}a32"))
    if header.get("qconfig", preset) not in expected:
        raise ValueError(f"{path} is of a run with {header['qconfig']}: expected one with {' or '.join(expected)}")
    return initial


def _go_on(prepared: Prepared, initial: dict[str, Tensor], batches: Iterable) -> None:
    """Take over what an earlier run has learned; where it had no grid, choose one for the values that come there now.

    Those values are what the rounded weights give: a binary network is another one than its weights before rounding.
    """
    with torch.no_grad():
        prepared.load_state_dict(prepared.state_dict() | {n: v for n, v in initial.items() if "quantizer" not in n})
        latent = [(layer.weight, layer.weight.clone()) for _, layer in prepared.weighted()]
        for _, layer in prepared.weighted():
            if isinstance(layer.weight_quantizer, GridQuantizer):
                layer.weight.copy_(layer.weight_quantizer(layer.weight))
        calibrate(prepared, batches)
        for weight, before in latent:
            weight.copy_(before)
    own = prepared.state_dict()
    if unknown := sorted(initial.keys() - own.keys()):
        raise ValueError(
            f"cannot go on from a run with {unknown[0]}: expected this network, with weights of as many bits"
        )
    prepared.load_state_dict(own | initial)


def start(prepared: Prepared, batches: Iterable[Tensor], method: str = "lsq") -> Prepared:
    """Give a calibrated network what it learns with: grids that move, and each convolution's BatchNorm again.

    That is set to change nothing at first, by what 8 of the ``batches`` (x) show of each channel: the one that was
    folded need no longer fit, after equalization, bias correction or AdaRound. Returns ``prepared``.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: expected one of {', '.join(METHODS)}")
    for _, quantizer in prepared.quantizers():
        quantizer.qparams  # noqa: B018 - raises when the network was not calibrated
    moments = _channel_moments(prepared, islice(batches, 8))
    weights = {layer.weight_quantizer for _, layer in prepared.weighted()}
    cut_off = _behind_relu6(prepared)
    for _, quantizer in prepared.quantizers():
        if type(quantizer) is FakeQuantizer:
            _let_learn(quantizer, method, quantizer in weights)
            if quantizer in cut_off and getattr(quantizer, "at_zero", False):
                quantizer.largest = 6.0 / quantizer.qparams.qmax
    for _, layer in prepared.weighted():
        vars(layer).pop("original", None)  # what bias correction and AdaRound compare with: it moves from now on
    for layer, (mean, variance) in moments.items():
        layer.__class__ = NormalizedConv2d
        layer.norm = nn.BatchNorm2d(len(mean), device=mean.device)
        with torch.no_grad():
            variance = variance + layer.norm.eps
            size = torch.minimum(_size(layer.weight), (variance / layer.norm.eps).sqrt())
            layer.weight.div_(size[:, None, None, None])
            layer.norm.running_mean.copy_(mean / size)
            layer.norm.running_var.copy_((variance / size**2 - layer.norm.eps).clamp(min=0))
            layer.norm.weight.copy_(variance.sqrt())
            layer.norm.bias.copy_(mean if layer.bias is None else mean + layer.bias)
            if _by_channel(layer.weight_quantizer):
                layer.weight_quantizer.count_in(layer._gain().abs())
        layer.bias = None
    return prepared


def _size(weight: Tensor) -> Tensor:
    """By how much each output channel's weights exceed those that a training begins with (He et al. 2015).

    Folded weights differ in size by a factor of ten and more, and before a BatchNorm a weight moves by its gradient
    over its size: large channels would stand still, and small ones jump. Channels of nothing but 0 have size 1.
    """
    fan_in = weight[0].numel()
    size = weight.square().mean((1, 2, 3)).mul(fan_in / 2).sqrt()
    return torch.where(size < 1e-6, 1.0, size)


def finish(prepared: Prepared) -> Prepared:
    """Undo :func:`start` but keep what was learned: grids stand still, BatchNorms are part of the weights."""
    for _, layer in prepared.weighted():
        if isinstance(layer, NormalizedConv2d):
            with torch.no_grad():
                weight, bias = layer.folded()
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
            del layer.norm
            layer.__class__ = QuantConv2d
    for _, quantizer in prepared.quantizers():
        if isinstance(quantizer, (LearnedQuantizer, FollowingQuantizer)):
            qparams = quantizer.qparams
            del quantizer.scale, quantizer.zero_point
            quantizer.__class__ = FakeQuantizer
            quantizer.register_buffer("scale", qparams.scale)
            quantizer.register_buffer("zero_point", qparams.zero_point)
            quantizer.qparams = qparams
            for name in ("unit", "largest", "held"):
                vars(quantizer).pop(name, None)
    return prepared


class NormalizedConv2d(QuantConv2d):
    """Convolution and BatchNorm in training, rounding the weights as they will be when the two are one.

    In training the convolution takes ``Q(w * g) / g`` with the gain g = gamma / sqrt(running variance), so that what
    BatchNorm sees are the values of the unfolded network, but the rounding is that of the folded one. In eval mode the
    fold is carried out. Frozen, BatchNorm takes its running statistics, which gives the values of eval mode; but the
    fold is still not carried out: straight through Q, gamma's gradient would be that of the weights before they were
    rounded, and with few bits a large part of it wrong.

    A scale that learns for each channel is counted in units of g, as the weights are: then it too has the gradient of
    the unfolded network, and the two stay in step whatever g is.
    """

    norm: nn.BatchNorm2d
    frozen = False

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights and bias of the one convolution that does what both do in eval mode."""
        gain = self._gain()
        return self.weight * gain[:, None, None, None], self.norm.bias - self.norm.running_mean * gain

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            weight, bias = self.folded()
            return self._conv_forward(x, self.weight_quantizer(weight), bias)
        gain, norm = self._gain().detach()[:, None, None, None], self.norm
        y = self._conv_forward(x, self.weight_quantizer(self.weight * gain) / gain, None)
        if self.frozen:
            return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return norm(y)

    def _gain(self) -> Tensor:
        """g, of which the learned scales are told."""
        gain = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
        gain = torch.where(gain.abs() < 1e-6, 1e-6, gain)  # a channel that died must not divide by 0
        if _by_channel(self.weight_quantizer):
            self.weight_quantizer.unit = gain.detach().abs()
        return gain


class LearnedQuantizer(FakeQuantizer):
    """A fake-quantizer whose scale learns, and its zero point where 0 is inside the range: :class:`LearnedStep`.

    A step changes a scale by at most 2 % of itself. The gradient knows nothing of the scale's size, and with 8 bits a
    scale is small: one large gradient would throw it below 0, and that channel would never come back.
    """

    pact = False
    of_weight = False
    at_zero = False  # is the zero point 0, and stays so? Then it need not be added and taken away
    largest: float | None = None  # the scale at which the grid's top lies where a relu6 cuts off
    held: Tensor | None = None  # the scale before the last step
    unit: Tensor | None = None  # what the scale is counted in: the gain by which the weights are multiplied

    @property
    def qparams(self) -> QParams:
        """The grid as it is now."""
        self.hold()
        qmin, qmax = self._limits()
        zero_point = self.zero_point.detach().round().clamp(qmin, qmax).to(torch.int32)
        scale = self.scale.detach().clone()
        return self.spec.qparams(scale if self.unit is None else scale * self.unit, zero_point)

    def hold(self) -> None:
        """Bring a scale that moved too far since the last call to as far as it may go."""
        now = self.scale.data  # not the parameter: this must not count as a change since the forward pass
        if self.held is None:
            self.held = now.clone()
        now.clamp_(self.held * (1 - LIMIT), self.held * (1 + LIMIT)).clamp_(SMALLEST_SCALE, self.largest)
        self.held.copy_(now)

    def count_in(self, unit: Tensor) -> None:
        """From now on the scale is a multiple of ``unit``, which may change; the grid stays as it is."""
        self.scale.data.div_(unit)
        self.unit, self.held = unit, self.scale.detach().clone()

    def _apply(self, fn, recurse=True):
        self.held = None
        self.unit = None if self.unit is None else fn(self.unit)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, *args) -> None:
        self.hold()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self.held = None
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.look_for_zero()

    def look_for_zero(self) -> None:
        """Find out whether the zero point is 0: when it was set, not in each step, where a GPU would be waited for."""
        self.at_zero = not (isinstance(self.zero_point, nn.Parameter) or bool(self.zero_point.any()))

    def forward(self, x: Tensor) -> Tensor:
        if self.mode != "quantize" or self.fused:
            return super().forward(x)
        self.hold()
        qmin, qmax = self._limits()
        scale, zero_point = self.scale, self.zero_point.float()
        if self.unit is not None:
            scale = scale * self.unit
        view = x
        if scale.ndim:
            view, scale, zero_point = self.spec.granularity.align(x, scale, zero_point)
        if self.pact:
            share = 1 / qmax**2  # the end alpha = qmax * scale is what learns
        else:
            share = gradient_share(x.numel() // (self.scale.numel() if self.of_weight else len(x)), qmax)
        return LearnedStep.apply(
            view, scale, None if self.at_zero else zero_point, qmin, qmax, share, self.pact
        ).reshape(x.shape)

    def _limits(self) -> tuple[int, int]:
        return grid_limits(self.spec.bits, self.spec.signed, self.spec.narrow_range)


def gradient_share(values: int, qmax: int) -> float:
    """LSQ's gradient scale 1 / sqrt(N * Qp): it makes a scale learn about as fast as the weights do.

    N counts the values that share one scale: the weights of a channel where scales are per channel, the values of
    one image for activations (Esser et al. 2020, section 2.2).

    >>> gradient_share(144, 7)
    0.031497...
    """
    return (values * max(qmax, 1)) ** -0.5


class LearnedStep(torch.autograd.Function):
    """Rounding to a grid, with gradients for the values and for the grid.

    Of y = (clamp(round(x / s) + z) - z) * s, with rounding passed straight through:

        dy/dx = 1 inside the grid, 0 where x is clipped
        dy/ds = (y - x) / s inside, y / s where x is clipped         LSQ, equation 3
        dy/ds = 0 inside, y / s where x is clipped                   PACT
        dy/dz = 0 inside, -s where x is clipped                      LSQ+, equation 5

    So with g the gradient of y and gx that of x, the gradient of s is (sum g * y - sum gx * x) / s: two dot products.
    That is a difference of large numbers, which the few bits of bfloat16 would not survive; they take the longer way,
    sum (g - gx) * y + sum gx * (y - x). That of z (None: it is 0) is made the gradient of the offset -z * s, measured
    in steps, so that it moves as the scale does.
    """

    @staticmethod
    def forward(ctx, x, scale, zero_point, qmin, qmax, share, pact):
        y = torch.mul(x, scale.reciprocal()).round_()
        if zero_point is None:
            codes = None
            y.clamp_(qmin, qmax)
        else:
            codes = zero_point.round().clamp(qmin, qmax)
            y.add_(codes).clamp_(qmin, qmax).sub_(codes)
        y.mul_(scale)
        ctx.save_for_backward(x, y, scale, codes)
        ctx.constants = qmin, qmax, share, pact
        return y

    @staticmethod
    def backward(ctx, gradient):
        x, y, scale, zero_point = ctx.saved_tensors
        qmin, qmax, share, pact = ctx.constants
        position = torch.mul(x, scale.reciprocal())
        if zero_point is not None:
            position.add_(zero_point)
        passed = torch.ops.aten.hardtanh_backward(gradient, position, qmin, qmax)
        if x.dtype == torch.bfloat16:
            moved = _dot(gradient - passed, y, scale)
            if not pact:
                moved = moved + _dot(passed, y - x, scale)
        else:
            moved = _dot(gradient, y, scale) - _dot(passed, y if pact else x, scale)
        moved = moved.to(scale.dtype) / scale * share
        shifted = None
        if ctx.needs_input_grad[2]:
            shifted = -_dot(gradient - passed, None, scale).to(scale.dtype) / scale * share
        return passed, moved, shifted, None, None, None, None


def _dot(a: Tensor, b: Tensor | None, like: Tensor) -> Tensor:
    """The sum of a * b (of a, when b is None) over all that shares one entry of ``like``."""
    if (
        like.ndim == 0
        and b is not None
        and a.stride() == b.stride()
        and a.is_contiguous(memory_format=torch.channels_last if a.ndim == 4 else torch.contiguous_format)
    ):
        flat = (a.numel(),), (1,)
        return torch.dot(a.as_strided(*flat), b.as_strided(*flat))
    return (a if b is None else a * b).sum_to_size(like.shape)


class FollowingQuantizer(FakeQuantizer):
    """A fake-quantizer whose grid follows the values in training: of weights the largest, of activations an average."""

    frozen = False
    of_weight = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.mode == "quantize" and not self.frozen:
            if self.of_weight:
                self.observer = MinMax(self.spec)
            self.observer(x.detach())
            self.qparams = self.observer.qparams()
        return super().forward(x)


def _let_learn(quantizer: FakeQuantizer, method: str, of_weight: bool) -> None:
    """Make a fake-quantizer one whose grid moves."""
    qparams = quantizer.qparams
    from_zero = bool((qparams.zero_point == qparams.qmin).all())
    if method == "straight_through" or (method == "pact" and of_weight):
        quantizer.__class__ = FollowingQuantizer
        quantizer.of_weight = of_weight
        if not of_weight:
            quantizer.observer = MovingAverageMinMax(quantizer.spec)
            ends = torch.tensor([qparams.qmin, qparams.qmax], device=qparams.scale.device)
            quantizer.observer((ends - qparams.zero_point) * qparams.scale)
        return
    quantizer.__class__ = LearnedQuantizer
    quantizer.of_weight, quantizer.pact = of_weight, method == "pact" and from_zero
    del quantizer.scale
    quantizer.scale = nn.Parameter(qparams.scale.clone())
    quantizer.held = qparams.scale.clone()
    if not (from_zero or quantizer.spec.symmetric):
        del quantizer.zero_point
        quantizer.zero_point = nn.Parameter(qparams.zero_point.float())
    quantizer.look_for_zero()


def _by_channel(quantizer: nn.Module) -> bool:
    """Does each output channel have a scale that learns?"""
    return isinstance(quantizer, LearnedQuantizer) and quantizer.spec.granularity == PerChannel(0)


def _behind_relu6(prepared: Prepared) -> set[nn.Module]:
    """The modules that get what a relu6 gives. No grid there may grow beyond 6: its top does the cutting off."""
    nodes = [node for node in prepared.network.graph.nodes if node.op == "call_module" and node.all_input_nodes]
    return {prepared.network.get_submodule(n.target) for n in nodes if kind_of(n.all_input_nodes[0]) == "relu6"}


@torch.inference_mode()
def _channel_moments(prepared: Prepared, batches: Iterable[Tensor]) -> dict[QuantConv2d, tuple[Tensor, Tensor]]:
    """Mean and variance of each convolution's output channels without its bias, rounding included."""
    sums: dict[QuantConv2d, Tensor] = {}

    def watch(layer: QuantConv2d, inputs, output: Tensor) -> None:
        y = (output if layer.bias is None else output - layer.bias[:, None, None]).double()
        new = torch.stack([y.mean((0, 2, 3)), y.square().mean((0, 2, 3)), torch.ones_like(y[0, :, 0, 0])])
        sums[layer] = sums.get(layer, 0) + new

    had_batchnorm = [layer for _, layer in prepared.weighted() if hasattr(layer, "output_mean")]
    layers = [layer for layer in had_batchnorm if type(layer) is QuantConv2d]
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    device = next(prepared.parameters()).device
    prepared.eval()
    try:
        for x in batches:
            prepared(x.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    if layers and not sums:
        raise ValueError("there is no batch to train on: expected at least one (x, y)")
    return {
        layer: ((mean / n).float().clone(), (square / n - (mean / n) ** 2).clamp(min=0).float().clone())
        for layer, (mean, square, n) in sums.items()
    }


def _freeze(prepared: Prepared, ranges: bool, batchnorm: bool) -> tuple[bool, bool]:
    """Before each step: what has to stand still from now on does. Returns what that is: steps differ by it."""
    for _, layer in prepared.weighted():
        if isinstance(layer, NormalizedConv2d):
            layer.frozen = batchnorm
    for _, quantizer in prepared.quantizers():
        if isinstance(quantizer, FollowingQuantizer):
            quantizer.frozen = ranges
    return ranges, batchnorm


class Loss:
    """Cross-entropy with the labels, or a ``task``'s own loss; and if wanted the distance to a teacher's answers, and the
    weights' error."""

    def __init__(self, prepared, label_smoothing=0.0, teacher=None, distillation=0.5, penalty=0.0, task=None) -> None:
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
    """The squared error of the rounded weights relative to their squares, averaged over the layers."""
    errors = []
    for _, layer in prepared.weighted():
        weight = layer.folded()[0] if isinstance(layer, NormalizedConv2d) else layer.weight
        rounded = layer.weight_quantizer(weight).detach()
        errors.append((weight - rounded).square().sum() / weight.detach().square().sum().clamp(min=SMALLEST_SCALE))
    return torch.stack(errors).mean()


class _Batches:
    """A plain list of batches (x, y) in the form of a Dataset, as the training loop wants it."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.list = list(batches)
        if not self.list:
            raise ValueError("there is no batch to train on: expected at least one (x, y)")
        self.size = len(self.list[0][0])

    def __len__(self) -> int:
        return sum(len(x) for x, _ in self.list)

    def batches(self, size: int, *, shuffle: bool = False, seed: int = 0, augment: bool = False) -> Iterator:
        order = torch.randperm(len(self.list), generator=torch.Generator().manual_seed(seed))
        yield from (self.list[i] for i in order.tolist())
