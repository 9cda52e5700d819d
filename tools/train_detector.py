"""Train lesson 11's detector: `python tools/train_detector.py`, a quarter of an hour on one quiet processor core; then
`python tools/train_detector.py --qat`. A broken run goes on where it stopped.

With --adopt, the weights go into the package, measured on validation and test scenes, with an entry in the manifest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from qlab import detect
from qlab.cli import options
from qlab.detect import training
from qlab.detect.network import CHECKPOINTS
from qlab.files import sha256

IMAGES = 500  # of each split that is measured on


def main() -> None:
    """Train, print one row an epoch, and put the weights into the package if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qat", action="store_true", help="train the trained detector on with the rounding of 8 bits")
    parser.add_argument("--adopt", action="store_true", help="put the weights into the package")
    parser.add_argument(
        "--out", type=options.new_folder, help="where the run is kept (default: runs/ssdlite-scenes[-w8a8])"
    )
    parser.add_argument("--threads", type=options.threads, default=torch.get_num_threads(), help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name = "ssdlite-scenes-w8a8" if args.qat else "ssdlite-scenes"
    folder = args.out or Path("runs") / name
    _network, history = (training.train_qat if args.qat else training.train)(folder)
    for row in history:
        print(json.dumps(row))
    if args.adopt:
        print(json.dumps(adopt(name, folder, args.qat), indent=2))


def adopt(name: str, folder: Path, qat: bool) -> dict:
    """Copy the weights of a run into the package, and write down how good they are; the manifest's entry."""
    CHECKPOINTS.mkdir(exist_ok=True)
    file = CHECKPOINTS / f"{name}.safetensors"
    shutil.copyfile(folder / ("prepared.safetensors" if qat else "all/best.safetensors"), file)
    plans = [training.QAT] if qat else [training.PLAN, training.AFTERWARDS]
    entry = {
        "file": file.name,
        "sha256": sha256(file),
        "command": f"python tools/train_detector.py{' --qat' if qat else ''}",
        "trained_on": f"{training.QAT_COUNT if qat else training.COUNT:,} training scenes",
        "plans": [asdict(plan) for plan in plans],
        "seed": plans[0].seed,
        "measure": f"mAP in percent at an overlap of 0.5, {IMAGES} scenes",
    }
    path = CHECKPOINTS / "manifest.json"
    entries = json.loads(path.read_text()) if path.exists() else {}
    entries[name] = entry
    write(path, entries)
    network = detect.load_qat() if qat else detect.load()
    for split in ("validation", "test"):
        entry[split] = round(detect.evaluate(network, detect.scenes(split, IMAGES)), 2)
    write(path, entries)
    return entry


def write(path: Path, entries: dict) -> None:
    """All or nothing."""
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(dict(sorted(entries.items())), indent=2) + "\n")
    part.replace(path)


if __name__ == "__main__":
    main()
