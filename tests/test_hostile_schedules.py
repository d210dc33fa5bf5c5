"""Fuzz tests of schedules: a multiplier in the documented range, or one clear error."""

import copy
import math
import pickle
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import SchedulerType

from hf_warmup import get_schedule, get_scheduler, with_warmup
from hf_warmup.accelerate_utils import per_update
from hf_warmup.schedules import DECAYS, METRIC_SCHEDULERS, WARMUPS, schedule_keywords

from .hostile import JUNK, assert_one_sentence
from .stepping import lrs_of, through_file


SHARE, COUNT = st.floats(0.0, 1.0), st.integers(0, 300)
NEEDED = {"cosine_with_min_lr": {"min_lr_rate": 0.1}, "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1}}
NEEDED["warmup_stable_decay"] = {"num_decay_steps": 6}
KEYWORDS = {  # over their whole ranges
    "noam": {"d_model": st.integers(1, 10**308)},
    "exponential": {"gamma": st.floats(5e-324, 1.0)},
    "power": {"power": st.floats(1.0, 1e308)},
    "sine": {},
    "inverse_time": {"decay_rate": st.floats(0.0, 1e308)},
    "linear": {},
    "constant": {},
    "constant_with_warmup": {},
    "cosine": {"num_cycles": st.floats(0.0, 1e9)},
    "cosine_with_restarts": {"num_cycles": st.integers(0, 10**9)},
    "polynomial": {"power": st.floats(0.0, 1e3), "lr_end": st.floats(0.0, 1e-6)},
    "inverse_sqrt": {"timescale": st.integers(1, 10**12)},
    "cosine_with_min_lr": {"min_lr_rate": SHARE},
    "cosine_warmup_with_min_lr": {"min_lr_rate": SHARE, "warmup_lr_rate": SHARE},
    "warmup_stable_decay": {"num_decay_steps": COUNT, "min_lr_ratio": SHARE},
}
LENGTHS = COUNT | st.sampled_from([10**6, 10**12, 10**30])
STEPS = st.lists(COUNT | st.integers(0, 10**9), min_size=2, max_size=9).map(sorted)
WITHOUT_LENGTH = ("untuned_linear", "untuned_exponential", "radam", "none")


@st.composite
def schedules(draw, names=tuple(KEYWORDS), warmup_types=(None, *WARMUPS), lengths=LENGTHS):
    """Draw valid arguments of `get_schedule`."""
    name = draw(st.sampled_from(names))
    kwargs = NEEDED.get(name, {}) | draw(st.fixed_dictionaries({}, optional=KEYWORDS[name]))
    W, T = draw(lengths), draw(lengths)
    if "num_decay_steps" in kwargs:
        kwargs["num_decay_steps"] = min(kwargs["num_decay_steps"], max(0, T - W))
    kwargs["warmup_type"] = draw(st.sampled_from(warmup_types))
    kwargs["base_lr"] = draw(st.floats(1e-5, 1.0) | (st.floats(0.0, 1.0) if name in DECAYS else st.nothing()))
    kwargs["beta2"] = draw(st.floats(0.67, 1.0, exclude_max=True))
    return (name, W, T), kwargs


@settings(max_examples=400)
@given(schedules(), STEPS)
def test_get_schedule_is_finite_in_range_and_pickles(arguments, steps):
    args, kwargs = arguments
    schedule = get_schedule(*args, **kwargs)
    values = [schedule(step) for step in [0, *steps]]
    assert {type(value) for value in values} == {float}
    assert all(0.0 <= value <= 1.0 + 1e-12 for value in values), values  # nan is in no range
    twin = pickle.loads(pickle.dumps(schedule))
    assert [twin(step) for step in [0, *steps]] == values


@given(st.sampled_from(sorted(WARMUPS)), LENGTHS, st.floats(0.67, 0.9999), STEPS)
def test_get_schedule_warmups_rise_to_1(warmup_type, W, beta2, steps):
    schedule = get_schedule("constant", W, warmup_type=warmup_type, beta2=beta2)
    values = [schedule(step) for step in steps]
    # r_t is a difference near rho_inf <= 2e4: 11 digits are left of 16
    assert all(early <= late * (1 + 1e-10) for early, late in pairwise(values)), values
    assert values[0] > 0.0 or (warmup_type == "radam" and steps[0] < 9)
    if warmup_type not in WITHOUT_LENGTH:
        assert warmup_type == "exponential" or schedule(W) == 1.0
        assert schedule(50 * W) == 1.0


# transformers' cosines rise again after half a wave.
FALLING = sorted(set(KEYWORDS) - {"cosine", "cosine_with_restarts"})


@given(schedules(FALLING, ["none"]), STEPS)
def test_get_schedule_decays_fall_from_1(arguments, steps):
    (name, W, T), kwargs = arguments
    schedule = get_schedule(name, W, T, **kwargs)
    values = [schedule(step) for step in steps]
    assert all(late <= early * (1 + 1e-12) for early, late in pairwise(values)), values
    if W and "d_model" not in kwargs:
        assert schedule(0) == schedule(W - 1) == 1.0


def sgd(*lrs):
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs], lr=lrs[0])


KINDS = {
    "alone": lambda scheduler, warmup: scheduler,
    "per_update": lambda scheduler, warmup: per_update(scheduler),
    "with_warmup": lambda scheduler, warmup: with_warmup(scheduler, warmup),
}


@pytest.mark.filterwarnings("ignore:learning_rate=.* gives Noam a peak")
@given(schedules(lengths=COUNT), st.sampled_from(sorted(KINDS)), st.integers(0, 40), st.integers(1, 40))
def test_schedulers_resume_at_any_update(arguments, kind, stop, after):
    (name, W, T), kwargs = arguments
    lr, warmup_type, beta2 = (kwargs.pop(key) for key in ("base_lr", "warmup_type", "beta2"))
    warmup_type = "none" if kind == "with_warmup" else warmup_type  # one warmup
    if warmup_type is not None and "beta2" in schedule_keywords(name, warmup_type)[1]:
        kwargs["beta2"] = beta2

    def build():
        scheduler = get_scheduler(name, sgd(max(lr, 1e-5), 0.01), W, max(T, W + 1), kwargs, warmup_type)
        return KINDS[kind](scheduler, partial(WARMUPS["linear"].function, num_warmup_steps=7))

    scheduler, fresh = build(), build()
    lrs_of(scheduler, stop)
    states = [through_file(copy.deepcopy(part.state_dict())) for part in (scheduler.optimizer, scheduler)]
    for part, state in zip((fresh.optimizer, fresh), states, strict=True):
        part.load_state_dict(state)
    assert lrs_of(fresh, after) == lrs_of(scheduler, after)


def test_get_scheduler_with_numpy_numbers_survives_a_safe_load():
    kwargs = {"gamma": np.float32(0.5)}
    scheduler = get_scheduler("exponential", sgd(1.0), np.int64(3), np.int64(9), kwargs, "linear")
    assert lrs_of(scheduler, 5) == [[1 / 3], [2 / 3], [1.0], [1.0], [0.5]]
    assert type(through_file(scheduler.optimizer.state_dict())["param_groups"][0]["lr"]) is float
    assert kwargs == {"gamma": np.float32(0.5)}  # the dictionary of the caller is not changed


@st.composite
def mistaken(draw, names=tuple(KEYWORDS)):
    """Draw arguments of which one may be anything, and its name."""
    (name, W, T), kwargs = draw(schedules(names))
    kwargs |= {"num_warmup_steps": W, "num_training_steps": T}
    decay, warmup = schedule_keywords(name, kwargs["warmup_type"])
    key = draw(st.sampled_from(sorted({*kwargs, *decay, *warmup, "name"})))
    return ({"name": name} | kwargs) | {key: draw(SHARE | COUNT | JUNK)}, key


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")  # transformers' own
def test_get_schedule_with_any_value_works_or_raises_one_clear_error():
    outcomes = set()

    @settings(max_examples=600)
    @given(mistaken(), STEPS)
    @example(({"name": "noam"}, "name"), [0, 1])
    @example(({"name": "moan"}, "name"), [0, 1])
    def check(arguments, steps):
        kwargs, key = arguments
        try:
            schedule = get_schedule(**kwargs)
        except ValueError as error:
            outcomes.add("refused")
            # transformers' own errors name a pair of keywords that do not go together.
            assert_one_sentence(error, key, "lr_scheduler_type", "min_lr", "lr_end", "num_stable_steps")
        else:
            outcomes.add("runs")
            assert all(0.0 <= schedule(step) <= 1.0 + 1e-12 for step in [0, *steps])

    check()
    assert outcomes == {"runs", "refused"}


@pytest.mark.filterwarnings("ignore:The learning rate .* is outside the bounds")
def test_get_scheduler_of_a_metric_with_any_keyword_works_or_raises_one_clear_error():
    outcomes = set()
    known = {*METRIC_SCHEDULERS} & {each.value for each in SchedulerType}  # the oldest transformers has no "greedy"

    @settings(max_examples=200)
    @given(st.data(), st.sampled_from(sorted(known)), st.sampled_from([None, "linear"]))
    def check(data, name, warmup_type):
        key = data.draw(st.sampled_from(sorted(schedule_keywords(name)[0])))
        value = data.draw(st.floats(0.0, 1.0) | st.integers(0, 9) | st.booleans() | JUNK)
        try:
            scheduler = get_scheduler(name, sgd(0.5), 4, 20, {key: value}, warmup_type)
        except ValueError as error:
            outcomes.add("refused")
            assert_one_sentence(error, key)
        else:
            outcomes.add("runs")
            for loss in (1.0, 0.5, *[2.0] * 30):  # better, then long enough without for every branch
                scheduler.step(loss)
            assert math.isfinite(scheduler.optimizer.param_groups[0]["lr"])

    check()
    assert outcomes == {"runs", "refused"}


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        ("cosine", {"num_cycles": "x"}, "num_cycles in lr_scheduler_kwargs='x': expected a finite number in"),
        ("cosine", {"num_cycles": 1e308}, "num_cycles in lr_scheduler_kwargs=1e+308"),
        ("polynomial", {"power": None}, "power in lr_scheduler_kwargs=None"),
        ("inverse_sqrt", {"timescale": 0}, "timescale in lr_scheduler_kwargs=0: expected an integer in [1, inf)"),
        ("cosine_with_min_lr", {"min_lr": [1e-6]}, "min_lr in lr_scheduler_kwargs=[1e-06]"),
        ("cosine_with_min_lr", {"min_lr": 0.5}, "min_lr in lr_scheduler_kwargs=0.5: expected a finite number in [0,"),
        ("warmup_stable_decay", {"num_decay_steps": 0.5}, "num_decay_steps in lr_scheduler_kwargs=0.5"),
        ("warmup_stable_decay", {"num_decay_steps": 3, "decay_type": "cos"}, "decay_type in lr_scheduler_kwargs='cos'"),
        ("reduce_lr_on_plateau", {"patience": "2"}, "patience in lr_scheduler_kwargs='2'"),
        ("reduce_lr_on_plateau", {"min_lr": [0.0, "a"]}, "min_lr in lr_scheduler_kwargs='a'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("warmup_type", [None, "linear"])
def test_get_scheduler_checks_the_keywords_of_transformers(name, kwargs, sentence, warmup_type):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the sentence is compared below)
        get_scheduler(name, sgd(0.1), 2, 9, kwargs, warmup_type)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", ["polynomial", "cosine_with_min_lr"])
def test_get_scheduler_stays_at_the_learning_rate_where_transformers_divides_by_zero(name):
    optimizer, kwargs = (sgd(0.1), {}) if name == "polynomial" else (sgd(0.0), {"min_lr": 0.0})
    assert lrs_of(get_scheduler(name, optimizer, 0, 0, kwargs), 3) == [[optimizer.defaults["lr"]]] * 3


def test_get_schedule_at_the_corners_matches_hand_computed_values():
    assert get_schedule("sine", 0, warmup_type="none", base_lr=1e-300)(10**9) == 1.0  # sin x = x - x^3 / 6
    assert get_schedule("noam", 20, d_model=10**308)(19) == pytest.approx(10.0**-154 * 20**-0.5)
    slow = get_schedule("constant", 10**12, warmup_type="cosine")
    assert slow(0) == pytest.approx((math.pi * 1e-12) ** 2 / 4)  # of the cosine's series


@given(JUNK)
def test_with_warmup_of_anything_but_a_function_raises_one_clear_error(warmup):
    if warmup is object:  # callable, and no function of the step
        return
    with pytest.raises(ValueError, match="expected a function of the step") as caught:
        with_warmup(torch.optim.lr_scheduler.ConstantLR(sgd(0.1)), warmup)
    assert_one_sentence(caught.value, "warmup=")
