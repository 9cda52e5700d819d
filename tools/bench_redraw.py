"""How long each panel of the course takes to follow its slider: every lesson runs, then its panels are driven.

`python tools/bench_redraw.py` or `python tools/bench_redraw.py 05 12`

A redraw is what the kernel does between two values: compute, draw, make a JPEG. Every value of each control is visited
in turn, as in a slow drag, from the corner where all controls are at their start and from the opposite one. The
explorables that the browser computes are not in the table: they need no kernel.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
import build_notebooks

from qlab import bench
from qlab.course import widgets

WANTED = 35.0  # ms; a drag then follows at about 20 frames a second
MOST = 24  # values of a control: the longest sliders are sampled


def main(words: Sequence[str]) -> int:
    """Print a line a panel; the exit code says whether all of them are fast enough."""
    sources = sorted((build_notebooks.FOLDER / "source").glob("*.py"))
    chosen = [source for source in sources if not words or source.name[:2] in words]
    if unknown := set(words) - {source.name[:2] for source in sources}:
        print(f"bench_redraw: no lesson {min(unknown)}: expected numbers such as 05", file=sys.stderr)
        return 2
    print(f"{bench.setting(torch.get_num_threads())}\n{'panel':30} {'redraws':>8} {'median':>8} {'slowest':>8}   ms")
    slow = 0
    for source in tqdm(chosen, leave=False):
        for number, panel in enumerate(panels_of(source)):
            ms = [1000 * seconds for seconds in redraws(panel)]
            slow += statistics.median(ms) > WANTED
            name = f"{source.stem[:2]} {number} {getattr(panel.draw, '__qualname__', '').split('.')[0]}"
            tqdm.write(f"{name:30} {len(ms):8} {statistics.median(ms):8.1f} {max(ms):8.1f}")
    print(f"{slow} panels need more than {WANTED:.0f} ms")
    return int(slow > 0)


def panels_of(source: Path) -> list[widgets.Panel]:
    """Run a lesson's cells here, with its exercises solved, and keep each panel that they make."""
    made: list[widgets.Panel] = []
    make = widgets.Panel.__init__

    def keep(panel: widgets.Panel, *args, **controls) -> None:
        make(panel, *args, **controls)
        made.append(panel)

    names: dict = {"__name__": source.stem}
    with tempfile.TemporaryDirectory() as folder, patch.object(widgets.Panel, "__init__", keep):
        with patch.dict(os.environ, QLAB_PROGRESS=f"{folder}/progress.json"):  # solved here is not solved by the user
            for cell in build_notebooks.read(source, solved=True).cells:
                if cell.cell_type == "code":
                    with redirect_stdout(io.StringIO()):
                        exec(compile(cell.source, f"{source.name}: {cell.id}", "exec"), names)
    return made


def redraws(panel: widgets.Panel) -> Iterator[float]:
    """Seconds of each redraw, control by control, with the other controls at their start and then at their end."""
    ranges = {name: widgets.thinned(values, MOST) for name, values in panel.choices.items()}
    for corner in (0, -1):
        for name, values in ranges.items():
            for other, control in panel.controls.items():
                control.value = ranges[other][corner]
            for value in values:
                start = time.perf_counter()
                panel.controls[name].value = value
                yield time.perf_counter() - start
                if panel.error is not None:
                    raise panel.error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
