"""No network, one thread per process, and caches in a folder of the tests."""

from __future__ import annotations

import gc
import logging
import os
import runpy
import sys
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

import hf_warmup.trainer  # noqa: F401  (importing it sets the parent of our loggers)
from hf_warmup._logging import warn_once


torch.set_num_threads(1)
SCRIPTS = Path(__file__).parents[1] / "scripts"
collect_ignore_glob = ["workers/*.py"]  # programs that the tests start; one needs ray

# The same examples on every machine, none of them timed.
settings.register_profile(
    "repeatable",
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


def pytest_collection_finish():
    """Leave what was imported out of garbage collection, which `Trainer.train` runs."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(autouse=True)
def _logged():
    """`caplog` sees our messages, which otherwise go to the handlers of transformers, and advice is given again."""
    warn_once.cache_clear()
    package = logging.getLogger("hf_warmup")
    package.parent = logging.getLogger()
    package.setLevel(logging.NOTSET)  # forgets the levels that loggers below have looked up before


@pytest.fixture
def script(monkeypatch, capfd):
    """Run `python scripts/name.py flags`, or `python -m scripts.name flags`, in this process; return its output."""

    def call(name: str, *flags: object, rc: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        capfd.readouterr()
        code = 0
        try:
            if name.endswith(".py"):
                runpy.run_path(str(SCRIPTS / name), run_name="__main__")
            else:
                runpy.run_module(f"scripts.{name}", run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        written = capfd.readouterr()
        assert code == rc, written.err[-3000:]
        return written.out, written.err

    return call
