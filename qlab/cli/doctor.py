"""`qlab doctor`: what this machine can do for the course, and what to do about each gap.

Every check really tries the thing (an engine runs a convolution, torchvision an operator), since a version
number says little about a machine. A check that itself breaks is a finding too: the doctor must not die of
the patient's illness.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
import torch

from qlab import models
from qlab.bench import processor
from qlab.data import available
from qlab.extras import remedy
from qlab.int8 import engines

MARKS = {"fine": "✓", "hint": "!", "gap": "✗"}
PLAIN_MARKS = {"fine": "ok", "hint": "!", "gap": "NO"}  # for a terminal that has no such signs
EXTRAS = {  # package: what needs it, and the extra of qlab that brings it
    "transformers": ("lesson 10", "llm"),
    "gguf": ("llama.cpp's files", "llm"),
    "onnx": ("lesson 12", "onnx"),
    "onnxruntime": ("lesson 12", "onnx"),
    "opencv-python-headless": ("a webcam or a video file", "video"),
}
REINSTALL = "run `make clean`, then `make lab`: that fetches torch and torchvision from one place"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    ``state``: "fine", "hint" (the course runs, but not at its best) or "gap" (it cannot run).
    """

    state: str
    what: str
    found: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`qlab doctor` has no options."""


def run(args: argparse.Namespace) -> int:
    """`qlab doctor`: print the report; the exit code is 0 when the course can run here, else 1."""
    findings = examine()
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    print(report(findings, shutil.get_terminal_size((100, 24)).columns, encoding))
    return int(any(finding.state == "gap" for finding in findings))


def examine() -> list[Finding]:
    """Everything that was found, in the order in which it matters."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings += check()
        except Exception as error:  # whatever it is, it belongs in the report
            mend = f"{REINSTALL}. If that does not help, report this line as a defect of qlab"
            findings.append(Finding("gap", check.__name__, f"{type(error).__name__}: {error}", mend))
    return findings


def software() -> Iterator[Finding]:
    """Python and the packages that a lesson imports."""
    python = platform.python_version()
    old = sys.version_info < (3, 10)
    yield Finding("gap" if old else "fine", "Python", python, "install Python 3.10 or newer" if old else "")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU, none needed"
    yield Finding("fine", "torch", f"{torch.__version__}, {gpu}")
    for package in ("jupyterlab", "ipywidgets", "anywidget", "matplotlib"):
        try:
            yield Finding("fine", package, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding("gap", package, "not installed", "run `make lab`, which installs it")


def extras() -> Iterator[Finding]:
    """What single lessons and commands need on top."""
    for package, (what, extra) in EXTRAS.items():
        try:
            yield Finding("fine", package, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding("hint", package, f"not installed: {what} needs it", remedy(extra))


def torchvision() -> Iterator[Finding]:
    """Whether torchvision's operators load beside this torch.

    Tried in a process of its own, since a failed import lingers.
    """
    code = "import torch as t, torchvision as v; v.ops.nms(t.rand(2, 4), t.rand(2), 0.5); print(v.__version__)"
    probe = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if probe.returncode == 0:
        yield Finding("fine", "torchvision", probe.stdout.strip())
    else:
        reason = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        mend = f"they must come from one source: {REINSTALL}. Only mobilenet_v2 needs torchvision"
        yield Finding("hint", "torchvision", f"does not work beside this torch ({reason})", mend)


def machine() -> Iterator[Finding]:
    """Cores, memory, and the instructions that decide how fast integers are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("fine", "cores", f"{cores}, of which torch uses {torch.get_num_threads()}")
    total, free = memory_limit(psutil.virtual_memory().total), psutil.virtual_memory().available
    found = f"{total / 2**30:.1f} GiB, {min(total, free) / 2**30:.1f} GiB free"
    tight = min(total, free) < 2**30
    yield Finding(
        "hint" if tight else "fine",
        "memory",
        found,
        "lessons need about 1 GiB: close something" if tight else "",
    )
    yield Finding("fine", "processor", processor())


def memory_limit(physical: int, groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may use: a container may allow less than the machine has (Binder: 2 GB)."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups, version 2 and version 1
        path = groups / name
        if path.exists() and (text := path.read_text().strip()).isdigit():
            return min(physical, int(text))
    return physical


def kernels() -> Iterator[Finding]:
    """Which engines compute a convolution here, and which one "auto" takes."""
    chosen, why = engines.choose()
    for name, engine in engines.available().items():
        found = f"not here: {engine.reason}"
        exact = not (engine.saturates or engine.depthwise_saturates)
        if engine.usable:
            where = "" if engine.saturates else " of depthwise layers"
            found = "works" if exact else f"works, but pairs of large products{where} saturate at 16 bits"
        if name == chosen:
            found = f'works, "auto" takes it: {why}'
        yield Finding("fine" if engine.usable and exact else "hint", f"engine {name}", found)


def images() -> Iterator[Finding]:
    """Whether the lessons run on CIFAR-10, or on the drawn shapes that stand in for it."""
    try:
        data = available()
    except (ValueError, OSError) as error:
        yield Finding("gap", "images", str(error))
    else:
        yield Finding("hint" if data.remedy else "fine", "images", data.found, data.remedy)


def networks() -> Iterator[Finding]:
    """Whether the trained networks that come with qlab are there and undamaged."""
    found = []
    try:
        for folder in (models.FOLDER, *(models.FOLDER.parents[1] / name / "checkpoints" for name in ("detect", "llm"))):
            for key in sorted(models.manifest(folder)):
                models.weights(key, folder)
                found.append(key)
    except (ValueError, OSError) as error:
        yield Finding("gap", "networks", str(error), "`git checkout -- qlab` restores them")
    else:
        yield Finding("fine", "networks", f"there and undamaged: {', '.join(found)}")


CHECKS = (software, extras, torchvision, machine, kernels, images, networks)


def report(findings: list[Finding], columns: int = 100, encoding: str = "utf-8") -> str:
    """The findings as text that fits a terminal ``columns`` wide and can be written in ``encoding``.

    >>> torch = Finding("gap", "torch", "not installed", "run make lab")
    >>> print(report([Finding("fine", "Python", "3.12.1"), torch]))
    ✓ Python  3.12.1
    ✗ torch   not installed
              -> run make lab
    The course cannot run here yet: 1 gap, marked ✗.
    """
    try:
        "".join(MARKS.values()).encode(encoding)
        marks = MARKS
    except (UnicodeEncodeError, LookupError):
        marks = PLAIN_MARKS
    label = max(len(finding.what) for finding in findings)
    width = max(len(mark) for mark in marks.values())
    indent = " " * (width + label + 3)
    lines = []
    for finding in findings:
        head = f"{marks[finding.state]:{width}} {finding.what:{label}}  "
        lines += textwrap.wrap(head + finding.found, max(columns, 60), subsequent_indent=indent, drop_whitespace=True)
        if finding.remedy:
            lines += textwrap.wrap(
                finding.remedy,
                max(columns, 60),
                initial_indent=indent + "-> ",
                subsequent_indent=indent + "   ",
            )
    gaps = sum(finding.state == "gap" for finding in findings)
    lines.append(
        f"The course cannot run here yet: {gaps} gap{'s' * (gaps != 1)}, marked {marks['gap']}."
        if gaps
        else "The course can run here."
    )
    return "\n".join(lines).encode(encoding, "replace").decode(encoding)
