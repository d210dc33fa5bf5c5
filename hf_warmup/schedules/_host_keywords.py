"""Keywords of transformers' own schedules: the range of each.

transformers checks few of them: most would otherwise end a run at the update that first needs them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import inf
from typing import Any

from .._messages import check_flag, check_name, check_number


_COUNT, _SHARE = {"integer": True}, {"high": 1.0}
_RANGES: dict[str, dict[str, Any]] = {
    "num_cycles": {"high": 1e9},  # the cosine of an angle beyond float64 is no number
    "power": {},
    "lr_end": {},
    "min_lr": {},
    "max_lr": {},
    "min_lr_rate": _SHARE,
    "warmup_lr_rate": _SHARE,
    "min_lr_ratio": _SHARE,
    "timescale": {"low": 1, "integer": True},
    "num_decay_steps": _COUNT,
    "num_stable_steps": _COUNT,
    # reduce_lr_on_plateau and greedy
    "factor": {"high": 1.0, "open_low": True, "open_high": True},
    "threshold": {},
    "eps": {},
    "patience": _COUNT,
    "cooldown": _COUNT,
    "warmup": _COUNT,
    "reset_start": _COUNT,
    "window_size": {"low": 1, "integer": True},
}
_NAMES = {
    "decay_type": ("linear", "cosine", "1-sqrt"),
    "warmup_type": ("linear", "cosine", "1-sqrt"),
    "mode": ("min", "max"),
    "threshold_mode": ("rel", "abs"),
}
_FLAGS = ("smooth", "verbose")


def check_host_keyword(function: Callable, key: str, value: Any) -> Any:
    """Return `value` for the `key` of transformers' (or torch's) `function`, numbers as Python's own."""
    name = f"{key} in lr_scheduler_kwargs"
    parameter = inspect.signature(function).parameters[key]
    if value is None and parameter.default is None:
        return None
    if key in _NAMES:
        return check_name(name, value, _NAMES[key])
    if key in _FLAGS:
        check_flag(name, value)
        return value
    if isinstance(value, (list, tuple)) and "list" in str(parameter.annotation).lower():  # one for each parameter group
        return [check_number(name, each, **_RANGES[key]) for each in value]
    if key in _RANGES:
        return check_number(name, value, **_RANGES[key])
    return check_number(name, value, -inf) if isinstance(value, float) else value  # of a later transformers
