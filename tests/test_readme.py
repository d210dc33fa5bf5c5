"""The README: its diff, its commands, its links and its length."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import hf_warmup


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_added_lines_of_the_diff_import_and_build_arguments():
    (diff,) = blocks("diff")
    added = [line[2:] for line in diff.splitlines() if line.startswith("+")]
    namespace: dict = {}
    exec(compile("\n".join(added), "README.md", "exec"), namespace)
    assert namespace["Trainer"] is hf_warmup.WarmupTrainer
    assert namespace["args"].get_warmup_steps(1000) == 60


def test_commands_exist():
    targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    commands = [words for words in (shlex.split(line, comments=True) for line in lines) if words]
    assert ["make", "demo"] in commands
    assert ["make", "test"] in commands
    for words in commands:
        if words[0] == "make":
            assert set(words[1:]) <= set(targets)
        elif words[:2] == ["python", "-m"]:
            assert find_spec(words[2])


def test_links_and_pictures_have_targets():
    links = re.findall(r"\]\((?!http)([^)#]+)", README) + re.findall(r'src="([^"]+)"', README)
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 130
