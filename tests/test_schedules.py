"""Schedules as functions of the step, against the papers' recursions and transformers' own schedulers."""

import inspect
import math
import pickle
import sys

import pytest
import transformers
from transformers import optimization

from hf_warmup import get_schedule
from hf_warmup._validation import updates_of_share
from hf_warmup.schedules import (
    DECAYS,
    TRANSFORMERS_SCHEDULES,
    WARMUPS,
    check_schedule,
    join,
    schedule_names,
)

from .reference.schedules import RECURSIONS, iterate, noam
from .reference.schedules import WARMUPS as REFERENCE
from .stepping import adamw, lrs_of


HOST = {  # transformers' functions of the step, with keywords
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
LENGTHS = [(0, 20), (1, 20), (5, 20), (20, 20), (25, 20), (0, 0), (3, 0), (0, 1)]  # W, T


def keywords(name, W, T):
    """Return the keywords of a schedule, with no decay that is longer than what the warmup leaves of the run."""
    kwargs = {**OURS, **HOST}[name]
    return kwargs | {"num_decay_steps": max(0, min(6, T - W))} if "num_decay_steps" in kwargs else kwargs


# The tables


GIVEN = {"step", "num_warmup_steps", "num_training_steps", "base_lr", "optimizer", "last_epoch"}


@pytest.mark.parametrize("name", [*WARMUPS, *DECAYS])
def test_rows_name_the_parameters_of_their_functions(name):
    for row in filter(None, (WARMUPS.get(name), DECAYS.get(name))):
        parameters = inspect.signature(row.function).parameters
        assert {"step", *row.needs, *row.keywords} == set(parameters)
        assert row.needs_beta2 == ("beta2" in parameters)
        assert all(parameters[key].default is not parameters[key].empty for key in row.keywords)
        assert row.required == ()


def test_rows_of_transformers_name_its_parameters():
    names = {member.value for member in transformers.SchedulerType}
    assert names <= set(TRANSFORMERS_SCHEDULES)
    assert set(schedule_names()) == names | set(DECAYS)
    for name in names:
        row = TRANSFORMERS_SCHEDULES[name]
        function = optimization.TYPE_TO_SCHEDULER_FUNCTION[name]
        if row.follows_metric:
            metric_classes = {"reduce_lr_on_plateau": "ReduceLROnPlateau", "greedy": "GreedyLR"}
            function = getattr(optimization, metric_classes[name])
        parameters = inspect.signature(function).parameters
        assert set(row.keywords) == set(parameters) - GIVEN, name
        assert row.has_warmup == ("num_warmup_steps" in parameters), name
        assert {*row.required} == {key for key in row.keywords if parameters[key].default is inspect.Parameter.empty}


def test_get_schedule_passes_the_keywords_of_a_name_that_only_a_newer_transformers_has(monkeypatch):
    expected = [get_schedule("cosine", 2, 9, num_cycles=1.5)(step) for step in range(9)]
    monkeypatch.delitem(TRANSFORMERS_SCHEDULES, "cosine")
    assert [get_schedule("cosine", 2, 9, num_cycles=1.5)(step) for step in range(9)] == expected


def test_updates_of_share_is_the_ceiling_of_the_decimals():
    assert [updates_of_share(percent / 100, 100) for percent in range(100)] == list(range(100))
    assert [updates_of_share(percent / 100, 10_000) for percent in range(100)] == list(range(0, 10_000, 100))
    assert [updates_of_share(share, 10) for share in (0.01, 0.1, 0.11, 1e-9)] == [1, 1, 2, 1]
    assert updates_of_share(0.7, 700, whole=7) == 70  # 0.7 of 7 epochs


# Values


@pytest.mark.parametrize("beta2", [0.9, 0.98, 0.999])
@pytest.mark.parametrize("warmup_type", WARMUPS)
def test_get_schedule_warmups_equal_their_papers(warmup_type, beta2):
    for W in (0, 1, 7, 400):
        schedule = get_schedule("constant", W, warmup_type=warmup_type, beta2=beta2)
        for step in [*range(20), 398, 399, 400, 1999, 5000]:
            assert schedule(step) == pytest.approx(REFERENCE[warmup_type](step + 1, W, beta2), rel=1e-10)


def test_linear_warmup_from_a_factor_equals_goyals():
    # Goyal et al. 2017: from eta to k eta in equal increments; k = 8, W = 7
    schedule = get_schedule("constant", 7, warmup_type="linear", warmup_factor=1 / 8)
    assert [8 * schedule(step) for step in range(9)] == pytest.approx([2, 3, 4, 5, 6, 7, 8, 8, 8], rel=1e-12)


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


@pytest.mark.parametrize("W", [0, 1, 4000])
def test_noam_equals_its_paper(W):
    paper, peak_one = get_schedule("noam", W, d_model=512), get_schedule("noam", W)
    for step in [*range(50), *range(50, 20_000, 97), 3998, 3999, 4000, 10**9]:
        assert paper(step) == pytest.approx(noam(step + 1, max(1, W), 512), rel=1e-12)
        assert peak_one(step) == pytest.approx(noam(step + 1, max(1, W), 1) * max(1, W) ** 0.5, rel=1e-12)


def test_noam_peaks_at_the_end_of_the_warmup():
    schedule = get_schedule("noam", 4000, d_model=512)
    assert f"{schedule(3999):.2e}" == "6.99e-04"
    assert max(map(schedule, range(20_000))) == schedule(3999)


@pytest.mark.parametrize("base_lr", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize("name", RECURSIONS)
def test_closed_forms_equal_their_recursions(name, base_lr):
    kwargs, update = RECURSIONS[name]
    schedule = get_schedule(name, 5, warmup_type="none", base_lr=base_lr, **kwargs)
    recursion = [base_lr] * 5 + iterate(update, base_lr, 1500)
    for step, lr in enumerate(recursion):  # float64: 1500 roundings of the recursion itself are 2e-13
        assert base_lr * schedule(step) == pytest.approx(lr, rel=1e-12, abs=1e-300)


def test_inverse_time_after_linear_warmup_matches_hand_computed_values():
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
def test_decays_after_a_billion_updates(name, base_lr, expected):
    schedule = get_schedule(name, 4, base_lr=base_lr, **OURS[name])
    assert schedule(10**9) == pytest.approx(expected, rel=1e-6, abs=1e-30)


@pytest.mark.parametrize("name", [*OURS, *HOST])
def test_any_warmup_goes_before_any_decay(name):
    for warmup_type in (None, *WARMUPS):
        for W, T in LENGTHS:
            schedule = get_schedule(name, W, T, warmup_type=warmup_type, base_lr=0.5, **keywords(name, W, T))
            values = [schedule(step) for step in [*range(60), 1000, 10**9]]
            assert all(math.isfinite(value) and 0 <= value <= 1 for value in values), (W, T, values)
            twin = pickle.loads(pickle.dumps(schedule))
            assert [twin(step) for step in range(60)] == values[:60]
            if warmup_type is not None:
                before = [REFERENCE[warmup_type](t, W, 0.999) for t in range(1, W + 1)]
                assert values[:W] == pytest.approx(before, rel=1e-10), (W, T)  # no decay before W


@pytest.mark.parametrize("name", HOST)
def test_names_of_transformers_keep_its_numbers(name):
    for W, T in [(0, 20), (1, 20), (5, 20)]:
        theirs = [lr for (lr,) in lrs_of(transformers.get_scheduler(name, adamw(0.3), W, T, dict(HOST[name])), T + 1)]
        schedule = get_schedule(name, W, T, base_lr=0.3, **HOST[name])
        assert [0.3 * schedule(step) for step in range(T)] == theirs[:T]

        decay = [1.0 if step < W else lr / 0.3 for step, lr in enumerate(theirs)]
        last = T - 1 if name == "cosine_warmup_with_min_lr" else T  # the one that ends an update early
        for warmup_type in WARMUPS:
            schedule = get_schedule(name, W, T, warmup_type=warmup_type, base_lr=0.3, **HOST[name])
            for step in range(3 * T):  # held at the last value
                expected = REFERENCE[warmup_type](step + 1, W, 0.999) * decay[min(step, last)]
                assert schedule(step) == pytest.approx(expected, rel=1e-10, abs=1e-15)


def test_cosine_warmup_with_min_lr_stays_at_its_minimum_after_the_end():
    # 0.1 + 0.9 (1 + cos(pi 7/8)) / 2 at step 8, of 2 + 8 updates
    schedule = get_schedule("cosine_warmup_with_min_lr", 2, 10, min_lr=1e-4, base_lr=1e-3)
    assert [round(schedule(step), 4) for step in (8, 9, 10, 11, 50)] == [0.1343, 0.1, 0.1, 0.1, 0.1]


def test_join_counts_each_piece_from_0():
    pieces = (lambda step: 10 + step, lambda step: 20 + step, lambda step: 30 + step)
    assert [join(step, schedules=pieces, boundaries=(2, 3)) for step in range(5)] == [10, 11, 20, 30, 31]


# Curves by their import paths


@pytest.fixture
def my_curves(tmp_path, monkeypatch):
    (tmp_path / "my_curves.py").write_text(
        "import numpy\n"
        "def quadratic(step, *, num_warmup_steps, factor=1.0):\n"
        "    return numpy.float64(min(1.0, factor * ((step + 1) / num_warmup_steps) ** 2))\n"
        "def cooldown(step, *, num_warmup_steps, num_training_steps, share):\n"
        "    begin = (1 - share) * num_training_steps\n"
        "    return 1.0 if step < begin else 1 - ((step - begin) / (num_training_steps - begin)) ** 0.5\n"
        "def anything(step, **kwargs):\n"
        "    return 1 / len(kwargs)\n"
        "LENGTH = 3\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_curves", raising=False)


def test_get_schedule_takes_curves_by_their_import_paths(my_curves):
    # t^2 / 16 for t = 1 to 4, then 1 - sqrt(k / 4) from step 4 of 8
    schedule = get_schedule("my_curves:cooldown", 4, 8, warmup_type="my_curves:quadratic", share=0.5)
    values = [schedule(step) for step in range(9)]
    assert values == pytest.approx([1 / 16, 4 / 16, 9 / 16, 1, 1, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5, 0])
    assert {type(value) for value in values} == {float}
    assert pickle.loads(pickle.dumps(schedule))(5) == values[5]
    # A decay of one's own comes after a linear warmup, as any decay that is not transformers'.
    assert get_schedule("my_curves:cooldown", 4, 8, share=0.5)(1) == 0.5
    assert get_schedule("constant", 4, warmup_type="my_curves:quadratic", factor=2.0)(1) == 0.5
    assert get_schedule("my_curves:anything", 0, 8)(0) == 1 / 3  # the two lengths and base_lr


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_curves:quadratic", "importing 'no_such_curves' failed with ModuleNotFoundError"),
        ("broken:quadratic", "importing 'broken' failed with ZeroDivisionError"),
        ("my_curves:quadratik", "module 'my_curves' has no function 'quadratik'. Did you mean my_curves:quadratic?"),
        ("my_curves:LENGTH", "has no function 'LENGTH'"),
        (":quadratic", "importing '' failed"),
    ],
)
def test_get_schedule_with_a_wrong_import_path_raises(my_curves, path, message):
    for call in (lambda: get_schedule(path, 4, 8), lambda: check_schedule("linear", path, {})):
        with pytest.raises(ValueError, match=r"^(lr_scheduler_type|warmup_type)='") as caught:
            call()
        assert message in str(caught.value)


# Errors


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
        ("noam", {"beta2": 1.0}, r"beta2.*1\.0"),
        ("constant", {"beta2": 0.5, "warmup_type": "radam"}, r"beta2=0\.5: expected a finite number in \(0\.666"),
        ("noam", {"num_warmup_steps": -1}, "num_warmup_steps.*-1"),
        ("noam", {"num_warmup_steps": 0.06}, r"num_warmup_steps.*0\.06"),
        ("linear", {"num_training_steps": -9}, "num_training_steps.*-9"),
        ("linear", {}, "num_training_steps"),
        ("linear", {"num_training_steps": 9, "warmup_steps": 3}, "warmup_steps is an argument of its own"),
        ("reduce_lr_on_plateau", {}, "reduce_lr_on_plateau.* follows a metric"),
        ("warmup_stable_decay", {"num_training_steps": 9}, "'warmup_stable_decay' needs num_decay_steps"),
        (
            "warmup_stable_decay",
            {"num_warmup_steps": 10, "num_training_steps": 100, "num_decay_steps": 200, "warmup_type": "linear"},
            r"num_decay_steps in lr_scheduler_kwargs=200: expected an integer in \[0, 90\]",
        ),
    ],
)
def test_get_schedule_errors_name_the_argument_and_its_value(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        get_schedule(name, **kwargs)


def test_get_schedule_accepts_a_member_of_scheduler_type():
    member = transformers.SchedulerType.COSINE
    expected = get_schedule("cosine", 2, 8, warmup_type="linear")
    assert [get_schedule(member, 2, 8, warmup_type="linear")(step) for step in range(8)] == list(
        map(expected, range(8))
    )
