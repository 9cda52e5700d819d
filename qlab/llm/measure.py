"""How good, how large, how fast: perplexity, and tokens a second.

**Perplexity** is e to the mean cross-entropy of the next token: a model with perplexity 4 is as unsure as if it had to
choose among 4 equally likely tokens. **Prefill** reads the prompt, all tokens at once; **decode** writes one token after
the other, and reads every weight for each of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from transformers import GraniteForCausalLM


def perplexity(model: nn.Module, windows: Tensor, batch_size: int = 4) -> float:
    """Perplexity of the next token over ``windows`` (count, length + 1), as :func:`qlab.llm.text.windows` gives them.

    A number from 1, always sure and right; a model that knows nothing has as much as there are tokens. ``batch_size``
    windows are read at once. Raises ValueError when the model says NaN.

    >>> from qlab import llm
    >>> knows_nothing = llm.build(llm.config(initializer_range=1e-9))
    >>> round(perplexity(knows_nothing, llm.windows("test", 1, length=32)))
    256
    """
    total = 0.0
    with torch.inference_mode():
        for part in tqdm(windows.split(batch_size), "perplexity", leave=False, delay=2, unit="batch"):
            logits = model(input_ids=part[:, :-1], use_cache=False).logits.float()
            total += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    if math.isnan(total):
        raise ValueError("the model gave NaN: look for a layer whose weights or inputs are not finite")
    return math.exp(total / windows[:, 1:].numel())


def kl_divergence(model: nn.Module, other: nn.Module, windows: Tensor, batch_size: int = 4) -> float:
    """How far ``other``'s predictions are from ``model``'s: the mean Kullback-Leibler divergence of the next token, in nats.

    It compares whole distributions, token by token, so a difference shows that a perplexity's own spread would hide. 0 means that
    the two say the same. ``windows``: (count, length + 1), as for :func:`perplexity`. Raises ValueError when either says NaN.

    >>> from qlab import llm
    >>> model, windows = llm.tiny(), llm.windows("test", 2, length=32)
    >>> kl_divergence(model, model, windows)
    0.0
    >>> kl_divergence(model, llm.rounded(model, 3), windows) > kl_divergence(model, llm.rounded(model, 6), windows)
    True
    """
    total = 0.0
    for part in tqdm(windows[:, :-1].split(batch_size), "divergence", leave=False, delay=2, unit="batch"):
        ours, theirs = (_log_probabilities(each, part) for each in (model, other))
        total += float((ours.exp() * (ours - theirs)).sum())
    if math.isnan(total):
        raise ValueError("a model gave NaN: look for a layer whose weights or inputs are not finite")
    return max(total, 0.0) / windows[:, 1:].numel()


def flips(model: nn.Module, other: nn.Module, windows: Tensor, batch_size: int = 4) -> float:
    """The share of tokens, in percent, after which ``other`` finds another next token likeliest than ``model`` does.

    >>> from qlab import llm
    >>> model, windows = llm.tiny(), llm.windows("test", 2, length=32)
    >>> flips(model, model, windows)
    0.0
    """
    found = 0
    for part in tqdm(windows[:, :-1].split(batch_size), "flips", leave=False, delay=2, unit="batch"):
        ours, theirs = (_log_probabilities(each, part).argmax(-1) for each in (model, other))
        found += int((ours != theirs).sum())
    return 100 * found / windows[:, 1:].numel()


def _log_probabilities(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits.double().log_softmax(-1)


def generate(model: GraniteForCausalLM, prompt: Tensor, count: int) -> Tensor:
    """The ``count`` tokens that the model finds likeliest after ``prompt``, one after the other.

    ``prompt`` is int64 of shape (length,), the answer of shape (count,).

    >>> from qlab import llm
    >>> prompt = torch.tensor(list(b"import os\\nimport s"))
    >>> bytes(generate(llm.tiny(), prompt, 2).tolist())
    b'ys'
    """
    return torch.stack([token for token, _ in _steps(model, prompt[None], count)]).flatten()


def speed(model: GraniteForCausalLM, prompt: Tensor, count: int) -> tuple[float, float]:
    """(prefill, decode) in tokens a second: ``prompt`` (length,) is read once, then ``count`` tokens are written.

    Call it once before what counts: the first run prepares kernels and fills caches.
    """
    times = [seconds for _, seconds in _steps(model, prompt[None], count + 1)]
    return len(prompt) / times[0], count / sum(times[1:])


def _steps(model: GraniteForCausalLM, tokens: Tensor, count: int) -> Iterator[tuple[Tensor, float]]:
    """(likeliest next token, seconds) of the prompt and of each token after it; keys and values are kept."""
    kept = None
    with torch.inference_mode():
        for _ in range(count):
            start = time.perf_counter()
            said = model(input_ids=tokens, past_key_values=kept, use_cache=True, logits_to_keep=1)
            tokens, kept = said.logits[:, -1:].argmax(-1), said.past_key_values
            yield tokens[0], time.perf_counter() - start
