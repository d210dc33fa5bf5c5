"""Importing stays light, and imports run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_warmup


PACKAGE = Path(hf_warmup.__file__).parent
LOADED = "import sys; import hf_warmup{more}; print([name for name in {names!r} if name in sys.modules])"
HEAVY = [
    "transformers.trainer",
    "transformers.modeling_utils",
    "matplotlib",
    "plotly",
    "sklearn",
    "datasets",
    "evaluate",
]


def loaded(more: str) -> str:
    code = LOADED.format(more=more, names=HEAVY)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_light():
    assert loaded("") == "[]"


def test_the_test_of_light_imports_can_fail():
    assert "transformers.trainer" in loaded("; hf_warmup.WarmupTrainer")


def test_every_public_name_loads():
    for name in hf_warmup.__all__:
        assert getattr(hf_warmup, name).__doc__ or name == "OPTIMIZERS"
    assert set(hf_warmup.__all__) <= set(dir(hf_warmup))
    with pytest.raises(AttributeError, match="no attribute 'radam_warmup_typo'"):
        _ = hf_warmup.radam_warmup_typo


# Lower may not import higher; the two hosts never import each other.
RANKS = {
    "_messages": 0,
    "_rectification": 0,
    "run_settings": 0,
    "_auto_classes": 0,
    "_sharding": 0,
    "_deepspeed": 0,
    "checkpoints": 0,
    "schedules": 1,
    "optim": 1,
    "gradient_norms": 1,
    "callbacks": 2,
    "training_args": 2,
    "configuration_bert_pre_ln": 1,
    "modeling_bert_pre_ln": 2,
    "report": 2,
    "model_card": 3,
    "metrics": 2,
    "data": 2,
    "cli": 1,
    "finetuning": 3,
    "_recording": 3,
    "_resuming": 2,
    "_from_args": 3,
    "lightning": 2,
    "trainer": 4,
    "accelerate_utils": 4,
    "preview": 5,
    "__init__": 6,
}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    depth = len(relative.parts)  # `from ..x` in a subpackage and `from .x` at the top both mean hf_warmup.x
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth and node.module:
            imported = node.module.split(".")[0]
            assert RANKS[imported] < RANKS[own], f"{relative} imports {imported}"


def test_files_are_a_screenful_of_thought():
    assert {
        str(path): lines for path in PACKAGE.rglob("*.py") if (lines := len(path.read_text().splitlines())) > 300
    } == {}
