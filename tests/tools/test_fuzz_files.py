"""The fuzzer of the files that qlab reads: it finds what it looks for, and finds nothing here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "fuzz_files.py"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its children's memory is bounded as Linux does it")

BEHAVIOUR = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import fuzz_files
fuzz_files.SECONDS = 1

def wrong(error):
    raise error

def loops():
    while True:
        pass

for read in (
    lambda: None,
    lambda: wrong(ValueError("a.tar is damaged")),
    lambda: wrong(OSError("a.tar is a pipe")),
    lambda: wrong(ValueError("something is damaged")),
    lambda: wrong(ValueError("a.tar " + "x" * 5000)),
    lambda: wrong(KeyError("a.tar")),
    lambda: wrong(AssertionError("other images")),
    lambda: sys.exit(0),
    lambda: bytearray(4 << 30),
    loops,
    lambda: os.kill(os.getpid(), signal.SIGSEGV),
):
    print(fuzz_files.in_child(read, "a.tar").splitlines()[0][:40])
"""
EXPECTED = """right
refused
refused
an error without the file's name: ValueE
an error without the file's name: ValueE
KeyError: 'a.tar'
AssertionError: other images
SystemExit: 0
MemoryError:
killed by SIGXCPU
killed by SIGSEGV
"""


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300)


def test_it_tells_what_is_right_and_what_is_not():
    done = run("-c", BEHAVIOUR.format(folder=str(TOOL.parent)))
    assert [line.rstrip() for line in done.stdout.splitlines()] == EXPECTED.splitlines(), done.stderr


def test_damaged_and_forged_files_end_in_the_right_answer_or_in_an_error_in_words(tmp_path):
    """About 20 seconds of it; `python tools/fuzz_files.py --seconds 3600 --seed 1` goes on with others."""
    done = run(str(TOOL), "--seconds", "18", "--seed", "0", "--keep", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7 and all(line.endswith(", 0 findings") for line in lines)
    assert all(int(line.split()[1]) > 3 for line in lines)
