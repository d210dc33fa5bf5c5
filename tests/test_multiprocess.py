"""One, two and four real processes (gloo): the learning rates, losses and gradient norms of a run do not change.

A Trainer and an Accelerate loop, fp32 and bf16, DDP and FSDP2, with and without accumulation; and DeepSpeed's stages.
"""

from __future__ import annotations

import json
import os

import pytest

from .processes import ROOT, run, torchrun


pytestmark = pytest.mark.multiprocess

CELLS = [
    f"{engine}/{precision}/{wrapping}/{accumulation}"
    for engine in ("as_trainer", "as_loop")
    for precision in ("no", "bf16")
    for wrapping in ("ddp", "fsdp2")
    for accumulation in (1, 4)
]
# fp32: sums in another order. bf16: 8 bits of mantissa, and micro-batches of other sizes round differently; the loss
# is a mean of many, a small gradient a difference of few.
LOSS = {"no": 1e-5, "bf16": 1e-4}
NORMS = {"no": 1e-4, "bf16": 2e-2}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The worker's results by number of processes."""
    results = {}
    for world in (1, 2, 4):
        path = tmp_path_factory.mktemp("matrix") / "results.json"
        launcher = torchrun(world) if world > 1 else []
        done = run(*launcher, ROOT / "tests/workers/matrix.py", path, ACCELERATE_USE_CPU="true")
        assert done.returncode == 0, done.stderr[-3000:]
        results[world] = json.loads(path.read_text())
    return results


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_run_is_the_same_however_it_is_spread(results, world, cell):
    if world == 1 and "fsdp2" in cell:
        assert cell not in results[1]["cells"]  # one process has nothing to shard
        return
    engine, precision, *_ = cell.split("/")
    got, reference = results[world]["cells"][cell], results[1]["cells"][f"{engine}/{precision}/ddp/1"]
    assert got["lr"] == reference["lr"]
    assert got["lr"][:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert got["loss"] == pytest.approx(reference["loss"], rel=LOSS[precision])
    for ours, theirs, total in zip(got["norms"], reference["norms"], got["total"], strict=True):
        assert ours == pytest.approx(theirs, rel=NORMS[precision])
        layers = [value for key, value in ours.items() if key.startswith("grad_norm/")]
        assert len(layers) == 5
        # The framework's own total, before clipping, of the same gradient: nothing but another order of summation.
        assert sum(value**2 for value in layers) ** 0.5 == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_learning_rate_counts_updates_prepared_or_not(results, world):
    clocks = results[world]["clocks"]
    expected = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75]
    for prepared in (True, False):
        for split_batches in (True, False):
            assert clocks[f"{prepared}/{split_batches}/True"] == pytest.approx(expected)
    # What it guards against: a prepared scheduler of another kind advances once per process.
    ticks = [min(1.0, (1 + update * world) / 8) for update in range(6)]
    assert clocks["True/False/False"] == pytest.approx(ticks)


@pytest.mark.parametrize("world", [2, 4])
def test_the_parts_of_a_gradient_are_one_norm(results, world):
    """1² + 2² + ... + 12² = 650, counted twice: each group holds the tensor two times."""
    assert len(results[world]["sharded"]) == 7
    for how, norm in results[world]["sharded"].items():
        assert norm == pytest.approx(1300**0.5, rel=1e-6), how


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_loop_goes_on_from_what_it_saved(results, world):
    """FSDP2's shards too."""
    whole = results[world]["cells"]["as_loop/no/ddp/1"]["loss"]
    for wrapping, halves in results[world]["resumed"].items():
        losses = [loss for half in halves for loss in half]
        assert losses == pytest.approx(whole, rel=LOSS["no"]), wrapping
        if wrapping == "ddp":
            assert losses == whole


@pytest.mark.skipif("HF_WARMUP_DEEPSPEED" not in os.environ, reason="`make test-deepspeed` installs DeepSpeed for it")
def test_every_stage_of_zero_records_the_same_norms(results, tmp_path):
    path = tmp_path / "zero.json"
    python_path = os.pathsep.join([str(ROOT), os.environ["HF_WARMUP_DEEPSPEED"]])
    done = run(*torchrun(1), ROOT / "tests/workers/zero.py", path, DS_ACCELERATOR="cpu", PYTHONPATH=python_path)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads(path.read_text())
    assert len(cells) == 16  # two engines, stages 0 to 3, accumulation 1 and 4
    reference = results[1]["cells"]["as_trainer/no/ddp/1"]
    for cell in cells.values():
        assert cell["lr"] == reference["lr"]
        assert cell["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        for ours, theirs, total in zip(cell["norms"], reference["norms"], cell["total"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
            assert total is None or total == pytest.approx(ours["grad_norm"], rel=1e-5)
