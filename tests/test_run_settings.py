"""`run_settings.json`: what a run was made with is readable after a crash, and nothing secret is in it."""

from __future__ import annotations

import json

import pytest
from transformers import TrainerCallback

from hf_warmup import WarmupTrainer
from hf_warmup.report import read_run
from hf_warmup.report.run import (
    SETTINGS_FILE,
    command_line,
    read_run_settings,
    write_run_settings,
)

from .testing_utils import arguments, examples, tiny_bert


SECRET = "hf_" + "aB3" * 10


@pytest.mark.parametrize(
    "argv",
    [
        ["--token", SECRET],
        ["--hub_token=" + SECRET],
        ["--wandb_api_key", "0123"],
        ["--api_key=0123"],
        ["--password", "0123"],
        ["--extra", f"login:{SECRET}"],
    ],
)
def test_command_line_masks_secrets(argv):
    said = command_line(["/usr/bin/python3", "train.py", *argv, "--optim", "radam"])
    assert said.startswith("python train.py --")
    assert said.endswith(" --optim radam")
    assert SECRET not in said
    assert "0123" not in said


def test_command_line_keeps_what_is_no_secret():
    argv = ["python3", "train.py", "--output_dir", "runs/hf_warmup_of_a_long_name", "--lr_scheduler_kwargs", '{"a": 1}']
    assert command_line(argv) == (
        "python train.py --output_dir runs/hf_warmup_of_a_long_name --lr_scheduler_kwargs '{\"a\": 1}'"
    )


def test_write_run_settings_masks_tokens_of_the_arguments(tmp_path):
    args = arguments(tmp_path, hub_token=SECRET)
    write_run_settings(tmp_path, args.to_dict(), {}, 8, 0)
    assert SECRET not in (tmp_path / SETTINGS_FILE).read_text()


def test_a_resumed_run_keeps_its_identifier_and_warns_of_other_settings(tmp_path, caplog):
    first = write_run_settings(tmp_path, {"learning_rate": 0.1, "logging_steps": 1}, {}, 8, 2)
    again = {"learning_rate": 0.2, "logging_steps": 5}
    assert write_run_settings(tmp_path, again, {}, 8, 2, resumed=True, num_processes=2) == first
    (message,) = caplog.messages
    assert "learning_rate was 0.1, is 0.2" in message
    assert "logging_steps" not in message
    settings = read_run_settings(tmp_path)
    assert (settings["num_training_steps"], settings["num_warmup_steps"], settings["num_processes"]) == (8, 2, 2)
    assert write_run_settings(tmp_path, again, {}, 8, 2) != first  # a new run


def test_a_trainer_writes_run_settings_before_the_first_update(tmp_path):
    class Crash(Exception):
        pass

    class Crashing(WarmupTrainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 3:
                raise Crash
            return super().training_step(*args, **kwargs)

    args = arguments(tmp_path, optim="radam", warmup_steps=0.5, lr_scheduler_type="noam", seed=7)
    with pytest.raises(Crash):
        Crashing(model=tiny_bert(), args=args, train_dataset=examples()).train()
    read = read_run(tmp_path)
    assert read.status == "unfinished: 3 of 8 updates (still running, or killed)"
    assert read.seed == "7"
    expected = {"optim": "radam", "lr_scheduler_type": "noam", "num_warmup_steps": 4, "num_hidden_layers": 2}
    assert expected.items() <= read.settings.items()
    assert {"torch", "transformers", "python", "machine", "command"} <= read.made_with.keys()
    json.loads((tmp_path / SETTINGS_FILE).read_text(), parse_constant=pytest.fail)  # strict JSON


@pytest.mark.parametrize(("stop", "status"), [(None, "finished, 8 updates"), (5, "stopped early at update 5 of 8")])
def test_the_folder_of_a_run_tells_how_it_ended(tmp_path, stop, status):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == stop

    args = arguments(tmp_path)
    WarmupTrainer(model=tiny_bert(), args=args, train_dataset=examples(), callbacks=[Stop()]).train()
    assert read_run(tmp_path).status == status
