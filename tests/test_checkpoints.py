"""Checkpoints: every damage is named, the latest complete checkpoint is resumed, and nothing complete is deleted."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback

from hf_warmup import WarmupTrainer
from hf_warmup.checkpoints import (
    LOCK_FILE,
    MANIFEST_FILE,
    UNFINISHED,
    _manifest_text,
    checkpoints,
    complete_with_manifest,
    delete_old_checkpoints,
    find_corruption,
    lock_output_dir,
    raise_on_full_disk,
    read_manifest,
    resolve_checkpoint,
)
from hf_warmup.norms import GradientNormRecorder, read_gradient_norms
from hf_warmup.report.run import write_run_settings
from hf_warmup.resuming import check_same_kind, keep_finished_warmup, prepare_resume

from .testing_utils import FROM_SCRATCH, arguments, column, examples, run, tiny_bert, train, write_task


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a Trainer's run of 8 updates with checkpoints at 2, 4, 6 and 8."""
    folder = tmp_path_factory.mktemp("saved")
    run(folder, save_strategy="steps", save_steps=2)
    return folder


@pytest.fixture
def runs(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.fixture
def plain_runs(runs):
    """The same as transformers itself would have saved it."""
    for path in checkpoints(runs):
        (path / MANIFEST_FILE).unlink()
    return runs


def resumed(folder, checkpoint="auto", callbacks=(), model=None, **kwargs):
    trainer = WarmupTrainer(
        model or tiny_bert(), arguments(folder, **kwargs), train_dataset=examples(), callbacks=list(callbacks)
    )
    train(trainer, resume_from_checkpoint=str(checkpoint))
    return trainer


def losses(trainer):
    return column([entry for entry in trainer.state.log_history if "loss" in entry], "loss")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Choosing


def test_checkpoints_are_sorted_by_number(runs):
    (runs / "checkpoint-10").mkdir()
    (runs / "checkpoint-x").mkdir()
    assert [path.name for path in checkpoints(runs)] == [f"checkpoint-{n}" for n in (2, 4, 6, 8, 10)]


@pytest.mark.parametrize("folder", ["runs", "plain_runs"])
def test_resolve_checkpoint_returns_complete_checkpoints(request, folder):
    folder = request.getfixturevalue(folder)
    assert [find_corruption(path, tiny_bert()) for path in checkpoints(folder)] == [None] * 4
    assert resolve_checkpoint(True, folder, tiny_bert()) == folder / "checkpoint-8"
    assert resolve_checkpoint(str(folder / "checkpoint-4"), folder) == folder / "checkpoint-4"


def test_resolve_checkpoint_without_checkpoints(tmp_path):
    assert resolve_checkpoint("auto", tmp_path) is None
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        resolve_checkpoint(True, tmp_path)
    with pytest.raises(ValueError, match="there is no such folder"):
        resolve_checkpoint("nowhere", tmp_path)


def test_resolve_checkpoint_refuses_the_folder_of_a_run(runs):
    with pytest.raises(ValueError, match=r"the folder of a run, not a checkpoint. The latest .* is .*checkpoint-8"):
        resolve_checkpoint(runs, "elsewhere")


def test_auto_starts_from_scratch_only_if_no_save_has_finished(runs, caplog):
    for path in checkpoints(runs)[1:]:
        shutil.rmtree(path)
    with pytest.raises(RuntimeError, match="killed"), complete_with_manifest(runs / "checkpoint-4", 4):
        raise RuntimeError("killed")
    assert find_corruption(runs / "checkpoint-4") == UNFINISHED
    assert resolve_checkpoint("auto", runs) == runs / "checkpoint-2"
    (runs / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no complete checkpoint \(checkpoint-4: the save.*checkpoint-2: optimizer"):
        resolve_checkpoint("auto", runs)
    shutil.rmtree(runs / "checkpoint-2")
    with caplog.at_level("WARNING"):
        assert resolve_checkpoint("auto", runs) is None
    assert "Starting from scratch, because there is no complete checkpoint (checkpoint-4: the save" in caplog.text


# Damage


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 4
    path.write_bytes(bytes(data))


def replace_by(make):
    def damage(path):
        path.unlink()
        make(path)

    return damage


def from_earlier_checkpoint(path):
    shutil.copy(str(path).replace("checkpoint-8", "checkpoint-6"), path)


DAMAGES = {
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: path.write_bytes(b""),
    "a byte too many": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a bit flipped": lambda path: flip(path, 3 * path.stat().st_size // 5),
    "a page of zeros": lambda path: path.write_bytes(bytes(len(path.read_bytes()[:4096])) + path.read_bytes()[4096:]),
    "something else": lambda path: path.write_bytes(b"these are not the bytes you are looking for" * 100),
    "of an earlier checkpoint": from_earlier_checkpoint,
    "gone": lambda path: path.unlink(),
    "a folder": replace_by(Path.mkdir),
    "a pipe": replace_by(os.mkfifo),
    "a device": replace_by(lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": replace_by(lambda path: path.symlink_to("nothing")),
}
FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
MORE_FILES = ["config.json", "training_args.bin", "run_settings.json", "gradient_norms.jsonl", "warmup_guard.pt"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES + MORE_FILES)
def test_any_damage_is_named_and_the_checkpoint_before_is_resumed(runs, file, damage):
    """The property that makes a resumed run safe, for every file that is saved and every kind of damage."""
    path = runs / "checkpoint-8" / file
    before = path.read_bytes()
    DAMAGES[damage](path)
    if path.is_file() and path.read_bytes() == before:
        return  # the same in every checkpoint
    assert find_corruption(path.parent).startswith(file)
    assert resolve_checkpoint("auto", runs) == runs / "checkpoint-6"
    with pytest.raises(ValueError, match=rf"{file} .*\. The latest complete checkpoint is .*checkpoint-6\."):
        resolve_checkpoint(path.parent, runs)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_never_hides_other_damage(runs, damage):
    checkpoint = runs / "checkpoint-8"
    DAMAGES[damage](checkpoint / MANIFEST_FILE)
    (checkpoint / "optimizer.pt").write_bytes(b"")
    assert resolve_checkpoint("auto", runs) == runs / "checkpoint-6"


def parts(path):
    """What a reader makes of a file: neither the space between the entries of an archive nor that of JSON."""
    if not zipfile.is_zipfile(path):
        return json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "of an earlier checkpoint"])
@pytest.mark.parametrize("file", FILES)
def test_damage_that_changes_the_content_is_named_without_a_manifest(plain_runs, file, damage):
    """Only the archives of torch have checksums: a bit flipped in other files can be noticed with a manifest only."""
    path = plain_runs / "checkpoint-8" / file
    before = parts(path)
    DAMAGES[damage](path)
    expected = {
        ("model.safetensors", "gone"): "model.safetensors is missing",
        ("trainer_state.json", "gone"): UNFINISHED,
        ("rng_state.pth", "gone"): "rng_state.pth or random_states_0.pkl is missing",
        ("model.safetensors", "a bit flipped"): None,
        ("trainer_state.json", "a bit flipped"): None,
    }
    problem = find_corruption(path.parent)
    if (file, damage) in expected:
        assert problem == expected[file, damage]
    else:
        assert parts(path) == before if problem is None else problem.startswith(file)


WRONG_STATES = ["[]", "null", "{}", '"text"', "[" * 10**5, '{"global_step": 8, "log_history": []}']


@pytest.mark.parametrize("text", WRONG_STATES)
def test_a_trainer_state_of_the_wrong_kind_is_named(plain_runs, text):
    (plain_runs / "checkpoint-8" / "trainer_state.json").write_text(text)
    assert find_corruption(plain_runs / "checkpoint-8").startswith("trainer_state.json ")


@pytest.mark.parametrize(
    "wrong",
    [{"global_step": "8"}, {"global_step": 6}, {"log_history": {}}, {"epoch": "a"}, {"max_steps": []}, {"new": 1}],
)
def test_a_trainer_state_with_a_value_of_the_wrong_kind_is_named(plain_runs, wrong):
    path = plain_runs / "checkpoint-8" / "trainer_state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    assert find_corruption(path.parent).startswith("trainer_state.json ")


def test_a_missing_optimizer_state_is_named_without_a_manifest(plain_runs):
    """transformers would silently continue with a new optimizer and a schedule from its beginning."""
    for name in ("optimizer.pt", "scheduler.pt"):
        (plain_runs / "checkpoint-8" / name).unlink()
    assert find_corruption(plain_runs / "checkpoint-8") == "optimizer.pt or optimizer.bin is missing"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_damaged_checkpoint_is_replaced_when_the_run_reaches_it_again(runs, make):
    shutil.rmtree(runs / "checkpoint-8")
    (runs / "checkpoint-6" / "optimizer.pt").unlink()
    make(runs / "checkpoint-6" / "optimizer.pt")
    resumed(runs, save_strategy="steps", save_steps=2)
    assert [find_corruption(path) for path in checkpoints(runs)] == [None] * 4


def test_weights_in_shards_are_checked(plain_runs):
    folder = plain_runs / "checkpoint-8"
    tiny_bert().save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert find_corruption(folder, tiny_bert()) is None
    assert "is of another model (" in find_corruption(folder, tiny_bert(hidden_size=8))
    shard = min(folder.glob("model-*.safetensors"))
    os.truncate(shard, 100)
    assert find_corruption(folder).startswith(f"{shard.name} is damaged")
    shard.unlink()
    assert find_corruption(folder) == f"{shard.name} is missing"


def test_states_of_the_wrong_kind_are_named(plain_runs):
    checkpoint = plain_runs / "checkpoint-8"
    wrong = [
        ("optimizer.pt", {"state": {}}),
        ("optimizer.pt", {"state": [], "param_groups": {}}),
        ("scheduler.pt", [1]),
        ("rng_state.pth", {"python": 0}),
        ("rng_state.pth", {"python": 1, "numpy": 1, "cpu": 1}),
        ("batch_rng_state_0.pth", {"python": 1}),
        ("warmup_guard.pt", [1]),
    ]
    for file, content in wrong:
        torch.save(content, checkpoint / file)
        assert find_corruption(checkpoint).startswith(f"{file} ")
        shutil.copy(plain_runs / "checkpoint-6" / file, checkpoint / file)


@pytest.mark.parametrize("folder", ["runs", "plain_runs"])
def test_files_of_the_user_are_not_judged(request, folder):
    checkpoint = request.getfixturevalue(folder) / "checkpoint-8"
    for name in ("sampler.pkl", "index.bin", "model_ema.safetensors", "optimizer_old.bin", "my.index.json"):
        (checkpoint / name).write_bytes(b'{"a": 1}\n{"a": 2}\n')
    os.mkfifo(checkpoint / "pipe")
    assert find_corruption(checkpoint, tiny_bert()) is None


def test_the_manifest_lists_what_the_save_has_written(runs):
    checkpoint = runs / "checkpoint-8"
    manifest = read_manifest(checkpoint)
    assert (manifest["global_step"], manifest["num_processes"]) == (8, 1)
    assert set(FILES + MORE_FILES) == manifest["files"].keys()
    assert manifest["files"]["model.safetensors"]["bytes"] == (checkpoint / "model.safetensors").stat().st_size
    with complete_with_manifest(checkpoint, 8):  # saved again, beside files of an earlier attempt and of the user
        (checkpoint / "trainer_state.json").write_text("{}")
    assert read_manifest(checkpoint)["files"].keys() == {"trainer_state.json"}


def test_nothing_in_a_checkpoint_is_executed(plain_runs, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    for file, content in (("optimizer.pt", {"state": Evil(), "param_groups": []}), ("scheduler.pt", {"a": Evil()})):
        torch.save(content, plain_runs / "checkpoint-8" / file)
        assert find_corruption(plain_runs / "checkpoint-8", tiny_bert()).startswith(file)
        shutil.copy(plain_runs / "checkpoint-6" / file, plain_runs / "checkpoint-8" / file)
    assert not (tmp_path / "executed").exists()


# Another model


def test_weights_of_another_model_are_named(runs, tmp_path):
    problem = find_corruption(runs / "checkpoint-8", tiny_bert(hidden_size=8))
    assert problem.startswith("model.safetensors is of another model (")
    with pytest.raises(ValueError, match=r"model.safetensors is of another model"):
        resolve_checkpoint("auto", runs, tiny_bert(hidden_size=8))
    assert "none of its parameters" in find_corruption(runs / "checkpoint-8", torch.nn.Linear(2, 2))


def test_buffers_may_have_another_size(plain_runs):
    path, model = plain_runs / "checkpoint-8" / "model.safetensors", tiny_bert()
    model.register_buffer("seen", torch.zeros(0))
    save_file({**load_file(path), "seen": torch.zeros(5)}, path)
    assert find_corruption(path.parent, model) is None


def test_optimizer_state_of_another_model_is_named_by_parameter(tmp_path):
    def optimizer(*shapes):
        parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
        made = torch.optim.AdamW(parameters)
        sum((p**2).sum() for p in parameters).backward()
        made.step()
        return made

    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer(2), total_iters=1)
    torch.save(optimizer((2, 3), 3).state_dict(), tmp_path / "optimizer.pt")
    check_same_kind(tmp_path, optimizer((2, 3), 3), schedule)
    with pytest.raises(
        ValueError, match=r"of other trained parameters: its groups have \[2\] .*, those of this run \[1\]"
    ):
        check_same_kind(tmp_path, optimizer((2, 3)), schedule)


def test_a_factored_optimizer_resumes(tmp_path):
    """Adafactor keeps rows and columns, whose shapes are not those of a parameter."""
    kwargs = {"optim": "adafactor", "save_strategy": "steps", "save_steps": 4}
    whole = run(tmp_path, **kwargs)
    assert losses(resumed(tmp_path, tmp_path / "checkpoint-4", **kwargs)) == column(whole, "loss")


# Resuming


def test_the_trainer_skips_a_damaged_checkpoint_and_gives_the_same_run(saved, runs):
    os.truncate(runs / "checkpoint-8" / "optimizer.pt", 1000)
    trainer = resumed(runs)
    state = json.loads((saved / "checkpoint-8" / "trainer_state.json").read_text())
    assert losses(trainer) == [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert [record["step"] for record in read_gradient_norms(runs)] == list(range(1, 9))


@pytest.mark.parametrize("length", [{}, {"max_steps": -1, "num_train_epochs": 1}])
def test_a_finished_run_trains_nothing_and_changes_no_file(runs, length, caplog):
    """64 examples in batches of 8: an epoch is 8 updates."""
    before = contents(runs)
    with caplog.at_level("WARNING"):
        trainer = resumed(runs, save_strategy="epoch", **length)
    assert "All 8 updates are made: nothing is left to train." in caplog.text
    assert trainer.state.global_step == 8
    expected = load_file(runs / "checkpoint-8" / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in trainer.model.state_dict().items())
    now = contents(runs)
    assert {name: data for name, data in now.items() if name in before} == before


def test_a_finished_run_inside_an_epoch_trains_nothing(tmp_path):
    kwargs = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    trained = WarmupTrainer(tiny_bert(), arguments(tmp_path, **kwargs), train_dataset=examples()).train()
    for _ in range(2):
        trainer = WarmupTrainer(tiny_bert(), arguments(tmp_path, **kwargs), train_dataset=examples())
        output = trainer.train("auto")
        assert (output.global_step, trainer.state.global_step) == (3, 3)
        assert output.metrics["train_loss"] == output.training_loss == trained.training_loss


def test_a_finished_run_loads_its_best_model(tmp_path):
    kwargs = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    kwargs |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 10.0}

    def best():
        trainer = WarmupTrainer(
            tiny_bert(), arguments(tmp_path, **kwargs), train_dataset=examples(), eval_dataset=examples(8)
        )
        train(trainer, resume_from_checkpoint="auto")
        return trainer.model.classifier.weight

    assert torch.equal(best(), best())


def test_a_checkpoint_of_a_longer_run_is_refused(runs):
    with pytest.raises(ValueError, match="has made 8 updates, but this run makes 6"):
        resumed(runs, max_steps=6)


def test_a_run_from_scratch_warns_of_existing_checkpoints(runs, caplog):
    with caplog.at_level("WARNING"):
        run(runs, max_steps=1)
    assert "has checkpoints of an earlier run, the last checkpoint-8" in caplog.text


def test_the_recording_travels_with_the_checkpoint(runs, tmp_path):
    shutil.copytree(runs / "checkpoint-4", tmp_path / "other" / "checkpoint-4")
    resumed(tmp_path / "other")
    assert (tmp_path / "other/gradient_norms.jsonl").read_bytes() == (runs / "gradient_norms.jsonl").read_bytes()


def test_another_number_of_processes_is_one_warning(runs, caplog):
    path = runs / "checkpoint-8" / MANIFEST_FILE
    path.write_text(_manifest_text({**read_manifest(path.parent), "num_processes": 2}))
    with caplog.at_level("WARNING"):
        assert prepare_resume("auto", runs) == runs / "checkpoint-8"
    assert len(caplog.records) == 1
    assert "saved by 2 processes and is resumed by 1" in caplog.text
    assert "averages 0.5 times as many examples" in caplog.text


@pytest.mark.parametrize(("step", "warmup_steps"), [(22, 16), (16, 16), (15, 0.25)])
def test_keep_finished_warmup_keeps_a_warmup_that_is_over(tmp_path, caplog, step, warmup_steps):
    """An epoch of 32 updates is one of 64 with half the processes: a quarter of two epochs is 32 updates, not 16."""
    write_run_settings(tmp_path, {}, {}, 64, 16)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    args = arguments(tmp_path, max_steps=-1, num_train_epochs=2, warmup_steps=0.25)
    keep_finished_warmup(tmp_path, args, 64)
    assert not caplog.records
    with caplog.at_level("WARNING"):
        keep_finished_warmup(tmp_path, args, 128)
    assert "planned with 64 updates, 16 of them warmup, and now has 128 and 32" in caplog.text
    assert args.warmup_steps == warmup_steps


class Stop(TrainerCallback):
    """Stops before the first checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


@pytest.mark.parametrize("copy", [True, False])
def test_a_resumed_run_warns_of_settings_other_than_those_of_its_checkpoint(runs, caplog, copy):
    """An attempt that saved nothing does not count, unless the checkpoint has no settings."""
    attempt = WarmupTrainer(tiny_bert(), arguments(runs, learning_rate=7e-3), train_dataset=examples())
    attempt.add_callback(Stop())
    train(attempt)
    if not copy:
        (runs / "checkpoint-8" / "run_settings.json").unlink()
        (runs / "checkpoint-8" / MANIFEST_FILE).unlink()
    with caplog.at_level("WARNING"):
        resumed(runs, max_steps=10, learning_rate=2e-2, optim="radam")
    assert f"learning_rate was {0.01 if copy else 0.007}, is 0.02" in caplog.text
    assert "optim was adamw_torch_fused, is radam" in caplog.text
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
        # Noam: sqrt(W / t) with the new W
        (
            {"lr_scheduler_type": "noam", "warmup_steps": 4},
            {"lr_scheduler_type": "noam", "warmup_steps": 9},
            [1e-2 * (4 / 5) ** 0.5, 1e-2 * 6 / 9, 1e-2 * 7 / 9, 1e-2 * 8 / 9, 1e-2, 1e-2 * (9 / 10) ** 0.5],
        ),
    ],
)
def test_a_resumed_run_keeps_optimizer_options_and_takes_the_new_schedule(tmp_path, caplog, before, now, rates):
    run(tmp_path, save_strategy="steps", save_steps=4, max_steps=4, weight_decay=0.1, **before)
    with caplog.at_level("WARNING"):
        trainer = resumed(tmp_path, max_steps=10, learning_rate=5e-2, weight_decay=0.2, **now)
    log = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert log[4:] == pytest.approx(rates)
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.1
    assert "optimizer's options (peak learning rate, " in caplog.text


# Deleting


def test_private_methods_of_the_trainer_exist():
    """`save_trainer_checkpoint` and a finished run need them, and no public method does the same."""
    for name in ("_save_checkpoint", "_get_output_dir", "_load_best_model", "_load_from_checkpoint", "_save"):
        assert callable(getattr(Trainer, name))


def test_the_trainer_keeps_as_many_checkpoints_as_it_should(tmp_path):
    run(tmp_path, save_strategy="steps", save_steps=2, save_total_limit=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-8"]
    kept = torch.load(tmp_path / "checkpoint-8" / "training_args.bin", weights_only=False)
    assert kept.save_total_limit == 2


@pytest.mark.parametrize(
    ("limit", "keep", "left"),
    [
        (None, None, [2, 4, 6, 8]),
        (3, None, [2, 4, 6]),
        (2, None, [4, 6]),
        (1, None, [6]),
        (1, 2, [2, 6]),
        (2, 8, [6, 8]),
    ],
)
def test_delete_old_checkpoints_keeps_the_newest_whatever_the_clock(tmp_path, limit, keep, left):
    """The newest is 6: checkpoint-8 is of an earlier run. The times are in reverse."""
    for step in (2, 4, 6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (10**9 - step, 10**9 - step))
    delete_old_checkpoints(tmp_path / "checkpoint-6", limit, keep and tmp_path / f"checkpoint-{keep}")
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]


def test_leftovers_of_killed_saves_and_deletions_are_cleared(runs):
    for name in (".deleting-checkpoint-2", ".saving-checkpoint-9"):
        (runs / name).mkdir()
    with lock_output_dir(runs):
        assert [path.name for path in runs.glob(".*")] == [LOCK_FILE]
    assert not list(runs.glob(".*"))


# The output folder


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    hold = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX)\n"
    hold += "print('process 7 on a', file=file, flush=True); print(1, flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", hold, tmp_path / LOCK_FILE], stdin=-1, stdout=-1, text=True)
    try:
        assert holder.stdout.readline() == "1\n"
        with pytest.raises(ValueError, match=r"is in use by another run .process 7 on a"):
            run(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    assert len(run(tmp_path, max_steps=1)) == 1  # killed: the lock is free


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level("WARNING"):
        assert len(run(tmp_path / "file" / "out", max_steps=1)) == 1
    assert "out cannot be written." in caplog.text


def test_raise_on_full_disk_knows_the_words_of_any_library(runs):
    for error in (OSError(errno.ENOSPC, "No space left"), RuntimeError("I/O error: No space left (os error 28)")):
        with pytest.raises(OSError, match=r"No space left on the disk of .*checkpoint-8, which is complete") as caught:  # noqa: SIM117
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
    with pytest.raises(OSError, match=r"No space left on the disk of .*/disk. Free .* from .*checkpoint-\d+, which is"):
        train(trainer)
    complete = resolve_checkpoint(True, small_disk, model)
    assert int(complete.name.split("-")[1]) >= 2
    steps = [record["step"] for record in read_gradient_norms(small_disk)]
    assert steps == list(range(1, len(steps) + 1))  # no half line, no gap
    assert len(steps) >= int(complete.name.split("-")[1])


def test_a_full_disk_ends_the_script_of_the_loop_with_one_error(script, small_disk, tmp_path, monkeypatch):
    write_task(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    files = ("--train_file", tmp_path / "train.tsv", "--validation_file", tmp_path / "dev.tsv", "--task_name", "sst2")
    flags = ("--tokenizer_name", tmp_path / "vocabulary", "--max_length", 8, *FROM_SCRATCH, "--checkpointing_steps", 1)
    _, said = script("finetune_bert_no_trainer.py", *files, *flags, "--output_dir", small_disk, rc=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    last = checkpoints(small_disk)[-1]
    assert line.endswith(f"of {small_disk}. Free some space and resume from {last}, which is complete")
    assert [find_corruption(path) for path in checkpoints(small_disk)] == [None] * len(checkpoints(small_disk))
    assert not list(small_disk.glob(".saving*"))


def test_a_full_disk_leaves_no_incomplete_line_in_the_recording(small_disk):
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
