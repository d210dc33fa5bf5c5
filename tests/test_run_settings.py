"""What a run was made with: readable after a crash, with nothing secret in it."""

from __future__ import annotations

import json

import pytest
from transformers import TrainerCallback

from hf_warmup import WarmupTrainer
from hf_warmup.report import read_run
from hf_warmup.report.run import SETTINGS_FILE, command_line, write_run_settings

from .testing_utils import arguments, examples, run, tiny_bert


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
def test_nothing_secret_is_written(argv):
    said = command_line(["/usr/bin/python3", "train.py", *argv, "--optim", "radam"])
    assert said.startswith("python train.py --")
    assert said.endswith(" --optim radam")
    assert SECRET not in said
    assert "0123" not in said


def test_what_is_no_secret_stays():
    argv = ["python3", "train.py", "--output_dir", "runs/hf_warmup_of_a_long_name", "--lr_scheduler_kwargs", '{"a": 1}']
    assert command_line(argv) == (
        "python train.py --output_dir runs/hf_warmup_of_a_long_name --lr_scheduler_kwargs '{\"a\": 1}'"
    )


def test_tokens_of_the_arguments_are_masked(tmp_path):
    args = arguments(tmp_path, hub_token=SECRET)
    write_run_settings(tmp_path, args.to_dict(), {}, 8, 0)
    assert SECRET not in (tmp_path / SETTINGS_FILE).read_text()


def test_a_trainer_writes_it_before_the_first_update(tmp_path):
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


def test_a_finished_run_says_so(tmp_path):
    run(tmp_path, save_strategy="steps", save_steps=4)
    assert read_run(tmp_path).status == "finished, 8 updates"


def test_a_run_that_a_callback_ends_stopped_itself(tmp_path):
    class Solved(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    args = arguments(tmp_path, save_strategy="steps", save_steps=2)
    trainer = WarmupTrainer(model=tiny_bert(), args=args, train_dataset=examples(), callbacks=[Solved()])
    trainer.train()
    assert read_run(tmp_path).status == "unfinished: 5 of 8 updates (still running, or killed)"
    trainer.save_state()
    assert read_run(tmp_path).status == "stopped early at update 5 of 8"
    assert not read_run(tmp_path).cut_short
