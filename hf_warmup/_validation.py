"""One sentence for a wrong argument: its name, its value, what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from math import inf, isfinite
from numbers import Real
from typing import Any


def short_repr(value: Any) -> str:
    """`repr(value)` for a sentence: on one line, cut where it is long, and of anything."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of more than 4300 digits, a nesting too deep
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 200 else f"{text[:150]}...{text[-20:]}"


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
        raise ValueError(f"{name}={short_repr(value)}: expected {allowed}.")
    return int(value) if integer else float(value)


def _is_finite(value: Any) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def check_updates_or_share(name: str, value: Any) -> Any:
    """Return `value`, a number of updates from 1 on and below 1 a share of the run, or raise a `ValueError`."""
    try:
        return check_number(name, value, integer=not isinstance(value, (int, float)) or value >= 1)
    except ValueError as error:
        allowed = "expected an integer in [0, inf), or a share of the run in (0, 1)."
        raise ValueError(f"{str(error).rpartition('expected ')[0]}{allowed}") from None


def check_flag(name: str, value: Any, *, optional: bool = False) -> None:
    """Raise a `ValueError` unless `value` is `True` or `False`, or `None` where `optional`."""
    if not (isinstance(value, bool) or (optional and value is None)):
        raise ValueError(f"{name}={short_repr(value)}: expected True{', False or None' if optional else ' or False'}.")


def closest(value: str, allowed: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of `allowed` that `value` is a misspelling of, capitals aside."""
    in_small = {each.lower(): each for each in allowed}
    close = get_close_matches(value.lower(), in_small, n=1, cutoff=cutoff)
    return in_small[close[0]] if close else None


def check_name(name: str, value: Any, allowed: Iterable[str], *, of: str | None = None) -> str:
    """Return `value` if it is one of `allowed`, which `of` takes, else raise a `ValueError` with the closest match."""
    allowed = sorted(allowed)
    if isinstance(value, str) and value in allowed:
        return value
    close = closest(value, allowed) if isinstance(value, str) else None
    unknown = f"{name}={short_repr(value)} is unknown{f' to {of!r}' if of else ''}."
    hint = f" Did you mean {close!r}?" if close else ""
    raise ValueError(f"{unknown}{hint} Allowed: {', '.join(allowed) or 'none'}.")
