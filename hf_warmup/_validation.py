"""Checks of arguments: a `ValueError` gives the argument's name, its value and what is allowed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from fractions import Fraction
from importlib import import_module
from math import ceil, inf, isfinite
from numbers import Real
from pathlib import Path
from typing import Any


def short_repr(value: Any) -> str:
    """Return `repr(value)` on one line of at most 200 characters, for an error message."""
    text = " ".join(repr(value).split())
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
    """Return a number as a Python `float`, or as an `int` with `integer`.

    Args:
        name (`str`): The argument, as the user knows it.
        value (`Any`): Python's or NumPy's number.
        low, high (`float`): The allowed range.
        open_low, open_high (`bool`, defaults to `False`): Exclude the end of the range.
        integer (`bool`, defaults to `False`): Allow only whole numbers.

    Raises:
        `ValueError`: If `value` is no finite number in the range.

    Example:

    ```python
    >>> check_number("warmup_steps", 3.0, integer=True)
    3
    >>> check_number("adam_beta2", 1, 0.0, 1.0, open_high=True)
    Traceback (most recent call last):
    ValueError: adam_beta2=1: expected a finite number in [0, 1).

    ```
    """
    left, right = ("(" if open_low or low == -inf else "["), (")" if open_high or high == inf else "]")
    allowed = f"{'an integer' if integer else 'a finite number'} in {left}{low:g}, {high:g}{right}"
    if not _is_number(value) or not low <= value <= high:
        raise ValueError(f"{name}={short_repr(value)}: expected {allowed}.")
    excluded = (open_low and value == low) or (open_high and value == high)
    if excluded or (integer and value != int(value)):
        raise ValueError(f"{name}={short_repr(value)}: expected {allowed}.")
    return int(value) if integer else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


def check_updates_or_share(name: str, value: Any) -> Any:
    """Return a number of updates, or a share of the run in (0, 1).

    Raises:
        `ValueError`: If it is neither.
    """
    if not _is_number(value) or value < 0 or (value >= 1 and value != int(value)):
        allowed = "an integer in [0, inf), or a share of the run in (0, 1)"
        raise ValueError(f"{name}={short_repr(value)}: expected {allowed}.")
    return float(value) if value < 1 else int(value)


def check_flag(name: str, value: Any, *, optional: bool = False) -> bool | None:
    """Return `value`, or raise a `ValueError` unless it is `True` or `False`, or, with `optional`, `None`."""
    if not (isinstance(value, bool) or (optional and value is None)):
        raise ValueError(f"{name}={short_repr(value)}: expected True{', False or None' if optional else ' or False'}.")
    return value


def closest(value: str, allowed: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the one of `allowed` that is most similar to `value`, ignoring case, if any is similar enough."""
    in_lower_case = {each.lower(): each for each in allowed}
    close = get_close_matches(value.lower(), in_lower_case, n=1, cutoff=cutoff)
    return in_lower_case[close[0]] if close else None


def check_name(name: str, value: Any, allowed: Iterable[str], *, of: str | None = None) -> str:
    """Return a name that is one of `allowed`.

    Args:
        name (`str`): The argument, as the user knows it.
        value (`Any`): The name to check.
        allowed (`Iterable[str]`): The names that exist.
        of (`str`, *optional*): What has these names, such as an optimizer with its options.

    Raises:
        `ValueError`: With the closest name, or with all names if none is close.

    Example:

    ```python
    >>> check_name("optim", "rdam", ["adamw", "radam"])
    Traceback (most recent call last):
    ValueError: optim='rdam' is unknown. Did you mean 'radam'?

    ```
    """
    allowed = sorted(allowed)
    if isinstance(value, str) and value in allowed:
        return value
    close = closest(value, allowed) if isinstance(value, str) else None
    hint = f"Did you mean {close!r}?" if close else f"Allowed: {', '.join(allowed) or 'none'}."
    raise ValueError(f"{name}={short_repr(value)} is unknown{f' to {of!r}' if of else ''}. {hint}")


def updates_of_share(share: float, total: int, whole: float = 1) -> int:
    """Return `share / whole` of `total` updates, rounded up: 0.07 of 100 is 7.

    The decimals are taken as they are written. In binary, `0.07 * 100` is 7.000000000000001, which rounds up to 8.

    Args:
        share (`float`): A part of `whole`, at least 0.
        total (`int`): The number of updates that `whole` stands for.
        whole (`float`, defaults to 1): For example the number of epochs, if `share` is a number of epochs.

    Example:

    ```python
    >>> updates_of_share(0.07, 100), updates_of_share(0.001, 100), updates_of_share(2.5, 700, whole=7)
    (7, 1, 250)

    ```
    """
    return ceil(Fraction(str(share)) / Fraction(str(whole)) * total) if share else 0


def is_import_path(name: Any) -> bool:
    """Return whether `name` is an import path such as `my_curves:quadratic` instead of a name of a table."""
    return isinstance(name, str) and ":" in name


def import_from_path(kind: str, path: str) -> Callable[..., Any]:
    """Return the function or class at an import path, `module:name`.

    The module is searched where Python finds modules, and then in the current directory.

    Args:
        kind (`str`): The argument that `path` was given for, as error messages call it.
        path (`str`): For example `my_curves:quadratic`.

    Raises:
        `ValueError`: If the module cannot be imported, or has nothing of that name that can be called.

    Example:

    ```python
    >>> import_from_path("warmup_type", "math:sqrt")(4)
    2.0

    ```
    """
    module_name, _, name = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(
            f"{kind}={short_repr(path)}: importing {module_name!r} failed with {type(error).__name__}: {error}. "
            "Expected the import path module:name of a function or class, such as my_curves:quadratic."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        close = closest(name, (each for each in vars(module) if callable(vars(module)[each])))
        hint = f" Did you mean {module_name}:{close}?" if close else ""
        raise ValueError(f"{kind}={short_repr(path)}: module {module_name!r} has no function {name!r}.{hint}")
    return found
