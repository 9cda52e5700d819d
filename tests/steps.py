"""Networks of one step in float between two layers: what the networks of others consist of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Step(nn.Module):
    """A convolution, what is tried out on its (N, 8, 8, 8), and a head."""

    def __init__(self, step, layer: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.step, self.layer, self.fc = nn.Conv2d(3, 8, 3, padding=1), step, layer, nn.Linear(8, 5)
        self.gain = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.row = nn.Parameter(torch.randn(1, 1, 8))
        self.register_buffer("index", torch.tensor([2, 0, 1, 7, 6, 5, 4, 3]))

    def forward(self, x):
        y = self.step(self, self.conv(x))
        return self.fc(y.flatten(2).mean(2))


def rows(y: Tensor) -> Tensor:
    return y.flatten(2).transpose(1, 2)


def shuffle(net, y):
    n, c, h, w = y.size()
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def windows(net, y):
    n, c, h, w = y.shape
    y = y.permute(0, 2, 3, 1).reshape(n, h // 4, 4, w // 4, 4, c).swapaxes(2, 3).reshape(n, -1, 16, c)
    q, k = torch.chunk(y, 2, dim=-1)
    weight = F.softmax(torch.einsum("b w i c, b w j c -> b w i j", q, k) * c**-0.5, dim=-1)
    return (weight @ y).permute(0, 3, 1, 2)


def token(net, y):
    return torch.cat([net.row.expand(y.shape[0], -1, -1), rows(y)], dim=1).transpose(1, 2)


def norm(net, y):
    y = F.layer_norm(y.permute(0, 2, 3, 1), (8,), eps=1e-6)
    return torch.permute(y, [0, 3, 1, 2])


def attention(net, y):
    q, k, v = (part.unsqueeze(1) for part in (rows(y), rows(y) * 0.5, rows(y) + net.row))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1).transpose(1, 2)


def resized(net, y):
    return F.interpolate(F.pad(y, [1, 0, 0, 1]), scale_factor=2, mode="bilinear", align_corners=False)


STEPS = {
    "shuffle": shuffle, "windows": windows, "class token": token, "layer norm of channels": norm, "attention": attention,
    "interpolation and padding": resized,
    "gain": lambda net, y: net.gain * y,
    "chosen channels": lambda net, y: y[:, net.index] - y[:, [0] * 8, 1:2, ..., None, 0],
    "slices": lambda net, y: torch.stack([y[:, :, ::2], y[:, :, 1::2]], 1).mean(1),
    "split": lambda net, y: torch.cat([y.split([2, 6], 1)[1] * 2.0, y.split([2, 6], 1)[0]], 1),
    "roll": lambda net, y: torch.roll(y, shifts=(-1, 2), dims=(2, 3)) * torch.sigmoid(y),
    "activations": lambda net, y: F.gelu(y) + F.silu(y) + F.hardswish(y) + torch.tanh(y) + F.relu6(y) + F.softplus(y),
    "tanh gelu": lambda net, y: F.gelu(y, approximate="tanh") / (1 + y**2),
    "normalized": lambda net, y: F.normalize(y, dim=1) + y.std(1, keepdim=True) + y.abs().amax((2, 3), keepdim=True),
    "masked": lambda net, y: torch.softmax(y.masked_fill(y < 0, float("-inf")).clamp(min=-9.0), 1) - torch.where(y > 1, y, 0.0),
    "linear with constants": lambda net, y: (F.linear(rows(y), net.fc.weight, None) @ net.fc.weight).mT,
    "between tensors": lambda net, y: torch.clamp(y, min=net.row.mean(), max=y.mean((2, 3), keepdim=True) + 1) + y.clamp(net.row),
    "cosine": lambda net, y: y * F.cosine_similarity(y, y.flip(1), dim=1)[:, None],
    "divisor": lambda net, y: F.avg_pool2d(y, 2, divisor_override=3),
}  # fmt: skip
