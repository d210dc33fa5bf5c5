"""Our optimizers, schedules, gradient norms and checkpoints for a hand-written Accelerate loop.

The number of updates is the only clock: the learning rate of update `n` is the same for 1, 2 or 8 processes, with any
accumulation, either `split_batches`, skipped fp16 updates, and whether or not the scheduler is prepared.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DistributedType
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerState

from ._deepspeed import check_deepspeed_config
from ._validation import check_number
from .checkpoints import (
    TRAINER_STATE_FILE,
    check_not_beyond,
    check_same_kind,
    checkpoints,
    raise_on_full_disk,
    resolve_checkpoint,
)
from .norms import record_gradient_norms
from .optim import get_optimizer_spec, optimizer_kwargs
from .optim.parameter_groups import parameter_groups
from .report.run import copy_run_settings
from .schedules import METRIC_SCHEDULERS, UpdateCounter, check_length, check_scheduler, get_scheduler


__all__ = [
    "PerUpdateLR",
    "create_optimizer",
    "create_scheduler",
    "load_checkpoint",
    "per_update",
    "record_gradient_norms",
    "save_checkpoint",
]


class PerUpdateLR(UpdateCounter, LRScheduler):
    """A scheduler whose `step()` does nothing unless the optimizer has made an update since; see [`per_update`]."""

    def __init__(self, lr_scheduler: LRScheduler):
        # LRScheduler.__init__ would take a first step of its own: the inner scheduler already has.
        self.lr_scheduler = lr_scheduler
        self.optimizer = lr_scheduler.optimizer
        self._step_count = 1  # Accelerate counts on it
        self._updates = self._stepped_at = self._metric_at = 0
        self._watch_optimizer()

    def _after_update(self) -> None:
        self._updates += 1

    def step(self, *metrics: Any) -> None:
        """To the next update's learning rate, once an update however often it is called; a metric counts once, too."""
        if metrics:
            if self._metric_at < self._updates:
                self._metric_at = self._updates
                self.lr_scheduler.step(*metrics)
        elif self._stepped_at < self._updates:
            self._stepped_at = self._updates
            self.lr_scheduler.step()

    @property
    def last_epoch(self) -> int:
        """Updates that the schedule has seen."""
        return self.lr_scheduler.last_epoch

    def get_last_lr(self) -> list[float]:
        """The learning rate of each parameter group."""
        return self.lr_scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """The inner scheduler's."""
        return self.lr_scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.lr_scheduler.load_state_dict(state_dict)


def per_update(lr_scheduler: LRScheduler) -> PerUpdateLR:
    """Make any scheduler count updates, and nothing else: prepare it with Accelerate or do not, the curve is the same.

    A scheduler that Accelerate prepares is stepped once a process, so that four processes finish a warmup of 8 updates
    in 2 (accelerate issue 1382). This one's `step()` does nothing until the optimizer has really made another update:
    no matter how many processes, micro-batches or skipped fp16 updates there are.

    Args:
        lr_scheduler (`LRScheduler`): A new scheduler, on the optimizer before `accelerator.prepare`, for a run counted
            in updates.

    Raises:
        `ValueError`: For something else than a scheduler.

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
    """An optimizer of [`OPTIMIZERS`] with the Trainer's groups: no weight decay for biases and normalisation layers.

    Args:
        model (`nn.Module`): Its parameters that require a gradient are trained.
        name (`str`): A name of [`OPTIMIZERS`], such as `"radam"`, or the import path of a class, `"my_optim:MyAdam"`.
        learning_rate (`float`): At least 0.
        weight_decay (`float`, defaults to 0.0): At least 0.
        betas, eps: For the Adam family.
        optim_args (`str`, *optional*): `"key=value,key=value"`, as in [`WarmupTrainingArguments`].
        learning_rate_mapping, layerwise_lr_decay (*optional*): Learning rates by parameter name and by depth, as in
            [`WarmupTrainingArguments`].

    Raises:
        `ValueError`: For a name or an argument that there is not, or a value out of range.

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
    """[`get_scheduler`] in updates, whatever the number of processes: see [`per_update`].

    Args and errors as in [`get_scheduler`]; names that follow a metric are refused, and a warmup longer than the run is
    for every name. With [`AdamWarmup`] the optimizer gets the warmup, the schedule has none.

    Example:

    ```py
    optimizer = create_optimizer(model, "radam", learning_rate=1e-3)
    scheduler = create_scheduler(optimizer, "cosine", 100, max_train_steps, warmup_type="exponential")
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    ```
    """
    if name in METRIC_SCHEDULERS:
        raise ValueError(
            f"lr_scheduler_type={name!r} follows a metric, and this schedule counts updates: use WarmupTrainer, or "
            f"get_scheduler({name!r}, ...) and step it with the metric after each evaluation."
        )
    num_warmup_steps = check_number("num_warmup_steps", num_warmup_steps, integer=True)
    num_training_steps = check_number("num_training_steps", num_training_steps, integer=True)
    check_length(num_warmup_steps, num_training_steps)
    return per_update(
        get_scheduler(name, optimizer, num_warmup_steps, num_training_steps, scheduler_specific_kwargs, warmup_type)
    )


def check_accelerator(accelerator: Accelerator, optim: str) -> None:
    """Refuse what would silently not be done: DeepSpeed's own CPU Adam instead of `optim`, fp16 without a GPU."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        check_deepspeed_config(plugin.deepspeed_config, optimizer=f"optim={optim!r}", scheduler="the schedule")
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "fp16":
        raise ValueError("mixed_precision='fp16' needs a GPU: expected 'no' or 'bf16' on the CPU.")


def save_checkpoint(
    accelerator: Accelerator, output_dir: str | Path, state: TrainerState, total_limit: int | None = None
) -> Path:
    """Save what was prepared to `output_dir/checkpoint-N`, N being `state.global_step`; all or nothing.

    The folder gets its name when everything is in it, so a run that is killed while it saves leaves no half checkpoint.

    Args:
        accelerator (`Accelerator`): All of its processes call this.
        output_dir (`str` or `Path`): On a disk that all machines share.
        state (`TrainerState`): Saved as `trainer_state.json`: reports read a loop's runs as they do a Trainer's.
        total_limit (`int`, *optional*): Older checkpoints beyond so many are deleted.

    Raises:
        `OSError`: If the disk is full, with the last whole checkpoint.
    """
    folder = Path(output_dir) / f"checkpoint-{state.global_step}"
    unfinished = folder.with_suffix(".unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    with raise_on_full_disk(output_dir):
        try:
            accelerator.save_state(str(unfinished))
            if accelerator.is_main_process:
                copy_run_settings(output_dir, unfinished)
                state.save_to_json(str(unfinished / TRAINER_STATE_FILE))
        except Exception:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that went on from an earlier one
        unfinished.rename(folder)
        # By age: the folder may hold checkpoints of an earlier run that went further.
        by_age = sorted(checkpoints(output_dir), key=lambda path: path.stat().st_mtime_ns)
        for old in by_age[: -total_limit if total_limit else 0]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return folder


def load_checkpoint(
    accelerator: Accelerator,
    resume_from_checkpoint: str | bool,
    output_dir: str | Path,
    model: nn.Module,
    max_steps: int = 0,
) -> TrainerState:
    """Load what was prepared from a checkpoint that is whole.

    Args:
        accelerator (`Accelerator`): All of its processes call this.
        resume_from_checkpoint (`str` or `bool`): A folder; `True` or `"true"` for the last whole one of `output_dir`;
            `"auto"` for the same if there is one.
        output_dir (`str` or `Path`): Where the run saves.
        model (`nn.Module`): Weights of another model are refused.
        max_steps (`int`, *optional*): Updates of the run; a checkpoint that has made more is refused.

    Returns:
        `TrainerState`: Its `global_step` is the number of updates made; 0 if `"auto"` found none.

    Raises:
        `ValueError`: If the checkpoint is damaged, with the file's name and the last whole one; or if it is of another
            kind of optimizer or schedule.
    """
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    own = None if sharded else accelerator.unwrap_model(model)
    folder = resolve_checkpoint(resume_from_checkpoint, output_dir, own, accelerator.num_processes)
    if folder is None:
        return TrainerState()
    check_not_beyond(folder, max_steps)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        for optimizer, scheduler in zip(accelerator._optimizers[:1], accelerator._schedulers[:1], strict=False):
            check_same_kind(folder, optimizer, scheduler)
    if accelerator.is_main_process:
        copy_run_settings(folder, output_dir)
    accelerator.load_state(str(folder))
    return TrainerState.load_from_json(str(folder / TRAINER_STATE_FILE))
