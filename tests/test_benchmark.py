"""The benchmarks run and write what they promise; how long anything takes is not tested."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest


SCRIPTS = Path(__file__).parent.parent / "scripts"
LIBRARIES = ("optimi", "pytorch_optimizer", "timm", "schedulefree", "pytorch_lightning")
COLUMNS = {"name", "median_ms", "best_ms", "ratio", "ratio_of_bests"}


@pytest.fixture
def benchmark(script, monkeypatch, tmp_path):
    """Run `python -m scripts.benchmarks flags` in this process, with none of the other libraries installed."""
    for library in LIBRARIES:
        monkeypatch.setitem(sys.modules, library, None)

    def call(*flags: object, rc: int = 0) -> tuple[dict[str, list[dict]], str]:
        out, err = script("benchmarks", *flags, "--output_dir", tmp_path, rc=rc)
        if rc:
            return {}, err
        (folder,) = tmp_path.iterdir()
        assert (folder / "ratios.png").stat().st_size > 10_000
        results = json.loads((folder / "results.json").read_text())
        assert {"torch", "transformers", "machine", "threads"} <= results["environment"].keys()
        return results["tables"], out

    yield call
    for module in ("measure", "contenders"):
        sys.modules.pop(f"scripts.benchmarks.{module}", None)


def check_rows(rows, first):
    """One row a candidate, and ratios to the first of them."""
    assert len({row["name"] for row in rows}) == len(rows) >= 2
    assert (rows[0]["name"], rows[0]["ratio"], rows[0]["ratio_of_bests"]) == (first, 1.0, 1.0)
    for row in rows:
        assert row.keys() >= COLUMNS
        assert 0 < row["best_ms"] <= row["median_ms"]
        assert row["ratio"] == pytest.approx(row["median_ms"] / rows[0]["median_ms"])
        assert row["ratio_of_bests"] == pytest.approx(row["best_ms"] / rows[0]["best_ms"])


def test_optimizers(benchmark):
    tables, out = benchmark("optimizers", "--quick")
    assert [title.partition(":")[0] for title in tables] == ["BERT shapes", "small tensors"]
    for rows in tables.values():
        check_rows(rows, "torch AdamW fused")
        steps = {row["name"]: row for row in rows if not row["name"].startswith("(limit")}
        assert {"RAdam", "AdamWarmup", "GIAdam", "RAdam foreach", "RAdam loop", "torch RAdam loop"} <= steps.keys()
        assert len(rows) == len(steps) + 2
        assert all(row["extra_mb"] >= 0 and row["of_bandwidth"] > 0 for row in steps.values())
    for library in ("torch-optimi RAdam", "pytorch_optimizer RAdam", "timm NAdamW", "schedulefree RAdam"):
        assert f"{library} does not take part" in out


@pytest.mark.parametrize("name", ["gradient-norms", "gradient_norms"])
def test_gradient_norms(benchmark, name):
    tables, out = benchmark(name, "--quick")
    (rows,) = tables.values()
    alone = [row for row in rows if row["name"].endswith(", alone")]
    check_rows([row for row in rows if row not in alone], "no recording")
    measured = {"ours, layer", "ours, module", "ours, parameter", ".norm().item() each"}
    assert {row["name"].removesuffix(", alone") for row in alone} == measured
    for row in alone:  # a share of the whole update
        assert row["ratio"] == pytest.approx(row["median_ms"] / rows[0]["median_ms"])
    assert "Lightning's grad_norm does not take part" in out


@pytest.mark.slow  # each import in a process of its own
def test_trainer(benchmark):
    tables, _ = benchmark("trainer", "--quick")
    runs, imports = tables.values()
    check_rows(runs, "Trainer")
    check_rows(imports, "torch")
    for row in runs:
        assert row["updates_per_second"] == pytest.approx(5 / (row["median_ms"] / 1e3))
    assert imports[1]["ms_beyond_torch"] == pytest.approx(imports[1]["median_ms"] - imports[0]["median_ms"])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("optimizer",), "'optimizer' is no benchmark: expected optimizers, gradient-norms, trainer"),
        (("trainer", "--rounds", 0), "rounds=0: expected an integer in [1, inf)"),
        (("trainer", "--threads", -1), "threads=-1: expected an integer in [0, inf)"),
    ],
    ids=lambda value: "",
)
def test_mistakes_are_one_sentence(benchmark, flags, sentence):
    _, err = benchmark(*flags, rc=2)
    assert err.count("error: ") == 1
    assert sentence in err


@pytest.mark.parametrize("library", ["optimi", "pytorch_optimizer", "schedulefree"])
@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_the_other_libraries_optimizers_step(monkeypatch, library):
    pytest.importorskip(library)
    import torch

    contenders = runpy.run_path(str(SCRIPTS / "benchmarks" / "contenders.py"))
    (make,) = (make for make in contenders["OPTIMIZERS"].values() if getattr(make, "__name__", "").startswith(library))
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = make([p])
    for _ in range(10):
        p.grad = torch.ones(3)
        optimizer.step()
    assert (p < 1).all()
