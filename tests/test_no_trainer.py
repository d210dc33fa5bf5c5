"""`finetune_bert_no_trainer.py` in one process: the numbers of the Trainer's script, resuming, trackers, errors."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState
from transformers import AutoModelForSequenceClassification

from hf_warmup import StopOnSignalCallback
from hf_warmup.norms import read_gradient_norms
from hf_warmup.report import read_run

from .testing_utils import FROM_SCRATCH, write_task


@pytest.fixture
def loop(script, monkeypatch):
    """Run the script in this process and return what it wrote to stdout, or to stderr if it is to fail."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def call(*flags: object, rc: int = 0) -> str:
        GradientState._reset_state()
        AcceleratorState._reset_state(reset_partial_state=True)
        return script("finetune_bert_no_trainer.py", *flags, rc=rc)[1 if rc else 0]

    yield call
    GradientState._reset_state()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    task = tmp_path_factory.mktemp("task")
    write_task(task)
    files = ("--train_file", task / "train.tsv", "--validation_file", task / "dev.tsv", "--task_name", "sst2")
    size = ("--max_length", 8, "--per_device_train_batch_size", 16, "--learning_rate", 1e-2, "--logging_steps", 1)
    return [*files, "--tokenizer_name", task / "vocabulary", *FROM_SCRATCH, *size]


def losses(folder: Path) -> list[float]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def test_the_loop_learns_and_saves_a_model(loop, flags, tmp_path):
    schedule = (
        "--optim",
        "radam",
        "--lr_scheduler_type",
        "noam",
        "--warmup_type",
        "cosine",
        "--num_warmup_steps",
        0.15,
    )
    out = loop(*flags, *schedule, "--num_train_epochs", 20, "--output_dir", tmp_path, "--grad_norm_group_by", "module")
    assert json.loads(out.splitlines()[-1])["eval_accuracy"] == 1.0  # six words decide
    assert json.loads((tmp_path / "all_results.json").read_text())["eval_accuracy"] == 1.0
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 2
    records = read_gradient_norms(tmp_path)
    assert [record["step"] for record in records] == list(range(1, 121))  # 96 rows in batches of 16, 20 times
    assert "grad_norm/classifier" in records[0]
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [entry["scheduled_lr"] for entry in log if "loss" in entry][:5] == [0.0] * 5  # RAdam's first updates
    run = read_run(tmp_path)  # as for a Trainer
    assert (run.updates, run.num_training_steps, run.settings["optim"]) == (120, 120, "radam")
    assert run.settings["num_hidden_layers"] == 2


def test_the_loop_has_the_numbers_of_the_trainers_script(loop, script, flags, tmp_path):
    """One batch of all rows leaves dropout as the only difference."""
    common = (
        "--per_device_train_batch_size",
        96,
        "--optim",
        "radam",
        "--weight_decay",
        0.01,
        "--warmup_type",
        "linear",
    )
    quiet = "--do_train --use_cpu --report_to none --logging_steps 1 --save_strategy no --max_steps 8 --warmup_steps 4"
    script("finetune_bert.py", *flags, *common, *quiet.split(), "--output_dir", tmp_path / "trainer")
    loop(*flags, *common, "--max_train_steps", 8, "--num_warmup_steps", 4, "--output_dir", tmp_path / "loop")

    def rates(folder):
        log = json.loads((tmp_path / folder / "trainer_state.json").read_text())["log_history"]
        return [entry["learning_rate"] for entry in log if "loss" in entry]

    assert rates("loop") == pytest.approx(rates("trainer"), rel=1e-12)
    # RAdam does not move before update 6: until then only dropout tells the runs apart.
    assert losses(tmp_path / "loop")[:6] == pytest.approx(losses(tmp_path / "trainer")[:6], rel=0.05)
    first = [read_gradient_norms(tmp_path / folder)[0].keys() for folder in ("loop", "trainer")]
    assert first[0] == first[1]


def test_a_resumed_loop_is_bit_for_bit_the_loop_that_never_stopped(loop, flags, tmp_path):
    """An epoch is 3 updates of 4 micro-batches of 8 rows. Checkpoints at 2, 4 and 6 are in the middle of an epoch."""
    run_flags = [*flags, "--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 4]
    run_flags += ["--num_warmup_steps", 2, "--checkpointing_steps", 2]
    loop(*run_flags, "--max_train_steps", 8, "--output_dir", tmp_path / "whole")
    loop(*run_flags, "--max_train_steps", 8, "--output_dir", tmp_path / "stopped", "--checkpoints_total_limit", 2)
    (tmp_path / "stopped" / "checkpoint-8" / "optimizer.bin").write_bytes(b"half")
    folder = ("--output_dir", tmp_path / "stopped", "--resume_from_checkpoint", "auto")
    loop(*run_flags, "--max_train_steps", 8, *folder)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 8
    recordings = [(tmp_path / name / "gradient_norms.jsonl").read_bytes() for name in ("stopped", "whole")]
    assert recordings[0] == recordings[1]

    def kept():
        paths = [path for path in (tmp_path / "stopped").rglob("*") if path.is_file() and path.name != "config.json"]
        return {path: path.read_bytes() for path in paths}

    before = kept()
    assert "All 8 updates are made" in loop(*run_flags, "--max_train_steps", 8, *folder)
    assert kept() == before


def test_a_loop_stopped_by_a_signal_exits_with_its_code_and_continues_bit_for_bit(loop, flags, tmp_path, monkeypatch):
    run_flags = [*flags, "--num_warmup_steps", 2, "--max_train_steps", 6, "--stop_on_signal", "true"]
    loop(*run_flags, "--output_dir", tmp_path / "whole")
    resume = ("--output_dir", tmp_path / "stopped", "--resume_from_checkpoint", "auto")
    with monkeypatch.context() as patch:
        should_stop, calls = StopOnSignalCallback.should_stop, []

        def signal_in_update_3(self, device):
            calls.append(device)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return should_stop(self, device)

        patch.setattr(StopOnSignalCallback, "should_stop", signal_in_update_3)
        loop(*run_flags, *resume, rc=143)
    assert read_run(tmp_path / "stopped").status == "stopped on SIGTERM at update 3 of 6, to be resumed"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    loop(*run_flags, *resume)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert read_run(tmp_path / "stopped").end == "finished"


def test_the_loop_logs_losses_and_norms_to_trackers(loop, flags, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop(
        *flags,
        "--max_train_steps",
        2,
        "--logging_steps",
        2,
        "--output_dir",
        tmp_path,
        "--with_tracking",
        "--report_to",
        "tensorboard",
    )
    folders = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    tags = {tag for folder in folders for tag in EventAccumulator(str(folder)).Reload().Tags()["scalars"]}
    assert {"loss", "learning_rate", "grad_norm", "grad_norm/encoder.layer.0"} <= tags


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--optim", "radm"), "optim='radm' is unknown. Did you mean 'radam'?"),
        (("--num_warmup_steps", 40, "--max_train_steps", 20), "num_warmup_steps=40: expected at most the 20 updates"),
        (("--lr_scheduler_kwargs", "{"), "lr_scheduler_kwargs='{': expected JSON such as"),
        (("--gradient_accumulation_steps", 0), "gradient_accumulation_steps=0: expected an integer in [1, inf)"),
        (
            ("--checkpointing_steps", "often"),
            "checkpointing_steps='often': expected an integer in [1, inf) or 'epoch",
        ),
        (("--num_warmup_steps", 1.5), "num_warmup_steps=1.5: expected an integer, or a ratio in (0, 1)"),
        (("--warmup_ratio", 0.1), "--warmup_ratio is not an argument. Use --num_warmup_steps: a value below 1"),
        (("--lr_scheduler_type", "reduce_lr_on_plateau"), "lr_scheduler_type='reduce_lr_on_plateau' follows a metric"),
        (("--resume_from_checkpoint", "nowhere"), "resume_from_checkpoint='nowhere': there is no such folder."),
        (("--layerwise_lr_decay", 1.5), "layerwise_lr_decay=1.5: expected a finite number in (0, 1]"),
        (("--learning_rate_mapping", '{"clasifier": 1}'), "learning_rate_mapping: 'clasifier' matches no parameter"),
        (("--lerning_rate", 1), "--lerning_rate is not an argument. Did you mean --learning_rate?"),
    ],
)
def test_user_errors_are_one_line_before_training(loop, flags, tmp_path, more, sentence):
    said = loop(*flags, "--output_dir", tmp_path / "run", *more, rc=2)
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: {sentence}")
    assert not (tmp_path / "run").exists()
