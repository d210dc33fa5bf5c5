"""`with_warmup` in epochs, with groups that join the run, with a state of its own; and its sentences for mistakes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers
from torch.optim import lr_scheduler as torch_schedulers

from hf_warmup import AdamWarmup, get_schedule, get_scheduler, per_update, with_warmup
from hf_warmup.schedules import DECAYS, WARMUPS, constant_warmup, linear_warmup, no_warmup, scheduler_warms_up

from .stepping import adamw, lrs_of, through_file


RAMP = partial(linear_warmup, num_warmup_steps=4)


def cosine(optimizer, T_max=10):
    return torch_schedulers.CosineAnnealingLR(optimizer, T_max=T_max)


@pytest.mark.parametrize("steps_per_epoch", [1, 4, 7])
@pytest.mark.parametrize("inner", [cosine, partial(torch_schedulers.MultiStepLR, milestones=[2, 5])])
def test_epochs_of_the_inner_scheduler_and_updates_of_the_warmup(inner, steps_per_epoch):
    scheduler = with_warmup(inner(adamw(0.04)), linear_warmup, warmup_epochs=2.5, steps_per_epoch=steps_per_epoch)
    twin = inner(adamw(0.04))
    W = -(-5 * steps_per_epoch // 2)
    t = 0
    for epoch in range(8):
        for _ in range(steps_per_epoch):
            t += 1
            (lr,) = scheduler.get_last_lr()
            assert lr == pytest.approx(min(1, t / W) * twin.get_last_lr()[0], rel=1e-12), (epoch, t)
            scheduler.optimizer.step()
            scheduler.step()
        twin.optimizer.step()
        twin.step()


def test_epochs_leave_a_warmup_with_its_own_length_alone():
    warmups = [linear_warmup, partial(constant_warmup, num_warmup_steps=3)]
    scheduler = with_warmup(cosine(adamw(0.4, 0.4), 1000), warmups, warmup_epochs=2, steps_per_epoch=4)
    rows = lrs_of(scheduler, 4)
    assert [row[0] for row in rows] == pytest.approx([0.05, 0.1, 0.15, 0.2], rel=1e-12)
    assert [row[1] for row in rows] == pytest.approx([0.04, 0.04, 0.04, 0.4], rel=1e-12)


def joined(inner, warmup):
    """6 updates of one group at 0.04; then a second one at 0.01 joins."""
    scheduler = with_warmup(inner(adamw(0.04)), partial(linear_warmup, num_warmup_steps=3))
    lrs_of(scheduler, 6)
    scheduler.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.01}, warmup)
    return scheduler


@pytest.mark.parametrize(
    "inner",
    [
        cosine,
        partial(torch_schedulers.ExponentialLR, gamma=0.9),
        partial(torch_schedulers.StepLR, step_size=4, gamma=0.5),
        partial(get_scheduler, "linear", num_warmup_steps=0, num_training_steps=30),
        partial(get_scheduler, "noam", num_warmup_steps=3, warmup_type="none"),
    ],
)
def test_a_group_that_joins_follows_the_first_ones_curve_behind_its_own_warmup(inner):
    scheduler = joined(inner, partial(linear_warmup, num_warmup_steps=5))
    rows = lrs_of(scheduler, 12)
    alone = lrs_of(with_warmup(inner(adamw(0.04)), partial(linear_warmup, num_warmup_steps=3)), 18)[6:]
    assert [row[0] for row in rows] == [lr for (lr,) in alone]
    for t, row in enumerate(rows, 1):
        assert row[1] == pytest.approx(min(1, t / 5) * row[0] / 4, rel=1e-12, abs=1e-300)


def test_a_plateau_reduces_a_group_that_joins_from_then_on():
    scheduler = joined(partial(torch_schedulers.ReduceLROnPlateau, patience=0, factor=0.5), no_warmup)
    assert scheduler.get_last_lr() == pytest.approx([0.04, 0.01])
    scheduler.step(1.0)
    scheduler.step(2.0)
    assert scheduler.get_last_lr() == pytest.approx([0.02, 0.005])


def test_a_run_that_a_group_joined_resumes():
    warmup = partial(linear_warmup, num_warmup_steps=5)
    scheduler = joined(cosine, warmup)
    lrs_of(scheduler, 2)
    saved = [through_file(part.state_dict()) for part in (scheduler.optimizer, scheduler)]

    fresh = with_warmup(cosine(adamw(0.04, 0.01)), [partial(linear_warmup, num_warmup_steps=3), warmup])
    for part, state in zip((fresh.optimizer, fresh), saved, strict=True):
        part.load_state_dict(state)
    assert lrs_of(fresh, 9) == lrs_of(scheduler, 9)

    with pytest.raises(
        ValueError, match="scheduler for 2 parameter groups cannot be loaded with an optimizer that has 1"
    ):
        with_warmup(cosine(adamw(0.4)), no_warmup).load_state_dict(saved[1])


def test_a_group_that_joins_behind_the_schedules_back_is_refused():
    scheduler = with_warmup(cosine(adamw(0.4)), no_warmup)
    scheduler.optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    with pytest.raises(ValueError, match=r"has 2 parameter groups and its scheduler 1.* `add_param_group`"):
        scheduler.step()


def begun(optimizer):
    scheduler = cosine(optimizer)
    lrs_of(scheduler, 3)
    return scheduler


def sequential(optimizer):
    pieces = [torch_schedulers.ConstantLR(optimizer), cosine(optimizer)]
    return torch_schedulers.SequentialLR(optimizer, pieces, [3])


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: with_warmup(cosine(adamw(1.0)), linear_warmup),
            r"warmup=linear_warmup is no function of the step alone.*num_warmup_steps=100",
        ),
        (lambda: with_warmup(cosine(adamw(1.0)), lambda step, c: 1.0), "is no function of the step alone: .*'c'"),
        (
            lambda: with_warmup(cosine(adamw(1.0)), linear_warmup, warmup_epochs=5),
            "warmup_epochs=5 needs steps_per_",
        ),
        (
            lambda: with_warmup(cosine(adamw(1.0)), linear_warmup, warmup_epochs=-1, steps_per_epoch=3),
            "warmup_epochs=-1: expected",
        ),
        (
            lambda: with_warmup(cosine(adamw(1.0)), linear_warmup, warmup_epochs=5, steps_per_epoch=2.5),
            "steps_per_epoch=2.5: expected an integer",
        ),
        (
            lambda: with_warmup(cosine(adamw(1.0)), no_warmup, warmup_epochs=5, steps_per_epoch=2),
            "warmup_epochs=5: expected a warmup whose num_warmup_steps is not bound yet",
        ),
        (
            lambda: with_warmup(with_warmup(cosine(adamw(1.0)), RAMP), RAMP),
            "lr_scheduler is a WithWarmupLR that warms up already",
        ),
        (
            lambda: with_warmup(
                cosine(AdamWarmup([torch.zeros(1, requires_grad=True)], warmup_steps=3)), get_schedule("noam", 3)
            ),
            r"The optimizer, AdamWarmup, has a warmup of its own",
        ),
        (
            lambda: with_warmup(sequential(adamw(1.0)), no_warmup).add_param_group({"params": []}),
            "not possible with a SequentialLR",
        ),
        (lambda: with_warmup(begun(adamw(0.4)), RAMP), "a CosineAnnealingLR, has been stepped 3 times"),
        (lambda: joined(cosine, linear_warmup), "warmup=linear_warmup is no function of the step alone"),
        (lambda: get_scheduler("warmup_stable_decay", adamw(1.0), 3, 9), "'warmup_stable_decay' needs num_decay_steps"),
    ],
)
def test_a_mistake_is_one_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        build()
    assert "\n" not in str(caught.value)


def chained(optimizer):
    decay = torch_schedulers.ExponentialLR(optimizer, 0.9)
    return torch_schedulers.ChainedScheduler([decay, torch_schedulers.LinearLR(optimizer)])


def first_linear(optimizer):
    pieces = [torch_schedulers.LinearLR(optimizer), cosine(optimizer)]
    return torch_schedulers.SequentialLR(optimizer, pieces, [3])


@pytest.mark.parametrize(
    "build",
    [
        *(
            partial(get_scheduler, "linear", num_warmup_steps=4, num_training_steps=20, warmup_type=each)
            for each in sorted(WARMUPS.keys() - {"none"})
        ),
        partial(get_scheduler, "noam", num_warmup_steps=4),
        lambda optimizer: transformers.get_linear_schedule_with_warmup(optimizer, 4, 20),
        lambda optimizer: transformers.get_constant_schedule_with_warmup(optimizer, 1),
        lambda optimizer: transformers.get_cosine_schedule_with_warmup(optimizer, 4000, 10_000),
        lambda optimizer: torch_schedulers.LambdaLR(optimizer, RAMP),
        partial(torch_schedulers.OneCycleLR, max_lr=1.0, total_steps=20),
        torch_schedulers.LinearLR,
        torch_schedulers.ConstantLR,
        first_linear,
        sequential,
        chained,
        lambda optimizer: per_update(get_scheduler("noam", optimizer, 4)),
        lambda optimizer: per_update(with_warmup(cosine(optimizer), RAMP)),
    ],
)
def test_a_second_warmup_is_refused(build):
    with pytest.raises(ValueError, match=r"lr_scheduler is a \w+ that warms up already") as caught:
        with_warmup(build(adamw(0.04)), RAMP)
    assert "\n" not in str(caught.value)
    assert scheduler_warms_up(build(adamw(0.04)))


HOST = {  # transformers' schedules without their warmups
    "linear": {},
    "constant": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 5},
}


@pytest.mark.parametrize(
    "build",
    [
        *(partial(get_scheduler, name, num_warmup_steps=0, num_training_steps=20, scheduler_specific_kwargs=kwargs)
          for name, kwargs in HOST.items()),
        *(partial(get_scheduler, name, num_warmup_steps=4, num_training_steps=20, scheduler_specific_kwargs=kwargs,
                  warmup_type="none") for name, kwargs in HOST.items()),
        *(partial(get_scheduler, name, num_warmup_steps=4, warmup_type="none") for name in DECAYS),
        cosine,
        partial(torch_schedulers.CosineAnnealingWarmRestarts, T_0=3),
        partial(torch_schedulers.StepLR, step_size=3),
        partial(torch_schedulers.LinearLR, start_factor=1.0, end_factor=0.1),
        partial(torch_schedulers.CyclicLR, base_lr=0.01, max_lr=0.04),
        partial(torch_schedulers.MultiplicativeLR, lr_lambda=lambda step: 0.9),
        torch_schedulers.ReduceLROnPlateau,
        lambda optimizer: torch_schedulers.LambdaLR(optimizer, lambda step: 0.5 ** (step % 5)),
        lambda optimizer: torch_schedulers.SequentialLR(optimizer, [cosine(optimizer), cosine(optimizer)], [3]),
        lambda optimizer: per_update(cosine(optimizer)),
    ],
)  # fmt: skip
def test_a_decay_a_restart_and_a_cycle_are_no_warmup(build):
    assert with_warmup(build(adamw(0.04, cls=torch.optim.SGD)), RAMP)


def test_one_warmup_is_one_of_each_group():
    lambdas = [lambda step: 0.9**step, RAMP]
    scheduler = with_warmup(torch_schedulers.LambdaLR(adamw(0.4, 0.1), lambdas), [RAMP, no_warmup])
    assert lrs_of(scheduler, 1) == [pytest.approx([0.1, 0.025])]
    with pytest.raises(ValueError, match="that warms up already"):
        with_warmup(torch_schedulers.LambdaLR(adamw(0.4, 0.1), lambdas), RAMP)


@pytest.mark.parametrize("length", [-4, 0.5, None])
def test_a_length_that_is_no_number_of_updates_is_refused(length):
    with pytest.raises(ValueError, match=rf"^num_warmup_steps={length}: expected an integer in \[0, inf\)\.$"):
        with_warmup(cosine(adamw(0.4)), partial(linear_warmup, num_warmup_steps=length))


def test_an_optimizer_is_no_scheduler():
    with pytest.raises(ValueError, match=r"^lr_scheduler is a AdamW: expected a learning-rate scheduler\.$"):
        with_warmup(adamw(0.4), RAMP)


def test_two_schedules_on_one_optimizer_are_noticed():
    optimizer = adamw(0.4)
    first, second = with_warmup(cosine(optimizer), no_warmup), torch_schedulers.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    second.step()
    with pytest.warns(UserWarning, match=r"parameter group 0 was changed from 0\.4 to 0\.2 outside this scheduler"):
        first.step()
    optimizer.step()
    second.step()
    first.step()  # said once


def test_a_plateau_without_evaluation_is_noticed():
    plateau = torch_schedulers.ReduceLROnPlateau(adamw(0.4))
    scheduler = with_warmup(plateau, linear_warmup, warmup_epochs=1, steps_per_epoch=3)
    lrs_of(scheduler, 5)
    with pytest.warns(UserWarning, match="ReduceLROnPlateau has seen no metric in 2 epochs of 3 updates"):
        lrs_of(scheduler, 1)
    lrs_of(scheduler, 6)


def test_a_linear_warmup_that_begins_at_a_factor():
    # Goyal et al. 2017: from eta to k eta in equal increments; k = 8, W = 7
    schedule = get_schedule("constant", 7, warmup_type="linear", warmup_factor=1 / 8)
    assert [8 * schedule(step) for step in range(9)] == pytest.approx([2, 3, 4, 5, 6, 7, 8, 8, 8], rel=1e-12)
