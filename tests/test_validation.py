"""Checks of numbers, names, shares of a run and import paths."""

from __future__ import annotations

from fractions import Fraction
from math import inf, nan

import numpy as np
import pytest
import torch

from hf_warmup._validation import check_name, check_number, check_updates_or_share, import_from_path, updates_of_share


@pytest.mark.parametrize(
    ("value", "kwargs"),
    [
        (0, {}),
        (1e300, {}),
        (1, {"low": 1, "high": 1}),
        (0.999, {"high": 1.0, "open_high": True}),
        (1e-9, {"open_low": True}),
        (-3, {"low": -inf}),
        (3.0, {"integer": True}),
        (np.float32(0.5), {}),
        (np.int64(3), {"integer": True}),
        (Fraction(1, 2), {}),
    ],
)
def test_check_number_returns_plain_number(value, kwargs):
    number = check_number("x", value, **kwargs)
    assert number == value
    assert type(number) is (int if kwargs.get("integer") else float)


@pytest.mark.parametrize(
    ("value", "kwargs", "allowed"),
    [
        (-1e-9, {}, "a finite number in [0, inf)"),
        (nan, {}, "a finite number in [0, inf)"),
        (inf, {}, "a finite number in [0, inf)"),
        (True, {}, "a finite number in [0, inf)"),
        ("1", {}, "a finite number in [0, inf)"),
        (None, {}, "a finite number in [0, inf)"),
        (torch.tensor(1.0), {}, "a finite number in [0, inf)"),
        (2, {"low": 0, "high": 1}, "a finite number in [0, 1]"),
        (0, {"open_low": True}, "a finite number in (0, inf)"),
        (1, {"high": 1, "open_high": True}, "a finite number in [0, 1)"),
        (2.5, {"integer": True}, "an integer in [0, inf)"),
        (0, {"low": 1, "integer": True}, "an integer in [1, inf)"),
    ],
)
def test_check_number_raises_with_name_value_and_range(value, kwargs, allowed):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the message is compared below)
        check_number("beta", value, **kwargs)
    assert str(caught.value) == f"beta={value!r}: expected {allowed}."


def test_check_name_accepts_known_names():
    assert check_name("optim", "radam", iter(["sgd", "radam"])) == "radam"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rdam", "optim='rdam' is unknown. Did you mean 'radam'?"),
        ("RAdam", "optim='RAdam' is unknown. Did you mean 'radam'?"),
        ("zzz", "optim='zzz' is unknown. Allowed: adamw, radam, sgd."),
        (None, "optim=None is unknown. Allowed: adamw, radam, sgd."),
        (["sgd"], "optim=['sgd'] is unknown. Allowed: adamw, radam, sgd."),
    ],
)
def test_check_name_raises_with_closest_or_all_names(value, message):
    with pytest.raises(ValueError, match="is unknown") as caught:
        check_name("optim", value, ("sgd", "radam", "adamw"))
    assert str(caught.value) == message


def test_check_name_names_the_owner_of_an_option():
    with pytest.raises(ValueError, match=r"^optim_args='epss' is unknown to 'radam'\. Did you mean 'Eps'\?$"):
        check_name("optim_args", "epss", ("Eps",), of="radam")


@pytest.mark.parametrize(("value", "kind"), [(0, float), (0.5, float), (7.0, int), (np.int64(7), int)])
def test_check_updates_or_share_returns_updates_or_share(value, kind):
    assert check_updates_or_share("warmup_steps", value) == value
    assert type(check_updates_or_share("warmup_steps", value)) is kind


@pytest.mark.parametrize("value", [-1, 1.5, nan, inf, "3", None, True])
def test_check_updates_or_share_raises_for_other_values(value):
    with pytest.raises(ValueError, match=r"expected an integer in \[0, inf\), or a share of the run in \(0, 1\)\.$"):
        check_updates_or_share("warmup_steps", value)


@pytest.mark.parametrize(
    ("share", "total", "whole", "expected"),
    [
        (0.07, 100, 1, 7),  # 7.000000000000001 in binary
        (0.07, 101, 1, 8),
        (0.21, 100, 3, 7),
        (0.1, 100, 3, 4),
        (1e-9, 10, 1, 1),
        (0, 0, 0, 0),
        (np.float32(0.25), 8, 1, 2),
    ],
)
def test_updates_of_share_rounds_the_decimal_value_up(share, total, whole, expected):
    assert updates_of_share(share, total, whole) == expected


def test_import_from_path_finds_modules_of_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "curves_of_mine.py").write_text("def quadratic(step):\n    return step**2\n")
    monkeypatch.chdir(tmp_path)
    assert import_from_path("warmup_type", "curves_of_mine:quadratic")(3) == 9
    with pytest.raises(ValueError, match=r"no function 'quadratik'\. Did you mean curves_of_mine:quadratic\?$"):
        import_from_path("warmup_type", "curves_of_mine:quadratik")
    with pytest.raises(ValueError, match=r"^warmup_type='nowhere:f': importing 'nowhere' failed with ModuleNotFound"):
        import_from_path("warmup_type", "nowhere:f")
