"""The Trainer with our optimizers, schedules and per-layer gradient norms: three doors, one behaviour."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from transformers import PretrainedConfig, Trainer, TrainerCallback
from transformers.utils import logging

from ._deepspeed import check_deepspeed_config
from ._from_args import decay_groups, ignores_num_items_in_batch, optimizer_cls_and_kwargs
from .callbacks import WarmupUntilCallback
from .checkpoints import (
    CHECKPOINT_PATTERN,
    check_not_beyond,
    check_same_kind,
    raise_on_full_disk,
    resolve_checkpoint,
    warn_existing_checkpoints,
)
from .norms import GRADIENT_NORMS_FILE, LOG_PREFIX, GradientNormRecorder, record_gradient_norms
from .report.model_card import add_recording
from .report.run import copy_run_settings, write_run_settings
from .schedules import (
    METRIC_SCHEDULERS,
    PlateauWithWarmupLR,
    get_scheduler,
    optimizer_warms_up,
    scheduler_warms_up,
)
from .training_args import Name, WarmupArgumentsMixin, WarmupTrainingArguments


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
        `ValueError`: If `args.optim` builds its own parameter groups, the warmup is longer than the run, or
            `args.max_steps` says another length.

    Example:

    ```python
    >>> model = nn.Linear(2, 1)
    >>> args = WarmupTrainingArguments("runs/a", optim="radam", lr_scheduler_type="noam", warmup_steps=10)
    >>> optimizer, scheduler = create_optimizer_and_scheduler(model, args, num_training_steps=100)
    >>> type(optimizer).__name__, scheduler.get_last_lr()[0] == args.learning_rate / 10
    ('RAdam', True)

    ```
    """
    _check_args(args)
    if 0 < args.max_steps != num_training_steps:
        raise ValueError(f"num_training_steps={num_training_steps}: expected max_steps={args.max_steps} of args.")
    if args.deepspeed_plugin is not None:
        raise ValueError("optimizers= is replaced by AdamW and a linear schedule under DeepSpeed: use WarmupTrainer.")
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


def build_scheduler(args: WarmupArgumentsMixin, optimizer: Optimizer, num_training_steps: int) -> LRScheduler:
    """Return the schedule that `args` describe on `optimizer`, for a run of `num_training_steps` updates."""
    num_warmup_steps, kwargs = args.get_warmup_steps(num_training_steps), dict(args.lr_scheduler_kwargs)
    if args.lr_scheduler_type.value in METRIC_SCHEDULERS and args.greater_is_better:
        kwargs.setdefault("mode", "max")  # torch's default is the direction of a loss
    lengths = num_warmup_steps, num_training_steps
    return get_scheduler(args.lr_scheduler_type, optimizer, *lengths, kwargs, args.warmup_type)


def _check_args(args: Any) -> None:
    if not isinstance(args, WarmupArgumentsMixin):
        raise ValueError(
            f"args is a {type(args).__name__}: expected WarmupTrainingArguments, or a class that mixes "
            "WarmupArgumentsMixin in."
        )
    if args.deepspeed_plugin is not None:
        ours = isinstance(args.lr_scheduler_type, Name) or args.warmup_type is not None
        check_deepspeed_config(
            args.deepspeed_plugin.deepspeed_config,
            optimizer=f"optim={args.optim.value!r}" if args.optimizer_is_ours else None,
            scheduler=f"lr_scheduler_type={args.lr_scheduler_type.value!r}" if ours else None,
        )


def _warn_unused_warmup(args: WarmupArgumentsMixin, optimizer: Optimizer, lr_scheduler: LRScheduler) -> None:
    """Of a warmup in `args` where `optimizers=` brings none."""
    asked = {name: getattr(args, name) for name in ("warmup_type", "warmup_steps", "warmup_epochs")}
    asked = [f"{name}={value!r}" for name, value in asked.items() if value]
    if asked and args.warmup_type != "none" and not (scheduler_warms_up(lr_scheduler) or optimizer_warms_up(optimizer)):
        logger.warning(
            f"{', '.join(asked)}: not used, optimizers= brings a {type(lr_scheduler).__name__}; put a warmup in front "
            "of it with with_warmup."
        )


class _CutBackOnResume(TrainerCallback):
    """A resumed run records its updates again: those past the checkpoint go first."""

    def __init__(self, recorder: GradientNormRecorder):
        self.recorder = recorder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.recorder.resume(state.global_step)


class _WriteSettings(TrainerCallback):
    """What the run was made with stands in its folder before the first update."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            config = getattr(model, "config", None)
            described = config.to_dict() if isinstance(config, PretrainedConfig) else {}
            warmup_steps = args.get_warmup_steps(state.max_steps)
            resumed = state.global_step > 0
            write_run_settings(args.output_dir, args.to_dict(), described, state.max_steps, warmup_steps, resumed)


class WarmupTrainerMixin:
    """Our arguments, optimizers, schedules and gradient norms for any Trainer: `class T(WarmupTrainerMixin, Trainer)`.

    The norms of the whole gradient, after accumulation and reduction and before clipping, go to
    `gradient_norms.jsonl` in the output folder and, as `grad_norm/<layer>`, into the log; so does `scheduled_lr`, the
    learning rate in force in an optimizer that warms up by itself.
    """

    _resumed_from: str | None = None

    def __init__(self, model: Any = None, args: Any = None, *more: Any, **kwargs: Any):
        if args is None:
            args = WarmupTrainingArguments(output_dir="tmp_trainer")
        _check_args(args)
        super().__init__(model, args, *more, **kwargs)
        if isinstance(self.lr_scheduler, ReduceLROnPlateau) and self.args.metric_for_best_model is None:
            self.args.metric_for_best_model = "loss"  # as transformers does for its own name
        if self.optimizer is not None and self.lr_scheduler is not None:
            _warn_unused_warmup(self.args, self.optimizer, self.lr_scheduler)
        if self.args.fp16 and self.args.device.type == "cpu":
            raise ValueError("fp16=True needs a GPU: expected bf16=True, or neither, on the CPU.")
        if self.args.fsdp and not self.is_fsdp_enabled:
            raise ValueError(
                f"fsdp={self.args.fsdp!r} is not in force: transformers shards on a GPU only, not on the CPU."
            )
        if ignores_num_items_in_batch(self.accelerator.unwrap_model(self.model)):
            self.model_accepts_loss_kwargs = False
        self.add_callback(_WriteSettings())
        self.gradient_norm_recorder: GradientNormRecorder | None = None
        if self.args.grad_norm_steps:
            path = Path(self.args.output_dir) / GRADIENT_NORMS_FILE if self.is_world_process_zero() else None
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
        """As in transformers, with our names and any warmup in front of any decay.

        Here both are made and nothing is loaded yet: a checkpoint of another kind of optimizer or schedule is refused.
        """
        if self.lr_scheduler is None:
            self.lr_scheduler = build_scheduler(self.args, optimizer or self.optimizer, num_training_steps)
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, WarmupUntilCallback):
                    steps = self.args.get_warmup_steps(num_training_steps)
                    self.lr_scheduler = callback.wrap_scheduler(self.lr_scheduler, steps, self.args.warmup_type)
            self._created_lr_scheduler = True  # or a second `train()` would go on with the spent one
        if self._resumed_from and not self.is_deepspeed_enabled:
            check_same_kind(self._resumed_from, optimizer or self.optimizer, self.lr_scheduler)
        return self.lr_scheduler

    def hyperparameter_search(self, hp_space: Callable[[Any], Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; an Optuna trial may choose `optim`, `lr_scheduler_type` and our arguments by name."""

        def space(trial: Any) -> Any:
            params = hp_space(trial)
            if not isinstance(params, dict) or self.hp_search_backend != "optuna":
                return params
            # transformers casts to the kind of the old value: it knows no name of ours, and truncates a ratio.
            ours = {each.name for each in fields(WarmupArgumentsMixin)}
            for name in ours & params.keys():
                setattr(self.args, name, params[name])
            self.args._check_warmup_arguments()
            return {name: value for name, value in params.items() if name not in ours}

        return super().hyperparameter_search(hp_space and space, *args, **kwargs)

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """As in transformers; then the gradient, whole and not yet clipped, is measured."""
        step = self.state.global_step + 1
        with record_gradient_norms(self.gradient_norm_recorder, self.accelerator, self.model, step):
            return super().training_step(model, *args, **kwargs)

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
            logs = {key: value for key, value in latest if key.startswith(f"{LOG_PREFIX}/") and value is not None}
            if recorder.nonfinite_updates:
                logs[f"{LOG_PREFIX}_nonfinite_updates"] = recorder.nonfinite_updates
        if isinstance(self.lr_scheduler, PlateauWithWarmupLR):  # the Trainer reads that of the next update
            logs["learning_rate"] = self.lr_scheduler.used_lrs[0]
        group = next((group for group in self.optimizer.param_groups if group["params"]), {})
        return logs | ({"scheduled_lr": group["scheduled_lr"]} if "scheduled_lr" in group else {})

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """As in transformers; what was recorded up to a checkpoint is in the file before the checkpoint is."""
        if self.gradient_norm_recorder is not None:
            self.gradient_norm_recorder.flush()
        super().save_model(output_dir, *args, **kwargs)
        if output_dir and CHECKPOINT_PATTERN.fullmatch(Path(output_dir).name) and self.is_world_process_zero():
            copy_run_settings(self.args.output_dir, output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, with what was recorded: settings, findings, and the gradient norms as a figure."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            if self.gradient_norm_recorder is not None:
                self.gradient_norm_recorder.flush()
            add_recording(self.args.output_dir, self.state)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a damaged checkpoint is refused, or passed over where the last one is asked for.

        Says at the end if any gradient was not finite. What was recorded outlives a crash.
        """
        recorder, output_dir = self.gradient_norm_recorder, self.args.output_dir
        if isinstance(self.train_dataset, Sized) and not len(self.train_dataset):
            raise ValueError("train_dataset has no examples: expected at least one.")
        if resume_from_checkpoint:
            chosen = resolve_checkpoint(resume_from_checkpoint, output_dir, self.model, self.args.world_size)
            resume_from_checkpoint = None if chosen is None else str(chosen)
        self._resumed_from = resume_from_checkpoint or None
        if resume_from_checkpoint:
            check_not_beyond(resume_from_checkpoint, self.args.max_steps)
            if self.is_world_process_zero():
                copy_run_settings(resume_from_checkpoint, output_dir)
        elif self.is_world_process_zero() and self.hp_search_backend is None:
            warn_existing_checkpoints(output_dir)
        with raise_on_full_disk(output_dir):
            try:
                output = super().train(resume_from_checkpoint, *args, **kwargs)
            finally:
                if recorder is not None:
                    recorder.flush()
        if recorder is not None and recorder.nonfinite_updates:
            logger.warning(
                f"{recorder.nonfinite_updates} recorded updates had a gradient that was not finite; "
                f'{GRADIENT_NORMS_FILE} names the layers under "nonfinite".'
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
