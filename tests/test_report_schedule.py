"""`report.schedule`: the schedule of a run is read back from logged rates."""

from __future__ import annotations

import csv
import os
import re
from math import cos, pi, sqrt
from pathlib import Path

import pytest

from hf_warmup.report import read_run
from hf_warmup.report.schedule import describe_schedule, logged_schedule, read_schedule

from .recorded import logged, recorded


PEAK, TOTAL = 5e-5, 1000


def linear(warmup, total=TOTAL):
    """transformers' linear schedule: the rate of update t, counted from 1."""
    return lambda t: PEAK * ((t - 1) / warmup if t - 1 < warmup else (total - t + 1) / (total - warmup))


def cosine(warmup, low=0.0):
    def rate(t):
        if t - 1 < warmup:
            return PEAK * (t - 1) / warmup
        return low + (PEAK - low) * (1 + cos(pi * (t - 1 - warmup) / (TOTAL - warmup))) / 2

    return rate


def read(rate, every=10, last=TOTAL):
    steps = range(every, last + 1, every)
    return read_schedule(steps, [rate(t) for t in steps], TOTAL)


@pytest.mark.parametrize("every", [1, 10, 25])
@pytest.mark.parametrize("warmup", [60, 100, 333])
@pytest.mark.parametrize("decay", [linear, cosine])
def test_length_of_a_warmup_is_found_between_logged_rates(decay, warmup, every):
    found = read(decay(warmup), every)
    assert found.warmup == "seen"
    assert abs(found.length - warmup) <= 2
    assert found.peak == pytest.approx(PEAK, rel=0.01)
    assert found.shape == f"{decay.__name__} to 0"


def test_length_of_a_warmup_of_many_updates_is_found_after_skipped_ones():
    """fp16 skipped two updates; from one update to the next the rate rises by less than logs round."""
    found = read(linear(12_000, total=20_000), every=1, last=20_000)
    skipped = read_schedule(
        range(1, 20_003), [0.0, 0.0, *(linear(12_000, 20_000)(t) for t in range(1, 20_001))], 20_000
    )
    assert abs(found.length - 12_000) <= 2
    assert abs(skipped.length - 12_000) <= 4


@pytest.mark.parametrize("rates", [[0.0, 0.0, 1.0, 0.5], [0.0, 2.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0]])
def test_rates_of_zero_are_read(rates):
    assert read_schedule(range(1, len(rates) + 1), rates, 10).num_rates == len(rates)


@pytest.mark.parametrize(
    ("rate", "shape"),
    [
        (cosine(0, low=PEAK / 10), "cosine to 5e-6"),
        (lambda t: PEAK, "constant"),
        (lambda t: PEAK * 0.995**t, "exponential to 3.33e-7"),
        (lambda t: PEAK * min(t / 100, sqrt(100 / t)), "inverse square root to 1.58e-5"),
    ],
)
def test_the_decay_is_named_by_its_shape(rate, shape):
    assert read(rate).shape == shape


@pytest.mark.parametrize(
    ("rates", "every", "said"),
    [
        ([linear(0)(t) for t in range(10, 1001, 10)], 10, r"No warmup: the rate starts at 5e-5, then linear to 0\."),
        ([1.9e-5, 1.83e-5, 1.76e-5], 50, r"No warmup to be seen: the rate is highest, 1.9e-5, at update 50, the first"),
        ([2e-4] * 5, 10, r"No warmup to be seen: the rate is constant at 0.0002"),
        ([1e-5, 2e-5, 3e-5], 10, r"The whole run was warmup: at its end, update 30, the rate still rises, to 3e-5\."),
        ([0.0, 9.99e-5, 9.8e-5, 9.4e-5], 10, r"Warmup: it ended before the second logged rate, so its length cannot"),
        ([1e-5], 500, r"Warmup: cannot be told from one logged rate\."),
        ([], 1, r"Warmup: cannot be told from a log without rates\."),
        ([1e-5, 2e-5, 1e-5, 0.0, 2e-5, 1e-5], 10, r"The rate rises again after update 40: restarts, or a run that was"),
    ],
)
def test_describe_schedule_says_what_was_read_and_what_cannot_be_told(tmp_path, rates, every, said):
    run = logged(tmp_path, rates, every) if rates else logged(tmp_path, rates, every, planned=3, global_step=3)
    assert re.search(said, describe_schedule(run))


def test_an_unfinished_warmup_is_no_run_that_never_left_it(tmp_path):
    run = logged(tmp_path, [1e-5, 2e-5, 3e-5], every=10, planned=500)
    assert describe_schedule(run) == "Still in its warmup at update 30 of 500: the rate is rising, at 3e-5."


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"warmup_type": "cosine"}, "Warmup: 4 of 20 updates (20 %), cosine to 0.1, then linear."),
        ({"warmup_type": None}, "Warmup: 4 of 20 updates (20 %), linear to 0.1, then linear."),
        ({"warmup_type": "none"}, "No warmup: the rate starts at 0.1, then linear."),
        (
            {"optim": "radam", "warmup_type": None, "num_warmup_steps": 0},
            "Warmup: built into RAdam; the schedule has none and starts at 0.1, then linear.",
        ),
    ],
)
def test_settings_are_preferred_to_logged_rates(tmp_path, settings, said):
    known = {"learning_rate": 0.1, "lr_scheduler_type": "linear", "num_warmup_steps": 4, "optim": "adamw"}
    assert describe_schedule(recorded(tmp_path / "a", steps=20, **known | settings)) == said


LOGS = Path(os.environ.get("HF_WARMUP_DATA", "")) / "trainer_states"
KINDS = {
    "none (": "none",
    "none u": "none",
    "never ": "never left",
    "consta": "constant",
    "cannot": "unknown",
    "seen, ": "between",
}


@pytest.mark.real_data
@pytest.mark.skipif(not (LOGS / "expected.tsv").exists(), reason="HF_WARMUP_DATA names no folder with trainer_states")
def test_schedules_of_public_runs_are_read_right():
    wrong = []
    with (LOGS / "expected.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            found = logged_schedule(read_run(LOGS / row["file"]))
            if seen := re.match(r"seen, about (\d+)", row["warmup"]):
                near = found.length is not None and abs(found.length - int(seen[1])) <= max(2, 0.15 * int(seen[1]))
            else:
                near = KINDS[row["warmup"][:6]] in found.warmup
            wrong += [] if near else [(row["file"], row["warmup"], found)]
    assert wrong == []
