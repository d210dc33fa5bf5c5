"""Arguments, argument files and command lines of anything: they run, or it is one sentence and exit code 2."""

import importlib.util
import json
import os
import sys
from contextlib import redirect_stderr
from dataclasses import fields
from io import StringIO
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import HfArgumentParser

from hf_warmup import OPTIMIZERS, WarmupTrainingArguments
from hf_warmup.cli import exit_on_user_error, parse_arguments
from hf_warmup.norms import GROUPINGS
from hf_warmup.schedules import WARMUPS, schedule_names
from scripts.text_classification.arguments import DataArguments, ModelArguments

from .hostile import JUNK, NESTED, assert_one_sentence
from .testing_utils import arguments


def script(name):
    """The module of scripts/name.py."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # where dataclasses look their types up
    spec.loader.exec_module(module)
    return module


# As in a run of theirs: transformers warns of its deprecated flags.
pytestmark = pytest.mark.filterwarnings("ignore")
LoopArguments = script("finetune_bert_no_trainer").LoopArguments


@pytest.fixture(autouse=True)
def _own_environment():
    """TrainingArguments leave some of their flags in the environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


SCRIPTS = {
    "finetune_bert": (ModelArguments, DataArguments, WarmupTrainingArguments),
    "finetune_bert_no_trainer": (ModelArguments, DataArguments, LoopArguments),
}
MEANT = {
    "optim": st.sampled_from([*OPTIMIZERS, "adamw_torch", "adafactor"]),
    "optim_args": st.sampled_from([None, "eps=1e-6", "warmup_steps=3", "momentum=0.5", "eps=nan", "a=b=c"]),
    "lr_scheduler_type": st.sampled_from(schedule_names()),
    "lr_scheduler_kwargs": st.sampled_from(
        [{}, {"d_model": 9}, {"num_cycles": "2"}, '{"gamma": 0.5}', {"patience": 1}]
    ),
    "warmup_type": st.sampled_from([None, *WARMUPS]),
    "warmup_steps": st.integers(0, 9) | st.floats(0.0, 1.0),
    "warmup_epochs": st.none() | st.floats(0.0, 4.0),
    "grad_norm_steps": st.integers(0, 9),
    "grad_norm_group_by": st.sampled_from(GROUPINGS),
    "learning_rate": st.floats(0.0, 1.0),
    "max_steps": st.sampled_from([-1, 8]),
    "num_train_epochs": st.floats(0.0, 9.0),
}


def test_training_arguments_that_are_anything(tmp_path):
    outcomes = set()

    @settings(max_examples=400)
    @given(
        st.fixed_dictionaries({}, optional={name: meant | JUNK for name, meant in MEANT.items()}), st.integers(0, 10**9)
    )
    @example({"warmup_epochs": 0.0, "num_train_epochs": 0.0, "max_steps": -1}, 7)
    @example({"optim": "radam", "optim_args": 5}, 7)
    @example({"lr_scheduler_kwargs": "9" * 5000}, 7)
    @example({"lr_scheduler_kwargs": "[" * 10**5}, 7)
    @example({"learning_rate": 10**5000}, 7)
    def check(kwargs, num_training_steps):
        try:
            args = arguments(tmp_path, **kwargs)
            W = args.get_warmup_steps(num_training_steps)
        except ValueError as error:
            outcomes.add("refused")
            assert_one_sentence(error, *MEANT)
        else:
            outcomes.add("runs")
            assert 0 <= W <= max(num_training_steps, args.warmup_steps)
            assert all(type(key) is str for key in args.lr_scheduler_kwargs)

    check()
    assert outcomes == {"runs", "refused"}


def outcome(classes, argv):
    """`"runs"`, or `"refused"` after a look at what the user is told."""
    stderr = StringIO()
    try:
        with redirect_stderr(stderr), exit_on_user_error():
            parse_arguments(HfArgumentParser(classes), argv)
    except SystemExit as stop:
        code = stop.code
    else:
        return "runs"
    lines = stderr.getvalue().removesuffix("\n").split("\n")
    assert code == 2
    if lines[0].startswith("error: "):
        assert len(lines) == 1
    else:  # argparse's own: how to get help, then what was wrong
        assert lines[0] == "usage: --help shows every argument"
        assert ": error: " in lines[1]
    return "refused"


def test_a_refusal_and_a_run(tmp_path):
    required = ["--output_dir", str(tmp_path)]
    for classes in SCRIPTS.values():
        assert outcome(classes, required) == "runs"
        assert outcome(classes, [*required, "--seed=é\n"]) == "refused"
        assert outcome(classes, [*required, "--sed=1"]) == "refused"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("checkpointing_steps", "²"),
        ("checkpointing_steps", "9" * 5000),
        ("checkpointing_steps", "00"),
        ("checkpointing_steps", "0" * 5000 + "1"),
        ("process_group_timeout", 10**30),
        ("seed", 2**32),
    ],
)
def test_the_loop_refuses_what_would_end_it_later(name, value):
    with pytest.raises(ValueError, match=f"^{name}=.*: expected an integer in ") as caught:
        LoopArguments("runs", **{name: value})
    assert_one_sentence(caught.value, name)


TEXT = st.text(max_size=9) | st.sampled_from(
    ["nan", "-inf", "1e999", "9" * 5000, "{}", "[1]", "=", "--", "a b", "\ud800"]
)
WORDS = TEXT | st.integers().map(str) | st.floats().map(str) | NESTED.map(lambda value: json.dumps(value, default=str))


@pytest.mark.parametrize("name", SCRIPTS)
def test_command_lines_of_anything(name, tmp_path):
    outcomes = set()
    known = [each.name for cls in SCRIPTS[name] for each in fields(cls)]
    flags = st.tuples(st.sampled_from([*known, *MEANT]) | TEXT, WORDS)

    @settings(max_examples=80)
    @given(st.lists(flags, max_size=3), st.booleans(), st.booleans())
    @example([("a\nb", "1")], True, True)
    @example([("load_best_model_at_end", "true")], True, True)  # transformers answers with three lines
    @example([("deepspeed", "nowhere")], True, True)
    @example([("lr_scheduler_kwargs", "{}")], True, True)
    @example([("save_steps", "1e999")], True, True)  # transformers would answer with an OverflowError
    def check(flags, equals, complete):
        argv = ["--output_dir", str(tmp_path)] if complete else []
        for flag, word in flags:
            argv += [f"--{flag}={word}"] if equals else [f"--{flag}", word]
        if not {"--help", "-h"} & {word.partition("=")[0] for word in argv}:
            outcomes.add(outcome(SCRIPTS[name], argv))

    check()
    assert outcomes == {"runs", "refused"}


FILES = {  # what a file of this kind may hold: bytes, text, or a value written properly
    ".json": st.binary(max_size=30) | TEXT | NESTED.map(lambda value: json.dumps(value, default=str)),
    ".yaml": st.binary(max_size=30) | TEXT | NESTED.map(lambda value: yaml.safe_dump(value, allow_unicode=True)),
}
EXAMPLES = {
    ".json": ["[" * 10**5, f'{{"seed": {"9" * 5000}}}', '{"seed": 1, "seed": 2}', '{"optim": [[{}]]}'],
    ".yaml": [
        "[" * 2000,
        f"seed: 0x{'f' * 5000}",
        "seed: 2020-13-45",
        "seed: 2020-01-01",
        "optim: {2020-01-01: 1}",
        "optim: &a [*a]",
    ],
}


@pytest.mark.parametrize("ending", FILES)
@pytest.mark.parametrize("name", SCRIPTS)
def test_argument_files_of_anything(name, ending, tmp_path):
    outcomes = set()
    path = tmp_path / f"arguments{ending}"
    known = [each.name for cls in SCRIPTS[name] for each in fields(cls)]
    objects = st.dictionaries(st.sampled_from(["seed", "learning_rate", *known]), NESTED, max_size=2)
    dump = json.dumps if ending == ".json" else yaml.safe_dump
    whole = objects.map(lambda flags: dump({"output_dir": str(tmp_path), **flags}))

    @settings(max_examples=60)
    @given(FILES[ending] | whole)
    def check(content):
        path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
        outcomes.add(outcome(SCRIPTS[name], [str(path)]))

    for content in [*EXAMPLES[ending], dump({"output_dir": str(tmp_path)})]:
        check = example(content)(check)
    check()
    assert outcomes == {"runs", "refused"}
