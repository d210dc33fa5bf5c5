"""From the names of a warmup and a decay to one function of the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from math import inf
from typing import Any

from .._validation import check_name, check_number, is_import_path, short_repr
from .curve import BETA2, COUNT, SHARE, Choice, Curve, Flag, Number, Range, find_curve
from .decays import DECAYS
from .warmups import WARMUPS


Schedule = Callable[[int], float]


@dataclass(frozen=True)
class TransformersSchedule:
    """A row of `TRANSFORMERS_SCHEDULES`.

    Args:
        keywords (`dict[str, Range]`): What `lr_scheduler_kwargs` may hold, with the allowed values.
        required (`tuple[str, ...]`): The keywords without a default.
        has_warmup (`bool`): Whether the schedule warms up over `num_warmup_steps` updates.
        follows_metric (`bool`): Whether the schedule is stepped with a metric and does not follow from the step.
        ends_early (`bool`): Whether the schedule reaches its last value one update before the end of the run.
        is_known (`bool`): `False` for a name that only a newer transformers has: its keywords are not checked.
    """

    keywords: Mapping[str, Range] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    has_warmup: bool = True
    follows_metric: bool = False
    ends_early: bool = False
    is_known: bool = True


_CYCLES = Number(high=1e9)  # the cosine of an angle beyond float64 is no number
_MIN_LR: dict[str, Range] = {
    "num_cycles": _CYCLES,
    "min_lr": Number(optional=True),
    "min_lr_rate": Number(high=1.0, optional=True),
}
_SHAPE = Choice(("linear", "cosine", "1-sqrt"))
_PLATEAU: dict[str, Range] = {
    "mode": Choice(("min", "max")),
    "factor": Number(high=1.0, open_low=True, open_high=True),
    "patience": COUNT,
    "threshold": Number(),
    "threshold_mode": Choice(("rel", "abs")),
    "cooldown": COUNT,
    "min_lr": Number(per_group=True),
    "eps": Number(),
}

TRANSFORMERS_SCHEDULES: dict[str, TransformersSchedule] = {
    "linear": TransformersSchedule(),
    "cosine": TransformersSchedule({"num_cycles": _CYCLES}),
    "cosine_with_restarts": TransformersSchedule({"num_cycles": _CYCLES}),
    "polynomial": TransformersSchedule({"lr_end": Number(), "power": Number()}),
    "constant": TransformersSchedule(has_warmup=False),
    "constant_with_warmup": TransformersSchedule(),
    "inverse_sqrt": TransformersSchedule({"timescale": Number(low=1, integer=True, optional=True)}),
    "cosine_with_min_lr": TransformersSchedule(_MIN_LR),
    "cosine_warmup_with_min_lr": TransformersSchedule(
        {**_MIN_LR, "warmup_lr_rate": Number(high=1.0, optional=True)}, ends_early=True
    ),
    "warmup_stable_decay": TransformersSchedule(
        {
            "num_decay_steps": COUNT,
            "num_stable_steps": Number(integer=True, optional=True),
            "warmup_type": _SHAPE,
            "decay_type": _SHAPE,
            "min_lr_ratio": SHARE,
            "num_cycles": _CYCLES,
        },
        required=("num_decay_steps",),
    ),
    "reduce_lr_on_plateau": TransformersSchedule(_PLATEAU, has_warmup=False, follows_metric=True),
    "greedy": TransformersSchedule(
        {
            **_PLATEAU,
            "max_lr": Number(per_group=True),
            "warmup": COUNT,
            "reset_start": COUNT,
            "window_size": Number(low=1, integer=True),
            "smooth": Flag(),
            "verbose": Flag(),
        },
        has_warmup=False,
        follows_metric=True,
    ),
}
METRIC_SCHEDULERS = tuple(name for name, row in TRANSFORMERS_SCHEDULES.items() if row.follows_metric)


def multiply(step: int, *, schedules: Sequence[Schedule]) -> float:
    """Return the product of `schedules` at `step`, such as a warmup times a decay.

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
    return float(product)  # a curve of the user's own may return a NumPy number, which no checkpoint should hold


def join(step: int, *, schedules: Sequence[Schedule], boundaries: Sequence[int]) -> float:
    """Return `schedules[i]`, its steps counted from 0, where `boundaries[i - 1] <= step < boundaries[i]`.

    Args:
        step (`int`): 0-based index of the update.
        schedules (`Sequence[Schedule]`): One more than there are boundaries.
        boundaries (`Sequence[int]`): Ascending steps at which the next schedule begins.

    Example:

    ```python
    >>> warmup, halving = get_schedule("constant", 2, warmup_type="linear"), get_schedule("exponential", gamma=0.5)
    >>> [join(step, schedules=(warmup, halving), boundaries=(3,)) for step in range(6)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 0.25]

    ```
    """
    piece = sum(step >= boundary for boundary in boundaries)
    return schedules[piece](step - (boundaries[piece - 1] if piece else 0))


def plain_name(name: Any) -> Any:
    """Return the string behind a member of an enum such as `SchedulerType`, and anything else as it is."""
    return name.value if isinstance(name, Enum) else name


def schedule_names() -> list[str]:
    """Return every name that `lr_scheduler_type` may have: the names in `DECAYS`, and those of transformers."""
    from transformers import SchedulerType

    return [*DECAYS, *(member.value for member in SchedulerType)]


def find_schedule(name: Any) -> Curve | TransformersSchedule:
    """Return the row of an `lr_scheduler_type`: a name, a member of `SchedulerType`, or an import path.

    Raises:
        `ValueError`: If there is no such schedule.
    """
    name = plain_name(name)
    if is_import_path(name) or (isinstance(name, str) and name in DECAYS):
        return find_curve("lr_scheduler_type", name, DECAYS)
    check_name("lr_scheduler_type", name, schedule_names())
    return TRANSFORMERS_SCHEDULES.get(name, TransformersSchedule(is_known=False))


def find_warmup(name: Any, warmup_type: str | None) -> Curve | None:
    """Return the row of the warmup before the schedule `name`, or `None` where transformers' own warmup applies.

    Without a `warmup_type`, a name of transformers keeps its own warmup, and any other decay gets a linear one.

    Raises:
        `ValueError`: If there is no such warmup.
    """
    if warmup_type is None:
        return WARMUPS["linear"] if isinstance(find_schedule(name), Curve) else None
    return find_curve("warmup_type", warmup_type, WARMUPS)


def schedule_keywords(name: Any, warmup_type: str | None = None) -> tuple[dict[str, Range], dict[str, Range]]:
    """Return what `lr_scheduler_kwargs` may hold, with the allowed values: the decay's keywords and the warmup's.

    Example:

    ```python
    >>> decay, warmup = schedule_keywords("exponential", "constant")
    >>> [*decay], [*warmup]
    (['gamma'], ['warmup_factor'])

    ```
    """
    warmup = find_warmup(name, warmup_type)
    return dict(find_schedule(name).keywords), dict(warmup.keywords) if warmup else {}


def check_schedule(name: Any, warmup_type: str | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `kwargs` with plain Python numbers, which a safe load of a checkpoint accepts.

    Args:
        name (`str` or `SchedulerType`): The `lr_scheduler_type`.
        warmup_type (`str`, *optional*): The warmup before it.
        kwargs (`dict`): The keywords of both, as in `lr_scheduler_kwargs`.

    Raises:
        `ValueError`: For an unknown name or keyword, a missing keyword, or a value out of its range.
    """
    row, (decay, warmup) = find_schedule(name), schedule_keywords(name, warmup_type)
    name, allowed, checked = plain_name(name), {**decay, **warmup}, {}
    for key, value in kwargs.items():
        if key in ("num_warmup_steps", "num_training_steps", "warmup_steps"):
            raise ValueError(
                f"lr_scheduler_kwargs={short_repr(kwargs)}: {key} is an argument of its own, num_warmup_steps= or "
                "num_training_steps= of a function, warmup_steps= or max_steps= of the training arguments."
            )
        if isinstance(row, TransformersSchedule) and not row.is_known and key not in warmup:
            checked[key] = value
            continue
        check_name("lr_scheduler_kwargs", key, allowed, of=name)
        checked[key] = allowed[key].check(f"{key} in lr_scheduler_kwargs", value)
    required = {*row.required, *(find_warmup(name, warmup_type) or row).required}
    if missing := sorted(required - checked.keys()):
        raise ValueError(
            f"lr_scheduler_kwargs={short_repr(checked)}: {name!r} needs {missing[0]}, such as {{{missing[0]!r}: 100}}."
        )
    return checked


def check_length(num_warmup_steps: int, num_training_steps: int | None) -> None:
    """Raise a `ValueError` if the warmup is longer than the run, where the length of the run is known."""
    if num_training_steps and num_warmup_steps > num_training_steps:
        raise ValueError(f"num_warmup_steps={num_warmup_steps}: expected at most the {num_training_steps} updates.")


def _transformers_curve(
    name: str,
    num_warmup_steps: int,
    num_training_steps: int | None,
    base_lr: float,
    kwargs: dict[str, Any],
    last: int | None,
) -> Schedule:
    """Return transformers' own function of the step, held at its value at the step `last` from there on.

    transformers makes it public only as `lr_lambdas` of the scheduler that it puts on an optimizer, from which it reads
    the learning rate. A throw-away optimizer serves for that.
    """
    import torch
    from transformers import get_scheduler

    if kwargs.get("min_lr") is not None:
        check_number("min_lr in lr_scheduler_kwargs", kwargs["min_lr"], 0.0, base_lr)
    if num_training_steps and "num_decay_steps" in kwargs and kwargs.get("num_stable_steps") is None:
        left = max(0, num_training_steps - num_warmup_steps)
        check_number("num_decay_steps in lr_scheduler_kwargs", kwargs["num_decay_steps"], 0, left, integer=True)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base_lr)
    try:
        curve = get_scheduler(name, optimizer, num_warmup_steps, num_training_steps, kwargs).lr_lambdas[0]
    except ZeroDivisionError:  # "polynomial" over no updates; a "min_lr" relative to a learning rate of 0
        return WARMUPS["none"].function
    return partial(_held, curve=curve, last=last)


def _held(step: int, *, curve: Schedule, last: int | None) -> float:
    """Return transformers' `curve`, held at its last value after the end of training and never below 0."""
    try:
        return max(0.0, float(curve(step if last is None else min(step, last))))
    except ZeroDivisionError:  # "polynomial" between a warmup and an end at the same update
        return 1.0


def _after_warmup(step: int, *, curve: Schedule, begin: float) -> float:
    """Return transformers' `curve` without its warmup: 1 before the step `begin`."""
    return 1.0 if step < begin else curve(step)


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
    """Return the multiplier of the learning rate as a function of the update: `warmup(step) * decay(step)`.

    Args:
        name (`str` or [`~transformers.SchedulerType`]): A decay of `DECAYS` (`noam`, `exponential`, `power`, `sine`,
            `inverse_time`), any `lr_scheduler_type` of transformers that is a function of the step, or the import path
            of your own decay, such as `my_curves:cooldown`.
        num_warmup_steps (`int`, defaults to 0): `W`, where the decay begins and the tuned warmups end.
        num_training_steps (`int`, *optional*): `T`; needed by the names of transformers that end at 0.
        warmup_type (`str`, *optional*): `linear`, `constant`, `exponential`, `cosine`, `untuned_linear`,
            `untuned_exponential`, `radam`, `none`, or the import path of your own warmup. By default a name of
            transformers keeps transformers' numbers exactly, including its `(t - 1) / W` warmup, and any other decay
            comes after a `linear` warmup, `t / W`.
        base_lr (`float`, defaults to 1e-3): The full learning rate. It is used by `power`, `sine`, `polynomial` and the
            names with a `min_lr`, which are recursions or limits on the learning rate itself.
        beta2 (`float`, defaults to 0.999): Adam's, in [0, 1), for the warmups that follow from it.
        kwargs: Keywords of the decay (`gamma`, `power`, `decay_rate`, `d_model`, transformers' or your own) and of the
            warmup (`warmup_factor`: where `linear` begins, 0 by default, and the value of `constant`, 0.1 by default).

    Returns:
        `Callable[[int], float]`: Multiplier of the learning rate for the 0-based step, finite and at least 0.

    Raises:
        `ValueError`: For an unknown name or keyword, a number out of its range, or a decay that is longer than what the
            warmup leaves of the run.

    Your own curve is a function `(step, *, num_warmup_steps, num_training_steps, ...)` that takes those of the two
    that it names, and any keywords. It returns 1 where it has no effect.

    Example:

    ```python
    >>> schedule = get_schedule("noam", num_warmup_steps=4)
    >>> [schedule(step) for step in (0, 1, 2, 3, 15)]
    [0.25, 0.5, 0.75, 1.0, 0.5]
    >>> noam = get_schedule("noam", num_warmup_steps=4000, d_model=512)  # the learning rate is the paper's factor
    >>> f"{noam(3999):.3e}"
    '6.988e-04'
    >>> [round(get_schedule("linear", 2, 4)(step), 2) for step in range(4)]  # transformers' numbers
    [0.0, 0.5, 1.0, 0.5]
    >>> [round(get_schedule("linear", 2, 4, warmup_type="linear")(step), 2) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]

    ```
    """
    row, warmup = find_schedule(name), find_warmup(name, warmup_type)
    name, kwargs = plain_name(name), check_schedule(name, warmup_type, kwargs)
    num_warmup_steps = check_number("num_warmup_steps", num_warmup_steps, integer=True)
    if num_training_steps is not None:
        num_training_steps = check_number("num_training_steps", num_training_steps, integer=True)
    arguments = {
        "num_warmup_steps": num_warmup_steps,
        "num_training_steps": num_training_steps,
        "base_lr": check_number("base_lr", base_lr),
        "beta2": (warmup.keywords if warmup else {}).get("beta2", BETA2).check("beta2", beta2),
        **kwargs,
    }
    if isinstance(row, Curve):
        decay = row.bind(arguments)
    elif row.follows_metric:
        raise ValueError(f"lr_scheduler_type={name!r} follows a metric, not the update: use get_scheduler.")
    else:
        of_warmup = warmup.keywords.keys() - row.keywords.keys() if warmup else ()
        own = {key: value for key, value in kwargs.items() if key not in of_warmup}
        last = num_training_steps - 1 if num_training_steps and row.ends_early else num_training_steps
        decay = _transformers_curve(name, num_warmup_steps, num_training_steps, arguments["base_lr"], own, last)
        if warmup is None:
            return decay
        no_decay = num_training_steps is not None and num_warmup_steps >= num_training_steps
        decay = partial(_after_warmup, curve=decay, begin=inf if no_decay else num_warmup_steps)
    assert warmup is not None  # only transformers' own warmups have no row
    return partial(multiply, schedules=(warmup.bind(arguments), decay))
