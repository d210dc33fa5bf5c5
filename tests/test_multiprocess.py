"""One, two and four real processes (gloo): the learning rates, losses and gradient norms of a run do not change.

A Trainer and an Accelerate loop, fp32 and bf16, DDP and FSDP2, with and without accumulation; and DeepSpeed's stages.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

from hf_warmup.checkpoints import MANIFEST_FILE, find_corruption, read_manifest, resolve_checkpoint
from hf_warmup.norms import read_gradient_norms
from hf_warmup.report import find

from .processes import CONFIGS, LAUNCH, ROOT, environment, run, torchrun


pytestmark = pytest.mark.multiprocess

CELLS = [
    f"{engine}/{precision}/{wrapping}/{accumulation}"
    for engine in ("as_trainer", "as_loop")
    for precision in ("no", "bf16")
    for wrapping in ("ddp", "fsdp2")
    for accumulation in (1, 4)
]
# In fp32 only the order of sums differs. bf16 has 8 bits of mantissa, and micro-batches of other sizes round
# differently: the loss is a mean of many values, a small gradient the difference of a few.
LOSS = {"no": 1e-5, "bf16": 1e-4}
NORMS = {"no": 1e-4, "bf16": 2e-2}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of the worker by number of processes."""
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
def test_rates_losses_and_norms_do_not_depend_on_the_number_of_processes(results, world, cell):
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
def test_create_scheduler_counts_updates_whether_prepared_or_not(results, world):
    clocks = results[world]["clocks"]
    expected = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75]
    for prepared in (True, False):
        for split_batches in (True, False):
            assert clocks[f"{prepared}/{split_batches}/True"] == pytest.approx(expected)
    # A plain scheduler that Accelerate prepares advances once per process.
    ticks = [min(1.0, (1 + update * world) / 8) for update in range(6)]
    assert clocks["True/False/False"] == pytest.approx(ticks)


@pytest.mark.parametrize("world", [2, 4])
def test_group_norms_of_sharded_gradients_are_those_of_the_whole(results, world):
    """1² + 2² + ... + 12² = 650, counted twice: each group holds the tensor two times."""
    assert len(results[world]["sharded"]) == 7
    for how, norm in results[world]["sharded"].items():
        assert norm == pytest.approx(1300**0.5, rel=1e-6), how


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_loop_resumes_with_any_wrapping(results, world):
    whole = results[world]["cells"]["as_loop/no/ddp/1"]["loss"]
    for wrapping, halves in results[world]["resumed"].items():
        losses = [loss for half in halves for loss in half]
        assert losses == pytest.approx(whole, rel=LOSS["no"]), wrapping
        if wrapping == "ddp":
            assert losses == whole


@pytest.mark.skipif("HF_WARMUP_DEEPSPEED" not in os.environ, reason="`make test-deepspeed` installs DeepSpeed for it")
def test_all_zero_stages_record_the_same_norms(results, tmp_path):
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
        for row, expected, total in zip(cell["norms"], reference["norms"], cell["total"], strict=True):
            norms = {key: value for key, value in expected.items() if key.startswith("grad_norm")}
            assert {key: row[key] for key in norms} == pytest.approx(norms, rel=1e-4)
            assert total is None or total == pytest.approx(row["grad_norm"], rel=1e-5)


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory):
    """A run of two processes and 4 updates, saved."""
    folder = tmp_path_factory.mktemp("two")
    done = run(*torchrun(2), ROOT / "tests/workers/elastic.py", folder, 4)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("world", [1, 3])
def test_a_run_resumes_with_another_number_of_processes(saved_by_two, tmp_path, world):
    folder = shutil.copytree(saved_by_two, tmp_path / "run")
    launcher = torchrun(world) if world > 1 else []
    done = run(*launcher, ROOT / "tests/workers/elastic.py", folder, 8)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count(f"was saved by 2 processes and is resumed by {world}") == 1
    assert [record["step"] for record in read_gradient_norms(folder)] == list(range(1, 9))
    (finding,) = [each for each in find(folder) if each.rule == "number of processes"]
    assert finding.text == f"The number of processes changed from 2 to {world} after update 4."
    assert read_manifest(folder / "checkpoint-4")["num_processes"] == 2
    assert read_manifest(folder / "checkpoint-8")["num_processes"] == world
    assert find_corruption(folder / "checkpoint-8") is None


@pytest.mark.parametrize("manifest", [True, False])
def test_a_missing_file_of_another_process_is_named(saved_by_two, tmp_path, manifest):
    folder = shutil.copytree(saved_by_two, tmp_path / "run")
    (folder / "checkpoint-4/rng_state_1.pth").unlink()
    if not manifest:  # as transformers itself saves
        (folder / "checkpoint-4" / MANIFEST_FILE).unlink()
    with pytest.raises(ValueError, match=r"no complete checkpoint \(checkpoint-4: rng_state_1.pth is missing\)"):
        resolve_checkpoint("auto", folder)


def test_processes_with_different_arguments_end_with_one_error(tmp_path):
    """The folders may differ, as on machines without a common disk."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests/workers/elastic.py"), str(tmp_path / rank), updates],
            env=environment(WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, updates in (("0", "8"), ("1", "12"))
    ]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 1
        assert "ValueError: max_steps=12 on process 1, but 8 on process 0." in err
    assert not any(tmp_path.glob("*/checkpoint-*"))


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("never_killed")
    done = run(*torchrun(2), ROOT / "tests/workers/elastic.py", folder, 12)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


ACCELERATE = [*LAUNCH, "--config_file", CONFIGS / "cpu.yaml", "--main_process_port", 0]


@pytest.mark.parametrize(
    ("launcher", "moments"),
    [
        ([*torchrun(2), "--max-restarts", 3], ["6", "10"]),
        ([*torchrun(2), "--max-restarts", 3], ["save-8"]),
        ([*ACCELERATE, "--max_restarts", 3, "--rdzv_backend", "c10d", "--rdzv_conf", "store_type=file"], ["6", "10"]),
    ],
    ids=["torchrun", "torchrun, while saving", "accelerate launch"],
)
def test_launchers_restart_killed_processes_and_the_run_continues(never_killed, tmp_path, launcher, moments):
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "KILL_AT": ",".join(moments), "ACCELERATE_USE_CPU": "true"}
    done = run(*launcher, ROOT / "tests/workers/elastic.py", tmp_path, 12, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in tmp_path.glob("killed-*")} == {f"killed-{moment}" for moment in moments}
    weights = [folder / "checkpoint-12/model.safetensors" for folder in (never_killed, tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert read_gradient_norms(never_killed) == read_gradient_norms(tmp_path)
    if moments == ["save-8"]:
        assert "checkpoint-8 is skipped (the save did not finish). Resuming from checkpoint-4." in done.stderr
        again = (tmp_path / "checkpoint-8" / MANIFEST_FILE).stat().st_mtime
        assert again - (tmp_path / "killed-save-8").stat().st_mtime < 60  # seconds until it is saved again
