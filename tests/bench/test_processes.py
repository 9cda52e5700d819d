"""Several processes at once, each on a core of its own; and memory at the peak of a call."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import nn
from zoo import convolutions

import qlab
from qlab.bench import peak_bytes, processes, throughput


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("this network never answers")


def test_an_integer_network_reaches_the_process_that_counts():
    x = torch.rand(8, 3, 6, 6)
    int8 = qlab.ptq(convolutions(), [x], engine="reference")
    assert 0 < throughput(int8, x, workers=1, seconds=0.1) < math.inf


class Signs(nn.Module):
    """Leaves in a folder which process called it, with how many threads, and the cores it may use."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def forward(self, x):
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ["any"]
        name = f"{os.getpid()}-{torch.get_num_threads()}-{'+'.join(map(str, cores))}"
        open(os.path.join(self.folder, name), "a").close()
        return x


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")
def test_every_process_works_on_one_thread_and_a_core_of_its_own(tmp_path):
    assert throughput(Signs(str(tmp_path)), torch.zeros(1, 3), workers=2, seconds=0.05) > 0
    signed = [path.name.split("-") for path in tmp_path.iterdir()]
    assert len({process for process, _, _ in signed}) == 2 and {threads for _, threads, _ in signed} == {"1"}
    if hasattr(os, "sched_getaffinity"):
        assert len({cores for _, _, cores in signed}) == 2 and not any("+" in cores for _, _, cores in signed)


def test_throughput_of_a_network_that_fails_is_an_error_and_not_a_wait_without_end():
    with pytest.raises(RuntimeError, match="a process of the measurement failed"):
        throughput(Fails(), torch.zeros(1, 3), workers=1, seconds=0.1)


@pytest.mark.parametrize("workers", [0, 10_000])
def test_throughput_needs_a_core_for_each_process(workers):
    with pytest.raises(ValueError, match=f"workers={workers}: expected 1 to .*, the cores that this process may use"):
        throughput(Fails(), torch.zeros(1, 3), workers=workers)


@pytest.mark.skipif(not processes.RESET_PEAK.exists(), reason="only Linux counts the peak of a call")
def test_a_call_takes_at_its_peak_what_it_holds_at_once():
    """Of three layers the first's output is still held when the second makes its own; the third works in place."""
    network = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU(inplace=True))
    assert 31 < peak_bytes(network, torch.zeros(4 * 2**20)) / 2**20 < 34


def test_the_peak_of_a_call_is_refused_where_nobody_counts_it(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "RESET_PEAK", tmp_path / "clear_refs")
    with pytest.raises(OSError, match=r"no .*clear_refs on this system.*: it takes Linux"):
        peak_bytes(Fails(), torch.zeros(1, 3))
