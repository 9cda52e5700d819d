"""The official batches of CIFAR-10 (cifar-10-batches-py), without unpickling them.

A pickle is a program for a small machine with a stack, and Python's own machine can be made to run anything, or to take
bytes for pointers. Here the program is only read: the few instructions that an official batch consists of build lists,
texts and numbers, a "call" leaves a note of what was to be made, and of the notes one becomes the array of the images.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass

import numpy as np

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
MOST = 64 << 20  # bytes of a batch: the official ones have 31 million, written anew by Python 3 up to 47
STEPS = 200_000  # instructions: the official ones have 50,000
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
PLAIN = (
    "BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
)  # fmt: skip
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
ENCODE, ARRAY, TYPE, NDARRAY = FUNCTIONS = (
    "_codecs.encode",  # how Python 3 writes bytes in an old pickle
    "numpy.core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
)
BYTES = "u1", (3, "|", None, None, None, -1, -1, 0)  # the type uint8 and its state


@dataclass(eq=False)
class Note:
    """What a call would have made: by which function, of what, and in which state."""

    function: str
    arguments: tuple = ()
    state: object = None


def read_batch(data: bytes, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3072), red, green, blue, and labels int64 (N,) of one official batch, ``what`` in errors.

    Raises ValueError for any other pickle. Nothing in it is executed, and memory stays at a few times its size.
    """
    try:
        batch = Machine().run(data)
        images, labels = batch[b"data"], batch[b"labels"]
        version, shape, kind, by_columns, content = images.state
        fits = (images.function, version) == (ARRAY, 1) and _is_bytes(kind) and type(content) is bytes
        fits = fits and type(labels) is list and all(type(n) is int and 0 <= n < len(CLASSES) for n in labels)
        fits = fits and shape == (len(labels), PIXELS) and len(content) == len(labels) * PIXELS
    except Exception as error:
        words = str(error)[:200] or type(error).__name__
        raise ValueError(f"{what} is not an official CIFAR-10 batch ({words}): fetch it again") from error
    if not fits:
        raise ValueError(
            f"{what} has other arrays than an official CIFAR-10 batch: expected uint8 (N, 3072), labels 0 to 9"
        )
    pixels = np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")
    return pixels, np.array(labels, np.int64)


def _is_bytes(kind: Note) -> bool:
    """Does the note say uint8? Python 2 wrote texts as bytes."""
    code, state = kind.arguments[0], kind.state
    texts = [text.decode("ascii") if type(text) is bytes else text for text in (code, state[1])]
    return kind.function == TYPE and (texts[0], (state[0], texts[1], *state[2:])) == BYTES


class Machine:
    """Follows a pickle's instructions, as far as an official batch has them."""

    def __init__(self) -> None:
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self, data: bytes) -> object:
        """What the pickle describes. Raises ValueError for an instruction or a function that it does not need."""
        if len(data) > MOST:
            raise ValueError(f"it has more than {MOST:,} bytes")
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if number == STEPS:
                raise ValueError(f"it has more than {STEPS:,} instructions")
            if opcode.name == "STOP":
                return self.stack.pop()
            self.follow(opcode.name, argument)
        raise ValueError("it has no end")

    def follow(self, name: str, argument: object) -> None:
        """One instruction."""
        stack = self.stack
        if name in PLAIN:
            stack.append(argument)
        elif name in ("BINSTRING", "SHORT_BINSTRING"):  # Python 2's bytes
            stack.append(argument.encode("latin-1"))
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(_function(argument.replace(" ", ".") if argument else ".".join(self.take(2))))
        elif name not in ("PROTO", "FRAME"):
            self.gather(name)

    def gather(self, name: str) -> None:
        """An instruction that makes one thing of several."""
        if name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple(self.take(int(name[-1]))))
        elif name == "TUPLE":
            self.stack.append(tuple(self.since_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = self.take(1) if name == "APPEND" else self.since_mark()
            list.extend(self.stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.take(2) if name == "SETITEM" else self.since_mark()
            for key, value in zip(items[::2], items[1::2], strict=True):
                if type(key) not in (bytes, str):  # others may take for ever to be hashed
                    raise ValueError("a key is no text")
                dict.__setitem__(self.stack[-1], key, value)
        elif name == "REDUCE":
            function, arguments = self.take(2)
            self.stack.append(_call(function, *arguments))
        elif name == "BUILD":
            note, state = self.take(2)
            note.state = state
            self.stack.append(note)
        else:
            raise ValueError(f"it has the instruction {name}, which no copy of CIFAR-10 needs")

    def take(self, count: int) -> list:
        """The last things on the stack, which are no longer on it then."""
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def since_mark(self) -> list:
        """What came on the stack since the last mark."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items


def _function(name: str) -> Note:
    """A note of the function itself; which one it may be is looked at here."""
    name = name.replace("numpy._core", "numpy.core")
    if name not in FUNCTIONS:
        raise ValueError(f"it asks for {name[:50]}, which no copy of CIFAR-10 needs")
    return Note(name)


def _call(function: Note, *arguments) -> bytes | Note:
    """What ``function`` would give: text as bytes, or a note."""
    if function.function == ENCODE:
        text, code = arguments
        if code != "latin1":
            raise ValueError("it asks for another encoding than latin1")
        return text.encode("latin1")
    return Note(function.function, arguments)
