"""Schedules against the papers' recursions, transformers' own functions and torch's own schedulers."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
import transformers
from torch.optim import lr_scheduler as torch_schedulers

from hf_warmup import get_schedule, get_scheduler, with_warmup
from hf_warmup.schedules import join, linear_warmup

from .reference.schedules import RECURSIONS, WARMUPS, iterate, noam
from .stepping import adamw, lrs_of, through_file


HOST = {  # transformers' functions of the step, with the keywords that some cannot do without
    "linear": {},
    "cosine": {"num_cycles": 1.5},
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"power": 2.0, "lr_end": 1e-4},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-3},
    "warmup_stable_decay": {"num_decay_steps": 6},
}
OURS = {"noam": {}, "exponential": {"gamma": 0.9}, "power": {}, "sine": {}, "inverse_time": {"decay_rate": 0.5}}


def keywords(name, W, T):
    """The keywords of a schedule; no decay is longer than what the warmup leaves of the run."""
    kwargs = dict(OURS.get(name, HOST.get(name)))
    return kwargs | {"num_decay_steps": max(0, min(6, T - W))} if "num_decay_steps" in kwargs else kwargs


LENGTHS = [(0, 20), (1, 20), (5, 20), (20, 20), (25, 20), (0, 0), (3, 0), (0, 1)]  # W, T


@pytest.mark.parametrize("beta2", [0.9, 0.98, 0.999])
@pytest.mark.parametrize("W", [0, 1, 7, 400])
@pytest.mark.parametrize("warmup_type", WARMUPS)
def test_warmups_are_the_papers(warmup_type, W, beta2):
    schedule = get_schedule("constant", W, warmup_type=warmup_type, beta2=beta2)
    for step in [*range(20), 398, 399, 400, 1999, 5000]:
        assert schedule(step) == pytest.approx(WARMUPS[warmup_type](step + 1, W, beta2), rel=1e-10)


@pytest.mark.parametrize(
    ("warmup_type", "lengths"),
    [  # each to a unit of its last digit, 0.1 where it has one after the point
        ("radam", {0.999: 1033, 0.99: 107, 0.98: 55.3}),
        ("untuned_linear", {0.999: 999.5, 0.99: 99.5, 0.98: 49.5}),
        ("untuned_exponential", {0.999: 999.5, 0.99: 99.5, 0.98: 49.5}),
    ],
)
def test_effective_warmup_lengths(warmup_type, lengths):
    for beta2, expected in lengths.items():
        schedule = get_schedule("constant", warmup_type=warmup_type, beta2=beta2)
        total = sum(1 - schedule(step) for step in range(round(25 / (1 - beta2))))
        assert total == pytest.approx(expected, abs=1.0 if isinstance(expected, int) else 0.1)


def test_noam_is_the_papers_curve():
    paper, peak_one = get_schedule("noam", 4000, d_model=512), get_schedule("noam", 4000)
    assert f"{paper(3999):.2e}" == "6.99e-04"
    assert max(map(paper, range(20_000))) == paper(3999)
    for step in [*range(0, 20_000, 97), 3998, 3999, 4000, 10**9]:
        assert paper(step) == pytest.approx(noam(step + 1, 4000, 512), rel=1e-12)
        assert peak_one(step) == pytest.approx(noam(step + 1, 4000, 1) / noam(4000, 4000, 1), rel=1e-12)


def test_noam_without_warmup_starts_at_its_peak():
    for W in (0, 1):
        paper, peak_one = get_schedule("noam", W, d_model=512), get_schedule("noam", W)
        assert [paper(step) for step in range(50)] == pytest.approx([noam(t, 1, 512) for t in range(1, 51)], rel=1e-12)
        assert [peak_one(step) for step in (0, 3, 99)] == pytest.approx([1, 1 / 2, 1 / 10])


@pytest.mark.parametrize("base_lr", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize("name", RECURSIONS)
def test_closed_forms_equal_their_recursions(name, base_lr):
    kwargs, update = RECURSIONS[name]
    schedule = get_schedule(name, 5, warmup_type="none", base_lr=base_lr, **kwargs)
    recursion = [base_lr] * 5 + iterate(update, base_lr, 1500)
    for step, lr in enumerate(recursion):  # float64: 1500 roundings of the recursion itself are 2e-13
        assert base_lr * schedule(step) == pytest.approx(lr, rel=1e-12, abs=1e-300)


def test_inverse_time():
    schedule = get_schedule("inverse_time", 2, warmup_type="linear", decay_rate=0.5)
    assert [schedule(step) for step in range(5)] == pytest.approx([1 / 2, 1, 1, 2 / 3, 1 / 2])


@pytest.mark.parametrize(
    ("name", "base_lr", "expected"),
    [
        ("noam", 1e-3, math.sqrt(4 / (1e9 + 1))),
        ("inverse_time", 1e-3, 1 / (1 + 0.5 * (1e9 - 4))),
        ("exponential", 1e-3, 0.0),  # 0.9^(1e9)
        ("power", 0.5, 0.0),  # 0.5^(1.0001^(1e9)): the exponent itself overflows
        # 1/sin(x)^2 = 1/x^2 + 1/3 + x^2/15 + ...: the last terms add up to 1e-8 of the sum
        ("sine", 1.0, (1 + 1e9 / 3) ** -0.5),
        ("sine", 1e-3, (1 + 1e-6 * 1e9 / 3) ** -0.5),
    ],
)
def test_a_billion_updates(name, base_lr, expected):
    schedule = get_schedule(name, 4, base_lr=base_lr, **OURS[name])
    assert schedule(10**9) == pytest.approx(expected, rel=1e-6, abs=1e-30)


@pytest.mark.parametrize("warmup_type", WARMUPS)
@pytest.mark.parametrize("name", [*OURS, *HOST])
def test_every_warmup_goes_before_every_decay(name, warmup_type):
    for W, T in LENGTHS:
        kwargs = keywords(name, W, T)
        schedule = get_schedule(name, W, T, warmup_type=warmup_type, base_lr=0.5, **kwargs)
        values = [schedule(step) for step in [*range(60), 1000, 10**9]]
        assert all(math.isfinite(value) and 0 <= value <= 1 for value in values), (W, T, values)
        before = [WARMUPS[warmup_type](t, W, 0.999) for t in range(1, W + 1)]
        assert values[:W] == pytest.approx(before[:60], rel=1e-10), (W, T)  # no decay before W
        twin = pickle.loads(pickle.dumps(schedule))
        assert [twin(step) for step in range(60)] == values[:60]


@pytest.mark.parametrize(("W", "T"), [(0, 20), (1, 20), (5, 20)])
@pytest.mark.parametrize("name", HOST)
class TestHostNames:
    def host(self, name, W, T, lr=0.3):
        return transformers.get_scheduler(name, adamw(lr), W, T, dict(HOST[name]))

    def test_keep_their_numbers(self, name, W, T):
        theirs = [lr for (lr,) in lrs_of(self.host(name, W, T), T)]
        schedule = get_schedule(name, W, T, base_lr=0.3, **HOST[name])
        assert [0.3 * schedule(step) for step in range(T)] == theirs
        assert [lr for (lr,) in lrs_of(get_scheduler(name, adamw(0.3), W, T, dict(HOST[name])), T)] == theirs

    @pytest.mark.parametrize("warmup_type", WARMUPS)
    def test_decay_behind_our_warmup(self, name, W, T, warmup_type):
        decay = [1.0 if step < W else lr / 0.3 for step, (lr,) in enumerate(lrs_of(self.host(name, W, T), T + 1))]
        schedule = get_schedule(name, W, T, warmup_type=warmup_type, base_lr=0.3, **HOST[name])
        last = T - 1 if name == "cosine_warmup_with_min_lr" else T  # the one that ends an update early
        for step in range(3 * T):  # held at its last value
            expected = WARMUPS[warmup_type](step + 1, W, 0.999) * decay[min(step, last)]
            assert schedule(step) == pytest.approx(expected, rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("name", HOST)
def test_host_names_are_defined_at_every_length(name):
    for W, T in LENGTHS:
        schedule = get_schedule(name, W, T, base_lr=0.5, **keywords(name, W, T))
        values = [schedule(step) for step in range(60)]
        assert all(math.isfinite(value) and 0 <= value <= 1 for value in values), (W, T)


def test_join_counts_each_piece_from_0():
    pieces = (lambda step: 10 + step, lambda step: 20 + step, lambda step: 30 + step)
    assert [join(step, schedules=pieces, boundaries=(2, 3)) for step in range(5)] == [10, 11, 20, 30, 31]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("cosin", {}, "'cosin'.*'cosine'"),
        ("noma", {}, "'noma'.*'noam'"),
        ("constant", {"warmup_type": "linaer"}, "warmup_type='linaer'.*'linear'"),
        ("exponential", {"gama": 0.9}, "'gama'.*'gamma'"),
        ("linear", {"num_training_steps": 9, "gamma": 0.9}, "'gamma'"),
        ("noam", {"warmup_type": "cosine", "warmup_factor": 0.1}, "'warmup_factor'"),
        ("noam", {"warmup_type": "constant", "warmup_factor": -0.1}, "warmup_factor.*-0.1"),
        ("exponential", {"gamma": math.nan}, "gamma.*nan"),
        ("exponential", {"gamma": 0.0}, r"gamma.*0\.0"),
        ("exponential", {"gamma": 1.5}, r"gamma.*1\.5"),
        ("exponential", {"gamma": "0.9"}, r"gamma.*'0\.9'"),
        ("inverse_time", {"decay_rate": -1}, "decay_rate.*-1"),
        ("power", {"power": 0.5}, r"power.*0\.5"),
        ("power", {"base_lr": 1.5}, r"base_lr.*1\.5"),
        ("sine", {"base_lr": -0.1}, r"base_lr.*-0\.1"),
        ("sine", {"base_lr": math.nan}, "base_lr.*nan"),
        ("noam", {"d_model": 0}, "d_model.*0"),
        ("noam", {"d_model": math.inf}, "d_model.*inf"),
        ("noam", {"beta2": 1.0}, r"beta2.*1\.0"),
        ("noam", {"num_warmup_steps": -1}, "num_warmup_steps.*-1"),
        ("noam", {"num_warmup_steps": 0.06}, r"num_warmup_steps.*0\.06"),
        ("linear", {"num_warmup_steps": math.nan, "num_training_steps": 9}, "num_warmup_steps.*nan"),
        ("linear", {"num_training_steps": -9}, "num_training_steps.*-9"),
        ("linear", {}, "num_training_steps"),
        ("reduce_lr_on_plateau", {}, "reduce_lr_on_plateau"),
    ],
)
def test_errors_name_the_argument_and_its_value(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        get_schedule(name, **kwargs)


@pytest.mark.parametrize("name", ["sine", "power"])
def test_recursive_schedules_follow_each_groups_own_lr(name):
    lrs = (0.5, 0.01, 0.0)
    rows = lrs_of(get_scheduler(name, adamw(*lrs), 0, warmup_type="none"), 200)
    for group, lr in enumerate(lrs):
        assert [row[group] for row in rows] == pytest.approx(iterate(RECURSIONS[name][1], lr, 200), rel=1e-12)


@pytest.mark.parametrize("name", [*OURS, *HOST])
def test_a_group_with_lr_0_stays_at_0(name):
    for warmup_type in WARMUPS:
        kwargs = dict(OURS.get(name, HOST.get(name)))
        rows = lrs_of(get_scheduler(name, adamw(0.03, 0.0), 3, 9, kwargs, warmup_type), 12)
        assert [row[1] for row in rows] == [0.0] * 12
        alone = lrs_of(get_scheduler(name, adamw(0.03), 3, 9, kwargs, warmup_type), 12)
        assert [row[0] for row in rows] == [lr for (lr,) in alone]


@pytest.mark.parametrize("name", ["constant", "reduce_lr_on_plateau"])
@pytest.mark.parametrize("warmup_type", ["untuned_linear", "untuned_exponential", "radam"])
def test_beta2_is_each_groups_own(name, warmup_type):
    optimizer = adamw(1.0, 1.0)
    optimizer.param_groups[1]["betas"] = (0.9, 0.98)
    for t, row in enumerate(lrs_of(get_scheduler(name, optimizer, warmup_type=warmup_type), 150), 1):
        assert row == pytest.approx([WARMUPS[warmup_type](t, 0, beta2) for beta2 in (0.999, 0.98)], rel=1e-10)

    sgd = adamw(1.0, cls=torch.optim.SGD)
    with pytest.raises(ValueError, match=r"beta2.*SGD"):
        get_scheduler(name, sgd, warmup_type=warmup_type)
    row = lrs_of(get_scheduler(name, sgd, 0, None, {"beta2": 0.98}, warmup_type), 7)[6]
    assert row == pytest.approx([WARMUPS[warmup_type](7, 0, 0.98)], rel=1e-10)


def test_an_enum_member_is_a_name():
    member = transformers.SchedulerType.COSINE
    expected = lrs_of(get_scheduler("cosine", adamw(0.3), 2, 8, warmup_type="linear"), 8)
    assert lrs_of(get_scheduler(member, adamw(0.3), 2, 8, warmup_type="linear"), 8) == expected


@pytest.mark.parametrize("warmup_type", WARMUPS)
@pytest.mark.parametrize("name", [*OURS, *HOST])
def test_resume_at_step_7(name, warmup_type):
    def build(optimizer):
        return get_scheduler(name, optimizer, 4, 20, dict(OURS.get(name, HOST.get(name))), warmup_type)

    scheduler = build(adamw(0.03, 0.01))
    lrs_of(scheduler, 7)
    saved = [through_file(part.state_dict()) for part in (scheduler.optimizer, scheduler)]
    fresh = build(adamw(0.03, 0.01))
    for part, state in zip((fresh.optimizer, fresh), saved, strict=True):
        part.load_state_dict(state)
    assert lrs_of(fresh, 13) == lrs_of(scheduler, 13)


def wave(step):
    return 2 + math.cos(step)


WRAPPED = {
    "cosine": partial(torch_schedulers.CosineAnnealingLR, T_max=120),
    "restarts": partial(torch_schedulers.CosineAnnealingWarmRestarts, T_0=30),
    "step": partial(torch_schedulers.StepLR, step_size=40, gamma=0.5),
    "milestones": partial(torch_schedulers.MultiStepLR, milestones=[5, 100]),
    "exponential": partial(torch_schedulers.ExponentialLR, gamma=0.99),
    "linear": partial(torch_schedulers.LinearLR, start_factor=1.0, end_factor=0.1, total_iters=200),
    "lambda": partial(torch_schedulers.LambdaLR, lr_lambda=[partial(pow, 0.99), wave]),
    "plateau": partial(torch_schedulers.ReduceLROnPlateau, patience=1, factor=0.7),
}


def follow(scheduler, start, stop):
    """lrs of updates start to stop; a plateau scheduler is evaluated every 10 on a loss that soon stops falling."""
    plateau = isinstance(getattr(scheduler, "lr_scheduler", scheduler), torch_schedulers.ReduceLROnPlateau)
    rows = []
    for step in range(start, stop):
        rows.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        if plateau and step % 10 == 9:
            scheduler.step(max(0.5, 1 - step / 50))
        if not plateau or hasattr(scheduler, "lr_scheduler"):
            scheduler.step()
    return rows


@pytest.mark.parametrize("kind", WRAPPED)
class TestWithWarmup:
    warmup = staticmethod(partial(linear_warmup, num_warmup_steps=75))

    def build(self, kind):
        return with_warmup(WRAPPED[kind](adamw(0.3, 0.02)), self.warmup)

    def test_multiplies_what_a_twin_would_do_alone(self, kind):
        twin = follow(WRAPPED[kind](adamw(0.3, 0.02)), 0, 300)
        assert len({lr for lr, _ in twin}) > 2  # the twin itself changes
        for t, (row, expected) in enumerate(zip(follow(self.build(kind), 0, 300), twin, strict=True), 1):
            assert row == pytest.approx([min(1, t / 75) * lr for lr in expected], rel=1e-12, abs=1e-300)

    @pytest.mark.parametrize("stop", [1, 33, 150])
    def test_save_and_resume(self, kind, stop):
        scheduler, fresh = self.build(kind), self.build(kind)
        follow(scheduler, 0, stop)
        saved = [copy.deepcopy(part.state_dict()) for part in (scheduler.optimizer, scheduler)]
        for part, state in zip((fresh.optimizer, fresh), saved, strict=True):
            part.load_state_dict(through_file(state))
        assert fresh.get_last_lr() == scheduler.get_last_lr()
        assert follow(fresh, stop, 300) == follow(scheduler, stop, 300)


def test_with_warmup_refuses_what_is_not_a_function():
    with pytest.raises(ValueError, match="warmup='linear'"):
        with_warmup(WRAPPED["step"](adamw(0.3)), "linear")


def warming_optimizer():
    """As schedulefree's: its own warmup stands in its groups."""
    optimizer = adamw(0.4)
    optimizer.param_groups[0]["warmup_steps"] = 2
    return optimizer


@pytest.mark.parametrize("name", ["constant", "reduce_lr_on_plateau"])
def test_a_name_without_a_warmup_is_none_beside_the_optimizers_own(name, caplog):
    get_scheduler(name, warming_optimizer(), 2, 8)
    assert caplog.text == ""
    get_scheduler(name, adamw(0.4), 2, 8)
    assert f"num_warmup_steps=2 has no effect because lr_scheduler_type='{name}' has no warmup" in caplog.text


@pytest.mark.parametrize("warmup_type", ["linear", "constant", "exponential", "cosine"])
def test_a_named_warmup_without_a_length_says_so_once(warmup_type, caplog):
    get_scheduler("cosine", adamw(0.4, 0.1), 0, 8, warmup_type=warmup_type)
    get_scheduler("cosine", adamw(0.4), 2, 8, warmup_type=warmup_type)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"warmup_type={warmup_type!r} has no effect because num_warmup_steps is 0.")


@pytest.mark.parametrize("warmup_type", ["none", "untuned_linear", "untuned_exponential", "radam"])
def test_get_scheduler_without_length_is_silent_where_none_is_needed(warmup_type, caplog):
    for name in ("cosine", "noam"):
        get_scheduler(name, adamw(0.04), 0, 8, warmup_type=warmup_type)
    get_scheduler("exponential", adamw(0.04))
    assert caplog.text == ""


def test_get_scheduler_noam_without_length_warns(caplog):
    get_scheduler("noam", adamw(0.04))
    assert "lr_scheduler_type='noam' begins at its peak because num_warmup_steps is 0" in caplog.text


def test_a_warmup_is_not_longer_than_the_run():
    for name, warmup_type in [("cosine", "linear"), ("cosine", "none"), ("noam", None)]:
        with pytest.raises(ValueError, match=r"^num_warmup_steps=200: expected at most the 100 updates\.$"):
            get_scheduler(name, adamw(0.4), 200, 100, warmup_type=warmup_type)
        assert get_scheduler(name, adamw(0.04), 100, 100, warmup_type=warmup_type)
    theirs = transformers.get_scheduler("cosine", adamw(0.4), 200, 100)
    assert lrs_of(get_scheduler("cosine", adamw(0.4), 200, 100), 100) == lrs_of(theirs, 100)


def test_reduce_lr_on_plateau_behind_a_warmup_by_name():
    kwargs = {"patience": 0, "factor": 0.5}
    scheduler = get_scheduler("reduce_lr_on_plateau", adamw(0.4), 4, 100, kwargs, "linear")
    lrs = [lr for (lr,) in lrs_of(scheduler, 3)]
    scheduler.step(1.0)  # the best so far, at update 4
    lrs += [lr for (lr,) in lrs_of(scheduler, 2)]
    scheduler.step(2.0)  # worse: halved
    lrs += [lr for (lr,) in lrs_of(scheduler, 2)]
    assert lrs == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.2, 0.2], rel=1e-12)
