"""A warmup multiplied onto a scheduler that already exists."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim.lr_scheduler import LRScheduler


class WarmupLR(LRScheduler):
    """`warmup(step)` times the learning rates that `lr_scheduler` sets; made by [`with_warmup`].

    The inner scheduler never sees the multiplied learning rates, so recursive ones stay right.
    """

    def __init__(self, lr_scheduler: LRScheduler, warmups: Sequence[Callable[[int], float]]):
        # LRScheduler.__init__ would take a first step of its own: the inner scheduler already has.
        self.lr_scheduler = lr_scheduler
        self.warmups = list(warmups)
        self.optimizer = lr_scheduler.optimizer
        self.last_epoch = 0
        self._step_count = 1  # Accelerate counts on it
        self._apply()

    def _apply(self) -> None:
        groups = self.optimizer.param_groups
        self._inner_lrs = [group["lr"] for group in groups]
        for group, lr, warmup in zip(groups, self._inner_lrs, self.warmups, strict=True):
            group["lr"] = lr * warmup(self.last_epoch)
        self._last_lr = [group["lr"] for group in groups]

    def step(self, *metrics: Any) -> None:
        """One update; with a metric, one evaluation of a scheduler that follows it, and no update."""
        for group, lr in zip(self.optimizer.param_groups, self._inner_lrs, strict=False):
            group["lr"] = lr
        if metrics:
            self.lr_scheduler.step(*metrics)
        else:
            self.last_epoch += 1
            if not self.follows_metric:
                self.lr_scheduler.step()
        self._apply()

    @property
    def follows_metric(self) -> bool:
        """Whether the inner scheduler is stepped with a metric at each evaluation instead of at each update."""
        return "metrics" in inspect.signature(self.lr_scheduler.step).parameters

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: the step, the inner learning rates and the inner scheduler's state."""
        return {
            "last_epoch": self.last_epoch,
            "inner_lrs": list(self._inner_lrs),
            "lr_scheduler": self.lr_scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.last_epoch = state_dict["last_epoch"]
        self.lr_scheduler.load_state_dict(state_dict["lr_scheduler"])
        for group, lr in zip(self.optimizer.param_groups, state_dict["inner_lrs"], strict=True):
            group["lr"] = lr
        self._apply()


def with_warmup(
    lr_scheduler: LRScheduler, warmup: Callable[[int], float] | Sequence[Callable[[int], float]]
) -> WarmupLR:
    """Multiply `warmup` onto any torch scheduler: `lr = warmup(step) * lr_scheduler's own lr`.

    Args:
        lr_scheduler (`LRScheduler`): A new scheduler. It goes on being stepped inside; step only what is returned.
            `ReduceLROnPlateau` is stepped with its metric, `step(loss)`, and the warmup without, `step()`.
        warmup (`Callable[[int], float]` or a sequence of them): Multiplier at the 0-based update, for example
            `partial(linear_warmup, num_warmup_steps=100)`; or one for each parameter group.

    Returns:
        `LRScheduler`: With `step`, `get_last_lr`, `state_dict` and `load_state_dict`.

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
    num_groups = len(lr_scheduler.optimizer.param_groups)
    warmups = [warmup] * num_groups if callable(warmup) else list(warmup)
    if len(warmups) != num_groups or not all(map(callable, warmups)):
        raise ValueError(
            f"warmup={warmup!r}: expected a function of the step, as get_schedule returns, or {num_groups} of them."
        )
    return WarmupLR(lr_scheduler, warmups)
