"""The frame of all commands: which there are, and what a mistake looks like.

A command is a file here with ``add_arguments`` and ``run``. It is imported only when it is called: what one of them
lacks must not keep the others from answering.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "doctor": "say what this machine can do, and what to do about each gap",
    "train": "train one of the course's networks",
    "quantize": "turn a trained network into an int8 network, and say what it cost",
    "bench": "measure how fast and how large a network is, in float and in int8",
    "detect": "find shapes in a video, live: a made scene, a file, a folder of images, or a webcam",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. What goes wrong is a line on stderr, not a traceback.

    An option that cannot be ends with the code 2, as in argparse, before anything has begun; what goes wrong later
    with 1. With QLAB_TRACEBACK=1 in the environment there is a traceback, to look for a defect of qlab.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = next((word for word in words if word in COMMANDS), None)
    try:
        args = build_parser(chosen).parse_args(words)
        code = args.run(args) or 0
        sys.stdout.flush()  # where it cannot be written, that is found here, and not when Python ends
        return code
    except KeyboardInterrupt:
        print(f"\nqlab {chosen}: stopped", file=sys.stderr)
        return 130  # what a shell expects: 128, and the number of the signal
    except Exception as error:
        if os.environ.get("QLAB_TRACEBACK"):
            raise
        print(f"qlab {chosen}: {in_a_line(error)}", file=sys.stderr)
        _forget_stdout()
        return 2 if isinstance(error, argparse.ArgumentTypeError) else 1


def in_a_line(error: Exception) -> str:
    """What an error says, and what to do about it.

    >>> in_a_line(ValueError("bits=0: expected 1 to 16"))
    'bits=0: expected 1 to 16'
    """
    said = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ImportError):
        return f"{said}. `qlab doctor` says what is missing and how to get it."
    if isinstance(error, (ValueError, OSError, argparse.ArgumentTypeError)):
        return said
    return f"{type(error).__name__}: {said} (QLAB_TRACEBACK=1 shows where)"


def _forget_stdout() -> None:
    """Let go of what stdout does not take (as in `qlab ... | head -1`): Python would try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser of every command; only the chosen one's code is imported and adds its arguments."""
    parser = argparse.ArgumentParser(
        prog="qlab", description="Neural-network quantization, from one number to an int8 network."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, does in COMMANDS.items():
        command = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
        if name == chosen:
            module = import_module(f"qlab.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
