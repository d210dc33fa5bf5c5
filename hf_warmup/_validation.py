"""One sentence for a wrong argument: its name, its value, what is allowed."""

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
