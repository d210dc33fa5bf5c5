"""One sentence for a wrong argument, and arguments from flags, JSON and YAML."""

import json
import sys
from dataclasses import dataclass
from fractions import Fraction
from math import inf, nan

import numpy as np
import pytest
import torch
from transformers import HfArgumentParser

from hf_warmup._validation import check_name, check_number
from hf_warmup.cli import exit_on_user_error, parse_arguments


@dataclass
class Arguments:
    learning_rate: float = 0.5
    name: str = "x"
    max_steps: int = 3
    fast: bool = False

    def __post_init__(self):
        check_number("max_steps", self.max_steps, 1, integer=True)


@pytest.mark.parametrize(
    ("value", "kwargs"),
    [
        (0, {}),
        (1e300, {}),
        (1, {"low": 1, "high": 1}),
        (0.999, {"high": 1.0, "open_high": True}),
        (1e-9, {"open_low": True}),
        (-3, {"low": -inf}),
        (3, {"integer": True}),
        (3.0, {"integer": True}),
        (np.float32(0.5), {}),
        (np.int64(3), {"integer": True}),
        (Fraction(1, 2), {}),
    ],
)
def test_good_numbers_become_plain_ones(value, kwargs):
    number = check_number("x", value, **kwargs)
    assert number == value
    assert type(number) is (int if kwargs.get("integer") else float)


@pytest.mark.parametrize(
    ("value", "kwargs", "allowed"),
    [
        (-1e-9, {}, r"a finite number in \[0, inf\)"),
        (nan, {}, "a finite number"),
        (inf, {}, "a finite number"),
        (-inf, {"low": -inf}, "a finite number"),
        (True, {}, "a finite number"),
        (False, {"integer": True}, "an integer"),
        ("1", {}, "a finite number"),
        (None, {}, "a finite number"),
        ([1], {}, "a finite number"),
        (1j, {}, "a finite number"),
        (torch.tensor(1.0), {}, "a finite number"),
        (2, {"low": 0, "high": 1}, r"in \[0, 1\]"),
        (0, {"open_low": True}, r"in \(0, inf\)"),
        (1, {"high": 1, "open_high": True}, r"in \[0, 1\)"),
        (2.5, {"integer": True}, r"an integer in \[0, inf\)"),
        (0, {"low": 1, "integer": True}, r"an integer in \[1, inf\)"),
    ],
)
def test_bad_numbers(value, kwargs, allowed):
    with pytest.raises(ValueError, match=allowed) as caught:
        check_number("beta", value, **kwargs)
    assert str(caught.value).startswith(f"beta={value!r}: ")
    assert str(caught.value).endswith(".")


def test_names():
    assert check_name("optim", "radam", {"radam": 1, "sgd": 2}) == "radam"
    assert check_name("optim", "radam", iter(["sgd", "radam"])) == "radam"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rdam", "optim='rdam' is unknown. Did you mean 'radam'? Allowed: adamw, radam, sgd."),
        ("RAdam", "optim='RAdam' is unknown. Did you mean 'radam'?"),
        ("zzz", "optim='zzz' is unknown. Allowed: adamw, radam, sgd."),
        ("", "optim='' is unknown. Allowed: adamw, radam, sgd."),
        (None, "optim=None is unknown. Allowed: adamw, radam, sgd."),
        (["sgd"], "optim=['sgd'] is unknown."),
    ],
)
def test_unknown_names(value, message):
    with pytest.raises(ValueError, match="is unknown") as caught:
        check_name("optim", value, ("sgd", "radam", "adamw"))
    assert str(caught.value).startswith(message)


def test_an_unknown_name_of_something():
    with pytest.raises(ValueError, match=r"^optim_args='epss' is unknown to 'radam'\. Did you mean 'Eps'\?"):
        check_name("optim_args", "epss", ("Eps",), of="radam")


def test_unknown_name_where_nothing_is_allowed():
    with pytest.raises(ValueError, match=r"x='a' is unknown\. Allowed: none\."):
        check_name("x", "a", ())


def parse(*argv):
    return parse_arguments(HfArgumentParser(Arguments), [str(arg) for arg in argv])[0]


def test_flags(monkeypatch):
    expected = Arguments(learning_rate=1e-5, name="y.json", fast=True)
    flags = ["--learning_rate", "1e-5", "--name", "y.json", "--fast"]
    assert parse(*flags) == expected
    assert parse() == Arguments()
    monkeypatch.setattr(sys, "argv", ["script.py", *flags])
    assert parse_arguments(HfArgumentParser(Arguments)) == (expected,)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--learning_rte", "1"], r"^--learning_rte is no argument\. Did you mean --learning_rate\?$"),
        (["--zzz"], r"^--zzz is no argument\.$"),
        (["nowhere"], r"^nowhere is no argument\.$"),
        (["--Learning_Rate", "1"], r"^--Learning_Rate is no argument\. Did you mean --learning_rate\?$"),
        (["a.json", "--learning_rate", "1"], r"^a\.json is no argument: a file of arguments stands alone"),
        (["--learning_rate", "1", "a.yaml"], r"^a\.yaml is no argument: a file of arguments stands alone"),
        (["--warmup_ratio", "0.1"], r"^--warmup_ratio is no argument\.$"),
    ],
)
def test_unknown_flags(flags, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse(*flags)


@pytest.mark.parametrize(
    ("ending", "text", "expected"),
    [
        ("json", json.dumps({"learning_rate": 0.001, "fast": True}), {"learning_rate": 0.001, "fast": True}),
        ("json", json.dumps({"learning_rate": 1e-5}), {"learning_rate": 1e-5}),  # written as 1e-05
        ("json", json.dumps({"max_steps": 7}, indent="\t"), {"max_steps": 7}),
        ("json", json.dumps({"name": "é \N{GRINNING FACE}"}), {"name": "é \N{GRINNING FACE}"}),
        ("json", "{}", {}),
        ("yaml", "learning_rate: 0.001\nname: a b\n", {"learning_rate": 0.001, "name": "a b"}),
        ("yml", "# a comment\nmax_steps: 7\nfast: true\n", {"max_steps": 7, "fast": True}),
        ("yaml", "learning_rate: 1e-5\n", {"learning_rate": 1e-5}),
    ],
)
def test_argument_files(ending, text, expected, tmp_path):
    path = tmp_path / f"arguments.{ending}"
    path.write_text(text, encoding="utf-8")
    assert parse(path) == Arguments(**expected)


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("json", b'{"max_steps": 7', "not valid JSON"),
        ("json", b"", "not valid JSON"),
        ("yaml", b"", "one object"),
        ("json", b"[1, 2]", "one object"),
        ("json", b'"max_steps"', "one object"),
        ("json", b'{"name": "\xff\xfe"}', "not valid JSON"),
        ("yaml", b"name: [1", "not valid YAML"),
        ("yaml", b"a: b: c", "not valid YAML"),
        ("yml", b"- 1", "one object"),
        ("json", b'{"max_step": 7}', "max_step"),
        ("yaml", b"max_steps: 0", "max_steps=0"),
        ("json", None, "no such arguments file"),
    ],
)
def test_malformed_argument_files(ending, content, message, tmp_path, capsys):
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
    assert (str(path) in err) == (message not in ("max_step", "max_steps=0"))


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (ValueError("a wrong value"), "a wrong value"),
        (FileNotFoundError(2, "No such file", "a.csv"), "a.csv: No such file."),
        (OSError(28, "No space left on the disk of runs"), "[Errno 28] No space left on the disk of runs"),
    ],
)
def test_a_mistake_is_one_sentence(mistake, sentence, capsys):
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        raise mistake
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {sentence}\n")


@pytest.mark.parametrize(("going_on", "said"), [("", "stopped"), ("go on.", "stopped: go on.")])
def test_ctrl_c_is_one_sentence(going_on, said, capsys):
    with pytest.raises(SystemExit) as stop, exit_on_user_error(going_on):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr() == ("", f"\n{said}\n")


def test_a_bug_keeps_its_traceback_and_success_is_silent(capsys):
    with pytest.raises(KeyError, match="inside"), exit_on_user_error():
        raise KeyError("inside")
    with exit_on_user_error():
        pass
    assert capsys.readouterr() == ("", "")
