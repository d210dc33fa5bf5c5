"""Our names behind transformers' flags: from Python, the command line, and files; and one sentence for a mistake."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields, replace

import pytest
import torch
import yaml
from transformers import HfArgumentParser, SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_warmup import WarmupTrainingArguments
from hf_warmup._from_args import optimizer_cls_and_kwargs
from hf_warmup.cli import parse_arguments

from .testing_utils import arguments


FLAGS = {
    "optim": "radam",
    "optim_args": "degenerated_to_sgd=true",
    "lr_scheduler_type": "noam",
    "lr_scheduler_kwargs": {"d_model": 768},
    "warmup_type": "constant",
    "warmup_steps": 0.06,
}


def from_command_line(folder, flags):
    line = [f"--output_dir={folder}"]
    for key, value in flags.items():
        line += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return parse_arguments(HfArgumentParser(WarmupTrainingArguments), line)[0]


def from_file(folder, flags, dump, suffix):
    path = folder / f"arguments{suffix}"
    path.write_text(dump({"output_dir": str(folder), **flags}))
    return parse_arguments(HfArgumentParser(WarmupTrainingArguments), [str(path)])[0]


WAYS = {
    "python": lambda folder, flags: WarmupTrainingArguments(str(folder), **flags),
    "command_line": from_command_line,
    "json": lambda folder, flags: from_file(folder, flags, json.dumps, ".json"),
    "yaml": lambda folder, flags: from_file(folder, flags, yaml.safe_dump, ".yaml"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_gives_the_same_arguments(tmp_path, way):
    args = WAYS[way](tmp_path, FLAGS)
    assert {key: getattr(args, key) for key in FLAGS} == FLAGS
    assert args.get_warmup_steps(1000) == 60
    assert args.get_warmup_steps(1001) == 61  # a ratio is rounded up, as transformers does


@pytest.mark.parametrize("way", ["command_line", "yaml"])
def test_numbers_that_arrive_as_text_are_numbers(tmp_path, way):
    flags = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": "1e-6"}}
    assert WAYS[way](tmp_path, flags).lr_scheduler_kwargs == {"min_lr": 1e-6}


def test_names_stay_theirs_or_ours(tmp_path):
    theirs = arguments(tmp_path, optim="adamw_torch", lr_scheduler_type="cosine")
    assert theirs.optim is OptimizerNames.ADAMW_TORCH
    assert theirs.lr_scheduler_type is SchedulerType.COSINE
    assert arguments(tmp_path).optim == TrainingArguments(str(tmp_path)).optim
    ours = arguments(tmp_path, optim="radam", lr_scheduler_type="noam")
    assert (ours.optim, ours.lr_scheduler_type) == ("radam", "noam")
    assert ours.lr_scheduler_type.value == "noam"


def test_arguments_travel(tmp_path):
    args = arguments(tmp_path, **FLAGS)
    as_dict = args.to_dict()
    assert type(as_dict["optim"]) is str
    assert yaml.safe_load(yaml.safe_dump({key: as_dict[key] for key in FLAGS})) == FLAGS
    assert json.loads(args.to_json_string())["lr_scheduler_type"] == "noam"
    torch.save(args, tmp_path / "training_args.bin")
    for copy in (
        torch.load(tmp_path / "training_args.bin", weights_only=False),
        pickle.loads(pickle.dumps(args)),
        replace(args),
    ):
        assert {key: getattr(copy, key) for key in FLAGS} == FLAGS
        assert copy.lr_scheduler_type.value == "noam"
    assert "radam" in str(args)


def test_setters_take_our_names(tmp_path):
    args = arguments(tmp_path).set_optimizer("radam", learning_rate=0.5, beta2=0.98)
    assert (args.optim, args.learning_rate, args.adam_beta2) == ("radam", 0.5, 0.98)
    assert args.set_lr_scheduler("noam", max_steps=100, warmup_steps=10).get_warmup_steps(100) == 10
    assert args.set_lr_scheduler("cosine").lr_scheduler_type is SchedulerType.COSINE
    with pytest.raises(ValueError, match=r"'radm' is unknown\. Did you mean 'radam'"):
        args.set_optimizer("radm")


def test_foreach_takes_the_place_of_the_tables_fused(tmp_path):
    args = arguments(tmp_path, optim="adamw", optim_args="foreach=true")
    cls, kwargs = optimizer_cls_and_kwargs(args)
    assert cls([torch.zeros(1, requires_grad=True)], **kwargs).defaults["foreach"] is True


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        ({}, 0),
        ({"warmup_steps": 7}, 7),
        ({"warmup_steps": 1}, 1),
        ({"warmup_steps": 0.5}, 50),
        ({"warmup_epochs": 1, "num_train_epochs": 4, "max_steps": -1}, 25),
        ({"warmup_epochs": 0.21, "num_train_epochs": 3, "max_steps": -1}, 7),  # 7.000000000000001 in float64
        ({"warmup_epochs": 0.1, "num_train_epochs": 3, "max_steps": -1}, 4),  # ceil(100 * 0.1 / 3)
    ],
)
def test_warmup_length(tmp_path, warmup, expected):
    assert arguments(tmp_path, **{"max_steps": 100, **warmup}).get_warmup_steps(100) == expected


MISTAKES = [
    ({"optim": "radamm"}, "optim='radamm' is unknown. Did you mean 'radam'?"),
    ({"lr_scheduler_type": "naom"}, "lr_scheduler_type='naom' is unknown. Did you mean 'noam'?"),
    ({"warmup_type": "liner"}, "warmup_type='liner' is unknown. Did you mean 'linear'?"),
    ({"grad_norm_group_by": "layers"}, "grad_norm_group_by='layers' is unknown. Did you mean 'layer'?"),
    ({"learning_rate": -1e-3}, "learning_rate=-0.001: expected a finite number in [0, inf)"),
    ({"learning_rate": float("nan")}, "learning_rate=nan: expected a finite number"),
    ({"weight_decay": float("inf")}, "weight_decay=inf: expected"),
    ({"adam_beta2": 1.0}, "adam_beta2=1.0: expected a finite number in [0, 1)"),
    ({"warmup_steps": -1}, "warmup_steps=-1: expected"),
    ({"warmup_steps": 1.5}, "warmup_steps=1.5: expected an integer in [0, inf), or a share of the run in (0, 1)."),
    ({"warmup_steps": None}, "warmup_steps=None: expected an integer in [0, inf), or a share of the run in (0, 1)."),
    ({"save_steps": float("inf")}, "save_steps=inf: expected a finite number"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0: expected an integer in [1, inf)"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0: expected an integer in [1, inf)"),
    ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size=-1: expected an integer in [1, inf)"),
    ({"optim": "RAdam"}, "optim='RAdam' is unknown. Did you mean 'radam'?"),
    ({"warmup_steps": 9}, "warmup_steps=9: expected at most max_steps=8"),
    ({"grad_norm_steps": -1}, "grad_norm_steps=-1: expected an integer"),
    ({"warmup_epochs": 1}, "warmup_epochs=1 needs num_train_epochs"),
    ({"warmup_epochs": 4, "max_steps": -1}, "warmup_epochs=4: expected at most num_train_epochs=3"),
    ({"warmup_epochs": 1, "warmup_steps": 3, "max_steps": -1}, "give one of them"),
    ({"optim": "radam", "optim_args": "degenerated"}, "expected key=value,key=value, found 'degenerated'"),
    (
        {"optim": "radam", "optim_args": "degenerate_to_sgd=1"},
        "optim_args='degenerate_to_sgd' is unknown to 'radam'. Did you mean 'degenerated_to_sgd'",
    ),
    ({"optim": "radam", "optim_args": "degenerated_to_sgd=maybe"}, "is not of the kind of its default, False"),
    ({"optim": "sgd", "optim_args": "momentun=0.9"}, "Did you mean 'momentum'"),
    ({"lr_scheduler_kwargs": "{d_model"}, "is not valid JSON"),
    ({"lr_scheduler_kwargs": "[1]"}, "expected a dictionary"),
    (
        {"lr_scheduler_type": "noam", "lr_scheduler_kwargs": {"dmodel": 1}},
        "lr_scheduler_kwargs='dmodel' is unknown to 'noam'. Did you mean 'd_model'",
    ),
    ({"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patienc": 1}}, "Did you mean 'patience'"),
    ({"lr_scheduler_type": "exponential", "lr_scheduler_kwargs": {"gamma": 2}}, "gamma in lr_scheduler_kwargs=2"),
    ({"optim": "adam_warmup", "warmup_type": "linear"}, "the optimizer warms up already"),
    ({"optim": "adam_warmup", "optim_args": "warmup_steps=3", "warmup_steps": 3}, "expected one of the two"),
    ({"optim": "radam", "warmup_type": "radam"}, "the optimizer rectifies already"),
]


@pytest.mark.parametrize(("flags", "sentence"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_one_sentence(tmp_path, flags, sentence):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the sentence is compared below)
        arguments(tmp_path, **flags)
    message = str(caught.value)
    assert sentence.replace("is not valid JSON", "expected a JSON object") in message
    assert "\n" not in message


@pytest.mark.filterwarnings("ignore:warmup_ratio:FutureWarning")  # of the versions of transformers that have it
def test_warmup_ratio_is_transformers_or_one_sentence(tmp_path):
    if "warmup_ratio" in {each.name for each in fields(TrainingArguments)}:
        assert arguments(tmp_path, warmup_ratio=0.25, max_steps=8).get_warmup_steps(8) == 2
        return
    with pytest.raises(ValueError, match=r"^warmup_ratio=0\.1 is no argument: use warmup_steps=0\.1, below 1 it is"):
        WarmupTrainingArguments(str(tmp_path), warmup_ratio=0.1)
    with pytest.raises(ValueError, match=r"^--warmup_ratio is no argument: use --warmup_steps 0\.1, below 1 it"):
        from_command_line(tmp_path, {"warmup_ratio": 0.1})


def test_a_flag_that_transformers_has_dropped(tmp_path):
    if "overwrite_output_dir" not in {each.name for each in fields(TrainingArguments)}:
        with pytest.raises(ValueError, match=r"^--overwrite_output_dir is no argument: transformers has taken it away"):
            from_command_line(tmp_path, {"overwrite_output_dir": True})
