"""Optimizers, schedules and checkpoints of an Accelerate loop in one process; test_multiprocess.py has several."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import AcceleratorState, GradientState
from torch.optim.lr_scheduler import CosineAnnealingLR
from transformers import TrainerState

from hf_warmup import AdamWarmup, RAdam, get_scheduler
from hf_warmup.accelerate_utils import (
    check_accelerator,
    create_optimizer,
    create_scheduler,
    load_checkpoint,
    per_update,
    record_gradient_norms,
    save_checkpoint,
)
from hf_warmup.checkpoints import find_corruption, read_manifest
from hf_warmup.norms import GradientNormRecorder
from hf_warmup.report.run import read_run_settings, write_run_settings
from hf_warmup.schedules import with_warmup

from .testing_utils import tiny_bert


@pytest.fixture(autouse=True)
def _fresh_state():
    yield
    GradientState._reset_state()
    AcceleratorState._reset_state(reset_partial_state=True)


def ramp(optimizer, steps=4, total=10):
    return per_update(get_scheduler("linear", optimizer, steps, total, warmup_type="linear"))


EXPECTED = [0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6]  # t/4, then (10 - s)/6 from s = 4


@pytest.mark.parametrize("calls", [1, 2, 8])
def test_per_update_steps_once_per_update_however_often_it_is_called(calls):
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=1.0)
    scheduler, rates = ramp(optimizer), []
    for _ in range(6):
        rates.append(scheduler.get_last_lr()[0])
        assert optimizer.param_groups[0]["lr"] == rates[-1]
        optimizer.step()
        for _ in range(calls):
            scheduler.step()
    assert rates == pytest.approx(EXPECTED)
    assert scheduler.last_epoch == 6


def test_create_scheduler_warns_if_the_launcher_was_asked_for_more_processes(monkeypatch, caplog):
    Accelerator(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun leaves it where `Accelerator()` does not start a process group
    create_scheduler(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), "linear", 2, 8)
    assert "The launcher was asked for several processes, but this run sees 1." in caplog.text


def test_per_update_does_not_step_without_an_update():
    scheduler = ramp(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    scheduler.step()
    assert scheduler.get_last_lr() == [0.25]


@pytest.mark.parametrize("make", [lambda p: RAdam(p, lr=1.0), lambda p: torch.optim.AdamW(p, lr=1.0, fused=True)])
@pytest.mark.parametrize("prepared", [True, False])
def test_per_update_does_not_count_a_skipped_fp16_update(make, prepared):
    """The scaler steps torch's fused AdamW, which skips inside its kernel; it does not step RAdam."""
    p = torch.nn.Parameter(torch.zeros(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    Accelerator(cpu=True)  # the state that the wrappers ask
    inner = make([p])
    scheduler = ramp(inner)
    optimizer = AcceleratedOptimizer(inner, device_placement=False, scaler=scaler)
    if prepared:
        scheduler = AcceleratedScheduler(scheduler, optimizer)
    rates = []
    for update in range(6):
        rates.append(inner.param_groups[0]["lr"])
        p.grad = torch.full((2,), float("inf") if update in (1, 2) else 1.0)
        scaler.scale(torch.zeros(1))  # a scaler that never scaled does not unscale
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.75, 1.0])
    assert float(inner.state[p]["step"]) == 4


def test_per_update_hands_on_a_metric_once_per_update():
    """Accelerate steps with the metric once per process."""
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.1)
    scheduler = per_update(with_warmup(plateau, lambda step: min(1.0, (step + 1) / 2)))
    for _ in range(3):
        optimizer.step()
        for _ in range(4):
            scheduler.step()
        for _ in range(4):
            scheduler.step(1.0)  # the best, then two bad evaluations
    assert scheduler.get_last_lr() == pytest.approx([0.1])


def test_per_update_resumes_where_it_was_saved():
    def run(updates, state=None, optimizer_state=None):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = ramp(optimizer)
        if state is not None:
            optimizer.load_state_dict(optimizer_state)
            scheduler.load_state_dict(state)
        rates = []
        for _ in range(updates):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return rates, scheduler.state_dict(), optimizer.state_dict()

    whole, *_ = run(6)
    first, *states = run(3)
    rest, *_ = run(3, *states)
    assert first + rest == whole == pytest.approx(EXPECTED)


def test_create_scheduler_hands_the_warmup_to_adam_warmup():
    model = torch.nn.Linear(1, 1)
    optimizer = create_optimizer(model, "adam_warmup", 1.0)
    scheduler = create_scheduler(optimizer, "constant", 4, 10)
    assert isinstance(optimizer, AdamWarmup)
    assert [group["warmup_steps"] for group in optimizer.param_groups] == [4, 4]
    assert scheduler.get_last_lr() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: create_optimizer(m, "radm", 1e-3), r"optim='radm' is unknown. Did you mean 'radam'"),
        (lambda m: create_optimizer(m, "radam", -1.0), "lr=-1.0"),
        (lambda m: create_scheduler(create_optimizer(m, "sgd", 1.0), "linear", 20, 10), "num_warmup_steps=20"),
        (lambda m: create_scheduler(create_optimizer(m, "sgd", 1.0), "lineal", 2, 10), "Did you mean 'linear'"),
        (
            lambda m: create_scheduler(create_optimizer(m, "sgd", 1.0), "noam", 10, None),
            "^num_training_steps=None",
        ),
        (
            lambda m: create_scheduler(create_optimizer(m, "sgd", 1.0), "noam", None, 10),
            "^num_warmup_steps=None",
        ),
        (
            lambda m: create_scheduler(create_optimizer(m, "sgd", 1.0), "reduce_lr_on_plateau", 2, 9),
            "lr_scheduler_type='reduce_lr_on_plateau' follows a metric.*. Use WarmupTrainer, or step get_scheduler",
        ),
        (
            lambda m: create_scheduler(create_optimizer(m, "sgd", 1.0), "greedy", 2, 9, warmup_type="linear"),
            "lr_scheduler_type='greedy' follows a metric",
        ),
        (lambda m: per_update(create_optimizer(m, "sgd", 1.0)), "lr_scheduler is a SGD: expected a learning-rate"),
    ],
)
def test_invalid_arguments_raise_one_clear_error(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(torch.nn.Linear(1, 1))


def test_check_accelerator_refuses_fp16_without_a_gpu():
    accelerator = Accelerator(cpu=True)
    accelerator.state._mixed_precision = "fp16"  # Accelerate silently turns it off on some machines
    with pytest.raises(ValueError, match="needs a GPU"):
        check_accelerator(accelerator, "radam")


def train_a_little(accelerator, folder, updates, resume=None):
    """Return the losses and the records of updates with dropout, each of which is saved."""
    torch.manual_seed(0)
    model = tiny_bert(hidden_dropout_prob=0.3)
    optimizer = create_optimizer(model, "radam", 1e-2, optim_args="degenerated_to_sgd=true")
    scheduler = create_scheduler(optimizer, "cosine", 2, 8, warmup_type="linear")
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    state = load_checkpoint(accelerator, resume, folder, model) if resume else TrainerState()
    recorder = GradientNormRecorder(None)
    model.train()
    losses = []
    for _ in range(updates):
        loss = model(input_ids=torch.arange(1, 9).view(2, 4), labels=torch.tensor([0, 1])).loss
        with record_gradient_norms(recorder, accelerator, model, state.global_step + 1):
            accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        state.global_step += 1
        save_checkpoint(accelerator, folder, state, total_limit=3)
    return losses, recorder.flush()


def test_a_resumed_loop_is_bit_for_bit_the_loop_that_never_stopped(tmp_path):
    whole, records = train_a_little(Accelerator(cpu=True), tmp_path / "whole", 6)
    first, _ = train_a_little(Accelerator(cpu=True), tmp_path / "a", 3)
    rest, resumed = train_a_little(Accelerator(cpu=True), tmp_path / "a", 3, resume="auto")
    assert first + rest == whole
    assert resumed == records[3:]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]


def test_load_checkpoint_names_a_damaged_file_and_another_model(tmp_path):
    train_a_little(Accelerator(cpu=True), tmp_path, 2)
    manifest = read_manifest(tmp_path / "checkpoint-2")["files"]
    assert {"model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"} < manifest.keys()
    for file in manifest:
        path = tmp_path / "checkpoint-2" / file
        kept = path.read_bytes()
        path.write_bytes(kept[: len(kept) // 2])
        with pytest.raises(ValueError, match=rf"{file} is not what.*latest complete checkpoint is .*checkpoint-1"):
            train_a_little(Accelerator(cpu=True), tmp_path, 1, resume=str(path.parent))
        path.write_bytes(kept)
    shutil.rmtree(tmp_path / "checkpoint-1")
    accelerator = Accelerator(cpu=True)
    other = accelerator.prepare(tiny_bert(hidden_size=8))
    with pytest.raises(ValueError, match=r"model.safetensors is of another model"):
        load_checkpoint(accelerator, tmp_path / "checkpoint-2", tmp_path, other)


class Custom:
    """State of the user that Accelerate saves."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_load_checkpoint_does_not_execute_registered_states(tmp_path):
    for number, value in enumerate((3, Path("executed")), start=1):
        accelerator, custom = Accelerator(cpu=True), Custom(value)
        accelerator.register_for_checkpointing(custom)
        model = accelerator.prepare(tiny_bert())
        save_checkpoint(accelerator, tmp_path, TrainerState(global_step=number))
        custom.value = None
        if number == 1:
            load_checkpoint(accelerator, "auto", tmp_path, model)
            assert custom.value == 3
        else:
            with pytest.raises(ValueError, match=r"custom_checkpoint_0.pkl is not loaded.*add_safe_globals"):
                load_checkpoint(accelerator, "auto", tmp_path, model)


def test_save_checkpoint_keeps_the_newest_whatever_the_clock(tmp_path):
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(tiny_bert())
    first = save_checkpoint(accelerator, tmp_path, TrainerState(global_step=5), total_limit=1)
    os.utime(first, (time.time() + 3600,) * 2)
    second = save_checkpoint(accelerator, tmp_path, TrainerState(global_step=10), total_limit=1)
    assert list(tmp_path.iterdir()) == [second]


@pytest.mark.parametrize(
    ("optim", "schedule", "sentence"),
    [
        (
            "sgdm",
            lambda optimizer: create_scheduler(optimizer, "cosine", 0, 8),
            r"optimizer.bin holds exp_avg, exp_avg_sq, step, but SGD needs dampening, momentum. Resume with",
        ),
        (
            "radam",
            lambda optimizer: per_update(CosineAnnealingLR(optimizer, 8)),
            r"scheduler.bin holds base_lrs, .*the schedule of this run needs T_max, eta_min. Resume",
        ),
    ],
)
def test_load_checkpoint_refuses_another_kind_of_optimizer_or_schedule(tmp_path, optim, schedule, sentence):
    train_a_little(Accelerator(cpu=True), tmp_path, 1)
    accelerator, model = Accelerator(cpu=True), tiny_bert()
    optimizer = create_optimizer(model, optim, 1e-2)
    model, *_ = accelerator.prepare(model, optimizer, schedule(optimizer))
    with pytest.raises(ValueError, match=sentence):
        load_checkpoint(accelerator, "auto", tmp_path, model)


def test_load_checkpoint_brings_the_settings_of_the_checkpoint(tmp_path):
    for learning_rate in (0.1, 0.2):  # the second attempt saves nothing
        write_run_settings(tmp_path, {"learning_rate": learning_rate}, {}, 8, 0)
        if learning_rate == 0.1:
            train_a_little(Accelerator(cpu=True), tmp_path, 1)
    train_a_little(Accelerator(cpu=True), tmp_path, 0, resume="auto")
    assert read_run_settings(tmp_path)["training_args"] == {"learning_rate": 0.1}
    assert find_corruption(tmp_path / "checkpoint-1", tiny_bert()) is None


def test_a_save_that_fails_leaves_no_incomplete_checkpoint(tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)
    train_a_little(accelerator, tmp_path, 1)

    def broken(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrainerState, "save_to_json", broken)
    with pytest.raises(OSError, match=r"No space left on the disk of .*checkpoint-1, which is complete"):
        save_checkpoint(accelerator, tmp_path, TrainerState(global_step=2))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
