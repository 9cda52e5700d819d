"""Train the tiny Granite of lesson 10 on the standard library's source, on a CPU.

    python tools/train_llm.py                   # about 20 minutes on one quiet core; a broken run goes on
    python tools/train_llm.py --adopt           # its weights as float16, with a manifest entry, into the package

AdamW (Loshchilov and Hutter 2019), one warm-up and cosine cycle, random windows of 256 bytes. The weights are those of
the last step, so the validation split only watches.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from qlab.cli import options
from qlab.files import read_tensors, sha256, write_tensors
from qlab.llm import granite, perplexity, text

LIMITS = {  # of a Plan's numbers, the least and the most
    "steps": (1, 10**7), "batch_size": (1, 4096), "length": (1, 256), "lr": (0.0, 10.0), "weight_decay": (0.0, 1.0),
    "warmup": (0.0, 0.99), "seed": (0, 2**31 - 1),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How to train: steps, windows a step, the peak learning rate."""

    steps: int = 1500
    batch_size: int = 8
    length: int = 256
    lr: float = 3e-3
    weight_decay: float = 0.1
    warmup: float = 0.05
    seed: int = 0

    def lr_at(self, step: int) -> float:
        """Up in a straight line, then down along a cosine to a fiftieth."""
        done = step / self.steps
        if done < self.warmup:
            return self.lr * (step + 1) / (self.warmup * self.steps)
        wave = 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))
        return self.lr * (0.02 + 0.98 * wave)


def batch_of(data: torch.Tensor, plan: Plan, step: int) -> torch.Tensor:
    """The windows of one step: random, but the same whenever this step is made."""
    draw = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
    starts = torch.randint(len(data) - plan.length - 1, (plan.batch_size,), generator=draw)
    return torch.stack([data[start : start + plan.length + 1] for start in starts]).long()


def loss_of(network: torch.nn.Module, pieces: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next byte, in nats."""
    logits = network(input_ids=pieces[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten())


def optimizer_of(network: torch.nn.Module, plan: Plan) -> torch.optim.AdamW:
    """Weight decay for the matrices, none for the norms."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, plan.lr, betas=(0.9, 0.95))


def fit(network: torch.nn.Module, plan: Plan, folder: Path, every: int = 200) -> list[dict]:
    """Train in place; what happened is kept in ``folder`` every 200 steps, from where a broken run goes on."""
    data, watch = text.corpus("train"), text.windows("validation", 32, plan.length)
    optimizer, path = optimizer_of(network, plan), folder / "last.safetensors"
    history = resume(path, network, optimizer, plan) if path.exists() else []
    start = time.perf_counter()
    for step in range(history[-1]["step"] if history else 0, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr_at(step)
        loss = loss_of(network.train(), batch_of(data, plan, step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == plan.steps:
            with torch.inference_mode():
                bits = float(loss_of(network.eval(), watch))
            row = {"step": step + 1, "loss": loss.item(), "validation": bits, "seconds": time.perf_counter() - start}
            history.append(row)
            print(json.dumps({name: round(value, 4) for name, value in row.items()}), flush=True)
            save(path, network, optimizer, {"plan": asdict(plan), "history": history, "source": text.source()})
    return history


def save(path: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer, header: dict) -> None:
    """Weights and the optimizer's state."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items() if name != "lm_head.weight"}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in state.items()}
    write_tensors(path, tensors, header)


def resume(path: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer, plan: Plan) -> list[dict]:
    """Load what :func:`save` kept; the history so far."""
    tensors, header = read_tensors(path)
    if header["plan"] != asdict(plan):
        raise SystemExit(f"{path} was trained with {header['plan']}, not with {asdict(plan)}: choose another folder")
    network.load_state_dict({n[8:]: t for n, t in tensors.items() if n.startswith("network.")}, strict=False)
    state: dict[int, dict] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, index, what = name.split(".")
            state.setdefault(int(index), {})[what] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return header["history"]


def adopt(path: Path, folder: Path) -> dict:
    """Put a run's weights into ``folder`` in float16, with what the manifest has to say of them."""
    tensors, header = read_tensors(path)
    weights = {name[8:]: tensor.half() for name, tensor in tensors.items() if name.startswith("network.")}
    file = write_tensors(folder / "granite-tiny.safetensors", weights, {"config": granite.TINY})
    network = granite.build(granite.config())
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    length = header["plan"]["length"]
    found = {split: round(perplexity(network, text.windows(split, 200, length)), 4) for split in ("validation", "test")}
    plain = header["plan"] | {"steps": f"{header['history'][-1]['step']} of {header['plan']['steps']}"}
    entry = {
        "file": file.name, "sha256": sha256(file), "command": "python tools/train_llm.py", "trained_on": header["source"],
        **plain, **{f"{split}_perplexity": value for split, value in found.items()}, "measured_on": text.source(),
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({"granite-tiny": entry}, indent=2) + "\n")
    return entry


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=options.new_folder,
        default="runs/granite-tiny",
        help="where the run is kept (default: %(default)s)",
    )
    parser.add_argument("--adopt", action="store_true", help="take the run's weights into the package")
    for name, default in asdict(Plan()).items():
        kind = options.number(*LIMITS[name])
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help="default: %(default)s")
    args = vars(parser.parse_args(arguments))
    folder = args.pop("out")
    if args.pop("adopt"):
        print(json.dumps(adopt(folder / "last.safetensors", granite.FOLDER), indent=2))
        return
    plan = Plan(**args)
    torch.manual_seed(plan.seed)
    network = granite.build(granite.config())
    print(f"{sum(p.numel() for p in network.parameters()):,} weights, {len(text.corpus('train')):,} bytes", flush=True)
    fit(network, plan, folder)


if __name__ == "__main__":
    main()
