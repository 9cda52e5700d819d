"""Lesson 12's mystery networks: an app in which one mistake was made, somewhere between the images and the engine.

A :class:`Mistake` changes one part of an app and leaves the others as they should be. :func:`deploy` makes the app,
:func:`mystery` draws one and hides which it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from qlab.affine import QParams
from qlab.analysis import hits, sqnr
from qlab.calibration import calibrate
from qlab.course.language import _
from qlab.course.mystery import Mystery
from qlab.data.dataset import Dataset
from qlab.graph.convert import convert
from qlab.graph.prepare import Prepared, prepare
from qlab.int8.modules import Int8Conv2d, Int8Network, Weighted
from qlab.int8.reference import Engine, Kernel

ASKED = 5  # measurements of a mystery
LOOKED_AT = 64  # images


@dataclass(frozen=True)
class Mistake:
    """One mistake. ``name`` is what a diagnosis calls it, ``stage`` where the points get lost, ``because`` what was done.

    - ``images``: the test images as the app feeds them. ``shown``: the batches that calibrate.
    - ``written``: changes the layers of the integer network, in place. ``engine``: whose kernels the app runs on.
    """

    name: str
    stage: str | None
    because: str
    images: Callable[[Dataset], Dataset] = lambda data: data
    shown: Callable[[list[Tensor]], list[Tensor]] = lambda batches: batches
    written: Callable[[Int8Network], None] = lambda network: None
    engine: type[Engine] = Engine


@dataclass(frozen=True)
class App:
    """A deployed network: the images as they are fed, and the network in its three forms."""

    network: nn.Module
    feed: Dataset
    prepared: Prepared
    reference: Int8Network
    running: Int8Network

    def rights(self) -> tuple[float, float, float, float]:
        """Right answers in percent: float, prepared, integers on the reference, integers on the app's engine."""
        forms = self.network, self.prepared, self.reference, self.running
        return tuple(right(form, self.feed) for form in forms)  # type: ignore[return-value]


def right(network: nn.Module, data: Dataset) -> float:
    """Right answers in percent."""
    return 100 * float(hits(network, data).float().mean())


def deploy(network: nn.Module, calibration: Dataset, test: Dataset, mistake: Mistake, like: App | None = None) -> App:
    """An app made with that mistake and no other: 8-bit weights and activations, ranges by the largest values.

    Args:
        network: A trained float network.
        calibration: Images to calibrate with.
        test: Images that the app is tried on.
        mistake: What goes wrong; :data:`NONE` for nothing.
        like: An app of the same network without a mistake: what is as there is taken from there, which saves time.
    """
    same_grids = like is not None and mistake.shown is NONE.shown
    if same_grids and mistake.written is NONE.written:
        prepared, integers = like.prepared, like.reference
    else:
        batches = mistake.shown([x for x, _y in calibration.batches(64)])
        prepared = like.prepared if same_grids else calibrate(prepare(network), batches, progress=False)
        integers = convert(prepared, "reference")
        mistake.written(integers)
        integers = integers.on("reference")
    return App(network, mistake.images(test), prepared, integers, integers.on(mistake.engine()))


# --- the mistakes: of the images, ...


def _not_normalized(data: Dataset) -> Dataset:
    return replace(data, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _small_and_large_again(data: Dataset) -> Dataset:
    small = data.images[:, :, ::2, ::2]
    return replace(data, images=small.repeat_interleave(2, 2).repeat_interleave(2, 3))


def _other_order_of_bytes(data: Dataset) -> Dataset:
    """A pixel's three colours stand side by side, and are read as three pictures one behind the other."""
    return replace(data, images=data.images.permute(0, 2, 3, 1).reshape(data.images.shape))


# --- ... of the calibration, ...


def _faint_noise(batches: list[Tensor]) -> list[Tensor]:
    return [0.05 * torch.randn(batches[0].shape, generator=torch.Generator().manual_seed(0))]


def _one_broken_image(batches: list[Tensor]) -> list[Tensor]:
    first = batches[0].clone()
    first[0] *= 100
    return [first, *batches[1:]]


# --- ... of the conversion, ...


def _other_order_of_scales(network: Int8Network) -> None:
    for layer in weighted(network).values():
        layer.scale.copy_(layer.scale.roll(1))


def _biases_of_eight_bits(network: Int8Network) -> None:
    for name, layer in weighted(network).items():
        step = layer.scale * grids(network, name)[0].scale
        if layer.bias is not None:
            layer.bias.copy_(step * torch.round(layer.bias / step).clamp(-128, 127))


# --- ... and of the engine


class RoundsOften(Engine):
    """An engine without any mistake, but not the reference: it rounds each convolution before an addition."""

    fuses_add = False


class ReadsSigned(RoundsOften):
    """Its convolutions read the bytes of their input as signed numbers: 200 is read as -56."""

    def conv2d(self, *arguments, **options) -> Kernel:
        kernel = super().conv2d(*arguments, **options)
        return lambda q: kernel(q.view(torch.int8))


class Shifts(RoundsOften):
    """It has no multiplication between sum and code: the multiplier M = s_x s_w / s_y becomes a power of two."""

    def conv2d(self, weight, bias, weight_qp, x_qp, out_qp, **options) -> Kernel:
        return super().conv2d(weight, bias, _shifted(weight_qp, x_qp, out_qp), x_qp, out_qp, **options)


def _shifted(weight_qp: QParams, x_qp: QParams, out_qp: QParams) -> QParams:
    multiplier = x_qp.scale * weight_qp.scale / out_qp.scale
    return replace(weight_qp, scale=torch.exp2(multiplier.log2().round()) * out_qp.scale / x_qp.scale)


NONE = Mistake(_("nothing is wrong"), None, "", engine=RoundsOften)
MISTAKES = (
    replace(
        NONE, name=_("pixels from 0 to 1, not normalized"), stage="preprocessing", images=_not_normalized,
        because=_("The app left out what training did with each pixel: minus the mean, by the standard deviation."),
    ),
    replace(
        NONE, name=_("images made small and large again"), stage="preprocessing", images=_small_and_large_again,
        because=_("The app kept every second pixel, and showed each of them twice."),
    ),
    replace(
        NONE, name=_("bytes of an image in another order"), stage="preprocessing", images=_other_order_of_bytes,
        because=_("The app's pixels are red, green, blue, red, ...; they were read as one picture for each colour."),
    ),
    replace(
        NONE, name=_("calibrated on noise"), stage="quantization", shown=_faint_noise,
        because=_("Calibration saw faint noise, so the grids end where real images only begin."),
    ),
    replace(
        NONE, name=_("one broken image among those that calibrate"), stage="quantization", shown=_one_broken_image,
        because=_("One image with values 100 times too large set the ends of all grids: few codes are left for the rest."),
    ),
    replace(
        NONE, name=_("scales of the channels in another order"), stage="conversion", written=_other_order_of_scales,
        because=_("The file lists each layer's scales one place further than its weights."),
    ),
    replace(
        NONE, name=_("biases of 8 bits"), stage="conversion", written=_biases_of_eight_bits,
        because=_("The biases were written as int8, on the fine grid of the sums, which takes int32."),
    ),
    replace(
        NONE, name=_("bytes read as signed"), stage="engine", engine=ReadsSigned,
        because=_("The engine takes the codes 128 to 255 for -128 to -1."),
    ),
    replace(
        NONE, name=_("multipliers rounded to powers of two"), stage="engine", engine=Shifts,
        because=_("The engine shifts where it should multiply, so each layer is too large or too small."),
    ),
)  # fmt: skip


# --- the mystery


@dataclass
class Limited(Mystery):
    """A mystery of which only so many measurements can be asked for."""

    limit: int = ASKED

    def measure(self, name: str):
        """As of any mystery. Raises ValueError when all measurements that there are have been used up."""
        if name in self.measurements and name not in self.asked and len(self.asked) >= self.limit:
            what = _("all {limit} measurements are used up ({asked}): commit a diagnosis")
            raise ValueError(what.format(limit=self.limit, asked=", ".join(self.asked)))
        return super().measure(name)


def draw(seed: int) -> Mistake:
    """The mistake of a seed. Seeds that follow each other give different ones, all of them in turn."""
    turn, place = divmod(seed, len(MISTAKES))
    return random.Random(turn).sample(MISTAKES, len(MISTAKES))[place]


def mystery(good: App, calibration: Dataset, seed: int) -> Mystery:
    """An app with the seed's mistake.

    Of eight measurements five can be asked for; then a diagnosis is committed, and parts of the app are made anew.

    Args:
        good: The app without a mistake, on the test images (:func:`deploy` with :data:`NONE`).
        calibration: The images to calibrate with.
        seed: Draws the mistake.
    """
    mistake, test = draw(seed), good.feed
    app = deploy(good.network, calibration, test, mistake, good)
    story = _(
        "The app is right on {here:.1f} % of {n} test images. In training, on the same images, the float network was "
        "right on {there:.1f} %. One mistake was made on the way. You may ask for {limit} of these measurements."
    )
    words = {"here": right(app.running, app.feed), "there": right(good.network, test), "n": len(test), "limit": ASKED}
    return Limited(
        story.format(**words),
        measurements=_measurements(app, test),
        questions={_("mistake"): tuple(each.name for each in MISTAKES)},
        truth=(mistake.name,),
        repairs={name: partial(_repaired, good, calibration, mistake, part) for name, part in _parts().items()},
        because=mistake.because,
    )


def _parts() -> Mapping[str, str]:
    """What can be made anew, and the field of a Mistake that it puts right."""
    return {
        _("make the images as in training"): "images", _("calibrate with training images"): "shown",
        _("convert again"): "written", _("take another engine"): "engine",
    }  # fmt: skip


def _repaired(good: App, calibration: Dataset, mistake: Mistake, part: str, _said: str) -> str:
    left = replace(mistake, **{part: getattr(NONE, part)})
    app = deploy(good.network, calibration, good.feed, left, good)
    return _("The app is now right on {percent:.1f} %.").format(percent=right(app.running, app.feed))


def _measurements(app: App, test: Dataset) -> dict[str, Callable[[], str]]:
    says = _("{percent:.1f} % right, on the images that the app feeds")

    def form(network: nn.Module) -> Callable[[], str]:
        return lambda: says.format(percent=right(network, app.feed))

    return {
        _("float network"): form(app.network),
        _("prepared network"): form(app.prepared),
        _("integers on the reference"): form(app.reference),
        _("what the images are like"): lambda: images_text(app.feed, test),
        _("what the grids cut off"): lambda: grids_text(app),
        _("weights in the file"): lambda: weights_text(app),
        _("biases in the file"): lambda: biases_text(app),
        _("one layer on both engines"): lambda: engines_text(app),
    }


# --- what is measured


def weighted(network: Int8Network) -> dict[str, Weighted]:
    """The layers with weights, by their names."""
    return {layer.name: layer for layer in network.layers if isinstance(layer, Weighted)}


def grids(network: Int8Network, name: str) -> tuple[QParams, QParams]:
    """The grids of what a layer reads and of what it gives."""
    step = next(step for step in network.program.steps if network.layers[step.layer].name == name)
    return network.program.grids[step.inputs[0]], network.program.grids[step.output]


def images_text(feed: Dataset, test: Dataset) -> str:
    """Mean, standard deviation, and the mean step from one pixel to the next, as fed and as in training."""
    line = _("{name}: mean {mean:+.2f}, standard deviation {std:.2f}, from one pixel to the next {step:.2f}")
    lines = []
    for name, data in ((_("in the app"), feed), (_("in training"), test)):
        x = next(data.batches(LOOKED_AT))[0]
        step = float((x[..., 1:] - x[..., :-1]).abs().mean())
        lines.append(line.format(name=name, mean=float(x.mean()), std=float(x.std()), step=step))
    return "\n".join(lines)


@torch.inference_mode()
def grids_text(app: App) -> str:
    """How much of the values lies beyond the ends of a grid, and how far up its codes the values reach."""
    read: dict[str, Tensor] = {}
    quantizers = {name: module for name, module in app.prepared.quantizers() if not name.endswith("weight_quantizer")}
    hooks = [
        module.register_forward_pre_hook(lambda _module, inputs, name=name: read.update({name: inputs[0].detach()}))
        for name, module in quantizers.items()
    ]
    try:
        app.prepared(next(app.feed.batches(LOOKED_AT))[0])
    finally:
        for hook in hooks:
            hook.remove()
    line = _("{name:26} {cut:5.1f} % beyond its ends; 99 of 100 values use {used:3.0f} of {codes} codes")
    return "\n".join(line.format(name=name, **_use(read[name], quantizers[name].qparams)) for name in list(read)[:8])


def _use(values: Tensor, qp: QParams) -> dict:
    codes = torch.round(values / qp.scale) + qp.zero_point
    cut = float(((codes < qp.qmin) | (codes > qp.qmax)).float().mean())
    inside = codes.clamp(qp.qmin, qp.qmax).flatten()
    low, high = (inside.kthvalue(max(1, round(share * len(inside)))).values for share in (0.005, 0.995))
    return {"cut": 100 * cut, "used": float(high - low) + 1, "codes": 2**qp.bits}


def weights_text(app: App) -> str:
    """What the file's codes and scales stand for, beside the prepared network's weights."""
    return _compared(app, lambda layer: layer.weight * layer.scale.reshape(-1, *[1] * (layer.weight.ndim - 1)), _weight)


def biases_text(app: App) -> str:
    """The file's biases, beside the prepared network's."""
    return _compared(app, lambda layer: layer.bias, lambda layer: layer.folded()[1])


def _weight(layer: nn.Module) -> Tensor:
    return layer.weight_quantizer(layer.folded()[0])


@torch.no_grad()
def _compared(app: App, in_file: Callable, in_network: Callable) -> str:
    layers, lines = dict(app.prepared.weighted()), []
    for name, layer in list(weighted(app.reference).items())[:8]:
        decibel = sqnr(in_network(layers[name]), in_file(layer))
        lines.append(_("{name:26} {decibel:5.0f} dB").format(name=name, decibel=min(decibel, 150)))
    return "\n".join([_("SQNR of the file against the prepared network:"), *lines])


@torch.inference_mode()
def engines_text(app: App) -> str:
    """The same codes through one convolution, on the reference and on the app's engine: small codes, then large ones."""
    name = [layer.name for layer in app.reference.layers if isinstance(layer, Int8Conv2d)][1]
    layer, (reads, gives) = weighted(app.reference)[name], grids(app.reference, name)
    kernels = [layer.kernel(network._engine, [reads], gives) for network in (app.reference, app.running)]
    line = _("{name}, codes from {low} to {high}: {differ:.0f} % of the outputs differ by more than one code")
    lines, generator = [], torch.Generator().manual_seed(0)
    for low, high in ((0, 127), (128, 255)):
        shape = (4, layer.weight.shape[1] * layer.options.get("groups", 1), 8, 8)
        q = (
            torch.randint(low, high + 1, shape, generator=generator)
            .byte()
            .contiguous(memory_format=torch.channels_last)
        )
        a, b = (kernel(q).int() for kernel in kernels)
        differ = 100 * float(((a - b).abs() > 1).float().mean())
        lines.append(line.format(name=name, low=low, high=high, differ=differ))
    return "\n".join(lines)
