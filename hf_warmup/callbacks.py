"""A warmup that a metric ends: the low learning rate until training error, or anything else that is logged, says so."""

from __future__ import annotations

import warnings
from typing import Any

from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback
from transformers.utils import logging

from ._validation import check_number, closest
from .schedules import WithWarmupLR, constant_warmup, with_warmup


logger = logging.get_logger(__name__)


class WarmupUntilCallback(TrainerCallback):
    """Hold `factor` times the scheduled learning rate until a logged metric passes `threshold`.

    He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.2: 0.01 until the training error is below 80 %, about
    400 updates, then 0.1. The full learning rate is in force from the first update after the log that passed.

    It is a callback and the warmup that it ends: [`WarmupTrainer`] holds its schedule by it. A Trainer that you cannot
    subclass takes `optimizers=(optimizer, with_warmup(scheduler, callback))`, and a loop of your own calls
    `callback.update(metric, step)` and `scheduler.refresh()`. The update of the change is saved with the scheduler, so
    a resumed run goes on as the one that never stopped.

    Args:
        metric (`str`): A key of the log: `loss`, `eval_loss`, `eval_train_error` (the `error` of `compute_metrics` on
            `eval_dataset={"train": ...}`), `grad_norm`, ...
        threshold (`float`): The warmup ends once the metric is below it.
        max_steps (`int`): The warmup ends after so many updates in any case; at least 1.
        factor (`float`, defaults to 0.1): Multiplier of the learning rate until then, in [0, 1].
        greater_is_better (`bool`, defaults to `False`): The warmup ends once the metric is above `threshold`, as for an
            accuracy.

    Raises:
        `ValueError`: For a number out of its range; when training begins, for a metric that will not be logged or a
            schedule that the callback does not hold.

    Example:

    ```python
    >>> warmup = WarmupUntilCallback("error", 0.8, max_steps=400)
    >>> warmup.update(0.9, step=100), warmup(100), warmup(400)
    (False, 0.1, 1.0)
    >>> warmup.update(0.79, step=120), warmup(119), warmup(120)
    (True, 0.1, 1.0)

    ```
    """

    def __init__(
        self, metric: str, threshold: float, *, max_steps: int, factor: float = 0.1, greater_is_better: bool = False
    ):
        self.metric = metric
        self.threshold = check_number("threshold", threshold, -float("inf"))
        self.max_steps = check_number("max_steps", max_steps, 1, integer=True)
        self.factor = check_number("factor", factor, 0.0, 1.0)
        self.greater_is_better = greater_is_better
        self.reset()

    def reset(self) -> None:
        """As at the beginning of a run."""
        self.num_warmup_steps = self.max_steps
        self._step = 0  # where the schedule stands
        self._last_value: float | None = None
        self._logged: set[str] = set()
        self._evaluated = self._looked = self._said = False

    def __call__(self, step: int) -> float:
        """Multiplier of the learning rate at the 0-based `step`: `factor`, then 1."""
        self._step = step
        return constant_warmup(step, num_warmup_steps=self.num_warmup_steps, warmup_factor=self.factor)

    def update(self, value: float, step: int) -> bool:
        """Whether `value`, measured after `step` updates, ends the warmup there."""
        self._last_value = value
        passed = value > self.threshold if self.greater_is_better else value < self.threshold
        if not passed or step >= self.num_warmup_steps:
            return False
        self.num_warmup_steps = self._step = step
        return True

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, saved with the scheduler; `num_warmup_steps` is `None` until the warmup has ended."""
        ended = self._step >= self.num_warmup_steps
        return {"num_warmup_steps": self.num_warmup_steps if ended else None, "last_value": self._last_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; a warmup that has not ended has this object's own `max_steps`."""
        self.reset()
        if state_dict["num_warmup_steps"] is not None:
            self.num_warmup_steps = state_dict["num_warmup_steps"]
        self._last_value = state_dict["last_value"]

    def wrap_scheduler(self, lr_scheduler: LRScheduler, num_warmup_steps: int, warmup_type: str | None) -> WithWarmupLR:
        """`lr_scheduler` held by this callback, if it does not warm up by itself."""
        if num_warmup_steps or warmup_type not in (None, "none"):
            raise ValueError(
                f"WarmupUntilCallback with warmup_steps={num_warmup_steps}, warmup_type={warmup_type!r}: expected one "
                "warmup, leave one out."
            )
        self.reset()
        return with_warmup(lr_scheduler, self)

    def on_train_begin(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **kwargs: Any) -> None:
        """Refuse a metric that will not be logged, and a schedule that is not held."""
        what, at_once = ("eval", args.eval_on_start) if self._is_evaluated else ("logging", args.logging_first_step)
        strategy, every = getattr(args, f"{what}_strategy"), getattr(state, f"{what}_steps")
        if strategy == "no":
            raise ValueError(
                f"metric={self.metric!r} is never logged with {what}_strategy='no': expected 'steps' or 'epoch'."
            )
        if strategy == "steps" and every > state.max_steps and not at_once:
            raise ValueError(
                f"metric={self.metric!r} is never logged with {what}_steps={every} in a run of {state.max_steps} "
                f"updates: expected at most {state.max_steps}."
            )
        scheduler = _held(lr_scheduler)
        if scheduler is None or not any(each is self for each in scheduler.warmups):
            raise ValueError(
                "WarmupUntilCallback holds no learning rate: expected a WarmupTrainer that makes the schedule, or "
                "optimizers=(optimizer, with_warmup(scheduler, callback))."
            )
        if state.global_step == 0:  # another `train()` begins anew
            self.reset()
            scheduler.refresh()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        """End the warmup if the metric is there and has passed."""
        self._logged |= set(logs)
        if self.metric in logs and self.update(logs[self.metric], state.global_step):
            _held(lr_scheduler).refresh()
            logger.info(
                f"{self.metric}={self._last_value:g} has passed {self.threshold:g}: full learning rate from update "
                f"{state.global_step + 1} on."
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From the next update on, what an evaluation logs is known, of all its data sets."""
        self._evaluated = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that the metric is misspelt, and that the cap has ended the warmup."""
        if self._evaluated and not self._looked and (self._is_evaluated or "loss" in self._logged):
            self._looked = True
            self._warn_missing_metric()
        if state.global_step == self.max_steps == self.num_warmup_steps:
            self._say_what_was_missing("The full learning rate begins", " after ")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that nothing has ended the warmup."""
        if state.global_step <= self.max_steps == self.num_warmup_steps:
            which = "before" if state.global_step < self.max_steps else "with"
            self._say_what_was_missing(f"Training ended after {state.global_step} updates", f", {which} ")

    @property
    def _is_evaluated(self) -> bool:
        return self.metric.startswith("eval_")

    def _warn_missing_metric(self) -> None:
        if self.metric not in self._logged:
            close = closest(self.metric, sorted(self._logged))
            hint = f" Did you mean {close!r}?" if close else ""
            warnings.warn(
                f"metric={self.metric!r} was not logged up to the first evaluation.{hint} Logged were "
                f"{', '.join(sorted(self._logged))}.",
                stacklevel=2,
            )

    def _say_what_was_missing(self, what: str, when: str) -> None:
        if self._said:
            return
        self._said = True
        if self._last_value is None:
            warnings.warn(
                f"{what}, and metric={self.metric!r} was never logged; logged were "
                f"{', '.join(sorted(self._logged)) or 'no keys at all'}.",
                stacklevel=2,
            )
        else:
            logger.warning(
                f"{what}{when}max_steps={self.max_steps}; the last {self.metric} was {self._last_value:g}, the "
                f"threshold {self.threshold:g}."
            )


def _held(lr_scheduler: Any) -> WithWarmupLR | None:
    scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)  # out of Accelerate's wrapper
    return scheduler if isinstance(scheduler, WithWarmupLR) else None
