"""The explorables that the browser computes give the numbers and the words of their Python functions.

Python writes what it gets for many inputs into a file; `node --test` holds the JavaScript to it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from qlab.course.figure import Figure
from qlab.course.lesson01 import plots as lesson1
from qlab.course.lesson02 import plots as lesson2
from qlab.course.predict import SHOWN, Choices, Number, Prediction
from qlab.course.registry import explorables
from qlab.course.widgets import module

JS_TESTS = Path(__file__).parent / "js"
DRAWN = [each.name for each in explorables() if each.script]
OLDEST_NODE = 18  # the first with node --test


@pytest.fixture(scope="module")
def node() -> str:
    path = shutil.which("node")
    version = re.match(
        r"v(\d+)", subprocess.run([path, "--version"], capture_output=True, text=True).stdout if path else ""
    )
    if not version or int(version[1]) < OLDEST_NODE:
        pytest.skip(f"no Node.js >= {OLDEST_NODE} on the PATH (Debian: apt install nodejs)")
    return path


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> Path:
    """A folder with the widgets' modules, each as the browser gets it."""
    folder = tmp_path_factory.mktemp("js")
    for name in (*DRAWN, "slider", "predict"):
        (folder / f"{name}.mjs").write_text(module(f"{name}.js"), "utf-8")
    return folder


def plain(value: object) -> object:
    """For JSON, in which there is neither nan nor infinity: such a float as the text that JavaScript makes a number of."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)) and not math.isfinite(value):
        return str(float(value)).replace("inf", "Infinity").replace("nan", "NaN")
    return value.item() if isinstance(value, np.generic) else value


def said(figure: Figure) -> dict[str, str]:
    return {"finding": figure.finding, "alt": figure.alt}


# --- what Python says


def written() -> dict:
    """Numbers in every format that the course's sentences use; exact halves among them, which go to the even digit."""
    rng = np.random.default_rng(0)
    halves = [n * 2.0**-power for n in range(-9, 10) for power in range(1, 12)]
    spread = (rng.normal(size=500) * 10 ** rng.uniform(-12, 12, 500)).tolist()
    corners = [0.0, -0.0, 1.0, 9.995, 99999.5, 999999.5, 1e6, 1e-4, 9.9999e-5, 123456789.0, 1e22, 2.0**-149, 5e-324]
    numbers = [*halves, *spread, *corners, math.inf, -math.inf, math.nan]
    rows = [(x, spec, format(x, spec)) for x in numbers for spec in ("g", ".2g", ".7g", ".9g")]
    rows += [(x, spec, format(x, spec)) for x in numbers if not abs(x) > 1e20 for spec in (".1f", ".2f", ".3f")]
    sentences = [("{bits} bits: {x:.2f}{y}", {"bits": 3, "x": 0.125, "y": "!"})]
    return {"numbers": rows, "sentences": [(text, values, text.format(**values)) for text, values in sentences]}


def rounding() -> dict:
    draw = lesson1.rounding()
    wave = np.sin(np.linspace(0, 2 * np.pi, 400))
    between = np.linspace(-1.5, 1.5, 25)  # many of them half-way between two rungs
    cases = [
        {"bits": bits, "shift": shift, **said(draw(bits, shift)),
         "step": lesson1.rounded(wave, bits, shift)[0], "grid": lesson1.rounded(wave, bits, shift)[1],
         "wave": lesson1.rounded(wave, bits, shift)[2], "between": lesson1.rounded(between, bits, shift)[2]}
        for bits in range(2, 9) for shift in (0, 0.1, 0.3, 0.5, 0.7, 0.9)
    ]  # fmt: skip
    return {"texts": lesson1.rounding_texts(), "between": between, "cases": cases}


def clipping() -> dict:
    sets = {
        "spread": torch.randn(3000).relu() ** 1.5,
        "halves": torch.arange(0, 15.5, 0.5),  # 4 bits with a limit of 15: every second value is half-way
        "edges": torch.arange(0, 31.25, 0.25),  # 7.75 is an edge of a bar, but for its last binary digit
        "one value": torch.full((10,), 0.3),
    }
    texts, data = lesson2.clipping_texts(), {}
    for name, values in sets.items():
        draw, x = lesson2.clipping(values), lesson2.enough_of(values)
        counts, edges = np.histogram(x, 60)
        cases = [
            {"bits": bits, "limit": limit, **said(draw(bits, limit)),
             "errors": lesson2.clipping_errors(x, bits, x.max() * limit / 100)}
            for bits in range(2, 9) for limit in (5, 33, 50, 97, 100)
        ]  # fmt: skip
        data[name] = {"x": x, "counts": counts, "edges": edges, "cases": cases}
    return {"texts": texts, "sets": data}


def formats() -> dict:
    """torch's own casts are the truth: from numbers to patterns, and from patterns to numbers."""
    draw = lesson1.formats()
    spread = torch.randn(300, dtype=torch.float64) * 10 ** torch.empty(300, dtype=torch.float64).uniform_(-46, 39)
    steps = [place / 20 for place in range(-100, 101)]  # the slider's
    cases, patterns = [], []
    for name, (exponent, fraction, dtype) in lesson1.FORMATS.items():
        width = 1 + exponent + fraction
        every = range(2**width) if width <= 16 else torch.randint(2**width, (2000,)).tolist()
        integers = {8: torch.uint8, 16: torch.int16, 32: torch.int32}[width]
        signed = torch.tensor([p - 2**width * (p >= 2 ** (width - 1) and width > 8) for p in every]).to(integers)
        stored = signed.view(dtype).to(torch.float32).double()
        patterns.append({"name": name, "patterns": list(every), "values": stored.tolist()})
        # Each value of a short format, and what is half-way to the next one; beyond the ends too.
        if width < 32:
            ends = stored[stored.isfinite()].unique()
            steps += torch.cat([ends, (ends[1:] + ends[:-1]) / 2])[:: max(1, len(ends) // 500)].tolist()
            steps += [float(ends[-1]) * more for more in (1.001, 1.03, 1.0357142857, 1.04, 1.07, 1.2, 2.0)]
    codes = np.arange(256)
    patterns.append({"name": "int8", "patterns": codes, "values": codes.astype(np.uint8).view(np.int8) / 32})
    corners = [
        0.0,
        -0.0,
        math.inf,
        -math.inf,
        math.nan,
        2.0**-149,
        2.0**-150,
        -(2.0**-150),
        2.0**-133,
        3.4028235677973366e38,
    ]
    for number in [*steps, *(-step for step in steps[::7]), *spread.tolist(), *corners]:
        stored = {name: lesson1.in_format(number, name)[1] for name in (*lesson1.FORMATS, "int8")}
        cases.append({"number": number, "stored": stored, **said(draw(number))})
    return {"texts": lesson1.formats_texts(), "cases": cases, "patterns": patterns}


def verdicts() -> dict:
    """What stands below a question after each guess, as Python's words for the same have it."""
    which = Choices("1a", "Which?", among=("up", "down {0}"), measured="by {percent:.1f} %.")
    bits = Number("1b", "How many?", between=(2, 8), step=0.5, unit="bits")
    cases = []
    for asked, guesses, numbers in ((which, (0, 1), {"percent": 2.5}), (bits, (2, 3.5, 8), {})):
        question = Prediction(asked, (), 1, asked.answered(1, numbers)).question
        state = {name: getattr(question, name) for name in ("among", "slider", "measured", "texts")}
        after = f"Measured: {question.measured.rstrip('.')}."
        cases.append([state | {"guess": None}, []])
        cases.append([state | {"guess": SHOWN}, [after]])
        cases += [[state | {"guess": guess}, [f"You said: {asked.said(guess)}.", after]] for guess in guesses]
    return {"cases": cases}


@pytest.mark.parametrize("name", ["written", "verdicts", *DRAWN])
def test_javascript_gets_what_python_gets(node, modules, tmp_path, name):
    reference = tmp_path / "reference.json"
    reference.write_text(json.dumps(plain(globals()[name]()), allow_nan=False), "utf-8")
    environment = os.environ | {"QLAB_MODULES": str(modules), "QLAB_REFERENCE": str(reference)}
    command = [node, "--test", str(JS_TESTS / f"{name}.test.mjs")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "# fail 0" in done.stdout and "# pass 0" not in done.stdout


@pytest.mark.parametrize("name", [*DRAWN, "slider", "predict"])
def test_a_widgets_module_is_whole(node, modules, name):
    """What a widget imports is in the same file, and the browser finds its render function."""
    code = "import(process.argv[1]).then(({ default: widget }) => console.log(typeof widget.render))"
    address = (modules / f"{name}.mjs").as_uri()
    done = subprocess.run([node, "-e", code, address], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "function", done.stderr[-2000:]
