"""One sentence for a wrong argument: its name, its value, what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from math import inf, isfinite
from numbers import Real
from typing import Any


def check_number(
    name: str,
    value: Any,
    low: float = 0.0,
    high: float = inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    integer: bool = False,
) -> Any:
    """Return `value` as a Python `float` (`int` where `integer`) or raise a `ValueError` that says what is allowed."""
    left, right = ("(" if open_low else "["), (")" if open_high or high == inf else "]")
    allowed = f"{'an integer' if integer else 'a finite number'} in {left}{low:g}, {high:g}{right}"
    good = isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high and _is_finite(value)
    good = good and not (open_low and value == low) and not (open_high and value == high)
    if not good or (integer and value != int(value)):
        raise ValueError(f"{name}={value!r}: expected {allowed}.")
    return int(value) if integer else float(value)


def _is_finite(value: Any) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def check_name(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of `allowed`, else raise a `ValueError` with the closest match and the whole list."""
    allowed = sorted(allowed)
    if value in allowed:
        return value
    close = get_close_matches(str(value), allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{name}={value!r} is unknown.{hint} Allowed: {', '.join(allowed) or 'none'}.")
