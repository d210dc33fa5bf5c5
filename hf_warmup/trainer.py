"""Trainers with warmup: a mixin for any `Trainer`, two ready classes, and the pair that `optimizers=` takes."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from functools import wraps
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainer,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import TrainOutput, has_length

from ._deepspeed import check_deepspeed_config
from ._logging import get_logger, warn_once
from ._validation import check_name
from .callbacks import StopOnSignalCallback, WarmupUntilCallback
from .checkpoints import (
    check_same_arguments,
    latest_complete,
    lock_output_dir,
    raise_on_full_disk,
    save_trainer_checkpoint,
    use_writable_output_dir,
)
from .cli import warn_of_process_count
from .guard.callback import WarmupGuard, check_guard
from .item_count import honor_item_count
from .norms import GRADIENT_NORMS_FILE, LOG_PREFIX, GradientNormRecorder, record_gradient_norms
from .optim import effective_learning_rates, knows_updates_of, update_norms
from .report.model_card import add_recording
from .report.notebook import Report, show
from .report.run import TRAINER_STATE_FILE, UPDATE_PREFIXES, write_run_end, write_run_settings
from .resuming import (
    BatchRandomStates,
    NoUpdatesLeft,
    check_same_kind,
    check_updates_left,
    keep_finished_warmup,
    prepare_resume,
)
from .schedules import (
    METRIC_SCHEDULERS,
    PlateauWithWarmupLR,
    get_scheduler,
    optimizer_warms_up,
    scheduler_warms_up,
    unwrap_optimizer,
)
from .training_args import (
    WarmupArgumentsMixin,
    WarmupSeq2SeqTrainingArguments,
    WarmupTrainingArguments,
    optimizer_cls_and_kwargs,
)


if TYPE_CHECKING:
    _TrainerBase = Trainer
else:
    _TrainerBase = object

_F = TypeVar("_F", bound=Callable[..., Any])

logger = get_logger(__name__)

_LAYER_PREFIXES = (f"{LOG_PREFIX}/", *UPDATE_PREFIXES)
# The arguments that an optimizer or a scheduler of the user's own replaces.
_OF_OPTIMIZER = ("optim", "optim_args", "learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay")
_OF_SCHEDULER = (
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_type",
    "warmup_steps",
    "warmup_epochs",
    "num_warmup_steps",
    "learning_rate",
)
_OWN_GROUPS = ("params", "model", "optimizer_dict")  # keywords by which a Trainer passes its own parameter groups


def create_optimizer_and_scheduler(
    model: nn.Module, args: WarmupArgumentsMixin, num_training_steps: int
) -> tuple[Optimizer, LRScheduler]:
    """Create the optimizer and schedule that `args` describe, for `Trainer(model, args, ..., optimizers=...)`.

    The parameter groups are the Trainer's: weight decay for all but biases and normalization layers. As in
    [`WarmupTrainer`], a head that ignores `num_items_in_batch` is made to honor it.

    Args:
        model (`nn.Module`): Its parameters that require a gradient are optimized.
        args ([`WarmupTrainingArguments`]): The arguments that the Trainer gets too.
        num_training_steps (`int`): Optimizer updates of the whole run, at least 1.

    Returns:
        `tuple[Optimizer, LRScheduler]`: The pair that `optimizers=` takes.

    Raises:
        `ValueError`: If `args.optim` builds its own parameter groups, the warmup is longer than the run,
            `args.max_steps` is another length, or `args` configure DeepSpeed.

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
        raise ValueError(
            "`optimizers=` has no effect under DeepSpeed, which replaces it by AdamW and a linear schedule. "
            "Use `WarmupTrainer` instead."
        )
    if args.optimizer_is_ours:
        cls, kwargs = optimizer_cls_and_kwargs(args)
    else:
        cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, cast(PreTrainedModel, model))
        if not isinstance(cls, type) or kwargs.keys() & set(_OWN_GROUPS):
            raise ValueError(
                f"optim={args.optim.value!r} builds its own parameter groups. Use `WarmupTrainer` instead."
            )
    honor_item_count(model)
    optimizer = cls(args.parameter_groups(model), **kwargs)
    return optimizer, build_scheduler(args, optimizer, num_training_steps)


def build_scheduler(args: WarmupArgumentsMixin, optimizer: Optimizer, num_training_steps: int) -> LRScheduler:
    """Return the schedule that `args` describe on `optimizer`, for a run of `num_training_steps` updates."""
    num_warmup_steps, kwargs = args.get_warmup_steps(num_training_steps), dict(args.lr_scheduler_kwargs)
    if args.lr_scheduler_type.value in METRIC_SCHEDULERS and args.greater_is_better:
        kwargs.setdefault("mode", "max")  # torch's default is the direction of a loss
    lengths = num_warmup_steps, num_training_steps
    return get_scheduler(args.lr_scheduler_type, optimizer, *lengths, kwargs, args.schedule_warmup_type)


def _check_args(args: Any) -> None:
    if not isinstance(args, WarmupArgumentsMixin):
        raise ValueError(
            f"`args` is a {type(args).__name__}, which has none of hf_warmup's arguments. Pass "
            "WarmupTrainingArguments, or an instance of a class that mixes in WarmupArgumentsMixin."
        )
    args.check_warmup_arguments()
    if args.deepspeed_plugin is not None:
        check_deepspeed_config(
            args.deepspeed_plugin.deepspeed_config,
            optimizer=f"optim={args.optim.value!r}" if args.optimizer_is_ours else None,
            scheduler=f"lr_scheduler_type={args.lr_scheduler_type.value!r}" if args.scheduler_is_ours else None,
        )


def _warn_unused_warmup(args: WarmupArgumentsMixin, optimizer: Optimizer, lr_scheduler: LRScheduler) -> None:
    """Warn if `args` ask for a warmup and `optimizers=` brings a pair without one."""
    names = ("warmup_type", "warmup_steps", "warmup_epochs")
    asked = [f"{name}={getattr(args, name)!r}" for name in names if getattr(args, name)]
    if asked and args.warmup_type != "none" and not (scheduler_warms_up(lr_scheduler) or optimizer_warms_up(optimizer)):
        warn_once(
            logger,
            f"{', '.join(asked)} is ignored because a {type(lr_scheduler).__name__} was passed via `optimizers=`. Wrap "
            "it with `hf_warmup.with_warmup` to add a warmup.",
        )


def _hide_layer_norms(callback: Any) -> None:
    """Keep `grad_norm/<layer>` out of what a callback prints; trackers and the log history get it."""
    if isinstance(callback, (PrinterCallback, ProgressCallback)) and "on_log" not in vars(callback):
        on_log = callback.on_log

        def print_log(args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            shown = {key: value for key, value in logs.items() if not key.startswith(_LAYER_PREFIXES)}
            on_log(args, state, control, logs=shown, **kwargs)

        callback.on_log = print_log  # type: ignore[method-assign, assignment]


class _TrialPruned(Exception):
    """The arguments that a trial of a search chose exclude each other."""


class _RunFolderCallback(TrainerCallback):
    """Writes the settings of a run before its first update, and its state and how it ended after the last."""

    def __init__(self, trainer: WarmupTrainerMixin):
        self.trainer = trainer
        self._trained = 0  # parameters that require a gradient

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        if "updates" in args.record and (args.deepspeed_plugin is not None or not knows_updates_of(optimizer)):
            engine = "DeepSpeed" if args.deepspeed_plugin is not None else type(unwrap_optimizer(optimizer)).__name__
            raise ValueError(
                f"record={args.record!r} computes updates from the optimizer's state, which is not possible for "
                f"{engine}. Leave out updates."
            )
        if state.global_step:
            check_updates_left(state.global_step, state.max_steps)
        self.trainer._honor_item_count()  # `model_init` has made a new model
        self._trained = sum(p.requires_grad for p in model.parameters())
        folder = self.trainer._run_folder()
        if (recorder := self.trainer.gradient_norm_recorder) is not None:
            if recorder.path is not None:
                recorder.path = folder / GRADIENT_NORMS_FILE
            recorder.resume(state.global_step)  # a resumed run records the updates after the checkpoint again
        if state.is_world_process_zero:
            config = getattr(model, "config", None)
            model_config = config.to_dict() if isinstance(config, PretrainedConfig) else {}
            write_run_settings(
                folder,
                args.to_dict(),
                model_config,
                state.max_steps,
                args.get_warmup_steps(state.max_steps),
                resumed=state.global_step > 0,
                num_processes=args.world_size,
                unused=self.trainer._unused_arguments(),
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if signal := next((stop.received for stop in self.trainer._signal_callbacks() if stop.received), None):
            self.trainer._write_end("interrupted", signal)
        else:
            self.trainer._write_end("finished" if state.global_step >= state.max_steps else "stopped early")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        trained = sum(p.requires_grad for p in model.parameters())
        if trained > self._trained:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            new = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
            if new:
                logger.warning(
                    f"{len(new)} parameters, such as {new[0]}, were unfrozen after the optimizer was created. They are "
                    "not trained, because the optimizer does not hold them. Let them require a gradient until "
                    "training begins, and freeze them in a callback's `on_train_begin`."
                )
        self._trained = trained

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        recorder = self.trainer.gradient_norm_recorder
        if optimizer is None or recorder is None:
            return
        recorder.log(learning_rate=effective_learning_rates(optimizer))
        if "updates" in args.record and recorder.should_record(state.global_step + 1):
            recorder.record_updates(self.trainer.model.named_parameters(), update_norms(optimizer))


def _as_in(method: Callable[..., Any]) -> Callable[[_F], _F]:
    """Show the signature of a Trainer's method in `help()` and completions, and keep the docstring."""
    return lambda function: wraps(method, assigned=())(function)  # type: ignore[return-value]


class WarmupTrainerMixin(_TrainerBase):
    """Warmups, optimizers and per-layer gradient norms for any Trainer: `class T(WarmupTrainerMixin, SFTTrainer)`.

    The norms of the whole gradient, after accumulation and reduction and before clipping, are stored in
    `gradient_norms.jsonl` in the output folder and logged as `grad_norm/<layer>`. For an optimizer with built-in warmup
    the log also holds its `effective_learning_rate`. A head that accepts `num_items_in_batch` and ignores it is made to
    honor it (see [`honor_item_count`]), unless the Trainer computes its own loss.

    Args:
        *args, **kwargs: The arguments of the Trainer that is mixed in. Its `args` have to be an instance of a class
            that mixes in [`WarmupArgumentsMixin`].

    Raises:
        `ValueError`: If `args` is missing, is of another class, or asks for something that would silently be left out:
            fp16 or FSDP on the CPU, a DeepSpeed configuration that replaces the optimizer or the schedule.
    """

    if TYPE_CHECKING:
        args: Any  # TrainingArguments with WarmupArgumentsMixin
        model: Any
        optimizer: Any
        lr_scheduler: Any
        objective: Any

    _default_args: type[TrainingArguments] | None = None
    _resumed_from: Path | None = None
    _batch_states: BatchRandomStates | None = None
    _before_search: dict[str, Any] = {}  # noqa: RUF012 - replaced by each search
    _worst_objective = inf

    def __init__(self, *args: Any, **kwargs: Any):
        given = next((each for each in (*args, *kwargs.values()) if isinstance(each, TrainingArguments)), None)
        if given is None and self._default_args is not None and len(args) < 2:
            given = kwargs["args"] = self._default_args("tmp_trainer")
        if given is None:
            raise ValueError(
                f"{type(self).__name__} got no training arguments, and the default of its base class has none of "
                "hf_warmup's. Pass `args=`, an instance of a class that mixes in WarmupArgumentsMixin."
            )
        _check_args(given)
        if given.should_save:
            use_writable_output_dir(given)
        super().__init__(*args, **kwargs)
        self._was_given = self.optimizer is not None, self.lr_scheduler is not None
        self._built_scheduler = False
        if isinstance(self.lr_scheduler, ReduceLROnPlateau):
            self._check_plateau(self.lr_scheduler)
        if self.optimizer is not None and self.lr_scheduler is not None:
            _warn_unused_warmup(self.args, self.optimizer, self.lr_scheduler)
        if self.args.fp16 and self.args.device.type == "cpu":
            raise ValueError("fp16=True has no effect on the CPU. Use bf16=True or train in float32.")
        if self.args.fsdp and not self.is_fsdp_enabled:
            raise ValueError(f"fsdp={self.args.fsdp!r} has no effect on the CPU. Train on GPUs or leave it out.")
        warn_of_process_count(self.args.world_size)
        if self.args.stop_on_signal:
            self.add_callback(StopOnSignalCallback())
        self.gradient_norm_recorder: GradientNormRecorder | None = None
        if self.args.grad_norm_steps:
            path = Path(self.args.output_dir) / GRADIENT_NORMS_FILE if self.is_world_process_zero() else None
            self.gradient_norm_recorder = GradientNormRecorder(
                path,
                self.args.grad_norm_group_by,
                self.args.grad_norm_steps,
                share_with_clip=hasattr(Trainer, "_clip_grad_norm"),
            )
        self.add_callback(_RunFolderCallback(self))
        self.guard: WarmupGuard | None = None
        if self.args.guard_action != "off":
            check_guard(self.args, self.optimizer, self.lr_scheduler)
            self.guard = WarmupGuard(
                self.args.guard_action, self.gradient_norm_recorder, max_rewinds=self.args.guard_max_rewinds
            )
            self.guard.log = self.log
            self.add_callback(self.guard)
        self._honor_item_count()

    def _check_plateau(self, lr_scheduler: Any) -> None:
        """Set the metric of a plateau that was passed via `optimizers=`; warn if its mode contradicts the metric."""
        if self.args.metric_for_best_model is None:
            self.args.metric_for_best_model = "loss"  # as transformers does for its own name
        mode, better = ("max", "greater") if self.args.greater_is_better else ("min", "smaller")
        if (present := getattr(lr_scheduler, "lr_scheduler", lr_scheduler).mode) != mode:
            logger.warning(
                f"The {type(lr_scheduler).__name__} has mode={present!r}, but metric_for_best_model="
                f"{self.args.metric_for_best_model!r} is better when it is {better}. "
                f"Set its mode to {mode!r}."
            )

    def _signal_callbacks(self) -> list[StopOnSignalCallback]:
        return [each for each in self.callback_handler.callbacks if isinstance(each, StopOnSignalCallback)]

    @property
    def exit_code(self) -> int:
        """What a script exits with after training: 0, 1 if the guard stopped it, or 143 after SIGTERM."""
        stopped_by_guard = self.guard is not None and self.guard.stopped_by is not None
        return max([int(stopped_by_guard), *(stop.exit_code for stop in self._signal_callbacks())])

    def _unused_arguments(self) -> tuple[str, ...]:
        """Return the arguments that `optimizers=`, or a `create_scheduler` that was overridden, replaces."""
        overridden = type(self).create_scheduler is not WarmupTrainerMixin.create_scheduler
        has_other_schedule = self._was_given[1] or (overridden and not self._built_scheduler)
        return (_OF_OPTIMIZER if self._was_given[0] else ()) + (_OF_SCHEDULER if has_other_schedule else ())

    def _run_folder(self) -> Path:
        """Return the folder of the run: that of the trial in a search. transformers has no public name for it."""
        return Path(self._get_output_dir(self._trial) if self.hp_search_backend else self.args.output_dir)

    def _honor_item_count(self) -> None:
        computes_own_loss = type(self).compute_loss is not Trainer.compute_loss
        if not computes_own_loss and getattr(self, "loss_is_scaled_for_ga", None) is None:
            honor_item_count(self.model, getattr(self, "_loss_shifts_labels", False))

    def get_optimizer_cls_and_kwargs(  # type: ignore[override]
        self, args: Any, model: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return the optimizer class and its keyword arguments for any name that `args.optim` accepts.

        Unlike in transformers this is an instance method, because some Trainers override it as one to add parameter
        groups. Their groups are kept.
        """
        host = super().get_optimizer_cls_and_kwargs
        if args.optimizer_is_ours:
            plain = copy.copy(args)
            plain.optim, plain.optim_args = "adamw_torch", None
            _, host_kwargs = host(plain, model)
            cls, kwargs = optimizer_cls_and_kwargs(args)
            kwargs |= {name: host_kwargs[name] for name in _OWN_GROUPS if name in host_kwargs}
        else:
            cls, kwargs = host(args, model)
        if args.learning_rates_differ and not kwargs.keys() & set(_OWN_GROUPS):
            kwargs["params"] = args.parameter_groups(model)
        elif args.layerwise_lr_decay is not None:
            raise ValueError(
                f"layerwise_lr_decay={args.layerwise_lr_decay} has no effect because {type(self).__name__} or `optim` "
                "builds its own parameter groups. Leave it out."
            )
        return cls, kwargs

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Create the schedule that the arguments describe: any warmup combined with any decay.

        Raises:
            `ValueError`: If the run resumes from a checkpoint of another kind of optimizer or schedule.
        """
        if self._resumed_from:
            keep_finished_warmup(self._resumed_from, self.args, num_training_steps)
        self.args.num_warmup_steps = self.args.get_warmup_steps(num_training_steps)  # among the settings of trackers
        if self.lr_scheduler is None:
            self.lr_scheduler = build_scheduler(self.args, optimizer or self.optimizer, num_training_steps)
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, WarmupUntilCallback):
                    self.lr_scheduler = callback.wrap_scheduler(self.lr_scheduler)
            self._created_lr_scheduler = self._built_scheduler = (
                True  # or a second `train()` would continue with the used one
            )
        if self.guard is not None:
            self.lr_scheduler = self.guard.wrap_scheduler(self.lr_scheduler)
        if self._resumed_from and not self.is_deepspeed_enabled:
            check_same_kind(self._resumed_from, optimizer or self.optimizer, self.lr_scheduler)
            if not (self._resumed_from / "scheduler.pt").is_file():
                logger.warning(
                    f"{self._resumed_from.name} was saved with save_only_model=True. The optimizer and the schedule "
                    "start from scratch: the next update has the learning rate of update 1."
                )
        return self.lr_scheduler

    @_as_in(Trainer.hyperparameter_search)
    def hyperparameter_search(self, hp_space: Callable[[Any], Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """Search as transformers does, over the arguments of hf_warmup too.

        Each trial has a run folder of its own, and begins with the arguments of the Trainer. A trial of arguments that
        exclude each other is pruned.
        """

        def space(trial: Any) -> Any:
            assert hp_space is not None
            params = hp_space(trial)
            if isinstance(params, dict) and self.hp_search_backend != "wandb":  # its space has other keys
                for name in params:  # transformers would log a warning, and train every trial alike
                    check_name("hp_space", name, vars(self.args))
            return self._take_own_arguments(params) if self.hp_search_backend == "optuna" else params

        self.args.output_dir = os.path.abspath(self.args.output_dir)  # trials of Ray have another working directory
        self._before_search = {each.name: getattr(self.args, each.name) for each in fields(WarmupArgumentsMixin)}
        self._worst_objective = -inf if "maximize" in (*args, *kwargs.values()) else inf
        return super().hyperparameter_search(hp_space and space, *args, **kwargs)

    def _take_own_arguments(self, params: Any) -> Any:
        """Set the arguments of hf_warmup that a trial chose; return the rest.

        transformers would convert them to the type of the former value, which truncates a share.
        """
        if not isinstance(params, dict):
            return params
        for name, value in self._before_search.items():
            setattr(self.args, name, params.get(name, value))
        return {name: value for name, value in params.items() if name not in self._before_search}

    def _hp_search_setup(self, trial: Any) -> None:
        """Set the arguments of a trial, those of hf_warmup too. transformers has no public method for it."""
        super()._hp_search_setup(self._take_own_arguments(trial))
        if trial is not None and self.hp_search_backend is not None:
            try:
                self.args.check_warmup_arguments()
            except ValueError as error:
                raise _TrialPruned(str(error)) from None

    def _return_pruned(self, reason: str) -> TrainOutput:
        if self.hp_search_backend == "optuna" and self.is_world_process_zero():
            import optuna

            raise optuna.TrialPruned(reason) from None
        logger.warning(f"The trial is pruned: {reason}")  # Ray Tune and Weights & Biases have no error that prunes
        self.objective = self._worst_objective
        return TrainOutput(0, 0.0, {})

    def get_train_dataloader(self) -> Any:
        """Return the loader of the Trainer, made to draw the same random batches in a resumed run."""
        loader = super().get_train_dataloader()
        index, load_checkpoint = self.args.process_index, super()._load_rng_state
        self._batch_states = BatchRandomStates(loader, index, self._resumed_from, load_checkpoint)
        return loader

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Load the random states of a checkpoint unless the batches after it have been drawn with them."""
        if self._batch_states is None or not self._batch_states.has_resumed:
            super()._load_rng_state(checkpoint)

    @_as_in(Trainer.training_step)
    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Run a training step and measure the gradient, complete and not yet clipped."""
        # The first forward pass shows whether the head uses the count; a compiled one would not.
        undecided = getattr(self.model, "_ignores_item_count", None) is None and self.args.torch_compile
        eager = torch.compiler.set_stance("force_eager") if undecided else nullcontext()
        step = self.state.global_step + 1
        with eager, record_gradient_norms(self.gradient_norm_recorder, self.accelerator, self.model, step):
            loss = super().training_step(model, *args, **kwargs)
        if self.guard is not None:
            self.guard.count_loss(loss)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip with the norms that have just been recorded. transformers 4.57 has no such method and clips inline."""
        total = self._clip_recorded(model, self.args.max_grad_norm)
        return super()._clip_grad_norm(model) if total is None else total

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Any:
        """Return the total norm; transformers 5 measures it here, to log it, if nothing is clipped."""
        if grad_norm is None:
            grad_norm = self._clip_recorded(model, float("inf"))
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _clip_recorded(self, model: nn.Module, max_norm: float) -> Tensor | None:
        recorder = self.gradient_norm_recorder
        if type(self).training_step is not WarmupTrainerMixin.training_step:
            return None  # a subclass may change the gradients after they have been recorded
        return None if recorder is None else recorder.clip_recorded_(model.parameters(), max_norm, self.accelerator)

    @_as_in(Trainer.log)
    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log `logs`; a training loss is logged with the latest gradient norms and the effective learning rate."""
        if self.gradient_norm_recorder is not None:
            self.gradient_norm_recorder.flush()
        super().log({**logs, **self._own_logs()} if "loss" in logs else logs, *args, **kwargs)

    def _own_logs(self) -> dict[str, float]:
        logs: dict[str, float] = {}
        if (recorder := self.gradient_norm_recorder) is not None:
            latest = recorder.latest.items()
            logs = {key: value for key, value in latest if key.startswith(_LAYER_PREFIXES) and value is not None}
            if recorder.nonfinite_updates:
                logs[f"{LOG_PREFIX}_nonfinite_updates"] = recorder.nonfinite_updates
        if self.guard is not None and (count := self.guard.take_nonfinite_losses()):
            logs["nonfinite_losses"] = count
        if isinstance(self.lr_scheduler, PlateauWithWarmupLR):  # the Trainer reads that of the next update
            logs["learning_rate"] = float(self.lr_scheduler.used_lrs[0])
        groups = [] if self.optimizer is None else self.optimizer.param_groups  # None before training
        rate = next((group["scheduled_lr"] for group in groups if group["params"] and "scheduled_lr" in group), None)
        if rate is not None:
            logs |= {"effective_learning_rate": rate, "scheduled_lr": rate}  # the former name for one release
        return logs

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint as transformers does, and complete it before older ones are deleted.

        No public method lies between the end of the save and the deletion.
        """
        if self.gradient_norm_recorder is not None:
            self.gradient_norm_recorder.flush()

        def save(checkpoint: Path) -> None:
            super(WarmupTrainerMixin, self)._save_checkpoint(model, trial)
            if self.guard is not None:
                self.guard.save(checkpoint)
            if self._batch_states is not None and not self.args.save_only_model:
                self._batch_states.save(checkpoint)

        save_trainer_checkpoint(self, trial, save)

    def _write_end(self, reason: str, signal: str | None = None) -> None:
        """Write what the report needs: the recording, the state with its log, and how the run ended."""
        if self.gradient_norm_recorder is not None:
            self.gradient_norm_recorder.flush()
        if self.is_world_process_zero():
            folder = self._run_folder()
            self.state.save_to_json(str(folder / TRAINER_STATE_FILE))
            write_run_end(folder, self.state.global_step, reason, signal)

    def _describe_interrupt(self) -> str:
        """Return where training stopped, what can be relied on, and the line that continues."""
        latest, _ = latest_complete(self.args.output_dir)
        stopped = f"Training was interrupted at update {self.state.global_step} of {self.state.max_steps}."
        if latest is None:
            return f"{stopped} There is no checkpoint to continue from: set `save_steps` to have one next time."
        return f"{stopped} {latest.name} is complete: continue with `trainer.train('auto')`."

    def report(self) -> Report:
        """Return the report of this run as [`hf_warmup.show`] does: status, findings and a figure in a notebook."""
        return show(self)

    @_as_in(Trainer.create_model_card)
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the model card with the settings, the findings and a figure of the gradient norms."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            add_recording(self.args.output_dir, self.state)

    @_as_in(Trainer.train)
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from scratch or from a complete checkpoint.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint folder; `True` for the latest complete
                checkpoint of the output folder; `"auto"` for the same, or from scratch if there is none.
            *args, **kwargs: Passed to the Trainer.

        Raises:
            `ValueError`: If the checkpoint is incomplete or belongs to another run.
            `OSError`: If the disk is full, with the checkpoint to resume from.
        """
        recorder, output_dir = self.gradient_norm_recorder, self.args.output_dir
        searching = self.hp_search_backend is not None  # each trial checks its arguments and has a folder of its own
        check_same_arguments(self.args.to_dict())
        if not searching:
            self.args.check_warmup_arguments()
        if has_length(self.train_dataset) and not len(self.train_dataset):
            raise ValueError("`train_dataset` has no examples. Training needs at least one.")
        for callback in self.callback_handler.callbacks:
            _hide_layer_norms(callback)
        with nullcontext() if searching else lock_output_dir(output_dir), raise_on_full_disk(output_dir):
            self._resumed_from = None
            if resume_from_checkpoint or not searching:
                own = {type(self)._save, type(self)._load_from_checkpoint}
                as_transformers = own == {Trainer._save, Trainer._load_from_checkpoint}
                model = self.model if as_transformers else None  # else the names in the file may be others
                self._resumed_from = prepare_resume(resume_from_checkpoint, output_dir, model)
            resume = str(self._resumed_from) if self._resumed_from else None
            if self.guard is not None:
                self.guard.checkpoint = resume
            try:
                output = super().train(resume, *args, **kwargs)
            except NoUpdatesLeft as finished:
                output = self._return_finished(str(finished))
            except _TrialPruned as pruned:
                return self._return_pruned(str(pruned))
            except KeyboardInterrupt:
                self._write_end("interrupted")
                raise KeyboardInterrupt(self._describe_interrupt()) from None
            finally:
                if recorder is not None:
                    recorder.flush()
                for stop in self._signal_callbacks():
                    stop.__exit__()  # an error has skipped `on_train_end`
        return output

    def _return_finished(self, message: str) -> TrainOutput:
        logger.warning(message)
        former = Path(self.args.output_dir) / TRAINER_STATE_FILE
        if former.is_file():
            saved = TrainerState.load_from_json(str(former))
            if saved.global_step == self.state.global_step:  # with what was logged after the last checkpoint
                self.state.log_history = saved.log_history
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False
        logged: dict[str, float] = next((each for each in self.state.log_history[::-1] if "train_loss" in each), {})
        metrics = {name: value for name, value in logged.items() if name != "step"}
        return TrainOutput(self.state.global_step, metrics.get("train_loss", 0.0), metrics)


class WarmupTrainer(WarmupTrainerMixin, Trainer):
    """[`~transformers.Trainer`] with [`WarmupTrainerMixin`].

    Args:
        *args, **kwargs: Those of [`~transformers.Trainer`], with [`WarmupTrainingArguments`] as `args`.

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

    _default_args = WarmupTrainingArguments

    if not TYPE_CHECKING:  # a type checker sees the signature of the base class anyway

        @wraps(Trainer.__init__)  # its signature in `help()` and completions
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)


class WarmupSeq2SeqTrainer(WarmupTrainerMixin, Seq2SeqTrainer):
    """[`~transformers.Seq2SeqTrainer`] with [`WarmupTrainerMixin`].

    Args:
        *args, **kwargs: Those of [`~transformers.Seq2SeqTrainer`], with [`WarmupSeq2SeqTrainingArguments`] as `args`.
    """

    _default_args = WarmupSeq2SeqTrainingArguments

    if not TYPE_CHECKING:  # a type checker sees the signature of the base class anyway

        @wraps(Seq2SeqTrainer.__init__)  # its signature in `help()` and completions
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
