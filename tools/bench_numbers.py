"""What a value costs: qlab's fake_quantize beside torch's fused operators, and one call of each observer.

    OMP_NUM_THREADS=1 python tools/bench_numbers.py

Prints nanoseconds a value, the best of several runs, on the activations of a ResNet-20's first stage (64
images, channels_last) and on the weights of its last one. Other processes make all figures larger: compare
within a run.
"""

from __future__ import annotations

import time

import torch

from qlab.affine import QParams, choose_qparams, fake_quantize, quantize
from qlab.granularity import PerChannel, PerTensor
from qlab.observers import OBSERVERS, build
from qlab.qconfig import QuantSpec


def best(function, runs: int = 20) -> float:
    """The shortest time of a call, in seconds of this process's own work."""
    function()
    times = []
    for _ in range(runs):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def fused(x: torch.Tensor, qp: QParams) -> torch.Tensor:
    """torch's own operator for the same grid."""
    if qp.granularity == PerTensor():
        return torch.fake_quantize_per_tensor_affine(x, qp.scale, qp.zero_point, qp.qmin, qp.qmax)
    return torch.fake_quantize_per_channel_affine(x, qp.scale, qp.zero_point, qp.granularity.axis, qp.qmin, qp.qmax)


def main() -> None:
    activation = torch.randn(64, 16, 32, 32).relu().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3)
    lo, hi = weight.amin((1, 2, 3)), weight.amax((1, 2, 3))
    per_tensor, per_channel = choose_qparams(0.0, 4.0), choose_qparams(lo, hi, 8, True, True, granularity=PerChannel(0))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s); ns a value")
    for name, x, qp in (("activation", activation, per_tensor), ("weight", weight, per_channel)):
        x = x.clone().requires_grad_()
        upstream = torch.randn_like(x)
        functions = {"fake_quantize": fake_quantize, "torch, fused": fused, "quantize": quantize}
        for label, function in functions.items():
            forward = best(lambda f=function: f(x.detach(), qp)) * 1e9 / x.numel()
            line = f"{name:12}{label:16}{forward:8.2f}"
            if function is not quantize:
                both = best(lambda f=function: torch.autograd.grad(f(x, qp), x, upstream)) * 1e9 / x.numel()
                line += f"   with its gradient {both:8.2f}"
            print(line)
    for name in OBSERVERS:
        observer = build(QuantSpec(observer=name))
        channels = build(QuantSpec(8, signed=True, symmetric=True, granularity=PerChannel(0), observer=name))
        call = best(lambda o=observer: o(activation)) * 1e9 / activation.numel()
        channels(weight)
        choose, choose_channels = (best(o.qparams, 5) * 1e3 for o in (observer, channels))
        print(f"{name:16}{call:8.2f}   qparams {choose:.1f} ms, of 64 channels {choose_channels:.1f} ms")


if __name__ == "__main__":
    main()
