"""Ray Train and Ray Tune on two CPUs: a killed worker, and the trials of a search. About two minutes."""

from __future__ import annotations

import hashlib
import json

import pytest
from safetensors.torch import load_file

from hf_warmup.checkpoints import find_corruption
from hf_warmup.norms import read_gradient_norms
from hf_warmup.report import read_run

from .processes import ROOT, run, torchrun


pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def ray_run(folder, what):
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    done = run(ROOT / "tests/workers/ray_runs.py", folder, what, **quiet)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The digest of the weights after the same run under torchrun."""
    folder = tmp_path_factory.mktemp("torchrun")
    done = run(*torchrun(2), ROOT / "tests/workers/elastic.py", folder, 8, "radam", 4)
    assert done.returncode == 0, done.stderr[-3000:]
    return digest(folder / "checkpoint-8")


def digest(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    return hashlib.md5(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()


@pytest.mark.parametrize("resumes_from", ["auto", "checkpoint"])
def test_ray_train_continues_after_a_killed_worker(tmp_path, undisturbed, resumes_from):
    result = ray_run(tmp_path, resumes_from)
    assert (tmp_path / "killed").exists()
    assert result == {"step": 8, "from_ray": resumes_from == "checkpoint"}
    assert digest(tmp_path / "checkpoint-8") == undisturbed
    assert [record["step"] for record in read_gradient_norms(tmp_path)] == list(range(1, 9))
    kept = list((tmp_path / "ray").glob("checkpoint_*/checkpoint"))
    assert bool(kept) == (resumes_from == "checkpoint")
    assert {find_corruption(path) for path in kept} <= {None}  # every process waited until the checkpoint was complete


def test_ray_tune_trials_use_their_arguments_and_record_in_their_folders(tmp_path):
    best = ray_run(tmp_path, "tune")
    assert best["warmup_type"] in ("linear", "exponential")  # the combination that excludes itself is pruned
    runs = [read_run(folder) for folder in tmp_path.glob("run-*")]
    assert {run.settings["warmup_type"] for run in runs} == {"linear", "exponential"}
    assert [(run.updates, run.end) for run in runs] == [(4, "finished")] * 2
    assert {run.settings["num_warmup_steps"] for run in runs} == {2}  # half of the 4 updates
