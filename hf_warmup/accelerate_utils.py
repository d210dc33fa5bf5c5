"""Optimizers, schedules, gradient norms and checkpoints of hf_warmup for a hand-written Accelerate loop.

The number of updates is the only clock: the learning rate of update `n` does not depend on the number of processes,
gradient accumulation, `split_batches`, skipped fp16 updates, or whether the scheduler is prepared.
"""

from __future__ import annotations

import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import is_initialized
from accelerate.utils import load
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerState

from ._deepspeed import check_deepspeed_config
from ._validation import check_number
from .checkpoints import (
    complete_with_manifest,
    copy_run_files,
    delete_checkpoint,
    delete_old_checkpoints,
    lock_output_dir,
    raise_on_full_disk,
)
from .cli import warn_of_process_count
from .norms import record_gradient_norms
from .optim import get_optimizer_spec, optimizer_kwargs
from .optim.parameter_groups import parameter_groups
from .report.run import TRAINER_STATE_FILE
from .resuming import NoUpdatesLeft, check_same_kind, check_updates_left, prepare_resume
from .schedules import METRIC_SCHEDULERS, UpdateCounter, check_length, check_scheduler, get_scheduler


__all__ = [
    "PerUpdateLR",
    "create_optimizer",
    "create_scheduler",
    "load_checkpoint",
    "lock_output_dir",
    "per_update",
    "record_gradient_norms",
    "save_checkpoint",
]


class PerUpdateLR(UpdateCounter, LRScheduler):
    """A scheduler whose `step()` does nothing until the optimizer has made another update; see [`per_update`]."""

    def __init__(self, lr_scheduler: LRScheduler):
        # LRScheduler.__init__ would step the schedule, which the wrapped scheduler has done.
        self.lr_scheduler = lr_scheduler
        self.optimizer = lr_scheduler.optimizer
        self._step_count = 1  # Accelerate counts on it
        self._updates = self._stepped_at = self._metric_at = 0
        self._watch_optimizer()

    def _after_update(self) -> None:
        self._updates += 1

    def step(self, *metrics: Any) -> None:
        """Set the learning rate of the next update, once per update; hand on a metric once per update."""
        if metrics:
            if self._metric_at < self._updates:
                self._metric_at = self._updates
                self.lr_scheduler.step(*metrics)
        elif self._stepped_at < self._updates:
            self._stepped_at = self._updates
            self.lr_scheduler.step()

    @property
    def last_epoch(self) -> int:  # type: ignore[override]
        """Return the number of updates that the schedule has seen."""
        return self.lr_scheduler.last_epoch

    def get_last_lr(self) -> list[Any]:
        """Return the learning rate of each parameter group."""
        return self.lr_scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the wrapped scheduler."""
        return self.lr_scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the wrapped scheduler."""
        self.lr_scheduler.load_state_dict(state_dict)


def per_update(lr_scheduler: LRScheduler) -> PerUpdateLR:
    """Make any scheduler count optimizer updates, whether or not Accelerate prepares it.

    Accelerate steps a prepared scheduler once per process, so that four processes finish a warmup of 8 updates in 2
    (accelerate issue 1382). The scheduler that is returned steps once per update, whatever the number of processes,
    micro-batches and skipped fp16 updates.

    Args:
        lr_scheduler (`LRScheduler`): A new scheduler whose unit is one update, on the optimizer before
            `accelerator.prepare`.

    Raises:
        `ValueError`: If `lr_scheduler` is no scheduler.

    Returns:
        `LRScheduler`: Step it as often as you like after `optimizer.step()`.

    Example:

    ```python
    >>> import torch
    >>> from hf_warmup import get_scheduler
    >>> p = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = torch.optim.SGD([p], lr=1.0)
    >>> scheduler = per_update(get_scheduler("constant", optimizer, 4, warmup_type="linear"))
    >>> for update in range(3):
    ...     optimizer.step()
    ...     for process in range(2):
    ...         scheduler.step()
    ...     print(scheduler.get_last_lr()[0], end=" ")
    0.5 0.75 1.0

    ```
    """
    check_scheduler(lr_scheduler)
    return PerUpdateLR(lr_scheduler)


def create_optimizer(
    model: nn.Module,
    name: str,
    learning_rate: float,
    weight_decay: float = 0.0,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    optim_args: str | None = None,
    learning_rate_mapping: dict[str, float] | None = None,
    layerwise_lr_decay: float | None = None,
) -> Optimizer:
    """Create an optimizer of [`OPTIMIZERS`] with the parameter groups of the Trainer.

    Biases and normalization layers have no weight decay.

    Args:
        model (`nn.Module`): The model. Parameters that require a gradient are trained.
        name (`str`): A name of [`OPTIMIZERS`], such as `"radam"`, or the import path of a class, `"my_optim:MyAdam"`.
        learning_rate (`float`): At least 0.
        weight_decay (`float`, defaults to 0.0): At least 0.
        betas (`tuple[float, float]`, defaults to `(0.9, 0.999)`): Each in [0, 1); for the Adam family.
        eps (`float`, defaults to 1e-8): Above 0; for the Adam family.
        optim_args (`str`, *optional*): `"key=value,key=value"`, as in [`WarmupTrainingArguments`].
        learning_rate_mapping, layerwise_lr_decay (*optional*): Learning rates by parameter name and by depth, as in
            [`WarmupTrainingArguments`].

    Raises:
        `ValueError`: If a name is unknown or a value is out of range.

    Example:

    ```python
    >>> import torch
    >>> optimizer = create_optimizer(torch.nn.Linear(2, 1), "radam", 1e-3, weight_decay=0.01)
    >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    [(1, 0.01), (1, 0.0)]

    ```
    """
    kwargs = optimizer_kwargs(name, lr=learning_rate, betas=betas, eps=eps, optim_args=optim_args)
    groups = parameter_groups(model, weight_decay, learning_rate, learning_rate_mapping, layerwise_lr_decay)
    return get_optimizer_spec(name).cls(groups, **kwargs)


def create_scheduler(
    optimizer: Optimizer,
    name: str,
    num_warmup_steps: int,
    num_training_steps: int,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
    warmup_type: str | None = None,
) -> PerUpdateLR:
    """Create a scheduler that counts updates, whatever the number of processes: `per_update(get_scheduler(...))`.

    Args and errors as in [`get_scheduler`]; names that follow a metric are not supported. [`AdamWarmup`] takes over the
    warmup of the schedule. A warning is logged if the launcher was asked for more processes than there are.

    Example:

    ```py
    optimizer = create_optimizer(model, "radam", learning_rate=1e-3)
    scheduler = create_scheduler(optimizer, "cosine", 100, max_train_steps, warmup_type="exponential")
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    ```
    """
    if is_initialized():  # by `Accelerator()`
        warn_of_process_count(PartialState().num_processes)
    if name in METRIC_SCHEDULERS:
        raise ValueError(
            f"lr_scheduler_type={name!r} follows a metric, but this schedule counts updates. Use WarmupTrainer, or "
            f"step get_scheduler({name!r}, ...) with the metric after each evaluation."
        )
    num_warmup_steps = check_number("num_warmup_steps", num_warmup_steps, integer=True)
    num_training_steps = check_number("num_training_steps", num_training_steps, integer=True)
    check_length(num_warmup_steps, num_training_steps)
    return per_update(
        get_scheduler(name, optimizer, num_warmup_steps, num_training_steps, scheduler_specific_kwargs, warmup_type)
    )


def check_accelerator(accelerator: Accelerator, optim: str) -> None:
    """Check for what would silently be replaced: `optim` by DeepSpeed's own CPU Adam, fp16 by fp32 on a CPU.

    Raises:
        `ValueError`: With the setting that prevents it.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        check_deepspeed_config(plugin.deepspeed_config, optimizer=f"optim={optim!r}", scheduler="the schedule")
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "fp16":
        raise ValueError("mixed_precision='fp16' needs a GPU: expected 'no' or 'bf16' on the CPU.")


def save_checkpoint(
    accelerator: Accelerator, output_dir: str | Path, state: TrainerState, total_limit: int | None = None
) -> Path:
    """Save what was prepared to `output_dir/checkpoint-N`, where N is `state.global_step`.

    The folder gets its name when it is complete. A run that is killed while it saves leaves no incomplete checkpoint.

    Args:
        accelerator (`Accelerator`): All of its processes call this function.
        output_dir (`str` or `Path`): A folder that all machines share.
        state (`TrainerState`): Saved as `trainer_state.json`, which the report reads as it reads a Trainer's.
        total_limit (`int`, *optional*): The number of checkpoints to keep, at least 1. Older ones are deleted.

    Raises:
        `OSError`: If the disk is full, with the latest complete checkpoint.
    """
    folder = Path(output_dir) / f"checkpoint-{state.global_step}"
    unfinished = folder.with_name(f".saving-{folder.name}")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    with raise_on_full_disk(output_dir):
        try:
            with complete_with_manifest(unfinished, state.global_step, accelerator.is_main_process):
                accelerator.save_state(str(unfinished))
                if accelerator.is_main_process:
                    copy_run_files(output_dir, unfinished)
                    state.save_to_json(str(unfinished / TRAINER_STATE_FILE))
        except Exception:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    if accelerator.is_main_process:
        delete_checkpoint(folder)  # of an earlier attempt
        unfinished.rename(folder)
        delete_old_checkpoints(folder, total_limit)
    accelerator.wait_for_everyone()
    return folder


def load_checkpoint(
    accelerator: Accelerator,
    resume_from_checkpoint: str | bool | None,
    output_dir: str | Path,
    model: nn.Module,
    max_steps: int = 0,
) -> TrainerState:
    """Load what was prepared from a complete checkpoint.

    Args:
        accelerator (`Accelerator`): All of its processes call this function.
        resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint; `True` or `"true"` for the latest complete
            one of `output_dir`; `"auto"` for the same, or for none if no save has finished yet; `None` for none.
        output_dir (`str` or `Path`): The folder that the run saves to. Without a checkpoint the files of an earlier run
            in it are moved into a sub-folder.
        model (`nn.Module`): The model, prepared or not. The weights have to fit it.
        max_steps (`int`, *optional*): Updates of the run. The checkpoint may not have made more.

    Returns:
        `TrainerState`: Its `global_step` is the number of updates made, 0 without a checkpoint.

    Raises:
        `ValueError`: If the checkpoint is damaged, with the file's name and the latest complete checkpoint; or if it is
            of another kind of optimizer or schedule.
    """
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    own = None if sharded else accelerator.unwrap_model(model)
    folder = prepare_resume(resume_from_checkpoint, output_dir, own)
    if folder is None:
        return TrainerState()
    state = TrainerState.load_from_json(str(folder / TRAINER_STATE_FILE))
    with suppress(NoUpdatesLeft):
        check_updates_left(state.global_step, max_steps)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        # Accelerate has no public list of what was prepared.
        for optimizer, scheduler in zip(accelerator._optimizers[:1], accelerator._schedulers[:1], strict=False):
            check_same_kind(folder, optimizer, scheduler)
    for path in folder.glob("custom_checkpoint_*.pkl"):
        _check_loads_safely(path)
    accelerator.load_state(str(folder))
    return state


def _check_loads_safely(path: Path) -> None:
    """Check that a file holds plain values only. Accelerate would execute whatever else it holds."""
    try:
        load(path, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is not loaded, because it holds more than plain values ({str(error).splitlines()[0]}). If you "
            "trust it, allow its classes with torch.serialization.add_safe_globals([...]) before."
        ) from None
