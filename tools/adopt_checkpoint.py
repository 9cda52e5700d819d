"""Put the best weights of a training run into the package: `python tools/adopt_checkpoint.py runs/resnet20-cifar10`.

Measures them on the test split of the data at hand, and writes the manifest's entry.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from pathlib import Path

from qlab import data, evaluate, models, prepare, qat
from qlab.cli import options
from qlab.files import read_tensors, sha256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "run", type=run_folder, help="the run's folder, named <network>-<data> or <network>-<data>-<WxAy>"
    )
    print(json.dumps(adopt(parser.parse_args().run), indent=2))


def run_folder(text: str) -> Path:
    """The folder of a run."""
    options.weights(str(Path(text) / "last.safetensors"))
    if not re.fullmatch("[a-z0-9_]+-[a-z0-9]+(-w[0-9]+a[0-9]+)?", Path(text).resolve().name):
        raise options.refuse(text, "a folder named <network>-<data> or <network>-<data>-<WxAy>")
    return Path(text).resolve()


def adopt(run: Path) -> dict:
    """Copy the weights of the run in this folder, and write and return their entry in the manifest."""
    name, data_name, *preset = run.name.split("-")
    header = read_tensors(run / "last.safetensors")[1]
    models.FOLDER.mkdir(exist_ok=True)
    path = models.FOLDER / "manifest.json"
    entries = json.loads(path.read_text()) if path.exists() else {}
    initial = re.search(r"--init (\S+)", header["about"]["command"])
    before = next((e for e in entries.values() if initial and e["sha256"] == sha256(Path(initial[1]))), None)
    file = models.FOLDER / f"{run.name}.safetensors"
    shutil.copyfile(run / ("prepared.safetensors" if preset else "best.safetensors"), file)
    network = models.ARCHITECTURES[name]()
    if preset:
        network = prepare(network, qat.qconfig(*preset))
    network.load_state_dict(read_tensors(file)[0])
    test = getattr(data, data_name)("test")
    plan, history = header["plan"], header["history"]
    best = max(history, key=lambda row: row["validation"])
    entry = {
        "file": file.name,
        "sha256": sha256(file),
        "command": re.sub(r" --(out|threads|device) \S+", "", header["about"]["command"]),  # what changes no weight
        "trained_on": header["about"]["source"],
        "epochs": f"{best['epoch']} of {plan['epochs']}",
        "seed": plan["seed"],
        "validation": round(best["validation"], 2),
        "test": round(evaluate(network, test), 2),
        "test_data": test.source,
    }
    if preset:
        entry |= {"qconfig": preset[0], "float_test": models.manifest()[f"{name}-{data_name}"]["test"]}
    if before:
        entry["command"] = re.sub(r"--init \S+", f"--init {before['file']}", entry["command"])
        entry["goes_on_from"] = before
    entries[run.name] = entry
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(dict(sorted(entries.items())), indent=2) + "\n")
    part.replace(path)
    return entry


if __name__ == "__main__":
    main()
