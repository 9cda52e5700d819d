"""What the processor has is read from torch and, on Linux, from /proc/cpuinfo."""

from __future__ import annotations

import torch

from qlab.int8 import engines
from qlab.int8.engines import processor

X86 = "model name\t: A fast one\nflags\t\t: avx2 avx512f avx512_vnni amx_int8\n\nmodel name\t: A slow one\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n"


def test_the_processor_is_read_from_linux(other_machine, tmp_path):
    for text, expected in ((X86, (True, True, True, True, False)), (ARM, (False, False, False, False, True))):
        (tmp_path / "cpuinfo").write_text(text)
        other_machine.setattr(processor, "Path", lambda _: tmp_path / "cpuinfo")
        for ask in ("avx2", "avx512", "vnni", "amx_tile"):
            other_machine.setattr(torch.cpu, f"_is_{ask}_supported", lambda: False, raising=False)
        cpu = engines.cpu.__wrapped__()
        assert (cpu.avx2, cpu.avx512, cpu.vnni, cpu.amx, cpu.dot_product) == expected
        assert cpu.model == "A fast one" or text is ARM


def test_what_cannot_be_found_out_is_none(other_machine, tmp_path):
    other_machine.setattr(processor, "Path", lambda _: tmp_path / "there is none")
    other_machine.setattr(processor.platform, "machine", lambda: "arm64")
    other_machine.setattr(processor.sys, "platform", "darwin")
    for ask in ("avx2", "avx512", "vnni", "amx_tile"):
        other_machine.delattr(torch.cpu, f"_is_{ask}_supported", raising=False)
    cpu = engines.cpu.__wrapped__()
    assert (cpu.avx2, cpu.vnni, cpu.amx, cpu.dot_product, cpu.is_arm) == (None, None, None, True, True)
