"""An offline host, one thread a process, and caches in the tests' own folder."""

from __future__ import annotations

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings


torch.set_num_threads(1)

# The same examples on every machine, none of them timed.
settings.register_profile(
    "repeatable",
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def _own_caches(tmp_path_factory):
    """datasets and evaluate write their caches into the tests' folder."""
    import datasets
    import evaluate

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", folder / "metrics")
        yield
