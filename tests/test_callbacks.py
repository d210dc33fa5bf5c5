"""WarmupUntilCallback: the learning rate is used, logged, saved and resumed; its errors and warnings."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerState

from hf_warmup import (
    WarmupTrainer,
    WarmupUntilCallback,
    create_optimizer_and_scheduler,
    get_scheduler,
    with_warmup,
)

from .testing_utils import arguments, column, examples, tiny_bert, train


FLAGS = {"optim": "sgd", "lr_scheduler_type": "linear", "learning_rate": 0.1, "max_steps": 10}


class Used(TrainerCallback):
    """Record the learning rate that each update used."""

    def __init__(self):
        self.lrs = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.lrs.append(optimizer.param_groups[0]["lr"])


class Scripted(WarmupTrainer):
    """A Trainer that logs an `error` which falls by 0.1 at each update."""

    def log(self, logs, *args, **kwargs):
        logs = {**logs, "error": 1.0 - 0.1 * self.state.global_step} if "loss" in logs else logs
        super().log(logs, *args, **kwargs)


def scripted(folder, callback, seed=0, **kwargs):
    used = Used()
    trainer = Scripted(
        model=tiny_bert(seed),
        args=arguments(folder, **{**FLAGS, **kwargs}),
        train_dataset=examples(),
        callbacks=[callback, used],
    )
    return trainer, used


def expected(hold):
    """Return transformers' linear decay over 10 updates from 0.1, times 0.1 for the first `hold` updates."""
    return [(0.1 if step < hold else 1.0) * 0.1 * (10 - step) / 10 for step in range(10)]


@pytest.mark.parametrize(
    ("threshold", "kwargs", "hold"),
    [
        (0.75, {"max_steps": 9}, 3),  # below the threshold for the first time after update 3
        (0.35, {"max_steps": 9, "greater_is_better": True}, 1),
    ],
)
def test_warmup_until_ends_at_the_log_that_passes_and_logs_the_used_lr(tmp_path, threshold, kwargs, hold):
    trainer, used = scripted(tmp_path, WarmupUntilCallback("error", threshold, **kwargs))
    log = train(trainer)
    assert used.lrs == pytest.approx(expected(hold), rel=1e-12)
    assert column(log, "learning_rate") == used.lrs
    train(trainer)
    assert used.lrs[10:] == pytest.approx(expected(hold), rel=1e-12)  # a second `train()` warms up again


@pytest.mark.parametrize("stop", [2, 3])
def test_warmup_until_resumed_run_equals_the_uninterrupted_run(tmp_path, stop):
    kwargs = {"save_strategy": "steps", "save_steps": 1}
    whole, used = scripted(tmp_path, WarmupUntilCallback("error", 0.75, max_steps=9), **kwargs)
    losses = column(train(whole), "loss")

    again, used_again = scripted(tmp_path, WarmupUntilCallback("error", 0.75, max_steps=9), seed=9, **kwargs)
    log = train(again, resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert used_again.lrs == used.lrs[stop:]
    assert column(log, "loss") == losses


def test_warmup_until_in_a_plain_trainer_through_with_warmup(tmp_path):
    callback, used = WarmupUntilCallback("eval_loss", 100.0, max_steps=9), Used()
    model, args = tiny_bert(), arguments(tmp_path, **FLAGS, eval_strategy="steps", eval_steps=4)
    optimizer, scheduler = create_optimizer_and_scheduler(model, args, 10)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=examples(),
        eval_dataset=examples(8),
        callbacks=[callback, used],
        optimizers=(optimizer, with_warmup(scheduler, callback)),
    )
    log = train(trainer)
    assert used.lrs == pytest.approx(expected(4), rel=1e-12)
    assert column(log, "learning_rate") == used.lrs


def test_warmup_until_in_a_loop_with_refresh():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    warmup = WarmupUntilCallback("accuracy", 0.5, max_steps=100, greater_is_better=True)
    scheduler = with_warmup(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), warmup)
    lrs = []
    for step, accuracy in enumerate([0.1, 0.2, 0.6, 0.4], 1):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        if warmup.update(accuracy, step):
            scheduler.refresh()
    assert lrs == pytest.approx([0.01, 0.005, 0.0025, 0.0125], rel=1e-12)


def simulate(folder, callback, build=None, **kwargs):
    """Call the events of a run of 10 updates that logs an `error` which falls by 0.1; return the rates used."""
    args = arguments(folder, **{**FLAGS, **kwargs})
    state = TrainerState(max_steps=args.max_steps, logging_steps=args.logging_steps, eval_steps=args.eval_steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = get_scheduler("linear", optimizer, 0, 10)
    scheduler = build(scheduler) if build else callback.wrap_scheduler(scheduler)
    event = partial(dict, args=args, state=state, control=None, lr_scheduler=scheduler)
    callback.on_train_begin(**event())
    rates = []
    for _ in range(args.max_steps):
        callback.on_step_begin(**event())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        state.global_step += 1
        callback.on_log(**event(logs={"loss": 1.0, "error": 1.0 - 0.1 * state.global_step}))
    callback.on_train_end(**event())
    return rates


@pytest.mark.parametrize(
    ("max_steps", "when"),
    [(3, "The full learning rate begins"), (100, "Training ended after 10 updates")],
)
def test_warmup_until_warns_when_the_metric_is_never_logged(tmp_path, max_steps, when):
    with pytest.warns(UserWarning, match=rf"{when}, and metric='eror' was never logged; logged were error, loss"):
        rates = simulate(tmp_path, WarmupUntilCallback("eror", 0.75, max_steps=max_steps))
    assert rates == pytest.approx(expected(min(max_steps, 10)), rel=1e-12)


@pytest.mark.parametrize(
    ("max_steps", "message"),
    [
        (100, "Training ended after 10 updates, before max_steps=100; the last error was 0, the threshold -1."),
        (10, "Training ended after 10 updates, with max_steps=10; the last error was 0, the threshold -1."),
        (4, "The full learning rate begins after max_steps=4; the last error was 0.6, the threshold -1."),
    ],
)
def test_warmup_until_warns_when_the_threshold_was_not_passed(tmp_path, caplog, max_steps, message):
    with caplog.at_level("WARNING"):
        rates = simulate(tmp_path, WarmupUntilCallback("error", -1.0, max_steps=max_steps))
    assert message in caplog.messages
    assert rates == pytest.approx(expected(min(max_steps, 10)), rel=1e-12)


@pytest.mark.parametrize(
    ("threshold", "stop", "length"),
    [
        (-1.0, 6, 9),  # not ended yet: the new max_steps counts
        (-1.0, 7, 7),  # ended at the old max_steps
        (0.75, 5, 3),  # ended by the metric
    ],
)
def test_warmup_until_loaded_with_another_max_steps_uses_it_unless_the_warmup_has_ended(threshold, stop, length):
    saved, loaded = (WarmupUntilCallback("error", threshold, max_steps=max_steps) for max_steps in (7, 9))
    for step in range(stop + 1):
        saved(step)
        saved.update(1.0 - 0.1 * step, step)
    loaded.load_state_dict(saved.state_dict())
    assert [loaded(step) for step in range(12)] == [0.1] * length + [1.0] * (12 - length)


def evaluated(folder, metric, **kwargs):
    args = arguments(folder, **{**FLAGS, "eval_strategy": "steps", "eval_steps": 4, **kwargs})
    callback = WarmupUntilCallback(metric, 2.0, max_steps=9, greater_is_better=True)
    return WarmupTrainer(
        model=tiny_bert(),
        args=args,
        train_dataset=examples(),
        eval_dataset={"train": examples(8), "dev": examples(8)},
        compute_metrics=lambda predicted: {"accuracy": 1.0},
        callbacks=[callback],
    )


@pytest.mark.parametrize(
    ("metric", "kwargs", "meant"),
    [
        ("dev_accuracy", {}, "eval_dev_accuracy"),
        ("eval_dev_acc", {"logging_steps": 9}, "eval_dev_accuracy"),
    ],
)
def test_warmup_until_warns_at_the_first_evaluation_without_the_metric(tmp_path, metric, kwargs, meant):
    trainer = evaluated(tmp_path, metric, **kwargs)

    class Crash(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise RuntimeError("long before the end")

    trainer.add_callback(Crash())
    said = rf"metric='{metric}' was not logged up to the first evaluation. Did you mean '{meant}'\? Logged were .*loss"
    with pytest.warns(UserWarning, match=said), pytest.raises(RuntimeError, match="long before the end"):
        train(trainer)


@pytest.mark.parametrize(("metric", "kwargs"), [("eval_dev_accuracy", {}), ("loss", {"logging_steps": 6})])
def test_warmup_until_does_not_warn_when_the_metric_is_logged_or_may_follow(tmp_path, metric, kwargs):
    train(evaluated(tmp_path, metric, **kwargs))  # warnings are errors


@pytest.mark.parametrize(
    ("metric", "kwargs", "message"),
    [
        ("eval_error", {}, "metric='eval_error' is never logged with eval_strategy='no'"),
        ("loss", {"logging_strategy": "no"}, "metric='loss' is never logged with logging_strategy='no'"),
        (
            "loss",
            {"logging_steps": 11},
            "never logged with logging_steps=11 in a run of 10 updates: expected at most 10.",
        ),
        (
            "eval_error",
            {"eval_strategy": "steps", "eval_steps": 12},
            "metric='eval_error' is never logged with eval_steps=12 in a run of 10 updates: expected at most",
        ),
        ("loss", {"build": lambda scheduler: scheduler}, "has no effect because the scheduler does not use it"),
        (
            "loss",
            {"build": lambda scheduler: with_warmup(scheduler, lambda step: 0.5)},
            "has no effect because the scheduler does not use it",
        ),
    ],
)
def test_warmup_until_raises_before_the_first_update(tmp_path, metric, kwargs, message):
    with pytest.raises(ValueError, match=message):
        simulate(tmp_path, WarmupUntilCallback(metric, 0.8, max_steps=3), **kwargs)


@pytest.mark.parametrize("kwargs", [{"warmup_steps": 3}, {"warmup_type": "untuned_linear", "optim": "adamw"}])
def test_warmup_until_beside_another_warmup_raises(tmp_path, kwargs):
    trainer, _ = scripted(tmp_path, WarmupUntilCallback("loss", 0.8, max_steps=3), **kwargs)
    with pytest.raises(ValueError, match="lr_scheduler is a WarmupLR that warms up already"):
        train(trainer)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_steps": 0}, "max_steps=0: expected an integer"),
        ({"max_steps": 3, "factor": 2.0}, "factor=2.0: expected"),
        ({"max_steps": 3, "threshold": float("nan")}, "threshold=nan: expected"),
    ],
)
def test_warmup_until_out_of_range_raises(kwargs, message):
    with pytest.raises(ValueError, match=message):
        WarmupUntilCallback("loss", **{"threshold": 0.8, **kwargs})
