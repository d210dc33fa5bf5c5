"""The pages of docs/: every Python block runs, every command exists, every link has a target."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from .testing_utils import examples, sentences, tiny_bert, tiny_gpt2, tiny_tokenizer


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
TESTED_ELSEWHERE = {
    "how-to/schedules.md": "test_recipes.py",
    "how-to/by-name.md": "test_by_name.py",
    "tutorial.md": "test_docs.py",
}
# Page -> the package that its blocks need.
NEEDS = {
    "how-to/lightning.md": "lightning",
    "how-to/peft.md": "peft",
    "how-to/sentence-transformers.md": "sentence_transformers",
    "how-to/trl.md": "trl",
    "how-to/launching.md": "optuna",
}


def blocks(page: str, language: str) -> list[tuple[str, str]]:
    """Return the title (a file's name) and the text of each block of a language."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf'^```{language}(?: title="(.+?)")?\n(.*?)^```', text, re.MULTILINE | re.DOTALL)


def sentence_transformer(folder: Path):
    """A sentence encoder around the tiny BERT, from a folder as the Hub would give it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    tiny_bert().bert.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    transformer = modules.Transformer(str(folder))
    return SentenceTransformer(modules=[transformer, modules.Pooling(16)])


def names_for(page: str, folder: Path) -> dict[str, object]:
    """Return what the blocks of a page take for granted."""
    names: dict[str, object] = {"output_dir": str(folder / "run"), "torch": torch, "train_dataset": examples(32)}
    if page == "how-to/trl.md":
        return names | {"model": tiny_gpt2(), "tokenizer": tiny_tokenizer(), "dataset": sentences()}
    if page == "how-to/sentence-transformers.md":
        from datasets import Dataset

        pairs = Dataset.from_dict({"a": ["warm up"] * 8, "b": ["the rate", "slowly"] * 4, "label": [0, 1] * 4})
        return names | {"model": sentence_transformer(folder / "encoder"), "dataset": pairs}
    loader = torch.utils.data.DataLoader(examples(32), batch_size=8)
    return names | {"model": tiny_bert(), "loader": loader}


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")  # torch's, on a machine without a GPU
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL's own default
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's call
@pytest.mark.filterwarnings(r"ignore::Warning:lightning.*")
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page not in TESTED_ELSEWHERE and blocks(page, "python")],
)
def test_python_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    if page in NEEDS:
        pytest.importorskip(NEEDS[page], reason=f"the package {NEEDS[page]} is not installed")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.syspath_prepend(tmp_path)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses and pickle look it up
    vars(module).update(names_for(page, tmp_path))
    if page == "reference/files.md":  # reads what a run has recorded
        from hf_warmup import WarmupTrainer, WarmupTrainingArguments

        args = WarmupTrainingArguments(module.output_dir, max_steps=2, report_to="none")
        WarmupTrainer(model=module.model, args=args, train_dataset=module.train_dataset).train()
    for title, text in blocks(page, "python"):
        if title:
            with (tmp_path / title).open("a") as file:
                file.write(text)
        else:
            exec(compile(text, page, "exec"), vars(module))


@pytest.mark.slow
def test_commands_and_blocks_of_the_tutorial_run_in_an_empty_folder(tmp_path):
    for title, text in blocks("tutorial.md", "python"):
        with (tmp_path / title).open("a") as file:
            file.write(text)
    _install, *commands = (text for _, text in blocks("tutorial.md", "bash"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-ec", "".join(commands)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "PROBLEM (stalling)" in done.stdout
    assert (tmp_path / "report" / "report.html").exists()


@pytest.mark.slow
def test_the_notebook_runs_offline_and_shows_what_it_describes():
    pytest.importorskip("mkdocs", reason="mkdocs and nbclient are in the extra `docs`")
    pytest.importorskip("nbclient", reason="mkdocs and nbclient are in the extra `docs`")
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    page = hooks["as_markdown"](hooks["run_notebook"](DOCS / "notebook.ipynb"))
    for words in (
        "Training was interrupted at update 50 of 80. checkpoint-40 is complete: continue with",
        "b: finished, 80 updates. Warmup: 20 of 80 updates (25 %), linear to 0.004",
        "6 runs. ",
        "PROBLEM (stalling)",
        "other/checkpoint-60: finished, 60 updates. Warmup: about 10 of 60 updates",
    ):
        assert words in page
    assert page.count("data:image/png;base64,") == 6
    assert "<style" not in page


def test_the_blocks_that_are_tested_elsewhere_are():
    for page, test in TESTED_ELSEWHERE.items():
        assert page.rpartition("/")[2] in (ROOT / "tests" / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_commands_of_a_page_exist(page):
    for _, text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"]:
                assert find_spec(words[2]), line
            for word in words:
                assert not word.startswith("scripts/") or (ROOT / word).exists(), line


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_have_targets(page):
    text = re.sub(r"```.*?```", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert ((DOCS / page).parent / link).exists(), link
