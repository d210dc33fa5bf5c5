"""Names to functions of the step, and functions of the step out of others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from math import inf
from typing import Any

import torch

from .._validation import check_flag, check_name, check_number, short_repr
from .decays import DECAYS
from .warmups import WARMUPS, no_warmup


_COUNT, _SHARE = {"integer": True}, {"high": 1.0}
_HOST_RANGES: dict[str, dict[str, Any]] = {
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
        return [check_number(name, each, **_HOST_RANGES[key]) for each in value]
    if key in _HOST_RANGES:
        return check_number(name, value, **_HOST_RANGES[key])
    return check_number(name, value, -inf) if isinstance(value, float) else value  # of a later transformers


Schedule = Callable[[int], float]


def multiply(step: int, *, schedules: Sequence[Schedule]) -> float:
    """Product of `schedules` at `step`: a warmup in front of a decay.

    Example:

    ```python
    >>> warmup, halving = get_schedule("constant", 2, warmup_type="linear"), get_schedule("exponential", gamma=0.5)
    >>> [multiply(step, schedules=(warmup, halving)) for step in range(4)]
    [0.5, 0.5, 0.25, 0.125]

    ```
    """
    product = 1.0
    for schedule in schedules:
        product *= schedule(step)
    return product


def join(step: int, *, schedules: Sequence[Schedule], boundaries: Sequence[int]) -> float:
    """`schedules[i]`, its own steps counted from 0, where `boundaries[i - 1] <= step < boundaries[i]`.

    Args:
        step (`int`): 0-based index of the update.
        schedules (`Sequence[Schedule]`): One more than there are boundaries.
        boundaries (`Sequence[int]`): Ascending steps at which the next schedule takes over.

    Example:

    ```python
    >>> warmup, halving = get_schedule("constant", 2, warmup_type="linear"), get_schedule("exponential", gamma=0.5)
    >>> [join(step, schedules=(warmup, halving), boundaries=(3,)) for step in range(6)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 0.25]

    ```
    """
    piece = sum(step >= boundary for boundary in boundaries)
    return schedules[piece](step - (boundaries[piece - 1] if piece else 0))


def _constant(step: int, *, factor: float) -> float:
    return factor


def _host_curve(step: int, *, schedule: Schedule, num_training_steps: int | None) -> float:
    """transformers' `schedule`, held at its last value past the end of training and never below 0."""
    try:
        return max(0.0, float(schedule(step if num_training_steps is None else min(step, num_training_steps))))
    except ZeroDivisionError:  # "polynomial" between a warmup and an end at the same update
        return 1.0


def _host_decay(step: int, *, curve: Schedule, num_warmup_steps: int, num_training_steps: int | None) -> float:
    """transformers' `curve` without its warmup."""
    over_at_once = num_training_steps is not None and num_warmup_steps >= num_training_steps
    return 1.0 if step < num_warmup_steps or over_at_once else curve(step)


# Steered by a metric, not by the update: no function of the step.
METRIC_SCHEDULERS = {"reduce_lr_on_plateau": "ReduceLROnPlateau", "greedy": "GreedyLR"}
# transformers' names that take `num_warmup_steps` and do nothing with it.
NAMES_WITHOUT_WARMUP = ("constant", *METRIC_SCHEDULERS)


def host_scheduler_names() -> list[str]:
    """The `lr_scheduler_type` names of the installed transformers."""
    from transformers import SchedulerType

    return [member.value for member in SchedulerType]


def host_scheduler(
    name: str,
    optimizer: torch.optim.Optimizer,
    num_warmup_steps: int | None,
    num_training_steps: int | None,
    kwargs: dict[str, Any],
) -> Any:
    """transformers' own scheduler; a floor above the full learning rate is refused."""
    from transformers import get_scheduler

    if name not in METRIC_SCHEDULERS and kwargs.get("min_lr") is not None:
        check_number("min_lr in lr_scheduler_kwargs", kwargs["min_lr"], 0.0, float(optimizer.defaults["lr"]))
    return get_scheduler(name, optimizer, num_warmup_steps, num_training_steps, kwargs)


def _host_schedule(
    name: str, num_warmup_steps: int, num_training_steps: int | None, base_lr: float, kwargs: dict[str, Any]
) -> Schedule:
    """transformers' own function of the step, read off the scheduler that it builds."""
    probe = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base_lr)
    try:
        schedule = host_scheduler(name, probe, num_warmup_steps, num_training_steps, kwargs).lr_lambdas[0]
    except ZeroDivisionError:  # LambdaLR evaluates step 0: "polynomial" over no updates at all
        schedule = no_warmup
    return partial(_host_curve, schedule=schedule, num_training_steps=num_training_steps)


def _parameters(function: Callable) -> set[str]:
    return set(inspect.signature(function).parameters)


def _bind(function: Callable[..., float], arguments: dict[str, Any]) -> Schedule:
    """`function` of the step alone, with those of `arguments` that it takes."""
    return partial(function, **{key: arguments[key] for key in _parameters(function) & arguments.keys()})


# Keywords of our own curves: the range of each.
_RANGES: dict[str, dict[str, Any]] = {
    "gamma": {"low": 0.0, "high": 1.0, "open_low": True},
    "power": {"low": 1.0},
    "decay_rate": {"low": 0.0},
    "d_model": {"low": 1, "integer": True},
    "warmup_factor": {"low": 0.0, "high": 1.0},
    "beta2": {"low": 0.0, "high": 1.0, "open_high": True},
}
_NOT_KEYWORDS = {"step", "num_warmup_steps", "num_training_steps", "base_lr", "optimizer", "last_epoch"}


def _host_function(name: str) -> Callable:
    """What takes the keywords of transformers' schedule called `name`."""
    from transformers import optimization

    if name in METRIC_SCHEDULERS:
        return getattr(optimization, METRIC_SCHEDULERS[name])
    return optimization.TYPE_TO_SCHEDULER_FUNCTION[name]


def schedule_keywords(name: str, warmup_type: str | None = None) -> tuple[set[str], set[str]]:
    """What `lr_scheduler_kwargs` may hold: the decay's keywords and the warmup's.

    Example:

    ```python
    >>> schedule_keywords("exponential", "constant")
    ({'gamma'}, {'warmup_factor'})

    ```
    """
    if name in DECAYS:
        decay = _parameters(DECAYS[name]) | ({"d_model"} if name == "noam" else set())
    else:
        decay = _parameters(_host_function(name))
    warmup = _parameters(WARMUPS[warmup_type]) if warmup_type else set()
    return decay - _NOT_KEYWORDS, warmup - _NOT_KEYWORDS


def check_schedule(
    name: str, warmup_type: str | None, num_warmup_steps: int, num_training_steps: int | None, kwargs: dict[str, Any]
) -> str:
    """The plain `name`, or a `ValueError` in one sentence for the first thing that is wrong.

    The numbers in `kwargs` become plain Python ones, which a safe load of a checkpoint accepts.
    """
    name = name.value if isinstance(name, Enum) else name
    check_name("lr_scheduler_type", name, [*DECAYS, *host_scheduler_names()])
    if warmup_type is not None:
        check_name("warmup_type", warmup_type, WARMUPS)
    check_number("num_warmup_steps", num_warmup_steps, integer=True)
    if num_training_steps is not None:
        check_number("num_training_steps", num_training_steps, integer=True)
    if warmup_type is not None and "warmup_type" in kwargs:  # a keyword of "warmup_stable_decay" too
        theirs = short_repr(kwargs["warmup_type"])
        raise ValueError(f"warmup_type={warmup_type!r} and warmup_type={theirs}: give one of them.")
    decay, warmup = schedule_keywords(name, warmup_type or ("linear" if name in DECAYS else None))
    for key, value in kwargs.items():
        check_name("lr_scheduler_kwargs", key, decay | warmup, of=name)
        if key in warmup or name in DECAYS:
            kwargs[key] = check_number(f"{key} in lr_scheduler_kwargs", value, **_RANGES[key])
        else:
            kwargs[key] = check_host_keyword(_host_function(name), key, value)
    if missing := _needed(name) - kwargs.keys():
        missing = min(missing)
        raise ValueError(
            f"lr_scheduler_kwargs={short_repr(kwargs)}: {name!r} needs {missing}, such as {{{missing!r}: 100}}."
        )
    return name


def check_length(num_warmup_steps: int, num_training_steps: int | None) -> None:
    """A warmup is not longer than a run, where the run's length is known."""
    if num_training_steps and num_warmup_steps > num_training_steps:
        raise ValueError(f"num_warmup_steps={num_warmup_steps}: expected at most the {num_training_steps} updates.")


def _needed(name: str) -> set[str]:
    """The keywords that transformers' schedule called `name` has no default for."""
    if name in DECAYS or name in METRIC_SCHEDULERS:
        return set()
    parameters = inspect.signature(_host_function(name)).parameters
    return {key for key, each in parameters.items() if each.default is each.empty} - _NOT_KEYWORDS


def get_schedule(
    name: str,
    num_warmup_steps: int = 0,
    num_training_steps: int | None = None,
    *,
    warmup_type: str | None = None,
    base_lr: float = 1e-3,
    beta2: float = 0.999,
    **kwargs: Any,
) -> Schedule:
    """The learning-rate multiplier as a function of the update: `warmup(step) * decay(step)`.

    Args:
        name (`str`): A decay of ours (`noam`, `exponential`, `power`, `sine`, `inverse_time`) or any
            `lr_scheduler_type` of transformers that is a function of the step.
        num_warmup_steps (`int`, defaults to 0): `W`, where the decay begins and the tuned warmups end.
        num_training_steps (`int`, *optional*): `T`; needed by the names of transformers that end at 0.
        warmup_type (`str`, *optional*): `linear`, `constant`, `exponential`, `cosine`, `untuned_linear`,
            `untuned_exponential`, `radam` or `none`. By default a name of transformers keeps transformers' numbers
            exactly, its `(t - 1) / W` warmup included, and a name of ours is preceded by `linear`, `t / W`.
        base_lr (`float`, defaults to 1e-3): The full learning rate; used by `power`, `sine`, `polynomial` and the
            names with a `min_lr`, which are recursions or limits on the learning rate itself.
        beta2 (`float`, defaults to 0.999): Adam's, for the warmups that follow from it.
        kwargs: Parameters of the decay (`gamma`, `power`, `decay_rate`, `d_model`, or transformers' own) and of the
            warmup (`warmup_factor`: where `linear` begins, 0 by default, and what `constant` holds, 0.1 by default).

    Returns:
        `Callable[[int], float]`: Multiplier of the learning rate for the 0-based step, finite and at least 0.

    Raises:
        `ValueError`: For an unknown name or keyword, or a number out of its range.

    Example:

    ```python
    >>> schedule = get_schedule("noam", num_warmup_steps=4)
    >>> [schedule(step) for step in (0, 1, 2, 3, 15)]
    [0.25, 0.5, 0.75, 1.0, 0.5]
    >>> noam = get_schedule("noam", num_warmup_steps=4000, d_model=512)  # the paper's: the base lr is its factor
    >>> f"{noam(3999):.3e}"
    '6.988e-04'
    >>> [round(get_schedule("linear", 2, 4)(step), 2) for step in range(4)]  # transformers' numbers
    [0.0, 0.5, 1.0, 0.5]
    >>> [round(get_schedule("linear", 2, 4, warmup_type="linear")(step), 2) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]

    ```
    """
    name = check_schedule(name, warmup_type, num_warmup_steps, num_training_steps, kwargs)
    if name in METRIC_SCHEDULERS:
        raise ValueError(f"lr_scheduler_type={name!r} follows a metric, not the update: use get_scheduler.")
    num_warmup_steps = int(num_warmup_steps)
    num_training_steps = None if num_training_steps is None else int(num_training_steps)
    # RAdam's warmup with a beta2 of at most 2/3 is 0 for ever.
    lowest_beta2 = {"low": 2.0 / 3.0, "open_low": True} if warmup_type == "radam" else {}
    arguments = {
        "num_warmup_steps": num_warmup_steps,
        "num_training_steps": num_training_steps,
        "base_lr": check_number("base_lr", base_lr, 0.0, 1.0 if name in ("power", "sine") else inf),
        "beta2": check_number("beta2", beta2, **_RANGES["beta2"] | lowest_beta2),
        **kwargs,
    }
    if name in DECAYS:
        decays = [_bind(DECAYS[name], arguments)]
        if "d_model" in kwargs:
            decays.append(partial(_constant, factor=kwargs["d_model"] ** -0.5 * max(1, num_warmup_steps) ** -0.5))
        warmup_type = warmup_type or "linear"
    else:
        decay_keywords, _ = schedule_keywords(name)
        host_kwargs = {key: value for key, value in kwargs.items() if key in decay_keywords}
        host = _host_schedule(name, num_warmup_steps, num_training_steps, base_lr, host_kwargs)
        if warmup_type is None:
            return host
        decays = [_bind(_host_decay, {**arguments, "curve": host})]
    return partial(multiply, schedules=(_bind(WARMUPS[warmup_type], arguments), *decays))
