"""Every code block of the README runs, and every command in it exists."""

from __future__ import annotations

import re
import runpy
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from .testing_utils import examples, tiny_bert


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")  # torch's, on a machine without a GPU
def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert len(blocks("python")) >= 6
    namespace = {"model": tiny_bert(), "train_dataset": examples(), "output_dir": str(tmp_path), "__name__": "readme"}
    monkeypatch.setitem(__import__("sys").modules, "readme", type(pytest)("readme"))  # dataclasses look it up
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["record"]["step"] == 20


def test_the_diff_is_our_two_names():
    (diff,) = blocks("diff")
    added = "\n".join(line[1:] for line in diff.splitlines() if line.startswith("+"))
    compile("def f():\n" + re.sub("^", "  ", added, flags=re.MULTILINE), "README.md", "exec")
    assert "WarmupTrainer(" in added


def test_commands_exist():
    targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    parsed = 0
    for command in filter(None, (shlex.split(line, comments=True) for line in commands)):
        if command[0] == "make":
            assert set(command[1:]) <= set(targets)
            parsed += 1
        elif command[:2] == ["python", "-m"]:
            assert find_spec(command[2])
            parsed += 1
        elif command[0] in ("python", "accelerate"):
            assert all((ROOT / word).exists() for word in command if word.startswith("scripts/"))
            at = next(i for i, word in enumerate(command) if word.endswith(".py"))
            script = runpy.run_path(str(ROOT / command[at]))
            own = script.get("LoopArguments") or script["WarmupTrainingArguments"]
            classes = (script["ModelArguments"], script["DataArguments"], own)
            # Refuses an argument that there is not.
            assert len(HfArgumentParser(classes).parse_args_into_dataclasses(command[at + 1 :])) == 3
            parsed += 1
    assert parsed >= 6


def test_tables_name_what_there_is():
    from hf_warmup import OPTIMIZERS
    from hf_warmup.schedules import DECAYS, WARMUPS

    for name in [*OPTIMIZERS, *WARMUPS, *DECAYS]:
        assert f"`{name}`" in README


def test_files_and_pictures_it_shows_are_there():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
