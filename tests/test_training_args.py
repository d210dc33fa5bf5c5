"""Arguments from Python, command lines and files; how they combine with other classes; and one clear error each."""

from __future__ import annotations

import json
import pickle
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pytest
import torch
import yaml
from transformers import HfArgumentParser, SchedulerType, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_warmup import WarmupArgumentsMixin, WarmupTrainer, WarmupTrainingArguments
from hf_warmup.cli import parse_arguments
from hf_warmup.training_args import optimizer_cls_and_kwargs

from .testing_utils import arguments, examples, tiny_bert


FLAGS = {
    "optim": "radam",
    "optim_args": "degenerated_to_sgd=true",
    "lr_scheduler_type": "noam",
    "lr_scheduler_kwargs": {"d_model": 768},
    "warmup_type": "constant",
    "warmup_steps": 0.06,
    "learning_rate_mapping": {"classifier": 0.001},
    "layerwise_lr_decay": 0.9,
}
HAS_WARMUP_RATIO = "warmup_ratio" in {each.name for each in fields(TrainingArguments)}


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
def test_arguments_are_the_same_from_python_command_line_and_files(tmp_path, way):
    args = WAYS[way](tmp_path, FLAGS)
    assert {key: getattr(args, key) for key in FLAGS} == FLAGS
    assert args.get_warmup_steps(1000) == 60
    assert args.get_warmup_steps(1001) == 61


@pytest.mark.parametrize("way", ["command_line", "yaml"])
def test_lr_scheduler_kwargs_given_as_text_become_numbers(tmp_path, way):
    flags = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": "1e-6"}}
    assert WAYS[way](tmp_path, flags).lr_scheduler_kwargs == {"min_lr": 1e-6}


@pytest.mark.parametrize("way", ["python", "yaml"])
def test_optim_args_may_be_a_dictionary(tmp_path, way):
    args = WAYS[way](tmp_path, {"optim": "radam", "optim_args": {"eps": 1e-6, "degenerated_to_sgd": True}})
    assert {*args.optim_args.split(",")} == {"eps=1e-06", "degenerated_to_sgd=True"}
    assert optimizer_cls_and_kwargs(args)[1]["degenerated_to_sgd"] is True


def test_names_of_transformers_stay_members_of_its_enums(tmp_path):
    args = arguments(tmp_path, optim="adamw_torch", lr_scheduler_type="cosine")
    assert args.optim is OptimizerNames.ADAMW_TORCH
    assert args.lr_scheduler_type is SchedulerType.COSINE
    assert (args.optimizer_is_ours, args.scheduler_is_ours) == (False, False)
    assert arguments(tmp_path).optim == TrainingArguments(str(tmp_path)).optim


def test_names_of_hf_warmup_are_strings_with_a_value(tmp_path):
    args = arguments(tmp_path, optim="radam", lr_scheduler_type="noam")
    assert (args.optim, args.lr_scheduler_type) == ("radam", "noam")
    assert (args.optim.value, args.lr_scheduler_type.value) == ("radam", "noam")
    assert (args.optimizer_is_ours, args.scheduler_is_ours) == (True, True)


def test_names_are_checked_when_they_are_set_later(tmp_path):
    args = arguments(tmp_path)
    args.optim, args.lr_scheduler_type = "radam", "cosine"
    assert args.optim.value == "radam"
    assert args.lr_scheduler_type is SchedulerType.COSINE
    args.warmup_type = "linear"
    assert args.scheduler_is_ours
    args.warmup_type = None
    assert args.lr_scheduler_type is SchedulerType.COSINE
    with pytest.raises(ValueError, match="Did you mean 'radam'"):
        args.optim = "radm"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("warmup_steps", 4.7), ("warmup_steps", None), ("learning_rate", "1e-3"), ("adam_beta2", "0.9"),
        ("max_grad_norm", "1.0"), ("max_steps", "8"), ("gradient_accumulation_steps", 0), ("warmup_epochs", "1"),
        ("optim", None), ("lr_scheduler_type", None), ("stop_on_signal", "yes"), ("grad_norm_steps", "x"),
    ],
)  # fmt: skip
def test_fields_set_later_are_checked_when_training_begins(tmp_path, name, value):
    trainer = WarmupTrainer(tiny_bert(), arguments(tmp_path), train_dataset=[{}])
    setattr(trainer.args, name, value)
    for begin in (trainer.train, lambda: WarmupTrainer(tiny_bert(), trainer.args)):
        with pytest.raises(ValueError, match=rf"^{name}={value!r}(: expected| is unknown)"):
            begin()


def test_import_paths_are_names(tmp_path, monkeypatch):
    (tmp_path / "names_of_mine.py").write_text(
        "import torch\n\nclass MyAdam(torch.optim.Adam):\n    pass\n\n"
        "def quadratic(step, *, num_warmup_steps):\n    return min(1.0, (step + 1) / num_warmup_steps) ** 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = {"optim": "names_of_mine:MyAdam", "warmup_type": "names_of_mine:quadratic"}
    args = from_command_line(tmp_path, {**names, "warmup_steps": 4})
    assert args.optimizer_is_ours
    assert {key: args.to_dict()[key] for key in names} == names
    assert pickle.loads(pickle.dumps(args)).optim == "names_of_mine:MyAdam"
    with pytest.raises(ValueError, match=r"has no function 'MyAdma'\. Did you mean names_of_mine:MyAdam\?"):
        arguments(tmp_path, optim="names_of_mine:MyAdma")


@pytest.mark.parametrize("copy", [replace, deepcopy, lambda args: pickle.loads(pickle.dumps(args))])
def test_arguments_survive_copies(tmp_path, copy):
    args = copy(arguments(tmp_path, **FLAGS))
    assert {key: getattr(args, key) for key in FLAGS} == FLAGS
    assert args.lr_scheduler_type.value == "noam"


def test_arguments_are_written_as_plain_values(tmp_path):
    args = arguments(tmp_path, **FLAGS)
    written = args.to_dict()
    assert type(written["optim"]) is str
    assert yaml.safe_load(yaml.safe_dump({key: written[key] for key in FLAGS})) == FLAGS
    assert json.loads(args.to_json_string())["lr_scheduler_type"] == "noam"
    torch.save(args, tmp_path / "training_args.bin")
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).optim == "radam"
    assert "radam" in str(args)


def test_numpy_numbers_become_python_numbers(tmp_path):
    args = arguments(
        tmp_path, learning_rate=np.float32(0.5), warmup_steps=np.float64(0.25), seed=np.int64(7), max_steps=np.int64(8)
    )
    assert (args.learning_rate, args.seed, args.get_warmup_steps(8)) == (0.5, 7, 2)
    assert json.loads(args.to_json_string())["seed"] == 7


def test_optim_args_foreach_replaces_fused(tmp_path):
    cls, kwargs = optimizer_cls_and_kwargs(arguments(tmp_path, optim="adamw", optim_args="foreach=true"))
    assert cls([torch.zeros(1, requires_grad=True)], **kwargs).defaults["foreach"] is True


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        ({}, 0),
        ({"warmup_steps": 7}, 7),
        ({"warmup_steps": 1}, 1),
        ({"warmup_steps": 0.5}, 50),
        ({"warmup_steps": 0.07}, 7),  # 7.000000000000001 in float64
        ({"warmup_epochs": 1, "num_train_epochs": 4, "max_steps": -1}, 25),
        ({"warmup_epochs": 0.21, "num_train_epochs": 3, "max_steps": -1}, 7),
        ({"warmup_epochs": 0.1, "num_train_epochs": 3, "max_steps": -1}, 4),  # ceil(100 * 0.1 / 3)
        ({"warmup_epochs": 0.0, "num_train_epochs": 0.0, "max_steps": -1}, 0),
    ],
)
def test_get_warmup_steps_returns_updates(tmp_path, warmup, expected):
    assert arguments(tmp_path, **{"max_steps": 100, **warmup}).get_warmup_steps(100) == expected


def test_get_warmup_steps_raises_if_the_warmup_is_longer_than_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"^warmup_steps=9: expected at most the 8 updates of this run\.$"):
        arguments(tmp_path, warmup_steps=9, max_steps=-1).get_warmup_steps(8)


@dataclass
class LabArguments(TrainingArguments):
    optim: str = "adamw_torch"
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    lr_scheduler_kwargs: dict = field(default_factory=lambda: {"num_cycles": 1.5})


@dataclass
class LabWarmupArguments(WarmupArgumentsMixin, LabArguments):
    pass


def test_defaults_of_the_other_class_survive(tmp_path):
    args = arguments(tmp_path, LabWarmupArguments)
    assert (args.optim, args.lr_scheduler_type, args.warmup_steps) == ("adamw_torch", "cosine", 0.1)
    assert args.lr_scheduler_kwargs == {"num_cycles": 1.5}
    assert arguments(tmp_path, LabWarmupArguments, optim="radam", warmup_steps=0.5).warmup_steps == 0.5


@dataclass
class RatioArguments(TrainingArguments):
    warmup_ratio: float | None = field(default_factory=lambda: None)

    def __post_init__(self):
        if self.warmup_ratio is not None and not self.warmup_steps:
            self.warmup_steps, self.warmup_ratio = self.warmup_ratio, None
        super().__post_init__()


@dataclass
class RatioWarmupArguments(WarmupArgumentsMixin, RatioArguments):
    pass


@pytest.mark.skipif(HAS_WARMUP_RATIO, reason="transformers does not accept None as warmup_ratio")
def test_warmup_ratio_is_accepted_where_the_other_class_has_it(tmp_path):
    assert arguments(tmp_path, RatioWarmupArguments, warmup_ratio=0.1).warmup_steps == 0.1
    parsed = HfArgumentParser(RatioWarmupArguments).parse_args_into_dataclasses(["--output_dir", str(tmp_path)])
    assert parsed[0].get_warmup_steps(100) == 0


@pytest.mark.filterwarnings("ignore:warmup_ratio:FutureWarning")
@pytest.mark.skipif(not HAS_WARMUP_RATIO, reason="transformers has removed warmup_ratio")
def test_warmup_ratio_is_accepted_where_transformers_has_it(tmp_path):
    assert arguments(tmp_path, warmup_ratio=0.25, max_steps=8).get_warmup_steps(8) == 2


@pytest.mark.skipif(HAS_WARMUP_RATIO, reason="transformers has warmup_ratio")
@pytest.mark.parametrize("way", ["python", "command_line"])
def test_warmup_ratio_raises_with_a_hint_where_transformers_has_removed_it(tmp_path, way):
    with pytest.raises(ValueError, match=r"Use warmup_steps=0\.1: a value below 1 is a share of the run\.$"):
        WAYS[way](tmp_path, {"warmup_ratio": 0.1})


def plain_trainer(args):
    return Trainer(model=tiny_bert(), args=args, train_dataset=examples(8))


def test_plain_trainer_reads_names_of_transformers(tmp_path):
    trainer = plain_trainer(arguments(tmp_path, lr_scheduler_type="cosine", warmup_steps=0.5))
    trainer.create_optimizer_and_scheduler(8)
    rates = [trainer.lr_scheduler.lr_lambdas[0](step) for step in range(5)]
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("flags", [{"warmup_type": "linear"}, {"lr_scheduler_type": "noam"}, {"optim": "radam"}])
def test_plain_trainer_raises_for_what_only_warmup_trainer_can_do(tmp_path, flags):
    trainer = plain_trainer(arguments(tmp_path, **flags))
    with pytest.raises(ValueError, match=r"WarmupTrainer(Schedule|Optimizer)\.(linear|noam|radam)"):
        trainer.create_optimizer_and_scheduler(8)


MISTAKES = [
    ({"optim": "radamm"}, "optim='radamm' is unknown. Did you mean 'radam'?"),
    ({"optim": "nowhere:Adam"}, "optim='nowhere:Adam': importing 'nowhere' failed"),
    ({"lr_scheduler_type": "naom"}, "lr_scheduler_type='naom' is unknown. Did you mean 'noam'?"),
    ({"warmup_type": "liner"}, "warmup_type='liner' is unknown. Did you mean 'linear'?"),
    ({"grad_norm_group_by": "layers"}, "grad_norm_group_by='layers' is unknown. Did you mean 'layer'?"),
    ({"learning_rate": -1e-3}, "learning_rate=-0.001: expected a finite number in [0, inf)"),
    ({"learning_rate": float("nan")}, "learning_rate=nan: expected a finite number"),
    ({"adam_beta2": 1.0}, "adam_beta2=1.0: expected a finite number in [0, 1)"),
    ({"warmup_steps": -1}, "warmup_steps=-1: expected an integer in [0, inf), or a share of the run in (0, 1)."),
    ({"warmup_steps": 1.5}, "warmup_steps=1.5: expected an integer in [0, inf), or a share of the run in (0, 1)."),
    ({"warmup_steps": 9}, "warmup_steps=9: expected at most max_steps=8"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0: expected an integer in [1, inf)"),
    ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size=-1: expected an integer in [1, inf)"),
    ({"grad_norm_steps": -1}, "grad_norm_steps=-1: expected an integer"),
    ({"warmup_epochs": 1}, "warmup_epochs=1 needs num_train_epochs, but max_steps=8 sets the length of the run"),
    ({"warmup_epochs": 4, "max_steps": -1}, "warmup_epochs=4: expected a finite number in [0, 3]"),
    ({"warmup_epochs": 1, "warmup_steps": 3, "max_steps": -1}, "are two lengths of the warmup"),
    ({"optim": "radam", "optim_args": "degenerated"}, "expected key=value,key=value"),
    ({"optim": "radam", "optim_args": 5}, "optim_args=5: expected key=value,key=value, or a dictionary."),
    ({"optim": "radam", "optim_args": "degenerate_to_sgd=1"}, "Did you mean 'degenerated_to_sgd'"),
    ({"optim": "sgd", "optim_args": "momentun=0.9"}, "Did you mean 'momentum'"),
    ({"optim": "radam", "warmup_type": "radam"}, "would rectify twice"),
    ({"lr_scheduler_kwargs": "{d_model"}, "lr_scheduler_kwargs='{d_model': expected JSON such as {"),
    ({"lr_scheduler_kwargs": "[1]"}, "lr_scheduler_kwargs=[1]: expected a dictionary"),
    ({"lr_scheduler_type": "noam", "lr_scheduler_kwargs": {"dmodel": 1}}, "Did you mean 'd_model'"),
    ({"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patienc": 1}}, "Did you mean 'patience'"),
    ({"lr_scheduler_type": "exponential", "lr_scheduler_kwargs": {"gamma": 2}}, "gamma in lr_scheduler_kwargs=2"),
    ({"learning_rate_mapping": {"a(": 0.1}}, "learning_rate_mapping: 'a(' is not a regular expression"),
    ({"learning_rate_mapping": {"a": -1}}, "learning_rate_mapping['a']=-1: expected a finite number in [0, inf)"),
    ({"layerwise_lr_decay": 0}, "layerwise_lr_decay=0: expected a finite number in (0, 1]"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_invalid_argument_raises_one_line(tmp_path, flags, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the message is compared below)
        arguments(tmp_path, **flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
