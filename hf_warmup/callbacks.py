"""Callbacks: a warmup that ends when a metric passes a threshold, and a stop with a checkpoint on a signal."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback

from ._logging import get_logger
from ._validation import check_name, check_number, closest
from .schedules import WithWarmupLR, constant_warmup, with_warmup


logger = get_logger(__name__)


class WarmupUntilCallback(TrainerCallback):
    """Multiply the scheduled learning rate by `factor` until a logged metric passes `threshold`.

    He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.2: learning rate 0.01 until the training error is below
    80 %, about 400 updates, then 0.1. The full learning rate applies from the first update after the log.

    The callback is also the warmup function. [`WarmupTrainer`] applies it to its scheduler automatically. For another
    Trainer pass `optimizers=(optimizer, with_warmup(scheduler, callback))`. In a loop of your own call
    `callback.update(metric, step)` and `scheduler.refresh()`. The length of the warmup is saved with the scheduler, so
    a resumed run continues with the same learning rates.

    Args:
        metric (`str`): A key of the log: `loss`, `eval_loss`, `eval_train_error` (the `error` of `compute_metrics` on
            `eval_dataset={"train": ...}`), `grad_norm`, ...
        threshold (`float`): The warmup ends when the metric is below it.
        max_steps (`int`): The warmup ends after this number of updates at the latest; at least 1.
        factor (`float`, defaults to 0.1): Multiplier of the learning rate during the warmup, in [0, 1].
        greater_is_better (`bool`, defaults to `False`): The warmup ends when the metric is above `threshold`, as for an
            accuracy.

    Raises:
        `ValueError`: For a number out of its range. When training begins, for a metric that will not be logged, or a
            scheduler that does not use the callback.

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
        """Return to the state at the beginning of a run."""
        self.num_warmup_steps = self.max_steps
        self._step = 0  # the step that the scheduler asked for last
        self._last_value: float | None = None
        self._logged: set[str] = set()
        self._has_evaluated = self._has_checked_metric = self._has_warned = False

    def __call__(self, step: int) -> float:
        """Return the multiplier of the learning rate at the 0-based `step`: `factor`, then 1."""
        self._step = step
        return constant_warmup(step, num_warmup_steps=self.num_warmup_steps, warmup_factor=self.factor)

    def update(self, value: float, step: int) -> bool:
        """Return whether `value`, measured after `step` updates, ends the warmup now."""
        self._last_value = value
        passed = value > self.threshold if self.greater_is_better else value < self.threshold
        if not passed or step >= self.num_warmup_steps:
            return False
        self.num_warmup_steps = self._step = step
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the length of the warmup, `None` until it has ended, and the last value of the metric."""
        has_ended = self._step >= self.num_warmup_steps
        return {"num_warmup_steps": self.num_warmup_steps if has_ended else None, "last_value": self._last_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. A warmup that has not ended takes `max_steps` of this object."""
        self.reset()
        if state_dict["num_warmup_steps"] is not None:
            self.num_warmup_steps = state_dict["num_warmup_steps"]
        self._last_value = state_dict["last_value"]

    def wrap_scheduler(self, lr_scheduler: LRScheduler) -> WithWarmupLR:
        """Return `lr_scheduler` multiplied by this warmup.

        Raises:
            `ValueError`: If the scheduler or its optimizer warms up already.
        """
        self.reset()
        return with_warmup(lr_scheduler, self)

    def on_train_begin(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **kwargs: Any) -> None:
        """Check that the metric will be logged and that the scheduler uses this warmup."""
        what, logs_first = ("eval", args.eval_on_start) if self._is_evaluated else ("logging", args.logging_first_step)
        strategy, every = getattr(args, f"{what}_strategy"), getattr(state, f"{what}_steps")
        if strategy == "no":
            raise ValueError(
                f"metric={self.metric!r} is never logged with {what}_strategy='no': expected 'steps' or 'epoch'."
            )
        if strategy == "steps" and every > state.max_steps and not logs_first:
            raise ValueError(
                f"metric={self.metric!r} is never logged with {what}_steps={every} in a run of {state.max_steps} "
                f"updates: expected at most {state.max_steps}."
            )
        scheduler = _unwrap_scheduler(lr_scheduler)
        if not isinstance(scheduler, WithWarmupLR) or not any(each is self for each in scheduler.warmups):
            raise ValueError(
                "WarmupUntilCallback has no effect because the scheduler does not use it. Use a WarmupTrainer that "
                "creates the scheduler, or pass optimizers=(optimizer, with_warmup(scheduler, callback))."
            )
        if state.global_step == 0:  # `train()` may have been called before
            self.reset()
            scheduler.refresh()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        """End the warmup if the metric is among `logs` and has passed the threshold."""
        self._logged |= set(logs)
        if self.metric in logs and self.update(logs[self.metric], state.global_step):
            _unwrap_scheduler(lr_scheduler).refresh()
            logger.info(
                f"{self.metric}={self._last_value:g} has passed {self.threshold:g}: full learning rate from update "
                f"{state.global_step + 1} on."
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note that an evaluation has begun to log: at the next update all of its metrics are known."""
        self._has_evaluated = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn once if the metric is not logged, and if the warmup ended at `max_steps`."""
        if self._has_evaluated and not self._has_checked_metric and (self._is_evaluated or "loss" in self._logged):
            self._has_checked_metric = True
            self._warn_missing_metric()
        if state.global_step == self.max_steps == self.num_warmup_steps:
            self._warn_threshold_not_passed("The full learning rate begins", " after ")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn if nothing has ended the warmup."""
        if state.global_step <= self.max_steps == self.num_warmup_steps:
            which = "before" if state.global_step < self.max_steps else "with"
            self._warn_threshold_not_passed(f"Training ended after {state.global_step} updates", f", {which} ")

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

    def _warn_threshold_not_passed(self, what: str, when: str) -> None:
        if self._has_warned:
            return
        self._has_warned = True
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


def _unwrap_scheduler(lr_scheduler: Any) -> Any:
    return getattr(lr_scheduler, "scheduler", lr_scheduler)  # Accelerate's wrapper


class StopOnSignalCallback(TrainerCallback):
    """Save a complete checkpoint and stop training when the process receives a signal.

    A scheduler such as SLURM or Kubernetes sends a signal some time before it ends a job. All processes agree at the
    end of the update in which any of them received it, save one checkpoint and stop. `trainer.train("auto")` then
    continues as if the run had never been stopped.

    Unlike `enable_jit_checkpoint` of transformers, which saves inside an update and lets processes stop at different
    updates, the callback needs no waiting time and works with several processes.

    Args:
        signals (`Sequence[str]`, defaults to `("SIGTERM", "SIGUSR1")`): The names of the signals. Their former handlers
            are restored when training ends.

    Attributes:
        received (`str`, *optional*): The name of the signal that ended training, on every process.

    Raises:
        `ValueError`: If a name is not that of a signal on this platform.

    Example:

    ```py
    trainer = WarmupTrainer(model, args, train_dataset=train_dataset, callbacks=[StopOnSignalCallback()])
    trainer.train("auto")
    sys.exit(trainer.exit_code)  # 143 after SIGTERM: the scheduler may start the job again
    ```

    In a loop of your own:

    ```py
    with StopOnSignalCallback() as stop:
        for batch in loader:
            ...
            if accelerator.sync_gradients and stop.should_stop(accelerator.device):
                save_checkpoint(accelerator, output_dir, state)
                break
    sys.exit(stop.exit_code)
    ```
    """

    def __init__(self, signals: Sequence[str] = ("SIGTERM", "SIGUSR1")):
        names = {each.name for each in signal.Signals}
        for name in signals:
            check_name("signals", name, names)
        self.signals = tuple(signals)
        self.received: str | None = None
        self._pending = 0  # 1 + index in `signals` of the signal that this process received
        self._former: dict[str, Any] = {}

    @property
    def exit_code(self) -> int:
        """The exit code of a process that this signal ended: 128 plus its number, or 0 without a signal."""
        return 128 + signal.Signals[self.received] if self.received else 0

    def __enter__(self) -> StopOnSignalCallback:
        """Begin to watch for the signals."""
        self.received, self._pending = None, 0
        if threading.current_thread() is not threading.main_thread():
            logger.warning("StopOnSignalCallback has no effect because training does not run in the main thread.")
        elif not self._former:
            self._former = {name: signal.signal(signal.Signals[name], self._handle) for name in self.signals}
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the former handlers of the signals."""
        for name, handler in self._former.items():
            signal.signal(signal.Signals[name], handler)
        self._former = {}

    def _handle(self, number: int, frame: Any) -> None:
        self._pending = 1 + self.signals.index(signal.Signals(number).name)

    def should_stop(self, device: Any = "cpu") -> bool:
        """Return, on every process, whether any process has received a signal; all of them call it after an update."""
        pending = self._pending
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            flag = torch.tensor(pending, device=device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            pending = int(flag)
        self.received = self.signals[pending - 1] if pending else None
        return pending > 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < state.max_steps and self.should_stop(args.device):
            logger.warning(f"Received {self.received}: saving a checkpoint and stopping at update {state.global_step}.")
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # transformers ends the epoch of a stopped run too. Unless all of it was trained, the resumed run will do that.
        if self.received:
            complete = float(state.epoch).is_integer()
            control.should_log &= complete
            control.should_evaluate &= complete
            control.should_save = control.should_evaluate  # with the evaluation in its log

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.__exit__()
