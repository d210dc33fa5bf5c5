"""One warmup: whether an optimizer or a scheduler has its own already."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from ._compose import multiply
from .warmups import WARMUPS


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
    if isinstance(multiplier, partial) and multiplier.func in WARMUPS.values():
        return multiplier(0) < 1.0  # "constant" and "radam" are flat at first
    return multiplier(0) < multiplier(1)
