"""What the processor has: the instructions that decide which int8 kernels there are, and whether they saturate."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch


@dataclass(frozen=True)
class Cpu:
    """What a processor can do for int8. None: could not be found out."""

    architecture: str  # "x86_64", "aarch64", "arm64"
    model: str
    capability: str  # the instruction set of torch's own float kernels
    avx2: bool | None
    avx512: bool | None
    vnni: bool | None  # u8 * s8 products added up in 32 bits, by one instruction
    amx: bool | None  # the same for whole tiles
    dot_product: bool | None  # ARM's counterpart of VNNI

    @property
    def is_arm(self) -> bool:
        return self.architecture.lower() in ("aarch64", "arm64")


@cache
def cpu() -> Cpu:
    """The instruction set of this machine, from torch and, on Linux, from /proc/cpuinfo.

    >>> cpu().vnni in (True, False, None)
    True
    """
    architecture, info = platform.machine() or "unknown", _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())

    def has(*names: str, ask: str = "") -> bool | None:
        """Whether one of the flags is there, or torch says yes to torch.cpu._is_..._supported()."""
        asked = getattr(torch.cpu, f"_is_{ask}_supported", None)
        if flags.intersection(names) or (asked is not None and asked()):
            return True
        return False if flags or asked is not None else None

    return Cpu(
        architecture,
        info.get("model name") or platform.processor() or "unknown",
        torch.backends.cpu.get_cpu_capability(),
        avx2=has("avx2", ask="avx2"),
        avx512=has("avx512f", ask="avx512"),
        vnni=has("avx512_vnni", "avx_vnni", ask="vnni"),
        amx=has("amx_int8", ask="amx_tile"),
        dot_product=True if (sys.platform, architecture) == ("darwin", "arm64") else has("asimddp"),
    )


def _cpuinfo() -> dict[str, str]:
    """The entries of /proc/cpuinfo for the first processor; nothing on systems that have no such file."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(errors="replace") if path.exists() else ""
    entries = re.findall(r"^([^:\n]+?)[ \t]*:[ \t]*(.*)$", text, flags=re.MULTILINE)
    return dict(reversed(entries))  # of equal names the first stays
