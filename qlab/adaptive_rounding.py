"""AdaRound: learn for each weight whether to round it up or down, so that the layer's output errs least.

The nearest code makes the error of each weight smallest; but the errors of a channel's weights add up in its
output, and there one weight's error can make good another's. Source: Nagel, Amjad, van Baalen, Louizos,
Blankevoort, "Up or Down? Adaptive Rounding for Post-Training Quantization" (ICML 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from qlab.affine import QParams
from qlab.batches import Batches, inputs
from qlab.graph.prepare import Prepared
from qlab.graph.run import Stop, walk

ZETA, GAMMA = 1.1, -0.1  # equation 23: a sigmoid stretched beyond 0 and 1, so that it reaches both
BETA = 20.0, 2.0  # the regularizer's exponent falls from the first to the second: decide late
WARM = 0.2  # share of the steps without regularizer
REGULARIZER = 1.0
LR = 1e-2
PATCHES = 16384  # of a layer's input, spread over images and places
BATCH = 512
MOST = 2**25  # values that the patches of one layer may have (128 MiB)


def adaround(
    prepared: Prepared, batches: Batches, *, steps: int = 1000, seed: int = 0, progress: bool = True
) -> Prepared:
    """Round each layer's weights up or down as its output wants it; changes weights and biases.

    The grids of the weights stay as they are, and the weights become values on them, so that fake-quantizing leaves
    them and :func:`qlab.convert` gives these integers. Each layer sees the inputs that the quantized layers before it
    give and aims at the float network's output, behind its relu (Nagel et al. 2020, section 4.3). What is left of a
    channel's mean error goes into the bias.

    Args:
        prepared: A calibrated network. It is changed in place.
        batches: Inputs x, or pairs (x, label) whose label is not looked at; 1,024 images do.
        steps: Of Adam for each layer.
        seed: Which places of the images a layer learns from.
        progress: Show a bar over the layers.

    Returns:
        ``prepared``.

    Raises:
        ValueError: There is no batch, ``steps`` is below 1, or weights lie on a grid whose steps are not even.
        RuntimeError: The network was not calibrated.

    >>> import qlab, torch
    >>> _ = torch.manual_seed(0)
    >>> x, network = torch.rand(256, 16), torch.nn.Sequential(torch.nn.Linear(16, 8))
    >>> qconfig = qlab.QConfig.preset("w3a8", first_last=None)
    >>> prepared = qlab.calibrate(qlab.prepare(network, qconfig, x[:1]), [x])
    >>> nearest = qlab.analysis.sqnr(network(x), prepared(x))
    >>> learned = qlab.analysis.sqnr(network(x), qlab.adaround(prepared, [x], steps=50, progress=False)(x))
    >>> learned > nearest + 3  # dB
    True
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected 1 or more; 1,000 are usual here")
    layers = list(prepared.weighted())
    for name, layer in layers:
        if layer.weight_quantizer.qparams is None:
            raise ValueError(
                f"{name} has weights on {layer.weight_quantizer.spec}, where up and down mean nothing: "
                "expected a QuantSpec, such as QConfig.w4a8().weight"
            )
    generator = torch.Generator().manual_seed(seed)
    stops = walk(prepared, list(inputs(batches)))
    for stop in tqdm(stops, "AdaRound", len(layers), False, unit="layer", disable=not progress):
        layer, qparams = stop.layer, stop.layer.weight_quantizer.qparams
        weight, bias = layer.keep_original()
        problem = Reconstruction(stop, generator, bias)
        rounded = learn(problem, weight.to(layer.weight.device), qparams, steps)
        with torch.no_grad():
            layer.weight.copy_(rounded)
        layer.bias = nn.Parameter(problem.mean_correction(rounded))
    return prepared


class Reconstruction:
    """One layer as a regression, from ``inputs`` to ``targets``.

    They have shapes (groups, patches, K) and (groups, patches, outputs a group). A patch is the piece of the
    input under the kernel at one place, so that a convolution of g groups is g matrix products; a linear
    layer is the case of one place. The patches are drawn at random from all images and places, and in
    random order: a slice of them is a fair sample.
    """

    def __init__(self, stop: Stop, generator: torch.Generator, bias: Tensor | None) -> None:
        layer = stop.layer
        self.groups, self.activation = getattr(layer, "groups", 1), stop.activation
        images = sum(map(len, stop.inputs))
        places = max(1, min(PATCHES, MOST // (layer.weight[0].numel() * self.groups)) // images)
        pairs = [_patches(layer, x, y, places, generator) for x, y in zip(stop.inputs, stop.targets)]
        inputs, targets = (torch.cat(parts) for parts in zip(*pairs))
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        self.inputs, self.targets = (self._by_group(rows[order]) for rows in (inputs, targets))
        self.bias = targets.new_zeros(targets.shape[1]) if bias is None else bias.to(targets.device)

    def _by_group(self, rows: Tensor) -> Tensor:
        return rows.unflatten(1, (self.groups, -1)).transpose(0, 1).contiguous()

    def outputs(self, weight: Tensor, some: slice = slice(None)) -> Tensor:
        """What the layer gives with this weight, before its activation."""
        matrix = weight.reshape(self.groups, weight.shape[0] // self.groups, -1).transpose(1, 2)
        return torch.baddbmm(self.bias.reshape(self.groups, 1, -1), self.inputs[:, some], matrix)

    def error(self, weight: Tensor, some: slice = slice(None)) -> Tensor:
        """The mean squared error behind the activation."""
        return F.mse_loss(self._activate(self.outputs(weight, some)), self._activate(self.targets[:, some]))

    def _activate(self, y: Tensor) -> Tensor:
        return {"relu": F.relu, "relu6": F.relu6}.get(self.activation, nn.Identity())(y)

    def mean_correction(self, weight: Tensor) -> Tensor:
        """The bias that gives each channel the mean of its targets."""
        with torch.no_grad():
            return self.bias + (self.targets - self.outputs(weight)).mean(1).flatten()


@torch.enable_grad()  # also inside a caller's no_grad
def learn(problem: Reconstruction, weight: Tensor, qparams: QParams, steps: int) -> Tensor:
    """The values on the grid ``qparams``, each next to its weight, that make ``problem.error`` smallest.

    The paper's equations 21 to 24: the weight is scale * clamp(floor(weight / scale) + h(v)), where h goes
    from 0 to 1 and a regularizer, ever sharper, drives it to one of the two. Rounding to nearest is returned
    if that errs less.
    """
    view, scale, zero_point = qparams.granularity.align(weight, qparams.scale, qparams.zero_point)
    lowest, highest = qparams.qmin - zero_point, qparams.qmax - zero_point
    below = torch.floor(view / scale)

    def on_grid(up: Tensor) -> Tensor:
        return ((below + up).clamp(lowest, highest) * scale).reshape(weight.shape)

    share = (view / scale - below).clamp(0.01, 0.99)
    nearest = on_grid((share > 0.5).float())
    v = torch.logit((share - GAMMA) / (ZETA - GAMMA)).requires_grad_()
    optimizer = torch.optim.Adam([v], LR)
    with torch.no_grad():
        size = problem.error(nearest).clamp(min=1e-20)  # so that one regularizer fits every layer
    count = problem.inputs.shape[1]
    for step in range(steps):
        start = step * BATCH % max(1, count - BATCH + 1)
        up = rectified_sigmoid(v)
        loss = problem.error(on_grid(up), slice(start, start + BATCH)) / size
        if step >= WARM * steps:
            done = (step / steps - WARM) / (1 - WARM)
            beta = BETA[0] + (BETA[1] - BETA[0]) * done
            loss = loss + REGULARIZER * (1 - (2 * up - 1).abs().pow(beta)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        learned = on_grid((rectified_sigmoid(v) >= 0.5).float())
        return min((learned, nearest), key=problem.error)


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(v) = clamp(sigmoid(v) * (zeta - gamma) + gamma, 0, 1): the paper's equation 23.

    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def _patches(
    layer: nn.Conv2d | nn.Linear, x: Tensor, y: Tensor, places: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs (rows, groups * K) and outputs (rows, outputs) of a layer at random places of each image."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2).float(), y.flatten(0, -2).float()
    height, width = y.shape[2:]
    row = torch.randint(height, (len(x), places), generator=generator).to(x.device)
    column = torch.randint(width, (len(x), places), generator=generator).to(x.device)
    image = torch.arange(len(x), device=x.device)[:, None]
    targets = y.permute(0, 2, 3, 1)[image, row, column]
    (top, left), (dy, dx), (sy, sx) = layer.padding, layer.dilation, layer.stride
    padded = F.pad(x, (left, left, top, top)).permute(0, 2, 3, 1)
    down = torch.arange(layer.kernel_size[0], device=x.device) * dy
    along = torch.arange(layer.kernel_size[1], device=x.device) * dx
    rows, columns = row[..., None, None] * sy + down[:, None], column[..., None, None] * sx + along
    pieces = padded[image[..., None, None], rows, columns]  # (images, places, height, width, channels)
    return pieces.permute(0, 1, 4, 2, 3).flatten(2).flatten(0, 1), targets.flatten(0, 1)
