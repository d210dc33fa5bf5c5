"""Functions of the step on an optimizer: torch schedulers, and one warmup at a time."""

from __future__ import annotations

import inspect
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

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

from .._validation import check_number, short_repr
from .composition import (
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
from .warmups import WARMUPS, no_warmup


logger = logging.getLogger(__name__)


def optimizer_warms_up(optimizer: Optimizer) -> bool:
    """Whether `optimizer` itself warms up, as [`AdamWarmup`] and schedule-free optimizers do."""
    return any(group.get("warmup_steps") for group in optimizer.param_groups)


def scheduler_warms_up(lr_scheduler: LRScheduler, group: int = 0) -> bool:
    """Whether the learning rate of parameter group number `group` begins low and rises, by `lr_scheduler` alone.

    A cycle is none (`CyclicLR` may rise first all its life), a restart neither: it falls first.

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
    inner = getattr(lr_scheduler, "lr_scheduler", None)
    if inner is not None:  # in one of with_warmup, or of per_update
        return hasattr(lr_scheduler, "warmups") or scheduler_warms_up(inner, group)
    if isinstance(lr_scheduler, SequentialLR):
        return scheduler_warms_up(lr_scheduler._schedulers[0], group)
    if isinstance(lr_scheduler, ChainedScheduler):
        return any(scheduler_warms_up(each, group) for each in lr_scheduler._schedulers)
    if isinstance(lr_scheduler, LambdaLR):
        return _rises(lr_scheduler.lr_lambdas[group])
    if isinstance(lr_scheduler, LinearLR):
        return lr_scheduler.start_factor < lr_scheduler.end_factor
    if isinstance(lr_scheduler, ConstantLR):
        return lr_scheduler.factor < 1.0
    return isinstance(lr_scheduler, OneCycleLR)


def _rises(multiplier: Callable[[int], float]) -> bool:
    if isinstance(multiplier, partial) and multiplier.func is multiply:
        return any(map(_rises, multiplier.keywords["schedules"]))
    if isinstance(multiplier, partial) and multiplier.func in [row.function for row in WARMUPS.values()]:
        return multiplier(0) < 1.0  # "constant" and "radam" are flat at first
    return multiplier(0) < multiplier(1)


@runtime_checkable
class StatefulWarmup(Protocol):
    """A warmup that something other than the step can end; what it saves goes into the scheduler's file."""

    def __call__(self, step: int) -> float: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class WarmupLR(LRScheduler):
    """`warmup(step)` times the learning rates that `lr_scheduler` sets; made by [`with_warmup`].

    The inner scheduler never sees the multiplied learning rates, so recursive ones stay right. `follows_metric` says
    whether it is stepped with a metric at each evaluation instead of at each update.
    """

    def __init__(
        self,
        lr_scheduler: LRScheduler,
        warmups: Sequence[Callable[[int], float]],
        steps_per_epoch: int | None = None,
    ):
        # LRScheduler.__init__ would take a first step of its own: the inner scheduler already has.
        self.lr_scheduler = lr_scheduler
        self.warmups = list(warmups)
        self.steps_per_epoch = steps_per_epoch
        self.follows_metric = "metrics" in inspect.signature(lr_scheduler.step).parameters
        self.optimizer = lr_scheduler.optimizer
        self.last_epoch = 0
        self._step_count = 1  # Accelerate counts on it
        self.base_lrs = [group.get("initial_lr", group["lr"]) for group in self.optimizer.param_groups]
        self._starts = [0] * len(self.warmups)
        self._metric_seen = self._told = False
        self._apply()

    def _apply(self) -> None:
        """Keep the inner learning rates, and set the multiplied ones."""
        groups = self.optimizer.param_groups
        self._inner_lrs = [group["lr"] for group in groups]
        for group, lr, warmup, start in zip(groups, self._inner_lrs, self.warmups, self._starts, strict=True):
            group["lr"] = lr * warmup(self.last_epoch - start)
        self._last_lr = [group["lr"] for group in groups]

    def _restore(self) -> None:
        """Set the inner learning rates again."""
        groups = self.optimizer.param_groups
        if len(groups) != len(self._inner_lrs):
            raise ValueError(
                f"The optimizer has {len(groups)} parameter groups, its schedule {len(self._inner_lrs)}: expected a "
                "group that joins the run to come through the schedule's add_param_group."
            )
        for i, (group, lr) in enumerate(zip(groups, self._inner_lrs, strict=True)):
            if group["lr"] != self._last_lr[i] and not self._told:
                self._told = True
                warnings.warn(
                    f"The learning rate of parameter group {i} is {group['lr']:g} where this schedule set "
                    f"{self._last_lr[i]:g}, which it goes on from: expected one schedule on an optimizer.",
                    stacklevel=3,
                )
            group["lr"] = lr

    def step(self, *metrics: Any) -> None:
        """One update; with a metric, one evaluation of a scheduler that follows it, and no update."""
        self._restore()
        if metrics:
            self._metric_seen = True
            self.lr_scheduler.step(*metrics)
        else:
            self.last_epoch += 1
            if not self.follows_metric and self.last_epoch % (self.steps_per_epoch or 1) == 0:
                self.lr_scheduler.step()
        self._apply()
        if self.follows_metric and not self._metric_seen and self.last_epoch == 2 * (self.steps_per_epoch or 0):
            warnings.warn(
                f"{type(self.lr_scheduler).__name__} has seen no metric in 2 epochs of {self.steps_per_epoch} updates: "
                "expected step(metric) after each evaluation.",
                stacklevel=2,
            )

    def refresh(self) -> None:
        """Set the learning rates again after a warmup with a state of its own has changed it."""
        self._restore()
        self._apply()

    def add_param_group(self, param_group: dict[str, Any], warmup: Callable[[int], float] = no_warmup) -> None:
        """A parameter group joins the run: `warmup` counts from now, behind it the group follows the first one's curve.

        Args:
            param_group (`dict`): As for the optimizer's own `add_param_group`; its `lr` is the full one, which the
                first group's curve multiplies from where it stands now.
            warmup (`Callable[[int], float]`, defaults to none): Multiplier at the 0-based update since now.

        Raises:
            `ValueError`: For an inner scheduler that keeps more of each group than its learning rate.
        """
        inner = self.lr_scheduler
        if not isinstance(inner, LRScheduler) or isinstance(inner, _MANY_CURVES):
            raise ValueError(
                f"add_param_group behind a {type(inner).__name__}: expected a scheduler with one curve for all groups, "
                "such as get_scheduler's."
            )
        _check_warmup(warmup)
        self._restore()
        self.optimizer.add_param_group(param_group)
        first, group = self.optimizer.param_groups[0], self.optimizer.param_groups[-1]
        self.base_lrs.append(group.setdefault("initial_lr", group["lr"]))
        if isinstance(inner, ReduceLROnPlateau):  # takes the group from its full learning rate on
            inner.min_lrs.append(inner.min_lrs[0])
        else:
            inner.base_lrs.append(group["initial_lr"])
            group["lr"] = group["lr"] * (first["lr"] / self.base_lrs[0] if self.base_lrs[0] else 1.0)
        if isinstance(inner, LambdaLR):
            inner.lr_lambdas.append(inner.lr_lambdas[0])
        self.warmups.append(warmup)
        self._starts.append(self.last_epoch)
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: the step, the inner learning rates, the inner scheduler's state and the warmups'."""
        return {
            "last_epoch": self.last_epoch,
            "inner_lrs": list(self._inner_lrs),
            "starts": list(self._starts),
            "warmups": [each.state_dict() if isinstance(each, StatefulWarmup) else None for each in self.warmups],
            "lr_scheduler": self.lr_scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, with as many parameter groups as there were.

        Raises:
            `ValueError`: If there are more groups, or fewer.
        """
        lrs, groups = state_dict["inner_lrs"], self.optimizer.param_groups
        if len(lrs) != len(groups):
            raise ValueError(
                f"A schedule of {len(lrs)} parameter groups for an optimizer of {len(groups)}: expected as many, those "
                "that joined the run too."
            )
        self.last_epoch = state_dict["last_epoch"]
        self._starts = list(state_dict.get("starts", self._starts))
        for warmup, state in zip(self.warmups, state_dict.get("warmups", ()), strict=False):
            if state is not None:
                warmup.load_state_dict(state)
        self.lr_scheduler.load_state_dict(state_dict["lr_scheduler"])
        for group, lr in zip(groups, lrs, strict=True):
            group["lr"] = lr
        self._apply()


# They keep other schedulers, or numbers of each group, that a new one would have to be written into.
_MANY_CURVES = (ChainedScheduler, CyclicLR, OneCycleLR, SequentialLR)


def _missing(warmup: Callable[..., float]) -> list[str]:
    """The names that `warmup` needs beside the step."""
    parameters = list(inspect.signature(warmup).parameters.values())
    return [each.name for each in parameters[1:] if each.default is each.empty and each.kind != each.VAR_KEYWORD]


def _check_warmup(warmup: Callable[[int], float]) -> None:
    name = getattr(getattr(warmup, "func", warmup), "__name__", "warmup")
    if missing := _missing(warmup):
        raise ValueError(
            f"warmup={name} needs {', '.join(missing)}: expected a function of the step alone, such as "
            f"partial({name}, {missing[0]}=100)."
        )
    if isinstance(warmup, partial) and "num_warmup_steps" in warmup.keywords:
        check_number("num_warmup_steps", warmup.keywords["num_warmup_steps"], integer=True)


def check_scheduler(lr_scheduler: Any) -> None:
    """Refuse what is no scheduler, such as the optimizer itself."""
    if isinstance(lr_scheduler, Optimizer) or not hasattr(lr_scheduler, "optimizer"):
        raise ValueError(f"lr_scheduler is a {type(lr_scheduler).__name__}: expected a learning-rate scheduler.")


def with_warmup(
    lr_scheduler: LRScheduler,
    warmup: Callable[..., float] | Sequence[Callable[..., float]],
    *,
    warmup_epochs: float | None = None,
    steps_per_epoch: int | None = None,
) -> WarmupLR:
    """Multiply `warmup` onto any torch scheduler: `lr = warmup(step) * lr_scheduler's own lr`.

    Args:
        lr_scheduler (`LRScheduler`): A new scheduler. It goes on being stepped inside; step only what is returned.
            `ReduceLROnPlateau` is stepped with its metric, `step(loss)`, and the warmup without, `step()`.
        warmup (`Callable[[int], float]` or a sequence of them): Multiplier at the 0-based update, for example
            `partial(linear_warmup, num_warmup_steps=100)`; or one for each parameter group.
        warmup_epochs (`float`, *optional*): Length in epochs of a `warmup` whose `num_warmup_steps` is still open, such
            as `linear_warmup` itself.
        steps_per_epoch (`int`, *optional*): Updates of an epoch, for a `lr_scheduler` that counts epochs: it is then
            stepped after each epoch's last update.

    Returns:
        `LRScheduler`: With `step`, `get_last_lr`, `state_dict`, `load_state_dict`, and `add_param_group` for a group
        that joins the run.

    Raises:
        `ValueError`: For a warmup that needs more than the step, epochs of unknown length, or a second warmup: an
            optimizer or a `lr_scheduler` that warms up by itself.

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
    groups = lr_scheduler.optimizer.param_groups
    warmups = [warmup] * len(groups) if callable(warmup) else list(warmup) if isinstance(warmup, Sequence) else []
    if len(warmups) != len(groups) or not all(map(callable, warmups)):
        raise ValueError(
            f"warmup={short_repr(warmup)}: expected a function of the step, or one for each of {len(groups)} groups."
        )
    if steps_per_epoch is not None:
        check_number("steps_per_epoch", steps_per_epoch, 1, integer=True)
    if warmup_epochs is not None:
        warmups = _in_epochs(warmups, warmup_epochs, steps_per_epoch)
    for each in warmups:
        _check_warmup(each)
    _check_one_warmup(lr_scheduler, warmups)
    return WarmupLR(lr_scheduler, warmups, steps_per_epoch)


def _in_epochs(
    warmups: list[Callable[..., float]], warmup_epochs: float, steps_per_epoch: int | None
) -> list[Callable[..., float]]:
    check_number("warmup_epochs", warmup_epochs)
    if steps_per_epoch is None:
        raise ValueError(
            f"warmup_epochs={warmup_epochs} needs steps_per_epoch, the updates of an epoch: len(dataloader) without "
            "accumulation."
        )
    if not any("num_warmup_steps" in _missing(each) for each in warmups):
        raise ValueError(f"warmup_epochs={warmup_epochs}: expected a warmup whose num_warmup_steps is still open.")
    length = math.ceil(round(warmup_epochs * steps_per_epoch, 6))  # 7.000000000000001 is 7
    return [
        partial(each, num_warmup_steps=length) if "num_warmup_steps" in _missing(each) else each for each in warmups
    ]


def _check_one_warmup(lr_scheduler: LRScheduler, warmups: list[Callable[[int], float]]) -> None:
    if isinstance(lr_scheduler, WarmupLR):
        raise ValueError("lr_scheduler warms up already, it comes from with_warmup: expected one warmup.")
    optimizer = lr_scheduler.optimizer
    warmed = [i for i, warmup in enumerate(warmups) if warmup is not no_warmup]
    if warmed and optimizer_warms_up(optimizer):
        raise ValueError(f"The optimizer warms up already ({type(optimizer).__name__}): expected one warmup.")
    if any(scheduler_warms_up(lr_scheduler, i) for i in warmed):
        raise ValueError(
            f"lr_scheduler warms up already ({type(lr_scheduler).__name__}): expected one warmup, give a scheduler "
            "without its own."
        )


def unwrap_optimizer(optimizer: Optimizer) -> Optimizer:
    """The user's own optimizer, out of Accelerate's and DeepSpeed's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _name(optimizer: Optimizer) -> str:
    return type(unwrap_optimizer(optimizer)).__name__


def get_scheduler(
    name: str,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
    warmup_type: str | None = None,
) -> LRScheduler:
    """`transformers.get_scheduler` with our names beside transformers' own, and any warmup in front of any decay.

    Args:
        name (`str` or [`~transformers.SchedulerType`]): As in [`get_schedule`].
        optimizer (`Optimizer`): Each parameter group keeps its own learning rate and `beta2`.
        num_warmup_steps (`int`, *optional*): `W`.
        num_training_steps (`int`, *optional*): `T`.
        scheduler_specific_kwargs (`dict`, *optional*): The keywords of the decay and of the warmup.
        warmup_type (`str`, *optional*): As in [`get_schedule`]. With `reduce_lr_on_plateau` or `greedy` the warmup
            multiplies what the metric decides, see [`with_warmup`].

    Returns:
        `LRScheduler`: A `LambdaLR` whose only state is the step; for a name of transformers without `warmup_type`
        whatever transformers returns.

    Raises:
        `ValueError`: As [`get_schedule`]; for a warmup that follows from `beta2` where the optimizer has none, a second
            warmup, and, except for transformers' own, one that is longer than the run.

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
    if not isinstance(scheduler_specific_kwargs, (dict, type(None))):
        raise ValueError(f"lr_scheduler_kwargs={short_repr(scheduler_specific_kwargs)}: expected a dictionary.")
    warmup_steps = check_number("num_warmup_steps", 0 if num_warmup_steps is None else num_warmup_steps, integer=True)
    row, warmup = find_schedule(name), find_warmup(name, warmup_type)
    kwargs = dict(scheduler_specific_kwargs or {})
    beta2 = kwargs.pop("beta2", None) if warmup and warmup.needs_beta2 else None
    name, kwargs = plain_name(name), check_schedule(name, warmup_type, kwargs)
    of_transformers = isinstance(row, TransformersSchedule)
    if warmup is not None:
        check_length(warmup_steps, num_training_steps)
    if not warmup_steps and warmup_type and warmup.needs_length:
        logger.warning(
            f"warmup_type={warmup_type!r} has no effect because num_warmup_steps is {num_warmup_steps}. Set "
            "num_warmup_steps (warmup_steps in the training arguments)."
        )
    warms = warmup_type or (warmup_steps and (not of_transformers or row.has_warmup))
    if warms and warmup_type != "none" and optimizer_warms_up(optimizer):
        raise ValueError(
            f"warmup_type={warmup_type!r}, num_warmup_steps={num_warmup_steps}: the optimizer warms up already "
            f'({_name(optimizer)} with warmup_steps > 0); give warmup_type="none".'
        )
    follows_metric = of_transformers and row.follows_metric
    if of_transformers and (warmup_type is None or (follows_metric and warmup_type == "none")):
        return transformers_scheduler(name, optimizer, num_warmup_steps, num_training_steps, kwargs)

    def group_beta2(group: dict[str, Any]) -> float:
        value = beta2 if beta2 is not None else group.get("betas", (None, None))[1]
        if value is None and warmup.needs_beta2:
            raise ValueError(
                f"warmup_type={warmup_type!r} follows from beta2, which {_name(optimizer)} does not have: "
                'give it as {"beta2": 0.999} in the scheduler\'s keywords or choose a warmup with a length.'
            )
        return 0.999 if value is None else value

    decay_keywords, warmup_keywords = schedule_keywords(name, warmup_type)

    def schedule(group: dict[str, Any]) -> Schedule:
        if follows_metric:
            own = {key: value for key, value in kwargs.items() if key in warmup_keywords}
            return get_schedule("constant", warmup_steps, warmup_type=warmup_type, beta2=group_beta2(group), **own)
        # A limit on the learning rate itself is taken against the optimizer's default, as transformers does.
        base_lr = (
            unwrap_optimizer(optimizer).defaults["lr"] if of_transformers else group.get("initial_lr", group["lr"])
        )
        return get_schedule(
            name,
            warmup_steps,
            num_training_steps,
            warmup_type=warmup_type,
            base_lr=base_lr,
            beta2=group_beta2(group),
            **kwargs,
        )

    schedules = [schedule(group) for group in optimizer.param_groups]
    if follows_metric:
        own = {key: value for key, value in kwargs.items() if key in decay_keywords}
        return with_warmup(transformers_scheduler(name, optimizer, None, None, own), schedules)
    return LambdaLR(optimizer, schedules)


def transformers_scheduler(
    name: str,
    optimizer: Optimizer,
    num_warmup_steps: int | None,
    num_training_steps: int | None,
    kwargs: dict[str, Any],
) -> Any:
    """Return transformers' own scheduler; raise a `ValueError` for a floor above the full learning rate."""
    from transformers import get_scheduler

    lr = unwrap_optimizer(optimizer).defaults["lr"]
    if isinstance(kwargs.get("min_lr"), float) and "num_cycles" in schedule_keywords(name)[0]:
        check_number("min_lr in lr_scheduler_kwargs", kwargs["min_lr"], 0.0, float(lr))
    try:
        return get_scheduler(name, optimizer, num_warmup_steps, num_training_steps, kwargs)
    except ZeroDivisionError:  # transformers' "polynomial" over no updates, its "min_lr" of a learning rate of 0
        raise ValueError(
            f"lr_scheduler_type={name!r} has no learning rate with num_training_steps={num_training_steps} and "
            f"lr={lr}: expected both above 0."
        ) from None
