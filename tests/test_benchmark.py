"""The benchmarks: their structure, resuming, and the figures that README and docs state. Times are not tested."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from scripts.benchmarks.contenders import OPTIMIZERS
from scripts.benchmarks.measure import Finished, interleave, peak_extra_megabytes, table_of
from scripts.benchmarks.sections import DEMO_BERT, SECTIONS, read_results


ROOT = Path(__file__).parent.parent
LIBRARIES = ("optimi", "pytorch_optimizer", "timm", "schedulefree", "pytorch_lightning")


@pytest.fixture
def benchmark(script, monkeypatch, tmp_path):
    """Run `python -m scripts.benchmarks flags --quick` in this process, without the other libraries."""
    for library in LIBRARIES:
        monkeypatch.setitem(sys.modules, library, None)

    def call(*flags: object, rc: int = 0) -> tuple[dict, str]:
        out, err = script("benchmarks", *flags, "--quick", "--json", tmp_path / "results.json", rc=rc)
        return ({}, err) if rc else (json.loads((tmp_path / "results.json").read_text()), out)

    return call


def rows_of(table: dict) -> dict[str, dict]:
    """Return name -> row, and check the columns that every row has."""
    rows = {row["name"]: row for row in table["rows"]}
    first = table["rows"][0]
    for row in table["rows"]:
        assert 0 < row["best_ms"] <= row["median_ms"]
        assert row["ratio"] == pytest.approx(row["median_ms"] / first["median_ms"])
        assert row["ratio_of_bests"] == pytest.approx(row["best_ms"] / first["best_ms"])
    return rows


def test_optimizers_measures_every_implementation(benchmark):
    results, out = benchmark("optimizers")
    assert {"torch", "transformers", "machine", "processor", "threads", "date"} <= results["optimizers"][
        "environment"
    ].keys()
    tables = results["optimizers"]["tables"]
    assert list(tables) == ["BERT-base shapes", "small tensors"]
    for table in tables.values():
        steps = {name: row for name, row in rows_of(table).items() if not name.startswith("(limit")}
        assert {
            "torch AdamW fused",
            "RAdam",
            "AdamWarmup",
            "GIAdam",
            "RAdam foreach",
            "torch RAdam loop",
        } <= steps.keys()
        assert len(table["rows"]) == len(steps) + 2
        assert all(row["extra_mb"] >= 0 and row["of_bandwidth"] > 0 for row in steps.values())
    assert "torch-optimi RAdam is left out" in out


def test_guard_copies_parameters_and_moments(benchmark):
    """12 bytes for each parameter and its two moments in float32, and 4 for the count of each tensor."""
    rows = rows_of(benchmark("guard")[0]["guard"]["tables"]["BERT-base"])
    assert list(rows) == ["a training update", "take a snapshot", "restore it", "norms of the updates"]
    model = BertForMaskedLM(BertConfig(**DEMO_BERT))
    count, tensors = sum(p.numel() for p in model.parameters()), len(list(model.parameters()))
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert rows["take a snapshot"]["extra_mb"] == pytest.approx((12 * count + 4 * tensors + buffers) / 1e6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "title", "names"),
    [
        ("gradient-norms", "demo BERT", {"a training update", "by layer", "by module", "by parameter"}),
        ("trainer", "demo BERT", {"Trainer", "WarmupTrainer", "WarmupTrainer, recording"}),
        ("imports", "imports", {"import torch", "import torch, hf_warmup", "import hf_warmup.report.run"}),
        ("saves", "BERT-base", {"Trainer", "WarmupTrainer", "check before resuming"}),
    ],
)  # fmt: skip
def test_section_measures_its_candidates(benchmark, section, title, names):
    results, _ = benchmark(section)
    assert names <= rows_of(results[section]["tables"][title]).keys()


@pytest.mark.slow
def test_large_recording_measures_time_memory_and_the_page(benchmark):
    (table,) = benchmark("large-recording")[0]["large-recording"]["tables"].values()
    assert len(table["rows"]) == 3
    assert all(row["read_peak_mb"] > 0 and row["page_mb"] < 5 for row in table["rows"])


def test_all_continues_an_incomplete_file_of_the_same_conditions(tmp_path):
    path, conditions = tmp_path / "results.json", {"commit": "a", "date": ""}
    done = {"environment": {"commit": "a", "date": "2026-01-01"}, "tables": {}}
    path.write_text(json.dumps({"imports": done, "trainer": {**done, "environment": {"commit": "b", "date": ""}}}))
    assert read_results(path, conditions, "all") == {"imports": done}
    assert read_results(path, conditions, "trainer").keys() == {"imports", "trainer"}
    path.write_text(json.dumps(dict.fromkeys(SECTIONS, done)))  # complete: measured again
    assert read_results(path, conditions, "all") == {}
    assert read_results(tmp_path / "none.json", conditions, "all") == {}


def test_interleave_calls_every_candidate_and_does_not_count_warm_up():
    calls = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, "test")
    assert sorted(calls) == ["a"] * 5 + ["b"] * 5
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3}
    assert [row["ratio"] for row in table_of("", {"a": [2.0, 4.0], "b": [1.0, 2.0]})["rows"]] == [1.0, 0.5]


def test_peak_extra_megabytes_sees_temporary_memory():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells the peak memory of a call")
    assert peak_extra_megabytes(lambda: torch.ones(16 * 2**20)) == pytest.approx(64, abs=8)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("optimizer",), "what='optimizer': expected one of imports, optimizers"),
        (("optimizers", "--only", "Adamm"), "only='Adamm': expected some of torch AdamW fused, RAdam"),
        (("trainer", "--threads", -1), "threads=-1: expected an integer in [0, inf)"),
    ],
    ids=lambda value: "",
)
def test_benchmarks_exit_with_one_error(benchmark, flags, message):
    _, err = benchmark(*flags, rc=2)
    assert err.count("error: ") == 1
    assert message in err


@pytest.mark.parametrize("library", ["optimi", "pytorch_optimizer", "schedulefree"])
@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_optimizers_of_other_libraries_step(library):
    pytest.importorskip(library)
    (make,) = (make for make in OPTIMIZERS.values() if getattr(make, "__name__", "").startswith(library))
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = make([p])
    for _ in range(10):
        p.grad = torch.ones(3)
        optimizer.step()
    assert (p < 1).all()


# A figure and where it comes from: `0.99<!-- benchmark: optimizers / BERT-base shapes / RAdam / ratio -->`.
FIGURE = re.compile(r"(\d+(?:\.\d+)?)[^\d\n]*<!-- benchmark: (.+?) / (.+?) / (.+?) / (\w+) -->")


def too_good(text: str, results: dict) -> list[str]:
    """Return the figures of a text that are better (smaller) than the measured ones. Counts are equal."""
    found = []
    for value, section, title, name, column in FIGURE.findall(text):
        (row,) = (row for row in results[section]["tables"][title]["rows"] if row["name"] == name)
        is_count = isinstance(row[column], int)
        if int(value) != row[column] if is_count else float(value) < round(row[column], len(value.partition(".")[2])):
            found.append(f"{value} for {section} / {title} / {name} / {column}, measured {row[column]:.4g}")
    return found


def test_figures_in_readme_and_docs_are_no_better_than_measured():
    rows = [{"name": "RAdam", "ratio": 0.994}]
    results = {"optimizers": {"tables": {"BERT-base shapes": {"rows": rows}}}}
    comment = "<!-- benchmark: optimizers / BERT-base shapes / RAdam / ratio -->"
    assert too_good(f"| 0.99 {comment} | and 1.0{comment}", results) == []
    assert len(too_good(f"0.98 times {comment}", results)) == 1
    results = {"kills": {"tables": {"kills": {"rows": [{"name": "all", "kills": 120}]}}}}
    comment = "<!-- benchmark: kills / kills / all / kills -->"
    assert too_good(f"120{comment}", results) == []
    assert len(too_good(f"119{comment} 121{comment}", results)) == 2

    path = ROOT / "docs" / "benchmarks.json"
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if "<!-- benchmark:" in text:
            assert path.exists(), f"{page} states figures: run `python -m scripts.benchmarks all --json {path}`"
            assert too_good(text, json.loads(path.read_text(encoding="utf-8"))) == [], page


def test_finished_parts_of_a_section_are_not_measured_again(tmp_path):
    def fail():
        raise RuntimeError

    path, conditions = tmp_path / "kills.json", {"commit": "a"}
    assert Finished(path, conditions).count("chain 1", lambda: Counter(kills=2, hang=False)) == {"kills": 2, "hang": 0}
    with pytest.raises(RuntimeError):
        Finished(path, conditions).count("chain 2", fail)
    assert Finished(path, conditions).count("chain 1", fail) == {"kills": 2, "hang": 0}
    with pytest.raises(RuntimeError):
        Finished(path, {"commit": "b"}).count("chain 1", fail)
