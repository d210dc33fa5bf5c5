"""The package as a whole: what importing it loads, and the public names."""

from __future__ import annotations

import inspect
import logging
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from torch import nn, optim
from transformers import Seq2SeqTrainer, Trainer

import hf_warmup
from hf_warmup._logging import get_logger


HEAVY = ("torch", "transformers", "accelerate", "numpy", "matplotlib", "plotly", "sklearn", "datasets", "evaluate")


def modules_loaded_by(code: str) -> list[str]:
    code = f"import sys; {code}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return eval(done.stdout)


def test_import_hf_warmup_loads_no_library():
    assert modules_loaded_by("import hf_warmup") == []


def test_modules_loaded_by_sees_what_is_loaded():
    assert {"torch", "transformers"} <= set(modules_loaded_by("import hf_warmup; hf_warmup.WarmupTrainer"))


def test_every_public_name_loads_and_is_documented():
    for name in hf_warmup.__all__:
        assert getattr(hf_warmup, name).__doc__ or name == "OPTIMIZERS"
    assert set(hf_warmup.__all__) <= set(dir(hf_warmup))
    with pytest.raises(AttributeError, match="no attribute 'radam_warmup_typo'"):
        _ = hf_warmup.radam_warmup_typo


def test_help_and_dir_of_the_package_fit_on_a_screen():
    text = pydoc.render_doc(hf_warmup, renderer=pydoc.plaintext)
    assert len(text.splitlines()) < 60
    assert "dir(hf_warmup)" in text
    assert dir(hf_warmup) == sorted({*hf_warmup.__all__, "optim", "preview", "report", "schedules"})
    names: dict[str, object] = {}
    exec("from hf_warmup import *", names)
    assert set(hf_warmup.__all__) <= set(names)


@pytest.mark.parametrize(("name", "base"), [("WarmupTrainer", Trainer), ("WarmupSeq2SeqTrainer", Seq2SeqTrainer)])
@pytest.mark.parametrize(
    "method", ["__init__", "train", "log", "training_step", "hyperparameter_search", "create_model_card"]
)
def test_signatures_of_the_trainers_are_those_of_transformers(name, base, method):
    own = getattr(getattr(hf_warmup, name), method)
    assert inspect.signature(own) == inspect.signature(getattr(base, method))


def test_log_lines_follow_the_level_and_the_handlers_of_transformers(monkeypatch):
    def advise(warmup):
        hf_warmup.get_scheduler("constant", optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0), warmup, 9)

    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    level = transformers.logging.get_verbosity()
    get_logger("hf_warmup.trainer")  # as when the module is imported
    transformers.logging.add_handler(handler)
    try:
        for warmup in (1, 1, 2):
            advise(warmup)
        transformers.logging.set_verbosity_error()
        advise(3)
    finally:
        transformers.logging.set_verbosity(level)
        logging.getLogger("transformers").removeHandler(handler)  # `remove_handler` of transformers 4.57 fails
    assert [record.getMessage()[:18] for record in records] == ["num_warmup_steps=1", "num_warmup_steps=2"]
    assert {record.name for record in records} == {"hf_warmup.schedules.schedulers"}


def test_importing_the_modeling_module_registers_pre_ln_bert():
    code = (
        "import hf_warmup.modeling_bert_pre_ln; from transformers import AutoConfig\n"
        "assert AutoConfig.for_model('bert-pre-ln').norm_placement == 'pre'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_mypy_accepts_a_typed_program_and_refuses_a_wrong_one(tmp_path):
    pytest.importorskip("mypy", reason="mypy is in the extra `dev`")
    program = Path(__file__).with_name("typed_program.py")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(program.read_text() + '\nRAdam([torch.zeros(1)], lr="fast")\nmultiplier("first").upper()\n')
    flags = ["-m", "mypy", "--config-file=", "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    checked = subprocess.run([sys.executable, *flags, program, wrong], capture_output=True, text=True)
    complaints = [line for line in checked.stdout.splitlines() if "error:" in line]
    assert len(complaints) == 3, checked.stdout
    assert all(line.startswith(str(wrong)) for line in complaints), checked.stdout
    assert 'Argument "lr" to "RAdam" has incompatible type "str"' in checked.stdout
