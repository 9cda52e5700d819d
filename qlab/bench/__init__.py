"""How fast and how large a network is, measured so that the figure can be trusted.

Read ``timing`` (seconds a call, in turns), ``comparison`` (networks side by side, whose outputs are checked first),
``conditions`` (what a time depends on), ``size`` (bytes, multiplications), ``processes`` (several at once, memory at
the peak), ``roofline`` (what the processor can do at most).
"""

from qlab.bench.comparison import Comparison, captured, check_output, compare, compare_calls, fastest
from qlab.bench.conditions import processor, setting, using_threads
from qlab.bench.processes import peak_bytes, throughput
from qlab.bench.roofline import Roof, roof
from qlab.bench.size import file_bytes, macs
from qlab.bench.timing import ROUNDS, Timing, interleave
from qlab.sizes import memory_bytes

__all__ = [
    "ROUNDS", "Comparison", "Roof", "Timing", "captured", "check_output", "compare", "compare_calls", "fastest",
    "file_bytes", "interleave", "macs", "memory_bytes", "peak_bytes", "processor", "roof", "setting", "throughput",
    "using_threads",
]  # fmt: skip
