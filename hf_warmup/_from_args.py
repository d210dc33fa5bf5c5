"""From training arguments to an optimizer and a schedule; the Trainer and the Accelerate loop both come here."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import Trainer
from transformers.utils import logging

from .optim import OPTIMIZERS, AdamWarmup, optimizer_kwargs
from .schedules import NOAM_PEAK, TRANSFORMERS_SCHEDULES, get_scheduler, optimizer_warms_up, unwrap_optimizer
from .training_args import WarmupArgumentsMixin


logger = logging.get_logger(__name__)


def optimizer_cls_and_kwargs(args: WarmupArgumentsMixin) -> tuple[type[Optimizer], dict[str, Any]]:
    """The class behind one of our `args.optim` and its keyword arguments."""
    kwargs = optimizer_kwargs(
        args.optim.value,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        optim_args=args.optim_args,
    )
    return OPTIMIZERS[args.optim.value].cls, kwargs


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The Trainer's two parameter groups: weight decay for all but biases and normalisation layers.

    The names come from the Trainer's own method, which uses nothing of the instance.
    """
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]


def build_scheduler(args: WarmupArgumentsMixin, optimizer: Optimizer, num_training_steps: int) -> LRScheduler:
    """The schedule that `args` describe on `optimizer`, for a run of `num_training_steps` updates."""
    num_warmup_steps, name = args.get_warmup_steps(num_training_steps), args.lr_scheduler_type.value
    return scheduler_on(
        optimizer, name, num_warmup_steps, num_training_steps, args.lr_scheduler_kwargs, args.warmup_type
    )


def scheduler_on(
    optimizer: Optimizer,
    name: str,
    num_warmup_steps: int,
    num_training_steps: int,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
    warmup_type: str | None = None,
) -> LRScheduler:
    """`get_scheduler`, checked over the whole run before it starts.

    With [`AdamWarmup`] the number of warmup steps goes to the optimizer and the schedule does not warm up: there is
    only ever one warmup.
    """
    own = unwrap_optimizer(optimizer)
    if isinstance(own, AdamWarmup):
        _hand_warmup_over(own, num_warmup_steps, warmup_type)
        warmup_type = "none"
    elif num_warmup_steps and warmup_type is None and _has_no_warmup(name) and not optimizer_warms_up(own):
        logger.warning(
            f"lr_scheduler_type={name!r} has no warmup of its own: warmup_steps={num_warmup_steps} is not used. "
            "Add warmup_type='linear'."
        )
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps, num_training_steps, scheduler_specific_kwargs, warmup_type
    )
    if isinstance(scheduler, LambdaLR):
        peak = _check_curve(name, scheduler, num_warmup_steps, num_training_steps)
        if name == "noam":
            _report_noam_peak(own.defaults["lr"], peak)
    return scheduler


def _has_no_warmup(name: str) -> bool:
    return name in TRANSFORMERS_SCHEDULES and not TRANSFORMERS_SCHEDULES[name].has_warmup


def _hand_warmup_over(optimizer: AdamWarmup, num_warmup_steps: int, warmup_type: str | None) -> None:
    theirs = {group["warmup_steps"] for group in optimizer.param_groups} - {0, num_warmup_steps}
    if warmup_type not in (None, "none") or (theirs and num_warmup_steps):
        raise ValueError(
            f"warmup_type={warmup_type!r}, warmup_steps={num_warmup_steps} with an AdamWarmup"
            f"{f' of warmup_steps={min(theirs)}' if theirs else ''}: expected one warmup, leave one out."
        )
    if num_warmup_steps:
        # The default too: a checkpoint of torch's AdamW has no `warmup_steps` to load.
        for options in (optimizer.defaults, *optimizer.param_groups):
            options["warmup_steps"] = num_warmup_steps


def _check_curve(name: str, scheduler: LambdaLR, num_warmup_steps: int, num_training_steps: int) -> float:
    """Evaluate the corners now, so that nothing breaks at the run's last update; returns the peak learning rate."""
    corners = sorted({0, max(0, num_warmup_steps - 1), num_warmup_steps, num_training_steps})
    peak = 0.0
    for base_lr, schedule in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        for step in corners:
            try:
                lr = base_lr * schedule(step)
            except ArithmeticError:
                lr = math.nan
            if not math.isfinite(lr):
                raise ValueError(
                    f"lr_scheduler_type={name!r} has no finite learning rate at step {step} of {num_training_steps} "
                    f"with warmup_steps={num_warmup_steps}: expected a shorter warmup or other lr_scheduler_kwargs."
                )
            peak = max(peak, lr)
    return peak


def _report_noam_peak(learning_rate: float, peak: float) -> None:
    logger.info(f"Noam: learning_rate={learning_rate:g} peaks at {peak:.3g}.")
    low, high = NOAM_PEAK
    if not low <= peak <= high:
        warnings.warn(
            f"learning_rate={learning_rate:g} gives Noam a peak of {peak:.3g}, outside [{low:g}, {high:g}]: "
            "with d_model the learning rate is the paper's factor (1 or 2), without it the peak itself.",
            stacklevel=2,
        )


def ignores_num_items_in_batch(model: nn.Module) -> bool:
    """Whether the model averages its own loss over the batch although its `forward` takes `num_items_in_batch`.

    BERT-family heads do (transformers issue 47688): the Trainer then multiplies loss and gradient by accumulation steps
    times processes. They are the models whose `forward` names `CrossEntropyLoss` instead of calling `loss_function`.
    """
    code = inspect.unwrap(type(model).forward).__code__
    used = {"loss_function", "num_items_in_batch"} & {*code.co_names, *code.co_varnames}
    return "CrossEntropyLoss" in code.co_names and not used
