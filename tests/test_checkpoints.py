"""Checkpoints: a whole one is whole, every kind of damage is named by its file, and the last whole one is found."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from transformers import TrainerCallback

from hf_warmup import WarmupTrainer
from hf_warmup.checkpoints import checkpoints, find_corruption, raise_on_full_disk, resolve_checkpoint
from hf_warmup.norms import GradientNormRecorder, read_gradient_norms

from .testing_utils import FROM_SCRATCH, arguments, column, examples, run, tiny_bert, train, write_task


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A Trainer's run of 8 updates with checkpoints at 2, 4, 6 and 8."""
    folder = tmp_path_factory.mktemp("saved")
    run(folder, save_strategy="steps", save_steps=2)
    return folder


@pytest.fixture
def runs(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "run"))


def test_checkpoints_are_listed_by_number(runs):
    (runs / "checkpoint-10").mkdir()
    (runs / "checkpoint-x").mkdir()
    assert [path.name for path in checkpoints(runs)] == [f"checkpoint-{n}" for n in (2, 4, 6, 8, 10)]


def test_what_the_trainer_saved_is_whole(runs):
    assert [find_corruption(path, tiny_bert()) for path in checkpoints(runs)] == [None] * 4
    assert resolve_checkpoint(True, runs, tiny_bert()) == runs / "checkpoint-8"
    assert resolve_checkpoint(str(runs / "checkpoint-4"), runs) == runs / "checkpoint-4"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def another_thing(path):
    path.write_bytes(b"these are not the bytes you are looking for" * 100)


def gone(path):
    path.unlink()


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json"]


@pytest.mark.parametrize("harm", [cut, empty, another_thing])
@pytest.mark.parametrize("file", FILES)
def test_damage_is_named_and_an_older_checkpoint_offered(runs, file, harm):
    harm(runs / "checkpoint-8" / file)
    with pytest.raises(ValueError, match=rf"{file} is (cut off|empty).*the last whole checkpoint is .*checkpoint-6\."):
        resolve_checkpoint(runs / "checkpoint-8", runs)
    assert resolve_checkpoint("true", runs) == runs / "checkpoint-6"


@pytest.mark.parametrize("file", ["model.safetensors", "trainer_state.json"])
def test_a_save_that_did_not_finish_is_seen(runs, file):
    gone(runs / "checkpoint-8" / file)
    assert find_corruption(runs / "checkpoint-8") is not None
    assert resolve_checkpoint(True, runs) == runs / "checkpoint-6"


def test_another_models_files_are_refused(runs, tmp_path):
    other = tmp_path / "other"
    run(other, model=tiny_bert(hidden_size=8), save_strategy="steps", save_steps=8)
    for file, said in (("model.safetensors", "of another model"), ("optimizer.pt", "of another model")):
        shutil.copy(other / "checkpoint-8" / file, runs / "checkpoint-8" / file)
        assert said in find_corruption(runs / "checkpoint-8", tiny_bert())
        assert find_corruption(runs / "checkpoint-8", tiny_bert()).startswith(file)
        shutil.copy(runs / "checkpoint-6" / file, runs / "checkpoint-8" / file)
    save_file({"weight": torch.zeros(1)}, runs / "checkpoint-8" / "model.safetensors")
    assert find_corruption(runs / "checkpoint-8", tiny_bert()).startswith("model.safetensors is of another model")
    torch.save([1, 2], runs / "checkpoint-6" / "optimizer.pt")
    assert find_corruption(runs / "checkpoint-6", tiny_bert()) == "optimizer.pt is not the state of an optimizer"


def test_nothing_in_a_checkpoint_is_executed(runs, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"state": Evil(), "param_groups": []}, runs / "checkpoint-8" / "optimizer.pt")
    assert find_corruption(runs / "checkpoint-8", tiny_bert()).startswith("optimizer.pt")
    torch.save({"last_epoch": Evil()}, runs / "checkpoint-6" / "scheduler.pt")
    trainer = WarmupTrainer(tiny_bert(), arguments(runs), train_dataset=examples())
    with pytest.raises(Exception, match=r"(?i)weights.?only"):
        train(trainer, resume_from_checkpoint=str(runs / "checkpoint-6"))
    assert not (tmp_path / "executed").exists()


def test_a_missing_random_state_of_a_process_is_seen(runs):
    shutil.move(runs / "checkpoint-8" / "rng_state.pth", runs / "checkpoint-8" / "rng_state_0.pth")
    assert find_corruption(runs / "checkpoint-8", num_processes=1) is None
    assert "rng_state_1.pth is missing" in find_corruption(runs / "checkpoint-8", num_processes=2)


def test_no_checkpoint_at_all(tmp_path):
    assert resolve_checkpoint("auto", tmp_path) is None
    with pytest.raises(ValueError, match="has no checkpoint to go on from"):
        resolve_checkpoint(True, tmp_path)
    with pytest.raises(ValueError, match="there is no such folder"):
        resolve_checkpoint("nowhere", tmp_path)


def test_the_trainer_passes_over_a_half_checkpoint(saved, runs):
    """And goes on to what the whole run logged."""
    cut(runs / "checkpoint-8" / "optimizer.pt")
    trainer = WarmupTrainer(tiny_bert(), arguments(runs), train_dataset=examples())
    log = train(trainer, resume_from_checkpoint="auto")
    state = json.loads((saved / "checkpoint-8" / "trainer_state.json").read_text())
    assert column(log, "loss") == [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert [record["step"] for record in read_gradient_norms(runs)] == list(range(1, 9))


def test_a_full_disk_in_any_librarys_words(runs):
    for error in (OSError(errno.ENOSPC, "No space left"), RuntimeError("I/O error: No space left (os error 28)")):
        with pytest.raises(OSError, match=r"No space left on the disk of .*checkpoint-8 is whole") as caught:  # noqa: SIM117
            with raise_on_full_disk(runs):
                raise error
        assert caught.value.__cause__ is error
    with pytest.raises(RuntimeError, match="something else"), raise_on_full_disk(runs):
        raise RuntimeError("something else")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_a_run_and_leaves_the_earlier_checkpoints(small_disk):
    """Checkpoints of 200 kB: the first ones fit."""
    model = tiny_bert(hidden_size=32)
    trainer = WarmupTrainer(
        model, arguments(small_disk, max_steps=40, save_strategy="steps", save_steps=1), train_dataset=examples()
    )
    with pytest.raises(OSError, match=r"No space left on the disk of .*/disk; .*checkpoint-\d+ is whole: make room"):
        train(trainer)
    whole = resolve_checkpoint(True, small_disk, model)
    assert int(whole.name.split("-")[1]) >= 2
    steps = [record["step"] for record in read_gradient_norms(small_disk)]
    assert steps == list(range(1, len(steps) + 1))  # no half line, no gap
    assert len(steps) >= int(whole.name.split("-")[1])


def test_a_full_disk_ends_the_loops_script_with_that_sentence(script, small_disk, tmp_path, monkeypatch):
    write_task(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    files = ("--train_file", tmp_path / "train.tsv", "--validation_file", tmp_path / "dev.tsv", "--task_name", "sst2")
    flags = ("--tokenizer_name", tmp_path / "vocabulary", "--max_length", 8, *FROM_SCRATCH, "--checkpointing_steps", 1)
    _, said = script("finetune_bert_no_trainer.py", *files, *flags, "--output_dir", small_disk, rc=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    whole = checkpoints(small_disk)[-1]
    assert line.endswith(f"No space left on the disk of {small_disk}; {whole} is whole: make room and resume from it")
    assert [find_corruption(path) for path in checkpoints(small_disk)] == [None] * len(checkpoints(small_disk))
    assert not list(small_disk.glob("*.unfinished"))


def test_the_recording_is_appended_whole_or_not_at_all(small_disk):
    path = small_disk / "gradient_norms.jsonl"
    recorder = GradientNormRecorder(path, group_by="parameter")
    p = torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.ones(1)
    recorder.record([("first", p)], step=1)
    recorder.flush()
    before = path.read_bytes()
    (small_disk / "other").write_bytes(b"x" * (2**20 - 2 * 4096))  # room for less than the next lines
    many = [(f"a_rather_long_name_{i}", p) for i in range(400)]
    for step in range(2, 5):
        recorder.record(many, step)
    with pytest.raises(OSError, match="No space left"):
        recorder.flush()
    assert path.read_bytes() == before
    (small_disk / "other").unlink()
    recorder.flush()  # what could not be written is still there
    assert [record["step"] for record in read_gradient_norms(path)] == [1, 2, 3, 4]


def test_auto_begins_anew_only_after_a_first_save_that_was_cut_off(runs):
    for path in checkpoints(runs)[1:]:
        shutil.rmtree(path)
    cut(runs / "checkpoint-2" / "optimizer.pt")
    assert resolve_checkpoint("auto", runs) is None
    shutil.copytree(runs / "checkpoint-2", runs / "checkpoint-4")
    with pytest.raises(
        ValueError, match=r"no checkpoint to go on from \(checkpoint-4: optimizer.pt is cut.*checkpoint-2: "
    ):
        resolve_checkpoint("auto", runs)


def test_auto_refuses_another_models_run(runs):
    for path in checkpoints(runs)[1:]:
        shutil.rmtree(path)
    with pytest.raises(ValueError, match=r"model.safetensors is of another model"):
        resolve_checkpoint("auto", runs, tiny_bert(hidden_size=8))


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt"])
def test_a_file_that_is_gone_is_damage(runs, file):
    gone(runs / "checkpoint-8" / file)
    assert find_corruption(runs / "checkpoint-8") == f"{file} is missing"


def test_a_runs_folder_is_no_checkpoint(runs):
    with pytest.raises(ValueError, match=r"this is a run's folder; the last whole checkpoint is .*checkpoint-8"):
        resolve_checkpoint(runs, "elsewhere")


def test_a_checkpoint_of_a_longer_run_is_refused(runs):
    trainer = WarmupTrainer(tiny_bert(), arguments(runs, max_steps=6), train_dataset=examples())
    with pytest.raises(ValueError, match="has made 8 updates, this run is to make 6"):
        train(trainer, resume_from_checkpoint="auto")


def test_a_run_that_begins_where_another_has_saved_says_so(runs, caplog):
    with caplog.at_level("WARNING"):
        run(runs, max_steps=1)
    assert "holds checkpoints of an earlier run, the last checkpoint-8" in caplog.text


def resumed(folder, checkpoint, **kwargs):
    trainer = WarmupTrainer(tiny_bert(), arguments(folder, **kwargs), train_dataset=examples())
    return train(trainer, resume_from_checkpoint=str(checkpoint))


def test_a_factored_state_is_of_its_model(tmp_path):
    """Adafactor keeps rows and columns, whose shapes no parameter has."""
    kwargs = {"optim": "adafactor", "save_strategy": "steps", "save_steps": 4}
    whole = run(tmp_path, **kwargs)
    assert column(resumed(tmp_path, tmp_path / "checkpoint-4", **kwargs), "loss") == column(whole, "loss")
    run(tmp_path / "other", model=tiny_bert(hidden_size=8), **kwargs)
    shutil.copy(tmp_path / "other" / "checkpoint-4" / "optimizer.pt", tmp_path / "checkpoint-4")
    said = "optimizer.pt is of another model (no parameter has the shape [8] of its exp_avg_sq)"
    assert find_corruption(tmp_path / "checkpoint-4", tiny_bert()) == said


def test_a_run_resumed_with_other_settings_says_which(runs, caplog):
    trainer = WarmupTrainer(
        tiny_bert(), arguments(runs, max_steps=10, learning_rate=2e-2, optim="radam"), train_dataset=examples()
    )
    with caplog.at_level("WARNING"):
        train(trainer, resume_from_checkpoint="auto")
    assert "learning_rate was 0.01, is 0.02" in caplog.text
    assert "optim was adamw_torch_fused, is radam" in caplog.text
    assert "max_steps was 8, is 10" in caplog.text


class Stop(TrainerCallback):
    """Before a first checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def test_the_settings_compared_are_those_of_the_checkpoint(runs, caplog):
    """Not those of an attempt since then, which may have come to nothing."""
    attempt = WarmupTrainer(tiny_bert(), arguments(runs, learning_rate=7e-3), train_dataset=examples())
    attempt.add_callback(Stop())
    train(attempt)  # writes its settings, and saves nothing
    with caplog.at_level("WARNING"):
        train(
            WarmupTrainer(tiny_bert(), arguments(runs, max_steps=10, learning_rate=2e-2), train_dataset=examples()),
            resume_from_checkpoint=str(runs / "checkpoint-4"),
        )
    assert "learning_rate was 0.01, is 0.02" in caplog.text


def test_without_a_copy_those_of_the_folder_are_compared(runs, caplog):
    gone(runs / "checkpoint-8" / "run_settings.json")
    trainer = WarmupTrainer(tiny_bert(), arguments(runs, max_steps=10), train_dataset=examples())
    with caplog.at_level("WARNING"):
        train(trainer, resume_from_checkpoint="auto")
    assert "max_steps was 8, is 10" in caplog.text


@pytest.mark.parametrize(
    ("before", "now", "rates"),
    [
        # transformers' linear from the old peak of 1e-2 over the new 10 updates, warmup of 2; update 5 is the old one's
        (
            {"lr_scheduler_type": "constant"},
            {"lr_scheduler_type": "linear", "warmup_steps": 2},
            [1e-2, *(1e-2 * (10 - step) / 8 for step in range(5, 10))],
        ),
        # ours: Noam's sqrt(W / t) with the new W
        (
            {"lr_scheduler_type": "noam", "warmup_steps": 4},
            {"lr_scheduler_type": "noam", "warmup_steps": 9},
            [1e-2 * (4 / 5) ** 0.5, 1e-2 * 6 / 9, 1e-2 * 7 / 9, 1e-2 * 8 / 9, 1e-2, 1e-2 * (9 / 10) ** 0.5],
        ),
    ],
)
def test_what_goes_on_with_other_settings(tmp_path, caplog, before, now, rates):
    run(tmp_path, save_strategy="steps", save_steps=4, max_steps=4, weight_decay=0.1, **before)
    args = arguments(tmp_path, max_steps=10, learning_rate=5e-2, weight_decay=0.2, **now)
    trainer = WarmupTrainer(tiny_bert(), args, train_dataset=examples())
    with caplog.at_level("WARNING"):
        log = train(trainer, resume_from_checkpoint="auto")
    assert column(log, "learning_rate")[4:] == pytest.approx(rates)
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.1
    assert "Kept from the checkpoint: the optimizer's options (peak learning rate, " in caplog.text
    assert "New, from the second update on: the shape, warmup and length of any other schedule." in caplog.text
