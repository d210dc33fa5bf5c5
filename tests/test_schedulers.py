"""Schedules on an optimizer: get_scheduler, WarmupLR, with_warmup, and the check for a second warmup."""

import copy
import pickle
import sys
from functools import partial

import pytest
import torch
import transformers
from torch.optim import lr_scheduler as torch_schedulers
from transformers import Trainer

from hf_warmup import (
    AdamWarmup,
    RAdam,
    WarmupLR,
    WarmupTrainer,
    create_optimizer_and_scheduler,
    create_scheduler,
    get_schedule,
    get_scheduler,
    per_update,
    with_warmup,
)
from hf_warmup.schedules import DECAYS, WARMUPS, constant_warmup, linear_warmup, no_warmup, scheduler_warms_up

from .reference.optimizers import rectification
from .reference.schedules import RECURSIONS, iterate
from .reference.schedules import WARMUPS as REFERENCE
from .stepping import adamw, lrs_of, through_file
from .testing_utils import arguments, examples, tiny_bert, train


RAMP = partial(linear_warmup, num_warmup_steps=4)
HOST = {  # transformers' schedules with a warmup of their own, or none
    "linear": {},
    "constant": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 5},
}


def cosine(optimizer, T_max=10):
    return torch_schedulers.CosineAnnealingLR(optimizer, T_max=T_max)


def plateau(optimizer, **kwargs):
    return torch_schedulers.ReduceLROnPlateau(optimizer, **{"patience": 0, "factor": 0.5, **kwargs})


def sgd(**group):
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], **group}], lr=1.0)


def resume(build, scheduler):
    """Return `build()` with the states of `scheduler` and its optimizer, loaded from a file."""
    fresh = build()
    for part, state in ((fresh.optimizer, scheduler.optimizer.state_dict()), (fresh, scheduler.state_dict())):
        part.load_state_dict(through_file(copy.deepcopy(state)))
    return fresh


# get_scheduler and WarmupLR


@pytest.mark.parametrize("name", ["sine", "power"])
def test_get_scheduler_recursions_follow_the_lr_of_each_group(name):
    lrs = (0.5, 0.01, 0.0)
    rows = lrs_of(get_scheduler(name, adamw(*lrs), 0, warmup_type="none"), 200)
    for group, lr in enumerate(lrs):
        assert [row[group] for row in rows] == pytest.approx(iterate(RECURSIONS[name][1], lr, 200), rel=1e-12)


@pytest.mark.parametrize("name", [*DECAYS, *HOST])
def test_get_scheduler_with_a_group_of_lr_0_leaves_it_there(name):
    for warmup_type in (None, "linear", "radam"):
        arguments_ = 3, 9, HOST.get(name), warmup_type
        rows = lrs_of(get_scheduler(name, adamw(0.03, 0.0), *arguments_), 12)
        alone = lrs_of(get_scheduler(name, adamw(0.03), *arguments_), 12)
        assert rows == [[lr, 0.0] for (lr,) in alone]


@pytest.mark.parametrize("name", ["constant", "reduce_lr_on_plateau"])
@pytest.mark.parametrize("warmup_type", ["untuned_linear", "untuned_exponential", "radam"])
def test_get_scheduler_takes_beta2_from_each_group_or_from_the_keywords(name, warmup_type):
    optimizer = adamw(1.0, 1.0)
    optimizer.param_groups[1]["betas"] = (0.9, 0.98)
    for t, row in enumerate(lrs_of(get_scheduler(name, optimizer, warmup_type=warmup_type), 150), 1):
        assert row == pytest.approx([REFERENCE[warmup_type](t, 0, beta2) for beta2 in (0.999, 0.98)], rel=1e-10)

    without_beta2 = adamw(1.0, cls=torch.optim.SGD)
    with pytest.raises(ValueError, match=r"follows from beta2, which SGD does not have"):
        get_scheduler(name, without_beta2, warmup_type=warmup_type)
    row = lrs_of(get_scheduler(name, without_beta2, 0, None, {"beta2": 0.98}, warmup_type), 7)[6]
    assert row == pytest.approx([REFERENCE[warmup_type](7, 0, 0.98)], rel=1e-10)


def test_warmup_lr_equals_get_scheduler():
    for name, kwargs, warmup_type in [("cosine", {"num_cycles": 1.5}, "linear"), ("linear", {}, None),
                                      ("exponential", {"gamma": 0.5, "warmup_factor": 0.2}, "constant")]:  # fmt: skip
        by_function = get_scheduler(name, adamw(0.4, 0.1), 3, 9, kwargs, warmup_type)
        build = partial(WarmupLR, name=name, num_warmup_steps=3, num_training_steps=9, warmup_type=warmup_type)
        by_class = build(adamw(0.4, 0.1), **kwargs)
        assert type(by_function) is WarmupLR
        assert isinstance(by_class, torch_schedulers.LambdaLR)
        assert lrs_of(by_class, 4) == lrs_of(by_function, 4)
        resumed = resume(lambda build=build, kwargs=kwargs: build(adamw(0.4, 0.1), **kwargs), by_function)
        assert lrs_of(resumed, 7) == lrs_of(by_function, 7)
    with pytest.raises(ValueError, match=r"'greedy' follows a metric: use hf_warmup\.get_scheduler"):
        WarmupLR(adamw(0.4), "greedy")


def test_get_scheduler_with_import_paths_pickles_and_resumes(tmp_path, monkeypatch):
    (tmp_path / "own_curves.py").write_text(
        "def quadratic(step, *, num_warmup_steps):\n    return min(1.0, ((step + 1) / num_warmup_steps) ** 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_curves", raising=False)

    def build():
        return get_scheduler("constant", adamw(0.4), 4, warmup_type="own_curves:quadratic")

    scheduler = build()
    assert lrs_of(scheduler, 2) == [[0.4 / 16], [0.4 / 4]]
    rows = [[pytest.approx(0.4 * 9 / 16)], [0.4], [0.4]]
    assert lrs_of(pickle.loads(pickle.dumps(scheduler)), 3) == rows
    assert lrs_of(resume(build, scheduler), 3) == rows
    monkeypatch.setitem(sys.modules["own_curves"].__dict__, "quadratic", lambda step: -1.0)
    with pytest.raises(ValueError, match=r"has the learning rates \[-0\.4\] at step"):
        build()


def test_get_scheduler_is_not_longer_than_the_run_except_for_transformers_own():
    for name, warmup_type in [("cosine", "linear"), ("cosine", "none"), ("noam", None)]:
        with pytest.raises(ValueError, match=r"^num_warmup_steps=200: expected at most the 100 updates\.$"):
            get_scheduler(name, adamw(0.04), 200, 100, warmup_type=warmup_type)
        assert get_scheduler(name, adamw(0.04), 100, 100, warmup_type=warmup_type)
    theirs = transformers.get_scheduler("cosine", adamw(0.4), 200, 100)
    assert lrs_of(get_scheduler("cosine", adamw(0.4), 200, 100), 100) == lrs_of(theirs, 100)


def test_get_scheduler_with_a_plateau_after_a_warmup_matches_hand_computed_rates():
    kwargs = {"patience": 0, "factor": 0.5}
    scheduler = get_scheduler("reduce_lr_on_plateau", adamw(0.4), 4, 100, kwargs, "linear")
    lrs = lrs_of(scheduler, 3)
    scheduler.step(1.0)  # the best so far
    lrs += lrs_of(scheduler, 2)
    scheduler.step(2.0)  # worse: halved
    lrs += lrs_of(scheduler, 2)
    assert [lr for (lr,) in lrs] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.2, 0.2], rel=1e-12)


@pytest.mark.parametrize("warmup_type", ["linear", "constant", "exponential", "cosine"])
def test_get_scheduler_warns_of_a_warmup_without_a_length(warmup_type, caplog):
    get_scheduler("cosine", adamw(0.4, 0.1), 0, 8, warmup_type=warmup_type)
    get_scheduler("cosine", adamw(0.4), 2, 8, warmup_type=warmup_type)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"The warmup of {warmup_type!r} has no effect because num_warmup_steps is 0.")


@pytest.mark.parametrize("warmup_type", ["none", "untuned_linear", "untuned_exponential", "radam"])
def test_get_scheduler_is_silent_where_no_length_is_needed(warmup_type, caplog):
    for name in ("cosine", "noam"):
        get_scheduler(name, adamw(0.04), 0, 8, warmup_type=warmup_type)
    get_scheduler("exponential", adamw(0.04))
    assert caplog.text == ""


def test_get_scheduler_warns_of_noam_without_a_length(caplog):
    get_scheduler("noam", adamw(0.04))
    assert "The warmup of 'noam' has no effect because num_warmup_steps is 0" in caplog.text


def test_get_scheduler_warns_of_an_implausible_noam_peak():
    # transformers' default learning rate as the paper's factor: 5e-5 / sqrt(768 * 4000) = 2.9e-8
    with pytest.warns(UserWarning, match=r"learning_rate=5e-05 gives Noam a peak of 2\.85e-08, outside"):
        get_scheduler("noam", adamw(5e-5), 4000, None, {"d_model": 768})


@pytest.mark.parametrize(
    ("beta2", "length", "said"), [(0.999, 2000, True), (0.999, 20_000, False), (0.98, 2000, False)]
)
def test_get_scheduler_warns_of_what_radam_and_the_decay_leave(beta2, length, said, caplog):
    get_scheduler("linear", RAdam([torch.zeros(1, requires_grad=True)], betas=(0.9, beta2)), 0, length)
    used = max(rectification(t, beta2) * (1 - (t - 1) / length) for t in range(1, length + 1, length // 500))
    text = f"RAdam's rectification and the decay leave at most {100 * used:.2g} % of learning_rate in this run"
    assert (text in caplog.text) is bool(caplog.text) is said


def test_get_scheduler_warns_of_greedy_outside_its_bounds():
    if "greedy" not in {member.value for member in transformers.SchedulerType}:
        pytest.skip("this transformers has no GreedyLR")
    from transformers.optimization import GreedyLR

    for build in (
        lambda: get_scheduler("greedy", adamw(5e-5)),
        lambda: get_scheduler("greedy", adamw(5e-5), 4, warmup_type="linear"),
        lambda: with_warmup(GreedyLR(adamw(5e-5)), RAMP),
    ):
        with pytest.warns(UserWarning, match=r"learning rate 5e-05 .* outside the bounds of GreedyLR, min_lr=0\.001"):
            build()
    get_scheduler("greedy", adamw(5e-5), scheduler_specific_kwargs={"min_lr": 1e-6})
    with_warmup(GreedyLR(adamw(5e-5), min_lr=1e-6), RAMP)


@pytest.mark.parametrize(
    "build",
    [
        lambda optimizer: get_scheduler("constant", optimizer, 4, warmup_type="linear"),
        lambda optimizer: with_warmup(cosine(optimizer), RAMP),
    ],
)
def test_a_warmup_of_prodigy_without_safeguard_warmup_warns(build):
    get_scheduler("constant", sgd(safeguard_warmup=False))
    build(sgd(safeguard_warmup=True))
    with pytest.warns(UserWarning, match="unless it has safeguard_warmup=True"):
        build(sgd(safeguard_warmup=False))


def test_get_scheduler_built_after_the_optimizer_was_loaded_sets_the_rate():
    scheduler = get_scheduler("linear", sgd(), 4, 20, warmup_type="linear")
    lrs_of(scheduler, 9)
    optimizer = sgd()
    optimizer.load_state_dict(scheduler.optimizer.state_dict())
    fresh = get_scheduler("linear", optimizer, 4, 20, warmup_type="linear")
    fresh.load_state_dict(scheduler.state_dict())
    assert optimizer.param_groups[0]["lr"] == (20 - 9) / (20 - 4)


def test_layer_wise_optimizers_take_schedules_of_transformers_only():
    dummy = transformers.trainer_pt_utils.LayerWiseDummyOptimizer({torch.zeros(1): sgd()}, lr=1.0)
    assert type(get_scheduler("linear", dummy, 2, 9)).__name__ == "LayerWiseDummyScheduler"
    with pytest.raises(ValueError, match="A layer-wise optimizer steps in the backward pass"):
        get_scheduler("linear", dummy, 2, 9, warmup_type="linear")


# Copies, tensors, groups


@pytest.mark.parametrize(
    "build",
    [
        lambda optimizer: get_scheduler("linear", optimizer, 2, 6, warmup_type="linear"),
        lambda optimizer: create_scheduler(optimizer, "linear", 2, 6, warmup_type="linear"),
        lambda optimizer: with_warmup(get_scheduler("linear", optimizer, 2, 6, warmup_type="none"),
                                      partial(linear_warmup, num_warmup_steps=2)),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")  # torch says it of any copied scheduler
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copied_schedulers_move_their_copied_optimizer(build, copied):
    optimizer = sgd()
    _, scheduler = copied((optimizer, build(optimizer)))
    assert [lr for (lr,) in lrs_of(scheduler, 6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_copied_plateau_with_a_warmup_counts_updates():
    scheduler = copy.deepcopy(with_warmup(plateau(sgd()), RAMP))
    assert [lr for (lr,) in lrs_of(scheduler, 5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    "build",
    [
        lambda optimizer: get_scheduler("cosine_with_min_lr", optimizer, 3, 9, {"min_lr": 0.125}, "linear"),
        lambda optimizer: with_warmup(torch_schedulers.ExponentialLR(optimizer, 0.5), RAMP),
    ],
)
def test_tensor_learning_rates_follow_the_same_curve_in_place(build):
    expected = lrs_of(build(sgd()), 9)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=torch.tensor(1.0))
    tensor = optimizer.param_groups[0]["lr"]
    scheduler = build(optimizer)
    for (lr,) in expected:
        assert tensor.item() == pytest.approx(lr, rel=1e-6)  # float32
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] is tensor


@pytest.mark.parametrize(
    "build",
    [
        lambda optimizer: get_scheduler("linear", optimizer, 2, 10),
        lambda optimizer: with_warmup(cosine(optimizer), RAMP),
    ],
)
def test_schedulers_step_with_a_group_added_to_the_optimizer_raises(build):
    scheduler = build(adamw(0.4))
    scheduler.optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.5})
    scheduler.optimizer.step()
    with pytest.raises(ValueError, match=r"has 2 parameter groups and its scheduler 1.* `add_param_group`"):
        scheduler.step()


# with_warmup


def wave(step):
    return 3 - step % 3


WRAPPED = {
    "cosine": partial(cosine, T_max=120),
    "restarts": partial(torch_schedulers.CosineAnnealingWarmRestarts, T_0=30),
    "milestones": partial(torch_schedulers.MultiStepLR, milestones=[5, 100]),
    "linear": partial(torch_schedulers.LinearLR, start_factor=1.0, end_factor=0.1, total_iters=200),
    "lambda": partial(torch_schedulers.LambdaLR, lr_lambda=[partial(pow, 0.99), wave]),
    "plateau": partial(plateau, patience=1, factor=0.7),
}


def follow(scheduler, start, stop):
    """Return the rates of updates start to stop. A plateau gets every 10 updates a loss that soon stops falling."""
    follows_metric = isinstance(scheduler, torch_schedulers.ReduceLROnPlateau)
    rows = []
    for step in range(start, stop):
        rows.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        if not follows_metric:
            scheduler.step()
        elif step % 10 == 9:
            scheduler.step(max(0.5, 1 - step / 50))
    return rows


@pytest.mark.parametrize("kind", WRAPPED)
def test_with_warmup_multiplies_and_resumes(kind):
    def build():
        return with_warmup(WRAPPED[kind](adamw(0.3, 0.02)), partial(linear_warmup, num_warmup_steps=75))

    twin = follow(WRAPPED[kind](adamw(0.3, 0.02)), 0, 200)
    assert len({lr for lr, _ in twin}) > 2  # the twin itself changes
    rows = follow(scheduler := build(), 0, 200)
    for t, (row, expected) in enumerate(zip(rows, twin, strict=True), 1):
        assert row == pytest.approx([min(1, t / 75) * lr for lr in expected], rel=1e-12, abs=1e-300)
    for stop in (1, 33, 150):
        follow(scheduler := build(), 0, stop)
        fresh = resume(build, scheduler)
        assert fresh.get_last_lr() == scheduler.get_last_lr()
        assert follow(fresh, stop, 200) == rows[stop:]


@pytest.mark.parametrize("steps_per_epoch", [1, 4, 7])
def test_with_warmup_steps_the_inner_scheduler_each_epoch_and_the_warmup_each_update(steps_per_epoch):
    milestones = partial(torch_schedulers.MultiStepLR, milestones=[2, 5])
    for inner in (cosine, milestones):
        scheduler = with_warmup(inner(adamw(0.4)), linear_warmup, warmup_epochs=2.5, steps_per_epoch=steps_per_epoch)
        twin = inner(adamw(0.4))
        W, t = -(-5 * steps_per_epoch // 2), 0
        for epoch in range(8):
            for _ in range(steps_per_epoch):
                t += 1
                (lr,) = scheduler.get_last_lr()
                assert lr == pytest.approx(min(1, t / W) * twin.get_last_lr()[0], rel=1e-12), (epoch, t)
                scheduler.optimizer.step()
                scheduler.step()
            twin.optimizer.step()
            twin.step()


def test_with_warmup_epochs_do_not_change_a_warmup_with_a_length():
    warmups = [linear_warmup, partial(constant_warmup, num_warmup_steps=3)]
    scheduler = with_warmup(cosine(adamw(0.4, 0.4), 1000), warmups, warmup_epochs=2, steps_per_epoch=4)
    rows = lrs_of(scheduler, 4)
    assert [row[0] for row in rows] == pytest.approx([0.05, 0.1, 0.15, 0.2], rel=1e-12)
    assert [row[1] for row in rows] == pytest.approx([0.04, 0.04, 0.04, 0.4], rel=1e-12)


def joined(inner, warmup):
    """Return a scheduler after 6 updates of a group at 0.04, which a second one at 0.01 has joined."""
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
def test_add_param_group_follows_the_first_groups_curve_after_its_own_warmup(inner):
    scheduler = joined(inner, partial(linear_warmup, num_warmup_steps=5))
    rows = lrs_of(scheduler, 12)
    alone = lrs_of(with_warmup(inner(adamw(0.04)), partial(linear_warmup, num_warmup_steps=3)), 18)[6:]
    assert [row[0] for row in rows] == [lr for (lr,) in alone]
    for t, row in enumerate(rows, 1):
        assert row[1] == pytest.approx(min(1, t / 5) * row[0] / 4, rel=1e-12, abs=1e-300)


def test_add_param_group_to_a_plateau_is_reduced_from_then_on():
    scheduler = joined(plateau, no_warmup)
    assert scheduler.get_last_lr() == pytest.approx([0.04, 0.01])
    scheduler.step(1.0)
    scheduler.step(2.0)
    assert scheduler.get_last_lr() == pytest.approx([0.02, 0.005])


def test_add_param_group_then_resume_continues():
    warmup = partial(linear_warmup, num_warmup_steps=5)
    scheduler = joined(cosine, warmup)
    lrs_of(scheduler, 2)
    warmups = [partial(linear_warmup, num_warmup_steps=3), warmup]
    fresh = resume(lambda: with_warmup(cosine(adamw(0.04, 0.01)), warmups), scheduler)
    assert lrs_of(fresh, 9) == lrs_of(scheduler, 9)
    with pytest.raises(ValueError, match="optimizer has 1 parameter groups and its scheduler 2"):
        with_warmup(cosine(adamw(0.4)), no_warmup).load_state_dict(scheduler.state_dict())


def begun(optimizer):
    lrs_of(scheduler := cosine(optimizer), 3)
    return scheduler


def sequential(optimizer):
    pieces = [torch_schedulers.ConstantLR(optimizer), cosine(optimizer)]
    return torch_schedulers.SequentialLR(optimizer, pieces, [3])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: with_warmup(cosine(sgd()), "linear"), "warmup='linear': expected a function of the step"),
        (lambda: with_warmup(adamw(0.4), RAMP), "lr_scheduler is a AdamW: expected a learning-rate scheduler."),
        (
            lambda: with_warmup(cosine(sgd()), partial(linear_warmup, num_warmup_steps=0.5)),
            r"num_warmup_steps=0.5: expected an integer in \[0, inf\)",
        ),
        (lambda: with_warmup(cosine(sgd()), linear_warmup), r"linear_warmup\(\) missing .*num_warmup_steps'\. Bind it"),
        (lambda: with_warmup(cosine(sgd()), lambda step, c: 1.0), "missing 1 required positional argument: 'c'"),
        (lambda: with_warmup(begun(adamw(0.4)), RAMP), "a CosineAnnealingLR, has been stepped 3 times"),
        (
            lambda: with_warmup(torch_schedulers.ChainedScheduler([begun(adamw(0.4))]), RAMP),
            "a ChainedScheduler, has been stepped 3 times",
        ),
        (lambda: joined(cosine, linear_warmup), r"linear_warmup\(\) missing"),
        (
            lambda: with_warmup(sequential(sgd()), no_warmup).add_param_group({"params": []}),
            "not possible with a SequentialLR",
        ),
        *(
            (lambda kwargs=kwargs: with_warmup(cosine(sgd()), linear_warmup, **kwargs), message)
            for kwargs, message in [
                ({"warmup_epochs": 5}, "warmup_epochs=5 needs steps_per_epoch"),
                ({"warmup_epochs": -1, "steps_per_epoch": 3}, "warmup_epochs=-1: expected"),
                ({"warmup_epochs": 5, "steps_per_epoch": 2.5}, "steps_per_epoch=2.5: expected an int"),
            ]
        ),
        (
            lambda: with_warmup(cosine(sgd()), no_warmup, warmup_epochs=5, steps_per_epoch=2),
            "got an unexpected keyword argument 'num_warmup_steps'",
        ),
    ],
)
def test_with_warmup_raises(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_with_warmup_warns_once_when_another_scheduler_changes_the_rate():
    optimizer = adamw(0.4)
    first, second = with_warmup(cosine(optimizer), no_warmup), torch_schedulers.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    second.step()
    with pytest.warns(UserWarning, match=r"parameter group 0 was changed from 0\.4 to 0\.2 outside this scheduler"):
        first.step()
    optimizer.step()
    second.step()
    first.step()


@pytest.mark.parametrize("door", ["WarmupTrainer", "optimizers="])
@pytest.mark.parametrize(
    ("metric", "factors"),  # of an accuracy that rises at every evaluation, and a loss that never falls enough
    [("accuracy", [1, 1, 1, 1, 1]), ("loss", [1, 1, 1 / 2, 1 / 4, 1 / 8])],
)
def test_plateau_after_a_warmup_in_any_trainer_follows_the_metrics_direction(tmp_path, door, metric, factors):
    used, evaluations = [], []

    class Used(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            used.append(optimizer.param_groups[0]["lr"])

    def rising(predictions):
        evaluations.append(predictions)
        return {"accuracy": len(evaluations) / 10}

    kwargs = {"patience": 0, "factor": 0.5, "threshold_mode": "abs"} | ({"threshold": 9.0} if metric == "loss" else {})
    args = arguments(
        tmp_path, max_steps=5, lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs=kwargs, warmup_steps=2,
        warmup_type="linear", metric_for_best_model=metric, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    model = tiny_bert()
    own = {} if door == "WarmupTrainer" else {"optimizers": create_optimizer_and_scheduler(model, args, 5)}
    cls = WarmupTrainer if door == "WarmupTrainer" else Trainer
    kwargs = {"train_dataset": examples(), "eval_dataset": examples(8), "compute_metrics": rising}
    log = train(cls(model, args, callbacks=[Used()], **kwargs, **own))
    warmup = [1 / 2, 1, 1, 1, 1]
    assert used == pytest.approx([0.01 * a * b for a, b in zip(warmup, factors, strict=True)])
    if door == "WarmupTrainer":
        assert [entry["learning_rate"] for entry in log] == used


def test_with_warmup_of_a_plateau_in_warmup_trainer_follows_the_loss_by_default(tmp_path):
    model = tiny_bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = arguments(tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1)
    scheduler = with_warmup(plateau(optimizer, threshold=9.0, threshold_mode="abs"), no_warmup)
    data = {"train_dataset": examples(), "eval_dataset": examples(8)}
    train(WarmupTrainer(model, args, optimizers=(optimizer, scheduler), **data))
    assert scheduler.get_last_lr() == [0.025]  # halved after the second and the third evaluation


def test_warmup_trainer_plateau_against_the_direction_of_the_metric_warns(tmp_path, caplog):
    model = tiny_bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = arguments(tmp_path, metric_for_best_model="accuracy")
    WarmupTrainer(model, args, optimizers=(optimizer, plateau(optimizer, mode="max")))
    assert not caplog.records
    WarmupTrainer(model, args, optimizers=(optimizer, plateau(optimizer)))
    assert "mode='min', but metric_for_best_model='accuracy' is better when it is greater" in caplog.text


@pytest.mark.filterwarnings(r"ignore::Warning:lightning.*")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize(("mode", "halved"), [("max", 0), ("min", 2)])  # of a metric that rises at each evaluation
def test_plateau_after_a_warmup_in_lightning_follows_the_monitor(tmp_path, mode, halved):
    L = pytest.importorskip("lightning.pytorch", reason="the extra `lightning` is not installed")
    used = []

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, index):
            return self.layer(batch).mean()

        def validation_step(self, batch, index):
            self.log("metric", float(self.current_epoch))

        def on_before_optimizer_step(self, optimizer):
            used.append(optimizer.param_groups[0]["lr"])

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            scheduler = with_warmup(plateau(optimizer, mode=mode), RAMP)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "metric"}}

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        max_epochs=4, accelerator="cpu", num_sanity_val_steps=0, enable_model_summary=False, default_root_dir=tmp_path,
        **quiet,
    )  # fmt: skip
    data = torch.utils.data.DataLoader(torch.ones(2, 1))  # 2 updates an epoch
    trainer.fit(Module(), data, data)
    assert used == [0.25, 0.5, 0.75, 1.0, *[0.5 ** min(halved, 1)] * 2, *[0.5**halved] * 2]


# One warmup at a time


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
def test_with_warmup_of_a_scheduler_that_warms_up_raises(build):
    assert scheduler_warms_up(build(adamw(0.04)))
    with pytest.raises(ValueError, match=r"lr_scheduler is a \w+ that warms up already"):
        with_warmup(build(adamw(0.04)), RAMP)


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
        plateau,
        lambda optimizer: torch_schedulers.LambdaLR(optimizer, lambda step: 0.5 ** (step % 5)),
        lambda optimizer: torch_schedulers.SequentialLR(optimizer, [cosine(optimizer), cosine(optimizer)], [3]),
        lambda optimizer: per_update(cosine(optimizer)),
    ],
)  # fmt: skip
def test_with_warmup_of_a_decay_a_restart_or_a_cycle_is_accepted(build):
    assert with_warmup(build(adamw(0.04, cls=torch.optim.SGD)), RAMP)


def test_with_warmup_checks_each_group():
    lambdas = [lambda step: 0.9**step, RAMP]
    scheduler = with_warmup(torch_schedulers.LambdaLR(adamw(0.4, 0.1), lambdas), [RAMP, no_warmup])
    assert lrs_of(scheduler, 1) == [pytest.approx([0.1, 0.025])]
    with pytest.raises(ValueError, match="that warms up already"):
        with_warmup(torch_schedulers.LambdaLR(adamw(0.4, 0.1), lambdas), RAMP)


def adam_warmup(**kwargs):
    return AdamWarmup([torch.zeros(1, requires_grad=True)], lr=0.4, **kwargs)


@pytest.mark.parametrize("name", ["linear", "noam", "constant", "reduce_lr_on_plateau"])
def test_get_scheduler_gives_the_length_to_an_optimizer_with_a_warmup_of_its_own(name, caplog):
    schedule_free = sgd(warmup_steps=0.2)  # transformers gives it the share of the run, which is not resolved
    for optimizer in (adam_warmup(), adam_warmup(warmup_steps=2), schedule_free):
        optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] = 0.04
        scheduler = get_scheduler(name, optimizer, 2, 8)
        assert (optimizer.param_groups[0]["warmup_steps"], optimizer.defaults["warmup_steps"]) == (2, 2)
        assert not scheduler_warms_up(scheduler)
        assert optimizer.param_groups[0]["lr"] == 0.04
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: get_scheduler("linear", adam_warmup(warmup_steps=6), 2, 8), "has warmup_steps=6.*give one of them"),
        (
            lambda: get_scheduler("linear", adam_warmup(), 2, 8, warmup_type="linear"),
            "The optimizer, AdamWarmup, has a warmup of its own",
        ),
        (lambda: with_warmup(cosine(adam_warmup(warmup_steps=3)), get_schedule("noam", 3)), "AdamWarmup, has a warmup"),
        *(
            (lambda cls=cls: get_scheduler("linear", adamw(0.4, cls=cls), 2, 8, warmup_type="radam"), "RAdam, has a")
            for cls in (RAdam, torch.optim.RAdam)
        ),
    ],
)
def test_a_second_warmup_on_an_optimizer_that_warms_up_raises(build, message):
    with pytest.raises(ValueError, match=message):
        build()
