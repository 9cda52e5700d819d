"""How long a step of quantization-aware training takes beside a step in float and beside other libraries'.

`python tools/bench_qat.py --network resnet20 --threads 2`

The same weights and the same images with 8-bit weights and activations, in turns; forward, backward and an
SGD step. A time counts only when the first loss is close to the float network's.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from baselines import fx_backends, silenced
from bench_int8 import reason
from torch import Tensor, nn
from torch.nn import functional as F

import qlab
from qlab import bench, qat
from qlab.cli import options
from qlab.qat import training

Network = Callable[[Tensor], Tensor]


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    args = parse(words)
    torch.set_num_threads(args.threads)
    try:
        network = qlab.models.load(args.network, data=args.data)
        x, y = next(getattr(qlab.data, args.data)("train").sample(args.batch_size).batches(args.batch_size))
    except (ValueError, OSError, ImportError) as error:
        print(f"bench_qat: nothing to measure: {error}", file=sys.stderr)
        return 1
    with silenced():
        comparison, left_out = measure(contenders(network, x), x, y, args.rounds)
    print(f"{args.network}, a training step: {comparison}")
    for name, why in left_out.items():
        print(f"  without {name}: {why}")
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--network", type=options.network, default="resnet20", help="resnet20 (default), mobilenet_v2 or vgg"
    )
    parser.add_argument("--data", type=options.dataset, default="cifar10", help="cifar10 (default) or shapes10")
    parser.add_argument("--batch-size", type=options.count, default=128, help="images a step (default: 128)")
    parser.add_argument("--threads", type=options.threads, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--rounds", type=options.count, default=7, help="default: 7")
    return parser.parse_args(words)


def contenders(network: nn.Module, x: Tensor) -> dict[str, Callable[[], Network]]:
    """What makes a network in training mode, by name; the float one is the baseline."""
    return {
        "fp32": lambda: copy.deepcopy(network).train(),
        "layers in bfloat16": lambda: InBfloat16(copy.deepcopy(network).train()),
        "qlab LSQ": partial(qlab_qat, network, x, "lsq"),
        "qlab LSQ, BatchNorm frozen": partial(qlab_qat, network, x, "lsq", frozen=True),
        "qlab PACT": partial(qlab_qat, network, x, "pact"),
        "qlab straight through": partial(qlab_qat, network, x, "straight_through"),
        "torch.ao FX": partial(fx_qat, network, x),
        "torchao PT2E": partial(pt2e_qat, network, x),
    }


class InBfloat16(nn.Module):
    """What `qlab train --precision bfloat16` does: layers in bfloat16, weights in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            return self.network(x).float()


def qlab_qat(network: nn.Module, x: Tensor, method: str, frozen: bool = False) -> Network:
    """This package's, with all that ``qlab.qat.fit`` does in a step."""
    prepared = qlab.calibrate(qlab.prepare(network, qat.qconfig("w8a8")), [x], progress=False)
    qat.start(prepared, [x], method).train()
    prepared.before_step = partial(training._freeze, prepared, frozen, frozen)
    return prepared


def fx_qat(network: nn.Module, x: Tensor) -> Network:
    """torch.ao.quantization in FX mode with its default QAT configuration."""
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    mapping = get_default_qat_qconfig_mapping(fx_backends()[0])
    return prepare_qat_fx(copy.deepcopy(network).train(), mapping, (x,))


def pt2e_qat(network: nn.Module, x: Tensor) -> Network:
    """torchao's PT2E with the X86InductorQuantizer."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    exported = torch.export.export(copy.deepcopy(network).train(), (x,), strict=True)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    return prepare_qat_pt2e(exported.module(), quantizer)


def training_step(network: Network, x: Tensor, y: Tensor) -> Callable[[], float]:
    """One step of SGD on the same batch each time, so gently that the loss hardly moves."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-5, momentum=0.9, nesterov=True)
    before_step = getattr(network, "before_step", None)

    def step() -> float:
        if before_step:
            before_step()
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def measure(
    makers: Mapping[str, Callable[[], Network]], x: Tensor, y: Tensor, rounds: int
) -> tuple[bench.Comparison, dict[str, str]]:
    """The times of those whose first loss is near the float network's, and for the others the reason."""
    steps, left_out, wanted = {}, {}, math.nan
    for name, make in makers.items():
        try:
            step = training_step(make(), x, y)
            loss = step()
            wanted = loss if not steps else wanted
            if not abs(loss - wanted) < 0.1 + 0.1 * wanted:
                raise ValueError(f"its loss is {loss:.3f}, the float network's {wanted:.3f}")
            steps[name] = step
        except Exception as error:  # a peer may fail in any way, but must not vanish
            left_out[name] = reason(error)
    seconds = bench.interleave(steps, rounds=rounds, warm_up=1)
    timings = {name: bench.Timing(seconds[name], len(x)) for name in steps}
    where = bench.setting(torch.get_num_threads())
    headline = f"batch {len(x)}, {where}; medians of {rounds} interleaved rounds"
    return bench.Comparison(headline, timings), left_out


if __name__ == "__main__":
    sys.exit(main())
