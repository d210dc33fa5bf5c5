"""Command lines: arguments from flags and files, help, errors of one line, and the command `hf-warmup`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum

import pytest
from transformers import HfArgumentParser

import hf_warmup.__main__
from hf_warmup import OPTIMIZERS, WarmupArgumentsMixin, WarmupTrainingArguments
from hf_warmup._validation import check_number
from hf_warmup.cli import WARMUP_FLAGS, exit_on_user_error, parse_arguments
from hf_warmup.schedules import DECAYS, WARMUPS


class Strategy(str, Enum):  # noqa: UP042  (as in transformers)
    NO = "no"
    STEPS = "steps"


@dataclass
class Arguments:
    """What to test."""

    learning_rate: float = field(default=0.5, metadata={"help": "The peak."})
    name: str = "x"
    max_steps: int = 3
    fast: bool = False
    save_strategy: Strategy = Strategy.STEPS
    compare: list[str] = field(default_factory=list)
    options: str | None = None

    def __post_init__(self):
        check_number("max_steps", self.max_steps, 1, integer=True)


def parse(*argv, classes=Arguments, **kwargs):
    return parse_arguments(HfArgumentParser(classes), [str(arg) for arg in argv], **kwargs)[0]


def test_parse_arguments_reads_flags(monkeypatch):
    expected = Arguments(learning_rate=1e-5, name="y.json", fast=True)
    flags = ["--learning_rate", "1e-5", "--name", "y.json", "--fast"]
    assert parse(*flags) == expected
    assert parse() == Arguments()
    monkeypatch.setattr(sys, "argv", ["script.py", *flags])
    assert parse_arguments(HfArgumentParser(Arguments)) == (expected,)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rte", "1"], "--learning_rte is not an argument. Did you mean --learning_rate?"),
        (["--Learning_Rate=1"], "--Learning_Rate is not an argument. Did you mean --learning_rate?"),
        (["--zzz"], "--zzz is not an argument."),
        (["--name", "x", "a.yaml"], "a.yaml is not an argument. A file of arguments comes first, before all flags."),
        (["--max_train_steps", "9"], "--max_train_steps is not an argument. Did you mean --max_steps?"),
        (["--warmup_ratio", "0.1"], "--warmup_ratio is not an argument."),  # there is no warmup_steps to use
    ],
)  # fmt: skip
def test_parse_arguments_raises_for_unknown_flags(flags, message):
    with pytest.raises(ValueError, match="is not an argument") as caught:
        parse(*flags)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--epochs", "Did you mean --num_train_epochs?"),
        ("--warmup_proportion", "Use --warmup_steps: a value below 1 is a share of the run."),
        ("--lr", "Did you mean --learning_rate?"),
        ("--wd", "Did you mean --weight_decay?"),
        ("--batch_size", "Did you mean --per_device_train_batch_size?"),
        ("--gpus", "--gpus is not an argument."),  # like no flag
        ("--overwrite_output_dir", "without --resume_from_checkpoint a run starts from scratch."),
    ],
)  # fmt: skip
def test_parse_arguments_knows_renamed_and_removed_flags(flag, message, tmp_path):
    if flag == "--overwrite_output_dir" and hasattr(WarmupTrainingArguments, "overwrite_output_dir"):
        pytest.skip("a flag of this version of transformers")
    with pytest.raises(ValueError, match="is not an argument") as caught:
        parse("--output_dir", tmp_path, flag, 1, classes=WarmupTrainingArguments)
    assert str(caught.value).endswith(message)


def test_parse_arguments_ignores_foreign_flags_but_not_misspelled_ones(capsys):
    assert parse("--task_name", "sst2", "--max_steps", 7, ignore_foreign=True).max_steps == 7
    assert capsys.readouterr().err == "warning: ignoring --task_name, which are not training arguments.\n"
    with pytest.raises(ValueError, match="Did you mean --max_steps"):
        parse("--max_step", 7, ignore_foreign=True)


@pytest.mark.parametrize(
    ("ending", "text", "expected"),
    [
        ("json", json.dumps({"learning_rate": 1e-5, "fast": True}), {"learning_rate": 1e-5, "fast": True}),
        ("json", "\ufeff" + json.dumps({"name": "é \N{GRINNING FACE}"}), {"name": "é \N{GRINNING FACE}"}),
        ("json", json.dumps({"max-steps": 7, "name": None}), {"max_steps": 7}),
        ("yaml", "learning_rate: 1e-5\nname: a b\n", {"learning_rate": 1e-5, "name": "a b"}),
        ("yml", "# a comment\ncompare: [a, b]\nfast: true\n", {"compare": ["a", "b"], "fast": True}),
        ("yaml", "save_strategy: no\nfast: no\n", {"save_strategy": Strategy.NO, "fast": False}),  # YAML's false
        ("yaml", "options: {eps: 1, flag: true}\n", {"options": '{"eps": 1, "flag": true}'}),
        ("yaml", "options: [a=1, b=2]\n", {"options": '["a=1", "b=2"]'}),
    ],
)
def test_parse_arguments_reads_files(ending, text, expected, tmp_path):
    path = tmp_path / f"arguments.{ending}"
    path.write_text(text, encoding="utf-8")
    assert parse(path) == Arguments(**expected)


def test_parse_arguments_prefers_flags_over_the_file(tmp_path):
    path = tmp_path / "arguments.yaml"
    path.write_text("learning_rate: 0.1\nmax_steps: 7\ncompare: [a, b]\n")
    assert parse(path, "--max_steps", 9, "--compare", "c") == Arguments(0.1, max_steps=9, compare=["c"])


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("json", b'{"max_steps": 7', "not valid JSON"),
        ("json", b'{"name": "\xff\xfe"}', "not valid JSON"),
        ("yaml", b"name: [1", "not valid YAML"),
        ("yaml", b"", "expected one object"),
        ("json", b"[1, 2]", "expected one object"),
        ("yaml", b"training: {max_steps: 7}", "'training' is a section"),
        ("json", None, "the arguments file does not exist"),
        ("json", b'{"max_step": 7}', "--max_step is not an argument. Did you mean --max_steps?"),
        ("yaml", b"max_steps: 0", "max_steps=0: expected an integer in [1, inf)"),
    ],
)
def test_malformed_arguments_file_exits_with_one_line(ending, content, message, tmp_path, capsys):
    path = tmp_path / f"arguments.{ending}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        parse(path)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("a wrong\n value"), "a wrong value"),
        (ImportError("matplotlib is missing"), "matplotlib is missing"),
        (FileNotFoundError(2, "No such file", "a.csv"), "a.csv: No such file."),
        (OSError(28, "No space left on the disk of runs"), "[Errno 28] No space left on the disk of runs"),
    ],
)
def test_exit_on_user_error_prints_one_line_and_exits_with_2(error, message, capsys):
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        raise error
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


@pytest.mark.parametrize(("hint", "printed"), [("", "stopped"), ("resume.", "stopped: resume.")])
def test_exit_on_user_error_exits_with_130_on_ctrl_c(hint, printed, capsys):
    with pytest.raises(SystemExit) as stop, exit_on_user_error(hint):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr() == ("", f"\n{printed}\n")


def test_exit_on_user_error_exits_with_1_if_another_process_ended(capsys):
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        raise RuntimeError("in gloo\nConnection closed by peer [127.0.0.1]:1")
    assert stop.value.code == 1
    assert "Another process of this run has ended" in capsys.readouterr().err


def test_exit_on_user_error_keeps_the_traceback_of_a_bug(capsys):
    with pytest.raises(KeyError, match="inside"), exit_on_user_error():
        raise KeyError("inside")
    assert capsys.readouterr() == ("", "")


@dataclass
class DataArguments:
    """Data to train on."""

    train_file: str = field(metadata={"help": "A csv file."})


def printed_help(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        parse(*argv, classes=(DataArguments, WarmupTrainingArguments))
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_lists_own_arguments_and_help_all_those_of_transformers(capsys):
    short = printed_help(capsys, "--help")
    assert len(short.splitlines()) < 70
    assert short.startswith("usage: ")
    assert short.index("Data to train on:") < short.index("--train_file") < short.index("Arguments of hf_warmup")
    assert "  --train_file              A csv file. (required)" in short
    assert all(f"--{name}" in short for name in WARMUP_FLAGS)
    assert "--dataloader_num_workers" not in short
    everything = printed_help(capsys, "--help-all")
    assert everything.index("--warmup_type") < everything.index("Arguments of transformers:")
    assert "--dataloader_num_workers" in everything


def test_help_of_every_argument_of_hf_warmup_exists_and_lists_the_tables():
    own = WarmupArgumentsMixin.__annotations__.keys()
    assert own - WARMUP_FLAGS.keys() == {"warmup_ratio"}
    assert WARMUP_FLAGS.keys() <= own
    for name, table in {"optim": OPTIMIZERS, "lr_scheduler_type": DECAYS, "warmup_type": WARMUPS}.items():
        assert all(f"{each}," in WARMUP_FLAGS[name] for each in table)


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_hf_warmup_command_lists_its_commands(argv, capsys):
    hf_warmup.__main__.main(argv)
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in ("preview", "report", "card"))


def test_hf_warmup_command_refuses_an_unknown_command(capsys):
    with pytest.raises(SystemExit) as stop:
        hf_warmup.__main__.main(["previw"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: command='previw' is unknown. Did you mean 'preview'?\n"


@pytest.mark.parametrize("argv", [["preview", "--help"], ["report", "--help"]])
def test_help_of_a_command_imports_neither_torch_nor_transformers(argv):
    code = (
        f"import sys; sys.argv[1:] = {argv}\nimport hf_warmup.__main__ as command\n"
        "try:\n    command.main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"usage: hf-warmup {argv[0]} [")


@pytest.mark.parametrize("command", ["hf_warmup", "hf_warmup.preview"])
def test_a_command_ends_quietly_when_nobody_reads_its_output(command):
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does
    done = subprocess.run([sys.executable, "-m", command, "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
