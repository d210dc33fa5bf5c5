"""Schedules onto an optimizer."""

from __future__ import annotations

import inspect
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers.utils import logging

from .._messages import shown
from ._compose import (
    METRIC_SCHEDULERS,
    NAMES_WITHOUT_WARMUP,
    Schedule,
    check_length,
    check_schedule,
    get_schedule,
    host_scheduler,
    schedule_keywords,
)
from ._one_warmup import optimizer_warms_up
from ._with_warmup import with_warmup
from .decays import DECAYS
from .warmups import WARMUPS


logger = logging.get_logger(__name__)


def innermost(optimizer: Optimizer) -> Optimizer:
    """The user's own optimizer, out of Accelerate's and DeepSpeed's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _name(optimizer: Optimizer) -> str:
    return type(innermost(optimizer)).__name__


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
        raise ValueError(f"lr_scheduler_kwargs={shown(scheduler_specific_kwargs)}: expected a dictionary.")
    kwargs = dict(scheduler_specific_kwargs or {})
    warmup_steps = 0 if num_warmup_steps is None else num_warmup_steps
    name = check_schedule(name, warmup_type, warmup_steps, num_training_steps, kwargs)
    if warmup_type is not None or name in DECAYS:
        check_length(warmup_steps, num_training_steps)
    if not warmup_steps and warmup_type and "num_warmup_steps" in inspect.signature(WARMUPS[warmup_type]).parameters:
        logger.warning(
            f"warmup_type={warmup_type!r} with num_warmup_steps={num_warmup_steps} is no warmup: expected its length "
            "(as training arguments: warmup_steps)."
        )
    beta2 = kwargs.pop("beta2", None)
    warms = warmup_type or (warmup_steps and name not in NAMES_WITHOUT_WARMUP)
    if warms and warmup_type != "none" and optimizer_warms_up(optimizer):
        raise ValueError(
            f"warmup_type={warmup_type!r}, num_warmup_steps={num_warmup_steps}: the optimizer warms up already "
            f'({_name(optimizer)} with warmup_steps > 0); give warmup_type="none".'
        )
    if (name not in DECAYS and warmup_type is None) or (name in METRIC_SCHEDULERS and warmup_type == "none"):
        try:
            return host_scheduler(name, optimizer, num_warmup_steps, num_training_steps, kwargs)
        except ZeroDivisionError:  # transformers' "polynomial" over no updates, its "min_lr" of a learning rate of 0
            raise ValueError(
                f"lr_scheduler_type={name!r} has no learning rate with num_training_steps={num_training_steps} and "
                f"lr={innermost(optimizer).defaults['lr']}: expected both above 0."
            ) from None

    def group_beta2(group: dict[str, Any]) -> float:
        value = beta2 if beta2 is not None else group.get("betas", (None, None))[1]
        if value is None and "beta2" in inspect.signature(WARMUPS[warmup_type or "linear"]).parameters:
            raise ValueError(
                f"warmup_type={warmup_type!r} follows from beta2, which {_name(optimizer)} does not have: "
                'give it as {"beta2": 0.999} in the scheduler\'s keywords or choose a warmup with a length.'
            )
        return 0.999 if value is None else float(value)

    decay_keywords, warmup_keywords = schedule_keywords(name, warmup_type)

    def schedule(group: dict[str, Any]) -> Schedule:
        if name in METRIC_SCHEDULERS:
            own = {key: value for key, value in kwargs.items() if key in warmup_keywords}
            beta2 = group_beta2(group)
            return get_schedule("constant", num_warmup_steps or 0, warmup_type=warmup_type, beta2=beta2, **own)
        # A limit on the learning rate itself is taken against the optimizer's default, as transformers does.
        base_lr = group.get("initial_lr", group["lr"]) if name in DECAYS else innermost(optimizer).defaults["lr"]
        return get_schedule(
            name,
            num_warmup_steps or 0,
            num_training_steps,
            warmup_type=warmup_type,
            base_lr=base_lr,
            beta2=group_beta2(group),
            **kwargs,
        )

    schedules = [schedule(group) for group in optimizer.param_groups]
    if name in METRIC_SCHEDULERS:
        own = {key: value for key, value in kwargs.items() if key in decay_keywords}
        return with_warmup(host_scheduler(name, optimizer, None, None, own), schedules)
    return LambdaLR(optimizer, schedules)
