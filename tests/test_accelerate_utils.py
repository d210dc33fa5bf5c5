"""The Accelerate loop's pieces in one process; tests/test_multiprocess.py has several."""

from __future__ import annotations

import shutil

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
from hf_warmup.checkpoints import find_corruption
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
def test_any_number_of_calls_is_one_tick_an_update(calls):
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


def test_no_update_no_tick():
    scheduler = ramp(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    scheduler.step()
    assert scheduler.get_last_lr() == [0.25]


@pytest.mark.parametrize("make", [lambda p: RAdam(p, lr=1.0), lambda p: torch.optim.AdamW(p, lr=1.0, fused=True)])
@pytest.mark.parametrize("prepared", [True, False])
def test_a_skipped_fp16_update_is_no_update(make, prepared):
    """torch's fused AdamW is stepped all the same and skips inside the kernel; ours are not stepped."""
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


def test_a_metric_counts_once_an_update():
    """Accelerate hands it on once a process."""
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


def test_a_schedule_goes_on_where_it_was_saved():
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


def test_adam_warmup_gets_the_warmup():
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
            "lr_scheduler_type='reduce_lr_on_plateau' follows a metric.*: use WarmupTrainer, or get_scheduler",
        ),
        (
            lambda m: create_scheduler(create_optimizer(m, "sgd", 1.0), "greedy", 2, 9, warmup_type="linear"),
            "lr_scheduler_type='greedy' follows a metric",
        ),
        (lambda m: per_update(create_optimizer(m, "sgd", 1.0)), "lr_scheduler is a SGD: expected a learning-rate"),
    ],
)
def test_mistakes_are_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(torch.nn.Linear(1, 1))


def test_fp16_without_a_gpu_is_refused():
    accelerator = Accelerator(cpu=True)
    accelerator.state._mixed_precision = "fp16"  # Accelerate turns it off without a word on some machines
    with pytest.raises(ValueError, match="needs a GPU"):
        check_accelerator(accelerator, "radam")


def train_a_little(accelerator, folder, updates, resume=None):
    """Updates with dropout, saving each; the losses."""
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


def test_save_and_load_are_bit_for_bit(tmp_path):
    whole, records = train_a_little(Accelerator(cpu=True), tmp_path / "whole", 6)
    first, _ = train_a_little(Accelerator(cpu=True), tmp_path / "a", 3)
    rest, resumed = train_a_little(Accelerator(cpu=True), tmp_path / "a", 3, resume="auto")
    assert first + rest == whole
    assert resumed == records[3:]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path):
    train_a_little(Accelerator(cpu=True), tmp_path, 2)
    for file in ("model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        path = tmp_path / "checkpoint-2" / file
        kept = path.read_bytes()
        path.write_bytes(kept[: len(kept) // 2])
        with pytest.raises(ValueError, match=rf"{file} is cut off.*last whole checkpoint is .*checkpoint-1"):
            train_a_little(Accelerator(cpu=True), tmp_path, 1, resume=str(tmp_path / "checkpoint-2"))
        path.write_bytes(kept)
    shutil.rmtree(tmp_path / "checkpoint-1")
    accelerator = Accelerator(cpu=True)
    other = accelerator.prepare(tiny_bert(hidden_size=8))
    with pytest.raises(ValueError, match=r"model.safetensors is of another model"):
        load_checkpoint(accelerator, tmp_path / "checkpoint-2", tmp_path, other)


@pytest.mark.parametrize(
    ("optim", "schedule", "sentence"),
    [
        (
            "sgdm",
            lambda optimizer: create_scheduler(optimizer, "cosine", 0, 8),
            r"optimizer.bin holds exp_avg, exp_avg_sq, step; SGD needs dampening, momentum: resume with",
        ),
        (
            "radam",
            lambda optimizer: per_update(CosineAnnealingLR(optimizer, 8)),
            r"scheduler.bin holds base_lrs, .*this run's schedule needs T_max, eta_min: resume",
        ),
    ],
)
def test_another_kind_of_optimizer_or_schedule_is_refused(tmp_path, optim, schedule, sentence):
    train_a_little(Accelerator(cpu=True), tmp_path, 1)
    accelerator, model = Accelerator(cpu=True), tiny_bert()
    optimizer = create_optimizer(model, optim, 1e-2)
    model, *_ = accelerator.prepare(model, optimizer, schedule(optimizer))
    with pytest.raises(ValueError, match=sentence):
        load_checkpoint(accelerator, "auto", tmp_path, model)


def test_a_checkpoint_keeps_the_settings_that_it_was_made_with(tmp_path):
    for learning_rate in (0.1, 0.2):  # the second attempt saves nothing
        write_run_settings(tmp_path, {"learning_rate": learning_rate}, {}, 8, 0)
        if learning_rate == 0.1:
            train_a_little(Accelerator(cpu=True), tmp_path, 1)
    train_a_little(Accelerator(cpu=True), tmp_path, 0, resume="auto")
    assert read_run_settings(tmp_path)["training_args"] == {"learning_rate": 0.1}
    assert find_corruption(tmp_path / "checkpoint-1", tiny_bert()) is None


def test_a_save_that_fails_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)
    train_a_little(accelerator, tmp_path, 1)

    def broken(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrainerState, "save_to_json", broken)
    with pytest.raises(OSError, match=r"No space left on the disk of .*checkpoint-1 is whole"):
        save_checkpoint(accelerator, tmp_path, TrainerState(global_step=2))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
