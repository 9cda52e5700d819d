"""The tools around language models: training goes on where it stopped, and the benchmark says what was met."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qlab import llm
from qlab.llm import granite, text

TOOLS = Path(__file__).parents[2] / "tools"
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 1, "attention_multiplier": 1 / 32}


@pytest.fixture
def tool(monkeypatch):
    """Imports a module of tools/ as it is when its scripts run."""
    monkeypatch.syspath_prepend(TOOLS)
    yield importlib.import_module
    for name in ("bench_llm", "train_llm"):
        sys.modules.pop(name, None)


@pytest.fixture
def small(monkeypatch):
    """The tiny model is tinier."""
    monkeypatch.setattr(granite, "TINY", granite.TINY | SMALL)
    torch.manual_seed(0)
    return llm.build(llm.config())


# --- training


def test_a_broken_training_goes_on_to_the_same_weights(tool, small, tmp_path, capsys):
    train = tool("train_llm")
    plan = train.Plan(steps=6, batch_size=2, length=16)
    start = {name: tensor.clone() for name, tensor in small.state_dict().items()}

    def run(folder: Path, stop: int | None = None) -> list[dict]:
        small.load_state_dict(start)
        if stop is None:
            return train.fit(small, plan, folder, every=2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "batch_of", stopping(train.batch_of, stop))
            with pytest.raises(KeyboardInterrupt):
                train.fit(small, plan, folder, every=2)
        return []

    whole = run(tmp_path / "whole")
    expected = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    run(tmp_path / "broken", stop=5)
    history = run(tmp_path / "broken")
    assert [row["step"] for row in history] == [2, 4, 6] and whole[-1]["loss"] == pytest.approx(history[-1]["loss"])
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    with pytest.raises(SystemExit, match="choose another folder"):
        train.fit(small, train.Plan(steps=7, batch_size=2, length=16), tmp_path / "whole")


def stopping(batch_of, step: int):
    """The function, until it is asked for this step."""

    def stop(data, plan, number):
        if number == step:
            raise KeyboardInterrupt
        return batch_of(data, plan, number)

    return stop


def test_the_rate_goes_up_and_down(tool):
    plan = tool("train_llm").Plan(steps=100, lr=1.0, warmup=0.1)
    rates = [plan.lr_at(step) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10) and max(rates) == pytest.approx(1.0)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 0.03


def test_adopted_weights_are_what_tiny_loads(tool, small, tmp_path, monkeypatch, capsys):
    train = tool("train_llm")
    short = {"train": 4000, "validation": 2000, "test": 2000}
    monkeypatch.setattr(text, "corpus", lambda split: torch.randint(0, 256, (short[split],)).to(torch.uint8))
    monkeypatch.setattr(granite, "FOLDER", tmp_path / "adopted")
    (tmp_path / "adopted").mkdir()
    options = ["--out", str(tmp_path / "run"), "--steps", "2", "--batch-size", "2", "--length", "16"]
    train.main(options)
    train.main([*options, "--adopt"])
    entry = json.loads(capsys.readouterr().out.partition("\n{\n")[2].join(("{", "")))
    assert entry == llm.manifest()["granite-tiny"] and entry["steps"] == "2 of 2"
    assert 100 < entry["test_perplexity"] < 1000, "noise cannot be learned"
    assert llm.tiny().lm_head.weight.shape == (256, 64)


# --- the benchmark


def test_quality_measures_every_method(tool, small):
    bench = tool("bench_llm")
    tokens = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(0))
    rows = {row.name: row for row in bench.quality(small, tokens, tokens[:, :-1])}
    assert len(rows) == 12 and rows["float32"].change == 0 and rows["float32"].memory == 100
    assert rows["int8 weights"].memory < 30 and rows["int4 weights, GPTQ"].memory < 22
    assert rows["int8 weights"].perplexity == pytest.approx(llm.perplexity(llm.weight_only(small), tokens))


@pytest.mark.parametrize("change, word", [(0.4, "met"), (0.6, "MISSED")])
def test_what_was_wanted_is_met_or_missed(tool, change, word):
    bench = tool("bench_llm")
    rows = [bench.Quality(name, 4.0, change, 15.0) for name in ("int8 weights", "int4 weights, GPTQ")]
    said = bench.verdicts(rows)
    assert said[0].split() == f"{word} int8 weights: perplexity against float32 {change:.2f} %, wanted <= 0.5 %".split()
    assert all(line.startswith("met") for line in said[1:])


def test_networks_of_all_kinds_are_timed_and_a_missing_torchao_is_named(tool, monkeypatch, capsys):
    bench = tool("bench_llm")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    found = bench.speeds(bench.networks(llm.config(llm.GRANITE_2B, **bench.SMALL)), torch.arange(4), 2, 1)
    assert list(found) == ["float32", "bf16", "int8", "int4", "w8a8"]
    assert all(prefill > 0 and decode > 0 for prefill, decode in found.values())
    assert "torchao takes no part" in capsys.readouterr().out


def test_where_memory_is_short_the_large_model_is_left_out_in_one_line(tool, monkeypatch, capsys):
    bench = tool("bench_llm")
    monkeypatch.setattr(bench.psutil, "virtual_memory", lambda: SimpleNamespace(available=3e9))
    assert bench.large(1) == {}
    assert capsys.readouterr().out == "the 2B configuration is left out: it needs 14 GB, 3.0 GB are free\n"


def test_the_large_models_path_runs_with_small_shapes(tool):
    bench = tool("bench_llm")
    row = bench.measure_large("int8", 1, small=True)
    assert row["peak"] >= row["before"] > 0.1 and row["weights"] < 0.001 and row["decode"] > 0


def test_each_kind_has_a_process_of_its_own_and_a_failure_is_named(tool, monkeypatch, capsys):
    bench, asked = tool("bench_llm"), []

    def run(command, **options):
        asked.append(command[-1])
        failed = "'int4'" in command[-1]
        return SimpleNamespace(returncode=int(failed), stdout='noise\n{"peak": 1}\n', stderr="x\nMemoryError")

    monkeypatch.setattr(bench.subprocess, "run", run)
    assert bench.large(2, small=True) == {kind: {"peak": 1} for kind in ("bf16", "int8", "w8a8")}
    assert len(asked) == 4 and capsys.readouterr().out == "int4 failed: MemoryError\n"


def test_the_whole_benchmark_prints_its_tables(tool, small, monkeypatch, capsys):
    bench = tool("bench_llm")
    monkeypatch.setattr(llm, "tiny", lambda: small)
    monkeypatch.setattr(bench, "large", lambda threads, small: {"int8": dict.fromkeys(
        ("made in", "weights", "before", "peak", "prefill", "decode"), 1.0)})  # fmt: skip
    monkeypatch.setattr(bench, "networks", lambda configuration: {"int8": small, "bf16": small})
    bench.main(["--windows", "1", "--rounds", "1", "--layers", "1", "--small", "--full"])
    out = capsys.readouterr().out
    assert "outliers, SmoothQuant, W8A8" in out and "int8 decodes at least as fast" in out and "peak  1.00 GB" in out
