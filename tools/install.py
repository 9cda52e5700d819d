"""Make .venv and install qlab and the course's packages into it: `python3 tools/install.py [video] [test] ...`.

`make` calls this. It is called by hand on Windows, and to add to a .venv what an extra of pyproject.toml names. It
needs a Python with venv and pip, and nothing else: uv, which does the installing, is put into .venv when it is not on
the PATH.

torch comes in builds of very different size, and torchvision has to come from the same place as torch. So the
place is chosen once, before anything large is downloaded, and remembered in .venv/torch-source.
"""

from __future__ import (
    annotations,
)  # this file alone has to be readable by an old Python, to say that it is too old

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
NOTE = VENV / "torch-source"
OLDEST = (3, 10)
EXTRAS = ("llm", "onnx", "video", "test", "site", "bench")
PROBE_SECONDS = 20  # a network that swallows connections must not hold a student up


def say(text: str) -> None:
    print(f"qlab: {text}", flush=True)


def run(*command: object, **options) -> None:
    """Run a command; when it fails, stop and say which one it was."""
    code = subprocess.run([str(part) for part in command], cwd=ROOT, **options).returncode
    if code:
        sys.exit(
            f"qlab: this command failed with exit code {code}; its own message stands above:\n  "
            + " ".join(str(part) for part in command)
        )


def works(python: Path) -> bool:
    """Whether .venv's Python starts (in a copied folder it does not) and is new enough."""
    code = f"import sys; sys.exit(sys.version_info < {OLDEST})"
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def make_environment() -> str:
    """Make .venv if there is none that works; return the uv that will fill it."""
    uv = shutil.which("uv")
    new_enough, there = sys.version_info >= OLDEST, works(PYTHON)
    if not (new_enough or uv or there):
        sys.exit(
            f"qlab: this is Python {sys.version.split()[0]}; expected 3.10 or newer. Name one, "
            "for example `make lab PYTHON=python3.12`, or install uv, which can fetch one."
        )
    if not there:
        if VENV.exists():
            say("the Python in .venv does not start or is too old: making .venv anew")
            shutil.rmtree(VENV)
        if uv:
            run(uv, "venv", "--quiet", "--python", sys.executable if new_enough else ">=3.10", VENV)
        elif subprocess.run([sys.executable, "-m", "venv", str(VENV)]).returncode:
            shutil.rmtree(VENV, ignore_errors=True)
            sys.exit(
                "qlab: Python could not make a virtual environment (above is why). On Debian and Ubuntu: "
                "apt install python3-venv; then run the same command again."
            )
    if uv:
        return uv
    own = BIN / ("uv.exe" if os.name == "nt" else "uv")
    if not own.exists():
        say("there is no uv on the PATH: putting one into .venv (about 25 MB)")
        run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv>=0.9")
    return str(own)


def torch_source(uv: str) -> str:
    """Where torch and torchvision come from: "auto" (the build that fits this machine) or "pypi".

    uv knows PyTorch's own indexes but waits long for one that cannot be reached, and a school's network may
    let through PyPI only. So ask for the two packages' descriptions first, with short patience.
    """
    if os.environ.get("UV_TORCH_BACKEND"):
        say(f"torch: the build that UV_TORCH_BACKEND={os.environ['UV_TORCH_BACKEND']} names")
        return "as told"
    if NOTE.exists():
        return NOTE.read_text().strip()
    build, failure = ask_pytorch(uv)
    if failure:
        say(f"torch: PyPI's build, because PyTorch's own index gave nothing ({failure})")
        say(f"torch: {'with CUDA, about 3 GB' if sys.platform == 'linux' else 'about 200 MB'} to download")
        return "pypi"
    size = "CPU, about 200 MB" if "+cpu" in build or sys.platform == "darwin" else "CUDA, about 3 GB"
    say(f"torch: the build that fits this machine, from PyTorch's own index ({size} to download)")
    return "auto"


def ask_pytorch(uv: str) -> tuple[str, str]:
    """What PyTorch's own index has for this machine, and why it has nothing; one of the two is empty."""
    patience = {"UV_HTTP_TIMEOUT": "5", "UV_HTTP_CONNECT_TIMEOUT": "5", "UV_HTTP_RETRIES": "0"}
    options = ["--quiet", "--no-deps", "--torch-backend=auto", "--constraints", "constraints.txt"]
    try:
        probe = subprocess.run(
            [uv, "pip", "compile", *options, "--python", str(PYTHON), "-"],
            input="torch\ntorchvision\n",
            env={**os.environ, **patience},
            timeout=PROBE_SECONDS,
            cwd=ROOT,
            text=True,
            capture_output=True,
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer within {PROBE_SECONDS} s"
    if probe.returncode:
        lines = probe.stderr.strip().splitlines() or ["no reason given"]
        return "", lines[-1].replace("cause: ", "").strip()
    return probe.stdout, ""


def check_torch() -> None:
    """torchvision's operators load only beside the torch they were built for: better found out now."""
    code = "import torch as t, torchvision as v; v.ops.nms(t.rand(2, 4), t.rand(2), 0.5); print(t.__version__)"
    probe = subprocess.run([str(PYTHON), "-c", code], text=True, capture_output=True)
    if probe.returncode:
        sys.exit(
            f"qlab: torch and torchvision do not work together:\n{probe.stderr.strip()}\n"
            "qlab: `make clean` and the same command again fetches both from one place."
        )
    say(f"torch {probe.stdout.strip()} and torchvision work together")


def compile_once() -> None:
    """Import what every lesson imports, so that .venv holds it compiled and the first kernel starts fast.

    Where PYTHONDONTWRITEBYTECODE is set, as in many containers, every kernel would compile all of it anew.
    """
    allowed = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    modules = "ipykernel.kernelapp, jupyterlab.labapp, qlab.course.widgets, torchvision"
    run(PYTHON, "-c", f"import {modules}", env=allowed)


def main(extras: list[str]) -> None:
    unknown = [extra for extra in extras if extra not in EXTRAS]
    if unknown:
        sys.exit(f"qlab: unknown extra {unknown[0]!r}; expected any of: {', '.join(EXTRAS)}")
    what = " and ".join(["the course (torch, JupyterLab, ipywidgets, matplotlib)", *extras])
    if (VENV / "ready").exists():
        say(f"bringing .venv up to date: {what}")
    else:
        say(f"installing {what} into .venv: about {260 if 'test' in extras else 150} MB to download, and torch")
    uv = make_environment()
    source = torch_source(uv)
    target = "." + (f"[{','.join(extras)}]" if extras else "")
    backend = ["--torch-backend=auto"] if source == "auto" else []
    # A person sees progress; a log does not need 140 lines.
    options = [*backend, *([] if sys.stderr.isatty() else ["--quiet"])]
    run(uv, "pip", "install", *options, "--python", PYTHON, "--constraints", "constraints.txt", "-e", target)
    check_torch()
    compile_once()
    NOTE.write_text(source + "\n")
    run(PYTHON, "tools/jupyter_settings.py")
    for stamp in ("ready", "-".join(["ready", *extras])):  # what `make` looks at
        (VENV / stamp).touch()


if __name__ == "__main__":
    main(sys.argv[1:])
