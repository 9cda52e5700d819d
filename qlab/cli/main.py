"""The frame of all commands: which there are, and what a mistake looks like.

A command is a file here with ``add_arguments`` and ``run``. It is imported only when it is called: what one of them lacks
must not keep the others from answering.
"""

from __future__ import annotations

import argparse
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
    """Run one command; returns the exit code. A user's mistake is a line on stderr, not a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = next((word for word in words if word in COMMANDS), None)
    try:
        args = build_parser(chosen).parse_args(words)
        return args.run(args) or 0
    except (ValueError, OSError) as error:
        print(f"qlab {chosen}: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"qlab {chosen}: {error}. `qlab doctor` says what is missing and how to get it.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nqlab {chosen}: stopped", file=sys.stderr)
        return 130


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
