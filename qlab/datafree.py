"""Images distilled from a network's own BatchNorms, to calibrate with when there are no data at all.

A BatchNorm remembers mean and variance of what its layer gave in training. Noise is changed by gradient
descent until it makes the network give the same means and variances: it need not look like anything, it has
to fill the same ranges. Sources: Cai, Yao, Dong, Gholami, Mahoney, Keutzer, "ZeroQ: A Novel Zero Shot
Quantization Framework" (CVPR 2020); the smooth start as in natural images, whose amplitudes fall with the
frequency: Field, "Relations between the statistics of natural images and the response properties of cortical
cells" (1987).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

LR = 0.1
BatchNorm = nn.modules.batchnorm._BatchNorm


def images(
    model: nn.Module,
    count: int = 256,
    steps: int = 30,
    seed: int = 0,
    *,
    shape: tuple[int, int, int] = (3, 32, 32),
    batch_size: int = 64,
    progress: bool = True,
) -> list[Tensor]:
    """Batches for :func:`qlab.calibrate`: images that give ``model``'s BatchNorms the statistics they remember.

    Args:
        model: The trained float network, with its BatchNorms. It is not changed.
        count: Images in all.
        steps: Of Adam for each batch, which is distilled on its own.
        seed: Of the noise to begin with.
        shape: Of one image: channels, height, width.
        batch_size: Images a batch; the last one may be smaller.
        progress: Show a bar.

    Returns:
        Batches, float32 ``(batch, *shape)`` on the scale of the network's inputs (normalized), channels_last.

    Raises:
        ValueError: The model has no BatchNorm that keeps statistics, or a number is below 1.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    >>> [x.shape for x in images(model, count=10, steps=2, shape=(3, 8, 8), batch_size=8)]
    [torch.Size([8, 3, 8, 8]), torch.Size([2, 3, 8, 8])]
    """
    if count < 1 or steps < 1 or batch_size < 1:
        raise ValueError(f"count={count}, steps={steps}, batch_size={batch_size}: expected 1 or more of each")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
    found = []
    with Statistics(model) as statistics:
        bar = tqdm(
            total=steps * len(sizes),
            desc="distilling images",
            unit="step",
            leave=False,
            disable=not progress,
        )
        with bar, torch.enable_grad():
            for size in sizes:
                x = natural_noise((size, *shape), generator).to(device, memory_format=torch.channels_last)
                x.requires_grad_()
                optimizer = torch.optim.Adam([x], LR, betas=(0.5, 0.9))
                for step in range(steps):
                    optimizer.param_groups[0]["lr"] = LR * (1 - step / steps)
                    optimizer.zero_grad()
                    statistics.distance(x).backward()
                    optimizer.step()
                    bar.update()
                found.append(x.detach())
    return found


class Statistics:
    """How far the inputs of a model's BatchNorms are from the remembered ones, for a batch of images.

    ``distance(x)`` says it. A context manager: its hooks are gone behind the ``with``.

    >>> model = nn.Sequential(nn.BatchNorm2d(3)).eval()  # remembers mean 0 and deviation 1
    >>> x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> with Statistics(model) as statistics:
    ...     bool(statistics.distance(x) < statistics.distance(2 * x + 1) / 100)
    True
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.norms = [m for m in model.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]
        if not self.norms:
            raise ValueError(
                f"{type(model).__name__} has no BatchNorm that keeps running statistics, from which images "
                "could be distilled: calibrate with real ones, or give the network as it was before its "
                "BatchNorms were folded"
            )
        self.terms: list[Tensor] = []

    def __enter__(self) -> Statistics:
        self.handles = [norm.register_forward_pre_hook(self._look) for norm in self.norms]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def distance(self, x: Tensor) -> Tensor:
        """The mean, over all BatchNorms, of the squared differences of means and standard deviations, in
        remembered standard deviations; the image itself is to have mean 0 and deviation 1 a channel, as
        normalized data have.
        """
        self.terms = []
        self.model(x)
        ones = x.new_ones(x.shape[1])
        return sum(self.terms) / len(self.terms) + _difference(x, 0 * ones, ones)

    def _look(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        self.terms.append(_difference(inputs[0], norm.running_mean, (norm.running_var + norm.eps).sqrt()))


def _difference(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    variance, found = torch.var_mean(x, [dim for dim in range(x.ndim) if dim != 1], correction=0)
    return ((found - mean) / std).square().mean() + ((variance + 1e-8).sqrt() / std - 1).square().mean()


def natural_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise of mean 0 and deviation 1 whose amplitude falls with the frequency, as it does in photographs.

    >>> noise = natural_noise((2, 3, 32, 32), torch.Generator().manual_seed(0))
    >>> bool((noise[..., 1:] - noise[..., :-1]).std() < noise.std())  # neighbours are alike
    True
    """
    noise = torch.randn(shape, generator=generator)
    vertical, horizontal = torch.fft.fftfreq(shape[-2]), torch.fft.rfftfreq(shape[-1])
    frequency = (vertical[:, None] ** 2 + horizontal**2).sqrt()
    frequency[0, 0] = frequency.flatten()[1]
    smooth = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency, s=shape[-2:])
    return (smooth - smooth.mean()) / smooth.std()
