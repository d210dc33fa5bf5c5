"""The Trainer with our optimizers, schedules and per-layer gradient norms: three doors, one behaviour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from ._from_args import build_scheduler, decay_groups, ignores_num_items_in_batch, optimizer_cls_and_kwargs
from .gradient_norms import FILE_NAME, KEY, GradientNormRecorder
from .schedules import WarmupLR
from .training_args import WarmupArgumentsMixin, WarmupTrainingArguments


logger = logging.get_logger(__name__)


def create_optimizer_and_scheduler(
    model: nn.Module, args: WarmupArgumentsMixin, num_training_steps: int
) -> tuple[Optimizer, LRScheduler]:
    """What `args` describe, for `Trainer(model, args, ..., optimizers=...)`, with the Trainer's own decay groups.

    Args:
        model (`nn.Module`): Its parameters that require a gradient are trained. A BERT-family head that averages its
            own loss gets `accepts_loss_kwargs = False`, as [`WarmupTrainer`] treats it.
        args ([`WarmupTrainingArguments`]): The arguments that the Trainer gets too.
        num_training_steps (`int`): Optimizer updates of the whole run.

    Returns:
        `tuple[Optimizer, LRScheduler]`: The pair that `optimizers=` takes.

    Raises:
        `ValueError`: If `args.optim` builds its own parameter groups, or the warmup is longer than the run.

    Example:

    ```python
    >>> model = torch.nn.Linear(2, 1)
    >>> args = WarmupTrainingArguments("runs/a", optim="radam", lr_scheduler_type="noam", warmup_steps=10)
    >>> optimizer, scheduler = create_optimizer_and_scheduler(model, args, num_training_steps=100)
    >>> type(optimizer).__name__, scheduler.get_last_lr()[0] == args.learning_rate / 10
    ('RAdam', True)

    ```
    """
    _check_args(args)
    if args.optimizer_is_ours:
        cls, kwargs = optimizer_cls_and_kwargs(args)
    else:
        cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if not isinstance(cls, type) or {"params", "model", "optimizer_dict"} & kwargs.keys():
            raise ValueError(f"optim={args.optim.value!r} builds its own parameter groups: use WarmupTrainer.")
    if ignores_num_items_in_batch(model):
        model.accepts_loss_kwargs = False
    optimizer = cls(decay_groups(model, args.weight_decay), **kwargs)
    return optimizer, build_scheduler(args, optimizer, num_training_steps)


def _check_args(args: Any) -> None:
    if not isinstance(args, WarmupArgumentsMixin):
        raise ValueError(
            f"args is a {type(args).__name__}: expected WarmupTrainingArguments, or a class that mixes "
            "WarmupArgumentsMixin in."
        )


class _CutBackOnResume(TrainerCallback):
    """A resumed run records its updates again: those past the checkpoint go first."""

    def __init__(self, recorder: GradientNormRecorder):
        self.recorder = recorder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.recorder.resume(state.global_step)


class WarmupTrainerMixin:
    """Our arguments, optimizers, schedules and gradient norms for any Trainer: `class T(WarmupTrainerMixin, Trainer)`.

    The norms of the whole gradient, after accumulation and reduction and before clipping, go to
    `gradient_norms.jsonl` in the output folder and, as `grad_norm/<layer>`, into the log; so does `scheduled_lr`, the
    learning rate in force in an optimizer that warms up by itself.
    """

    def __init__(self, model: Any = None, args: Any = None, *more: Any, **kwargs: Any):
        if args is None:
            args = WarmupTrainingArguments(output_dir="tmp_trainer")
        _check_args(args)
        super().__init__(model, args, *more, **kwargs)
        if ignores_num_items_in_batch(self.accelerator.unwrap_model(self.model)):
            self.model_accepts_loss_kwargs = False
        self.gradient_norm_recorder: GradientNormRecorder | None = None
        self._walked: tuple[list[int], list[tuple[str, Tensor]]] = ([], [])
        if self.args.grad_norm_steps:
            path = Path(self.args.output_dir) / FILE_NAME if self.is_world_process_zero() else None
            self.gradient_norm_recorder = GradientNormRecorder(
                path, self.args.grad_norm_group_by, self.args.grad_norm_steps
            )
            self.add_callback(_CutBackOnResume(self.gradient_norm_recorder))

    @classmethod
    def get_optimizer_cls_and_kwargs(cls, args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """As in transformers, with our names."""
        if args.optimizer_is_ours:
            return optimizer_cls_and_kwargs(args)
        return super().get_optimizer_cls_and_kwargs(args, model)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """As in transformers, with our names and any warmup in front of any decay."""
        if self.lr_scheduler is None:
            self.lr_scheduler = build_scheduler(self.args, optimizer or self.optimizer, num_training_steps)
            self._created_lr_scheduler = True  # or a second `train()` would go on with the spent one
        return self.lr_scheduler

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """As in transformers; then the gradient, whole and not yet clipped, is measured."""
        loss = super().training_step(model, *args, **kwargs)
        recorder, step = self.gradient_norm_recorder, self.state.global_step + 1
        if recorder is not None and self.accelerator.sync_gradients and recorder.wants(step):
            scaler = self.accelerator.scaler
            # `scale(1)` is the loss scale as a tensor on the device; `get_scale()` would wait for the device.
            scale = None if scaler is None else scaler.scale(torch.ones((), device=loss.device))
            recorder.record(self._named_parameters(), step, scale)
        return loss

    def _named_parameters(self) -> list[tuple[str, Tensor]]:
        """The model's; a walk through its modules takes as long as a small model's norms, so one serves a whole run,
        or until the optimizer holds other parameters."""
        held = [id(p) for group in self.optimizer.param_groups for p in group["params"]]
        if held != self._walked[0]:
            self._walked = held, list(self.model.named_parameters())
        return self._walked[1]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in transformers, with `grad_norm/<layer>` of the last recorded update and `scheduled_lr`."""
        if "loss" in logs:
            logs = {**logs, **self._our_logs()}
        elif self.gradient_norm_recorder is not None:
            self.gradient_norm_recorder.flush()
        super().log(logs, *args, **kwargs)

    def _our_logs(self) -> dict[str, float]:
        logs = {}
        recorder = self.gradient_norm_recorder
        if recorder is not None:
            recorder.flush()
            latest = recorder.latest.items()
            logs = {key: value for key, value in latest if key.startswith(f"{KEY}/") and value is not None}
            if recorder.nonfinite_updates:
                logs[f"{KEY}_nonfinite_updates"] = recorder.nonfinite_updates
        group = next((group for group in self.optimizer.param_groups if group["params"]), {})
        return logs | ({"scheduled_lr": group["scheduled_lr"]} if "scheduled_lr" in group else {})

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers; what was recorded up to a checkpoint is in the file before the checkpoint is."""
        if self.gradient_norm_recorder is not None:
            self.gradient_norm_recorder.flush()
        super().save_model(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in transformers; a scheduler that follows a metric behind a warmup of ours is stepped with it."""
        metrics = super().evaluate(*args, **kwargs)
        scheduler = self.lr_scheduler
        whole = kwargs.get("metric_key_prefix", "eval") == "eval"
        if self.is_in_train and whole and isinstance(scheduler, WarmupLR) and scheduler.follows_metric:
            metric = self.args.metric_for_best_model
            scheduler.step(metrics[metric if metric.startswith("eval_") else f"eval_{metric}"])
        return metrics

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; says at the end if any gradient was not finite. What was recorded outlives a crash."""
        recorder = self.gradient_norm_recorder
        try:
            output = super().train(*args, **kwargs)
        finally:
            self._walked = [], []  # nothing of the model is kept for the next run
            if recorder is not None:
                recorder.flush()
        if recorder is not None and recorder.nonfinite_updates:
            logger.warning(
                f"{recorder.nonfinite_updates} recorded updates had a gradient that was not finite; "
                f'{FILE_NAME} names the layers under "nonfinite".'
            )
        return output


class WarmupTrainer(WarmupTrainerMixin, Trainer):
    """[`~transformers.Trainer`] with [`WarmupTrainerMixin`]; takes the same arguments, `args` a
    [`WarmupTrainingArguments`].

    Example:

    ```py
    trainer = WarmupTrainer(
        model=model,
        args=WarmupTrainingArguments("runs/a", optim="radam", lr_scheduler_type="noam", warmup_steps=0.06),
        train_dataset=train_dataset,
    )
    trainer.train()
    ```
    """
