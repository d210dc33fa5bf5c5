"""Schedules on an optimizer: torch schedulers, and the check that there is only one warmup."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CyclicLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from .._logging import warn_once
from .._validation import check_number, short_repr, updates_of_share
from .composition import (
    METRIC_SCHEDULERS,
    Schedule,
    TransformersSchedule,
    check_length,
    check_schedule,
    find_schedule,
    find_warmup,
    get_schedule,
    multiply,
    plain_name,
    schedule_keywords,
)
from .decays import NOAM_PEAK
from .warmups import LEFT_BY_RADAM, WARMUPS, describe_rectification, no_warmup, radam_warmup


logger = logging.getLogger(__name__)

_WARMUP_FUNCTIONS = [row.function for row in WARMUPS.values()]


def unwrap_optimizer(optimizer: Any) -> Optimizer:
    """Return the user's own optimizer, without the wrappers of Accelerate and DeepSpeed."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def check_scheduler(lr_scheduler: Any) -> None:
    """Raise a `ValueError` for anything but a scheduler, such as the optimizer itself."""
    if isinstance(lr_scheduler, Optimizer) or not hasattr(lr_scheduler, "optimizer"):
        raise ValueError(f"lr_scheduler is a {type(lr_scheduler).__name__}: expected a learning-rate scheduler.")


# One warmup at a time


def optimizer_warms_up(optimizer: Optimizer) -> bool:
    """Return whether `optimizer` itself warms up, as [`AdamWarmup`] and schedule-free optimizers do."""
    return any(group.get("warmup_steps") for group in optimizer.param_groups)


def scheduler_warms_up(lr_scheduler: Any, group: int = 0) -> bool:
    """Return whether `lr_scheduler` alone lets the learning rate of parameter group number `group` begin low and rise.

    A cycle does not count (`CyclicLR` may rise first for the whole run). Neither does a restart, which falls first.

    Example:

    ```python
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> scheduler_warms_up(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4)))
    True
    >>> scheduler_warms_up(torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 4))
    False

    ```
    """
    if isinstance(lr_scheduler, LambdaLR):
        return _rises(lr_scheduler.lr_lambdas[group])
    if isinstance(lr_scheduler, LinearLR):
        return lr_scheduler.start_factor < lr_scheduler.end_factor
    if isinstance(lr_scheduler, ConstantLR):
        return lr_scheduler.factor < 1.0
    warms_up = isinstance(lr_scheduler, (WithWarmupLR, OneCycleLR))
    return warms_up or any(scheduler_warms_up(each, group) for each in _first_parts(lr_scheduler))


def _first_parts(lr_scheduler: Any) -> list[Any]:
    """Return the schedulers inside `lr_scheduler` that decide its first learning rate."""
    if hasattr(lr_scheduler, "lr_scheduler"):  # of per_update
        return [lr_scheduler.lr_scheduler]
    parts = getattr(lr_scheduler, "_schedulers", [])
    return parts[:1] if isinstance(lr_scheduler, SequentialLR) else parts


def _rises(multiplier: Callable[[int], float]) -> bool:
    if isinstance(multiplier, partial) and multiplier.func is multiply:
        warmup, *_ = parts = multiplier.keywords["schedules"]
        return warmup(0) < 1.0 or any(map(_rises, parts))  # a warmup may be flat at first
    if isinstance(multiplier, partial) and multiplier.func in _WARMUP_FUNCTIONS:
        return multiplier(0) < 1.0
    return multiplier(0) < multiplier(1)


def _is_radam(warmup: Callable[[int], float]) -> bool:
    parts = [warmup, *warmup.keywords.get("schedules", ())] if isinstance(warmup, partial) else []
    return any(getattr(each, "func", None) is radam_warmup for each in parts)


def check_one_warmup(optimizer: Optimizer, warmups: Sequence[Callable[[int], float]], lr_scheduler: Any = None) -> None:
    """Raise a `ValueError` if `warmups` would be a second warmup, and warn if the optimizer is not set up for one.

    Args:
        optimizer (`Optimizer`): The optimizer that the warmups are put on. It has a warmup of its own if its parameter
            groups have `warmup_steps`; RAdam has one if the warmup is RAdam's rectification.
        warmups (`Sequence[Callable[[int], float]]`): The new multiplier of each parameter group.
        lr_scheduler (`LRScheduler`, *optional*): The scheduler that the warmups multiply.
    """
    own = unwrap_optimizer(optimizer)
    name = type(own).__name__
    for i, (group, warmup) in enumerate(zip(own.param_groups, warmups, strict=False)):
        if lr_scheduler is not None and warmup is not no_warmup and scheduler_warms_up(lr_scheduler, i):
            raise ValueError(
                f"lr_scheduler is a {type(lr_scheduler).__name__} that warms up already, and this would be a second "
                "warmup. Leave one of them out."
            )
        if ("warmup_steps" in group and _rises(warmup)) or (name == "RAdam" and _is_radam(warmup)):
            raise ValueError(
                f"The optimizer, {name}, has a warmup of its own, and this schedule would be a second one. Leave out "
                "the schedule's warmup (warmup_type='none'), or choose another optimizer."
            )
        if group.get("safeguard_warmup") is False and _rises(warmup):
            warnings.warn(
                f"{name} overestimates its learning rate during a warmup unless it has safeguard_warmup=True.",
                stacklevel=4,
            )


def _hand_warmup_over(optimizer: Optimizer, num_warmup_steps: int) -> bool:
    """Give the length of the warmup to an optimizer with a warmup of its own; return whether `optimizer` is one.

    Raises:
        `ValueError`: If the optimizer has been given another length.
    """
    own = unwrap_optimizer(optimizer)
    groups = [group for group in own.param_groups if "warmup_steps" in group]
    # transformers gives the raw share of the run, below 1, to schedule-free optimizers as if it were a length.
    other = {group["warmup_steps"] for group in groups if group["warmup_steps"] >= 1} - {num_warmup_steps}
    if groups and num_warmup_steps:
        if other:
            raise ValueError(
                f"num_warmup_steps={num_warmup_steps} with an optimizer that has warmup_steps={min(other)} "
                f"({type(own).__name__}): give one of them."
            )
        # The default too: a checkpoint of torch's AdamW has no `warmup_steps` to load.
        for options in (own.defaults, *groups):
            options["warmup_steps"] = num_warmup_steps
    return bool(groups)


# Schedules by name


def _group_schedules(
    optimizer: Optimizer,
    name: Any,
    num_warmup_steps: int,
    num_training_steps: int | None,
    kwargs: dict[str, Any],
    warmup_type: str | None,
) -> list[Schedule]:
    """Return the multiplier of each parameter group: for a name that follows a metric, the warmup alone.

    Everything that is checked or advised where a schedule is put on an optimizer is checked or advised here.
    """
    num_warmup_steps = check_number("num_warmup_steps", num_warmup_steps, integer=True)
    own = unwrap_optimizer(optimizer)
    _warn_of_unused_length(name, warmup_type, num_warmup_steps, own)
    if warmup_type in (None, "none") and _hand_warmup_over(optimizer, num_warmup_steps):
        warmup_type = "none"
    of_transformers, warmup = isinstance(find_schedule(name), TransformersSchedule), find_warmup(name, warmup_type)
    name, kwargs = plain_name(name), check_schedule(name, warmup_type, kwargs)
    beta2 = kwargs.pop("beta2", None)
    if warmup is not None:
        check_length(num_warmup_steps, num_training_steps)
    if name in METRIC_SCHEDULERS:
        name, warmup_type = "constant", warmup_type or "none"
        kwargs = {key: value for key, value in kwargs.items() if warmup and key in warmup.keywords}

    build = partial(get_schedule, name, num_warmup_steps, num_training_steps, warmup_type=warmup_type, **kwargs)
    schedules, lrs = [], []
    for group in optimizer.param_groups:
        group_beta2 = beta2 if beta2 is not None else group.get("betas", (None, None))[1]
        if group_beta2 is None and warmup and warmup.needs_beta2:
            raise ValueError(
                f"warmup_type={warmup_type!r} follows from beta2, which {type(own).__name__} does not have. "
                'Add {"beta2": 0.999} to lr_scheduler_kwargs, or choose a warmup with a length.'
            )
        lrs.append(float(group.get("initial_lr", group["lr"])))
        # transformers relates a limit such as `min_lr` to the learning rate in the optimizer's defaults.
        base_lr = float(own.defaults.get("lr", lrs[-1])) if of_transformers else lrs[-1]
        schedules.append(build(base_lr=base_lr, beta2=0.999 if group_beta2 is None else group_beta2))
    check_one_warmup(optimizer, schedules)
    _warn_of_rectification(own, schedules[0], num_training_steps)
    corners = {0, max(0, num_warmup_steps - 1), num_warmup_steps, num_training_steps or 0}
    used = {step: [lr * schedule(step) for lr, schedule in zip(lrs, schedules, strict=True)] for step in corners}
    for step, values in used.items():
        if not all(0.0 <= lr < inf for lr in values):
            raise ValueError(
                f"lr_scheduler_type={name!r} with num_warmup_steps={num_warmup_steps} has the learning rates {values} "
                f"at step {step} of {num_training_steps}. Change the warmup or lr_scheduler_kwargs."
            )
    if name == "noam":
        _report_noam_peak(max(lrs), max(map(max, used.values())))
    return schedules


def _warn_of_unused_length(name: Any, warmup_type: str | None, num_warmup_steps: int, optimizer: Optimizer) -> None:
    row, warmup = find_schedule(name), find_warmup(name, warmup_type)
    if any("warmup_steps" in group for group in optimizer.param_groups):
        return
    if not num_warmup_steps and (warmup_type or name == "noam") and warmup and warmup.needs_length:
        warn_once(
            logger,
            f"The warmup of {warmup_type or name!r} has no effect because num_warmup_steps is 0. Set num_warmup_steps "
            "(warmup_steps in the training arguments).",
        )
    if num_warmup_steps and warmup is None and isinstance(row, TransformersSchedule) and not row.has_warmup:
        warn_once(
            logger,
            f"num_warmup_steps={num_warmup_steps} has no effect because lr_scheduler_type={plain_name(name)!r} has no "
            "warmup of its own. Add warmup_type='linear'.",
        )


def _warn_of_rectification(optimizer: Optimizer, schedule: Schedule, num_training_steps: int | None) -> None:
    if type(optimizer).__name__ != "RAdam" or not num_training_steps or num_training_steps < 6:
        return
    beta2, steps = optimizer.param_groups[0]["betas"][1], range(0, num_training_steps, -(-num_training_steps // 500))
    multipliers = [schedule(step) for step in steps]
    used = max(value * radam_warmup(step, beta2=beta2) for step, value in zip(steps, multipliers, strict=True))
    if 0 < used < LEFT_BY_RADAM * max(multipliers):
        warn_once(logger, " ".join(describe_rectification(used / max(multipliers), beta2)))


def _report_noam_peak(learning_rate: float, peak: float) -> None:
    logger.info(f"Noam: learning_rate={learning_rate:g} peaks at {peak:.3g}.")
    low, high = NOAM_PEAK
    if not low <= peak <= high:
        warnings.warn(
            f"learning_rate={learning_rate:g} gives Noam a peak of {peak:.3g}, outside [{low:g}, {high:g}]. With "
            "d_model the learning rate is the paper's factor (1 or 2), without it the peak itself.",
            stacklevel=4,
        )


def _check_group_count(optimizer: Optimizer, count: int) -> None:
    if len(optimizer.param_groups) != count:
        raise ValueError(
            f"The optimizer has {len(optimizer.param_groups)} parameter groups and its scheduler {count}. Add a group "
            "that joins the run with `add_param_group` of the scheduler that `hf_warmup.with_warmup` returns."
        )


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if torch.is_tensor(group["lr"]):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


class WarmupLR(LambdaLR):
    """A warmup times a decay, by name: the scheduler that [`get_scheduler`] returns.

    For tools that build a scheduler from a class and literal keywords, such as a YAML file.

    Args:
        optimizer (`Optimizer`): Each parameter group keeps its own learning rate and `beta2`.
        name (`str`): As in [`get_schedule`]. A name that follows a metric needs [`get_scheduler`].
        num_warmup_steps (`int`, defaults to 0): `W`.
        num_training_steps (`int`, *optional*): `T`.
        warmup_type (`str`, *optional*): As in [`get_schedule`].
        scheduler_specific_kwargs (`dict`, *optional*): The keywords of the decay and of the warmup.
        kwargs: The same, one by one.

    The only state is the step. Loading it sets the learning rates of the optimizer.

    Raises:
        `ValueError`: As [`get_scheduler`].

    Example:

    ```python
    >>> import torch
    >>> optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.5)
    >>> scheduler = WarmupLR(optimizer, name="exponential", num_warmup_steps=2, warmup_type="linear", gamma=0.5)
    >>> for _ in range(4):
    ...     print(scheduler.get_last_lr()[0], end=" ")
    ...     optimizer.step()
    ...     scheduler.step()
    0.25 0.5 0.5 0.25

    ```
    """

    def __init__(
        self,
        optimizer: Optimizer,
        name: str,
        num_warmup_steps: int = 0,
        num_training_steps: int | None = None,
        warmup_type: str | None = None,
        scheduler_specific_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        if plain_name(name) in METRIC_SCHEDULERS:
            raise ValueError(f"lr_scheduler_type={plain_name(name)!r} follows a metric: use hf_warmup.get_scheduler.")
        kwargs = {**(scheduler_specific_kwargs or {}), **kwargs}
        lengths = num_warmup_steps, num_training_steps
        super().__init__(optimizer, _group_schedules(optimizer, name, *lengths, kwargs, warmup_type))

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each parameter group at the current step."""
        _check_group_count(self.optimizer, len(self.base_lrs))
        return super().get_lr()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, and set the learning rates of the optimizer."""
        super().load_state_dict(state_dict)
        _check_group_count(self.optimizer, len(self._last_lr))
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            _set_lr(group, float(lr))


def get_scheduler(
    name: str,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
    warmup_type: str | None = None,
) -> LRScheduler:
    """Return a scheduler by name: `transformers.get_scheduler` with more names, and any warmup before any decay.

    Args:
        name (`str` or [`~transformers.SchedulerType`]): As in [`get_schedule`].
        optimizer (`Optimizer`): Each parameter group keeps its own learning rate and `beta2`. An optimizer with a
            warmup of its own, such as [`AdamWarmup`], gets the number of warmup steps, and the schedule has no warmup.
        num_warmup_steps (`int`, *optional*): `W`.
        num_training_steps (`int`, *optional*): `T`.
        scheduler_specific_kwargs (`dict`, *optional*): The keywords of the decay and of the warmup.
        warmup_type (`str`, *optional*): As in [`get_schedule`]. With `reduce_lr_on_plateau` or `greedy` the warmup
            multiplies what the metric decides, see [`with_warmup`].

    Returns:
        `LRScheduler`: A [`WarmupLR`], whose only state is the step. For a name that follows a metric, transformers'
        scheduler, with a warmup if there is one.

    Raises:
        `ValueError`: As [`get_schedule`]; for a warmup that follows from `beta2` where the optimizer has none, a second
            warmup, and a warmup that is longer than the run, except for transformers' own.

    Example:

    ```python
    >>> import torch
    >>> optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.5)
    >>> scheduler = get_scheduler("cosine", optimizer, 2, 4, warmup_type="constant")
    >>> for _ in range(4):
    ...     print(round(scheduler.get_last_lr()[0], 3), end=" ")
    ...     optimizer.step()
    ...     scheduler.step()
    0.05 0.05 0.5 0.25

    ```
    """
    kwargs = dict(scheduler_specific_kwargs or {})
    lengths = 0 if num_warmup_steps is None else num_warmup_steps, num_training_steps
    if hasattr(optimizer, "optimizer_dict"):  # one optimizer for each parameter, which transformers steps in a hook
        if not isinstance(find_schedule(name), TransformersSchedule) or warmup_type is not None:
            raise ValueError("A layer-wise optimizer steps in the backward pass. Use a schedule of transformers there.")
        return _transformers_scheduler(name, optimizer, *lengths, kwargs)
    if plain_name(name) not in METRIC_SCHEDULERS:
        return WarmupLR(optimizer, name, *lengths, warmup_type, kwargs)
    warmups = _group_schedules(optimizer, name, *lengths, kwargs, warmup_type)
    own = {key: kwargs[key] for key in schedule_keywords(name)[0].keys() & kwargs.keys()}
    scheduler = _transformers_scheduler(name, optimizer, None, None, check_schedule(name, None, own))
    if any(map(_rises, warmups)):
        return with_warmup(scheduler, warmups)
    _warn_of_bounds(scheduler)
    return scheduler


def _transformers_scheduler(name: Any, optimizer: Any, *args: Any) -> Any:
    from transformers import get_scheduler

    return get_scheduler(plain_name(name), optimizer, *args)


def _warn_of_bounds(scheduler: Any) -> None:
    """Warn if a learning rate is outside the bounds of transformers' `GreedyLR`, by default 1e-3 and 1."""
    if type(scheduler).__name__ != "GreedyLR":
        return
    for i, (group, *bounds) in enumerate(
        zip(scheduler.optimizer.param_groups, scheduler.min_lrs, scheduler.max_lrs, strict=True)
    ):
        if not bounds[0] <= group["lr"] <= bounds[1]:
            warnings.warn(
                f"The learning rate {float(group['lr']):g} of parameter group {i} is outside the bounds of GreedyLR, "
                f"min_lr={bounds[0]:g} and max_lr={bounds[1]:g}. Set min_lr and max_lr (in lr_scheduler_kwargs).",
                stacklevel=3,
            )


# Any scheduler, multiplied by a warmup


class WithWarmupLR(LRScheduler):
    """`warmup(step)` times the learning rates that `lr_scheduler` sets; made by [`with_warmup`].

    The inner scheduler never sees the multiplied learning rates, so recursive schedulers stay right.
    """

    def __init__(
        self,
        lr_scheduler: Any,
        warmups: Sequence[Callable[[int], float]],
        steps_per_epoch: int | None = None,
    ):
        # LRScheduler.__init__ would take a first step of its own, which the inner scheduler has taken already.
        self.lr_scheduler = lr_scheduler
        self.warmups = list(warmups)
        self.steps_per_epoch = steps_per_epoch
        self.optimizer = lr_scheduler.optimizer
        self.last_epoch = 0
        self._step_count = 1  # Accelerate reads it
        self.base_lrs = [float(group.get("initial_lr", group["lr"])) for group in self.optimizer.param_groups]
        self._starts = [0] * len(self.warmups)
        self._has_warned = False
        self._apply()

    def _apply(self) -> None:
        """Keep the inner learning rates, and set the multiplied ones."""
        groups = self.optimizer.param_groups
        self._inner_lrs = [float(group["lr"]) for group in groups]
        for group, lr, warmup, start in zip(groups, self._inner_lrs, self.warmups, self._starts, strict=True):
            _set_lr(group, lr * warmup(self.last_epoch - start))
        self._last_lr = [float(group["lr"]) for group in groups]

    def _restore(self) -> None:
        """Set the inner learning rates again."""
        groups = self.optimizer.param_groups
        _check_group_count(self.optimizer, len(self._inner_lrs))
        for i, (group, lr) in enumerate(zip(groups, self._inner_lrs, strict=True)):
            if group["lr"] != self._last_lr[i] and not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"The learning rate of parameter group {i} was changed from {self._last_lr[i]:g} to "
                    f"{float(group['lr']):g} outside this scheduler. The change is ignored; use only one scheduler per "
                    "optimizer.",
                    stacklevel=3,
                )
            _set_lr(group, lr)

    def step(self, *args: Any) -> None:
        """Advance by one update."""
        self._restore()
        self.last_epoch += 1
        if self.last_epoch % (self.steps_per_epoch or 1) == 0:
            self.lr_scheduler.step()
        self._apply()

    def refresh(self) -> None:
        """Set the learning rates again after a warmup with a state of its own has changed its value."""
        self._restore()
        self._apply()

    def add_param_group(self, param_group: dict[str, Any], warmup: Callable[[int], float] = no_warmup) -> None:
        """Add a parameter group to the run, with a `warmup` that counts from now times the first group's curve.

        Args:
            param_group (`dict`): As for the optimizer's own `add_param_group`. Its `lr` is the full learning rate,
                which the first group's curve multiplies from its present value on.
            warmup (`Callable[[int], float]`, defaults to none): Multiplier at the 0-based update since now.

        Raises:
            `ValueError`: For an inner scheduler that keeps more of each group than its learning rate.
        """
        inner = self.lr_scheduler
        if not isinstance(inner, LRScheduler) or isinstance(inner, _MANY_CURVES):
            raise ValueError(
                f"add_param_group is not possible with a {type(inner).__name__}, which keeps numbers of each group. "
                "Use a scheduler with one curve for all groups, such as get_scheduler's."
            )
        _check_warmup(warmup)
        self._restore()
        self.optimizer.add_param_group(param_group)
        first, group = self.optimizer.param_groups[0], self.optimizer.param_groups[-1]
        self.base_lrs.append(float(group.setdefault("initial_lr", group["lr"])))
        if isinstance(inner, ReduceLROnPlateau):  # reduces the group from its full learning rate
            inner.min_lrs.append(inner.min_lrs[0])
        else:
            inner.base_lrs.append(group["initial_lr"])
            _set_lr(group, group["lr"] * (first["lr"] / self.base_lrs[0] if self.base_lrs[0] else 1.0))
        if isinstance(inner, LambdaLR):
            inner.lr_lambdas.append(inner.lr_lambdas[0])
        self.warmups.append(warmup)
        self._starts.append(self.last_epoch)
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers: the step, the inner learning rates, and the states of inner scheduler and warmups."""
        return {
            "last_epoch": self.last_epoch,
            "inner_lrs": list(self._inner_lrs),
            "starts": list(self._starts),
            "warmups": [each.state_dict() if hasattr(each, "state_dict") else None for each in self.warmups],
            "lr_scheduler": self.lr_scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            `ValueError`: If the optimizer does not have as many parameter groups as it had then.
        """
        lrs = state_dict["inner_lrs"]
        _check_group_count(self.optimizer, len(lrs))
        self.last_epoch = state_dict["last_epoch"]
        self._starts = list(state_dict.get("starts", self._starts))
        for warmup, state in zip(self.warmups, state_dict.get("warmups", ()), strict=False):
            if state is not None and hasattr(warmup, "load_state_dict"):
                warmup.load_state_dict(state)
        self.lr_scheduler.load_state_dict(state_dict["lr_scheduler"])
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            _set_lr(group, lr)
        self._apply()


# They keep other schedulers, or numbers of each group, that a new group would have to be written into.
_MANY_CURVES = (ChainedScheduler, CyclicLR, OneCycleLR, SequentialLR)


class UpdateCounter:
    """A mixin for schedulers that count the optimizer's updates by themselves, and survive being copied."""

    optimizer: Optimizer

    def _watch_optimizer(self) -> None:
        """Call `_after_update` after every update that the optimizer really makes."""
        unwrap_optimizer(self.optimizer).register_step_post_hook(self._on_step)

    def _on_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # GradScaler lets torch's fused optimizers skip an update by themselves, which these attributes show. An update
        # that the guard skips is counted, as in the Trainer.
        found_inf = getattr(optimizer, "found_inf", None) if hasattr(optimizer, "grad_scale") else None
        if found_inf is None or not found_inf.item():
            self._after_update()

    def _after_update(self) -> None:
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._watch_optimizer()  # a copy of an optimizer has no hooks


class PlateauWithWarmupLR(UpdateCounter, WithWarmupLR, ReduceLROnPlateau):
    """A warmup times the learning rates of a scheduler that follows a metric; made by [`with_warmup`].

    To the Trainer, Accelerate and Lightning it is a `ReduceLROnPlateau`, which they step with the metric after each
    evaluation. The updates of the warmup are counted by the optimizer.
    """

    def __init__(self, lr_scheduler: Any, warmups: Sequence[Callable[[int], float]], steps_per_epoch: int | None):
        super().__init__(lr_scheduler, warmups, steps_per_epoch)
        self.used_lrs = list(self._last_lr)
        self._watch_optimizer()

    def step(self, *metrics: Any) -> None:
        """Give a metric to the scheduler. Without a metric nothing happens: updates are counted by the optimizer."""
        if metrics:
            self._restore()
            self.lr_scheduler.step(*metrics)
            self._apply()

    def _after_update(self) -> None:
        self.used_lrs = list(self._last_lr)
        self._restore()
        self.last_epoch += 1
        self._apply()


def _bound_length(warmup: Callable[..., float]) -> Any:
    return warmup.keywords.get("num_warmup_steps") if isinstance(warmup, partial) else None


def _check_warmup(warmup: Callable[[int], float]) -> None:
    if (length := _bound_length(warmup)) is not None:
        check_number("num_warmup_steps", length, integer=True)
    try:
        warmup(0)
    except TypeError as error:
        raise ValueError(f"{error}. Bind it, such as partial(linear_warmup, num_warmup_steps=100).") from None


def with_warmup(
    lr_scheduler: Any,
    warmup: Callable[..., float] | Sequence[Callable[..., float]],
    *,
    warmup_epochs: float | None = None,
    steps_per_epoch: int | None = None,
) -> WithWarmupLR:
    """Multiply `warmup` onto any torch scheduler: `lr = warmup(step) * lr_scheduler's own lr`.

    Args:
        lr_scheduler (`LRScheduler`): A new scheduler. It is stepped inside; step only what is returned. One that
            follows a metric, such as `ReduceLROnPlateau`, is stepped with the metric, `step(loss)`, and its warmup
            counts the optimizer's updates by itself. If the metric lowers the learning rate during the warmup, the
            peak is lower.
        warmup (`Callable[[int], float]` or a sequence of them): Multiplier at the 0-based update, for example
            `partial(linear_warmup, num_warmup_steps=100)`; or one for each parameter group.
        warmup_epochs (`float`, *optional*): Length in epochs of a `warmup` whose `num_warmup_steps` is not bound, such
            as `linear_warmup` itself.
        steps_per_epoch (`int`, *optional*): Updates of an epoch, for a `lr_scheduler` that counts epochs. It is then
            stepped after the last update of each epoch.

    Returns:
        `LRScheduler`: With `step`, `get_last_lr`, `state_dict`, `load_state_dict`, and `add_param_group` for a group
        that joins the run.

    Raises:
        `ValueError`: For a scheduler that has been stepped, a warmup that needs more than the step, epochs of unknown
            length, or a second warmup: an optimizer or a `lr_scheduler` that warms up by itself.

    Example:

    ```python
    >>> import torch
    >>> from functools import partial
    >>> from hf_warmup.schedules import linear_warmup
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> scheduler = with_warmup(
    ...     torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), partial(linear_warmup, num_warmup_steps=2)
    ... )
    >>> for _ in range(4):
    ...     print(scheduler.get_last_lr()[0], end=" ")
    ...     optimizer.step()
    ...     scheduler.step()
    0.5 0.5 0.25 0.125

    ```
    """
    check_scheduler(lr_scheduler)
    steps = max(getattr(each, "last_epoch", 0) for each in (lr_scheduler, *_first_parts(lr_scheduler)))
    if steps > 0:
        raise ValueError(
            f"lr_scheduler, a {type(lr_scheduler).__name__}, has been stepped {steps} times, and the warmup would "
            "begin now. Wrap a new scheduler, and load the state of both with `load_state_dict`."
        )
    groups = lr_scheduler.optimizer.param_groups
    warmups = [warmup] * len(groups) if callable(warmup) else list(warmup) if isinstance(warmup, Sequence) else []
    if len(warmups) != len(groups) or not all(map(callable, warmups)):
        raise ValueError(
            f"warmup={short_repr(warmup)}: expected a function of the step, or one for each of {len(groups)} groups."
        )
    if steps_per_epoch is not None:
        check_number("steps_per_epoch", steps_per_epoch, 1, integer=True)
    if warmup_epochs is not None:
        check_number("warmup_epochs", warmup_epochs)
        if steps_per_epoch is None or None not in map(_bound_length, warmups):
            raise ValueError(
                f"warmup_epochs={warmup_epochs} needs steps_per_epoch, the updates of an epoch, and a warmup whose "
                "num_warmup_steps is not bound yet."
            )
        length = updates_of_share(warmup_epochs, steps_per_epoch)
        warmups = [partial(each, num_warmup_steps=length) if _bound_length(each) is None else each for each in warmups]
    for each in warmups:
        _check_warmup(each)
    _warn_of_bounds(lr_scheduler)
    check_one_warmup(lr_scheduler.optimizer, warmups, lr_scheduler)
    # ReduceLROnPlateau and transformers' GreedyLR both count evaluations without improvement.
    cls = PlateauWithWarmupLR if hasattr(lr_scheduler, "num_bad_epochs") else WithWarmupLR
    return cls(lr_scheduler, warmups, steps_per_epoch)
