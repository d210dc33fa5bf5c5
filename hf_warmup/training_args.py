"""transformers' `TrainingArguments` with our names behind its own flags."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from transformers import SchedulerType, Seq2SeqTrainingArguments, TrainingArguments
from transformers.training_args import OptimizerNames

from ._validation import check_name, check_number, check_updates_or_share, short_repr, updates_of_share
from .guard.callback import ACTIONS
from .norms import GROUPINGS
from .optim import OPTIMIZERS, parse_optim_args
from .schedules import DECAYS, WARMUPS, check_schedule, schedule_names


class Name(str):
    """A name of ours where transformers keeps a member of an enum: a plain string with the `value` that it reads."""

    __slots__ = ()

    @property
    def value(self) -> str:
        return str(self)


# Names of transformers whose every option transformers parses itself; the others in both tables are the same torch
# classes, and ours refuse an unknown option.
_SHARED_WITH_HOST = {"sgd", "adagrad", "rmsprop"}


def _resolve_optim(name: Any) -> Any:
    value = name.value if isinstance(name, Enum) else name
    host = {member.value for member in OptimizerNames}
    check_name("optim", value, {*OPTIMIZERS, *host})
    return OptimizerNames(value) if value in host else Name(value)


def _resolve_scheduler(name: Any) -> Any:
    value = name.value if isinstance(name, Enum) else name
    check_name("lr_scheduler_type", value, schedule_names())
    return Name(value) if value in DECAYS else SchedulerType(value)


def _number_if_text(value: Any) -> Any:
    """`"1e-6"`, as JSON from a command line leaves it, is the number that it looks like."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def resolve_kwargs(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """`lr_scheduler_kwargs` as a dictionary with numbers, from one or from JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:  # ValueError: an integer of more than 4300 digits, too
            raise ValueError(
                f'lr_scheduler_kwargs={short_repr(value)}: expected a JSON object such as {{"d_model": 768}} ({error}).'
            ) from None
    if value is not None and not isinstance(value, dict):
        raise ValueError(f'lr_scheduler_kwargs={short_repr(value)}: expected a dictionary such as {{"d_model": 768}}.')
    return {key: _number_if_text(item) for key, item in (value or {}).items()}


@dataclass
class WarmupArgumentsMixin:
    """Our arguments, for `class MyArguments(WarmupArgumentsMixin, Seq2SeqTrainingArguments)`.

    Args:
        optim (`str`, defaults to transformers'): A name of ours (see `hf_warmup.OPTIMIZERS`) or any of transformers'.
        optim_args (`str`, *optional*): `key=value,key=value`; for our names nothing unknown is ignored.
        lr_scheduler_type (`str`, defaults to `"linear"`): `noam`, `exponential`, `power`, `sine`, `inverse_time` or any
            of transformers'.
        lr_scheduler_kwargs (`dict`, *optional*): Keywords of the decay and of the warmup.
        warmup_type (`str`, *optional*): `linear`, `constant`, `exponential`, `cosine`, `untuned_linear`,
            `untuned_exponential`, `radam` or `none`, in front of any `lr_scheduler_type`. By default a name of
            transformers keeps its own numbers and a name of ours is preceded by `linear`.
        warmup_steps (`float`, defaults to 0): Updates as an integer, or a ratio of the run in (0, 1).
        warmup_epochs (`float`, *optional*): The warmup's length in epochs, instead of `warmup_steps`.
        grad_norm_steps (`int`, defaults to 1): Record per-layer gradient norms at updates 1, 1 + n, 1 + 2 n, ...; 0 for
            never.
        grad_norm_group_by (`str`, defaults to `"layer"`): `"layer"`, `"module"` or `"parameter"`.
        guard (`str`, defaults to `"warn"`): What [`WarmupGuard`] does when the run goes wrong: `off`, `warn`, `stop` or
            `rewind`.
        guard_max_rewinds (`int`, defaults to 5): Rewinds after which `guard="rewind"` stops the run.

    Raises:
        `ValueError`: In one sentence, for the first value that cannot be meant.
    """

    optim: str = field(
        default=next(each.default for each in fields(TrainingArguments) if each.name == "optim"),
        metadata={"help": f"The optimizer to use: {', '.join(OPTIMIZERS)}, or a name of transformers' own."},
    )
    lr_scheduler_type: str = field(
        default="linear",
        metadata={"help": f"The learning rate scheduler: {', '.join(DECAYS)}, or a name of transformers' own."},
    )
    lr_scheduler_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Keywords of the decay and the warmup, such as '{\"d_model\": 768}'."}
    )
    warmup_type: str | None = field(
        default=None,
        metadata={"help": f"The warmup in front of the decay: {', '.join(WARMUPS)}. Default: the scheduler's own."},
    )
    warmup_steps: float = field(
        default=0, metadata={"help": "Updates of warmup: an integer, or a ratio of the run in (0, 1)."}
    )
    warmup_epochs: float | None = field(
        default=None, metadata={"help": "Epochs of warmup, instead of --warmup_steps; needs --num_train_epochs."}
    )
    grad_norm_steps: int = field(
        default=1, metadata={"help": "Record per-layer gradient norms every so many updates; 0 for never."}
    )
    grad_norm_group_by: str = field(
        default="layer", metadata={"help": f"What a recorded norm is of: {', '.join(GROUPINGS)}."}
    )

    guard: str = field(
        default="warn", metadata={"help": f"What to do when the run goes wrong: {', '.join(('off', *ACTIONS))}."}
    )
    guard_max_rewinds: int = field(default=5, metadata={"help": "Rewinds after which --guard rewind stops the run."})

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # Of an argument that is gone the dataclass would say nothing but that it is unexpected.
        if "warmup_ratio" in kwargs and not hasattr(cls, "warmup_ratio"):
            ratio = short_repr(kwargs["warmup_ratio"])
            raise ValueError(
                f"warmup_ratio={ratio} is no argument: use warmup_steps={ratio}, below 1 it is a share of the run."
            )
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        # Also when they are set later, as transformers' own users do: `args.optim = "radam"`.
        resolve = {"optim": _resolve_optim, "lr_scheduler_type": _resolve_scheduler}.get(name)
        super().__setattr__(name, value if resolve is None else resolve(value))

    def __post_init__(self) -> None:
        self._check_warmup_arguments()
        ours = self.optim, self.lr_scheduler_type, self.warmup_steps
        # The base class validates stand-ins of its own kinds (4.57 takes no ratio as `warmup_steps`), then ours return.
        self.optim = OptimizerNames.ADAMW_TORCH if isinstance(self.optim, Name) else self.optim
        if isinstance(self.lr_scheduler_type, Name):
            self.lr_scheduler_type = SchedulerType.LINEAR
        self.warmup_steps = 0
        super().__post_init__()
        # transformers 5.0 to 5.14 move a deprecated `warmup_ratio` into `warmup_steps`.
        self.optim, self.lr_scheduler_type, self.warmup_steps = *ours[:2], ours[2] or self.warmup_steps

    def _check_warmup_arguments(self) -> None:
        self._check_names_and_numbers()
        self._check_warmup_length()
        self._check_one_warmup()

    def _check_names_and_numbers(self) -> None:
        self.lr_scheduler_kwargs = resolve_kwargs(self.lr_scheduler_kwargs)
        for name in ("learning_rate", "weight_decay", "adam_epsilon"):
            check_number(name, getattr(self, name))
        for name in ("adam_beta1", "adam_beta2"):
            check_number(name, getattr(self, name), 0.0, 1.0, open_high=True)
        check_number("num_train_epochs", self.num_train_epochs)
        check_number("max_steps", self.max_steps, -1, integer=True)
        check_number("grad_norm_steps", self.grad_norm_steps, integer=True)
        check_name("grad_norm_group_by", self.grad_norm_group_by, GROUPINGS)
        check_name("guard", self.guard, ("off", *ACTIONS))
        check_number("guard_max_rewinds", self.guard_max_rewinds, integer=True)
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            check_number(name, getattr(self, name), 1, integer=True)
        for name in ("logging_steps", "eval_steps", "save_steps"):  # transformers makes integers of them
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), -math.inf)
        self.warmup_steps = check_updates_or_share("warmup_steps", self.warmup_steps)
        self.lr_scheduler_kwargs = check_schedule(
            self.lr_scheduler_type.value, self.warmup_type, self.lr_scheduler_kwargs
        )

    def _check_warmup_length(self) -> None:
        if self.warmup_epochs is not None:
            check_number("warmup_epochs", self.warmup_epochs)
            if self.warmup_steps:
                raise ValueError(
                    f"warmup_epochs={self.warmup_epochs} and warmup_steps={self.warmup_steps}: give one of them."
                )
            if self.max_steps > 0:
                raise ValueError(
                    f"warmup_epochs={self.warmup_epochs} needs num_train_epochs; the run's length is "
                    f"max_steps={self.max_steps}: use warmup_steps."
                )
            if self.warmup_epochs > self.num_train_epochs:
                raise ValueError(
                    f"warmup_epochs={self.warmup_epochs}: expected at most num_train_epochs={self.num_train_epochs}."
                )
        if 0 < self.max_steps < self.warmup_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps}: expected at most max_steps={self.max_steps}.")

    def _check_one_warmup(self) -> None:
        if isinstance(self.optim, Name) or self.optim.value in _SHARED_WITH_HOST:
            optim_args = parse_optim_args(self.optim.value, self.optim_args)
        else:
            optim_args = {}
        if self.optim == "adam_warmup":
            if self.warmup_type not in (None, "none"):
                raise ValueError(
                    f"warmup_type={self.warmup_type!r} with optim='adam_warmup': the optimizer warms up already; "
                    "leave it out or use optim='adamw'."
                )
            if optim_args.get("warmup_steps") and (self.warmup_steps or self.warmup_epochs):
                raise ValueError(
                    f"optim_args={self.optim_args!r} with warmup_steps={self.warmup_steps}: expected one of the two."
                )
        if self.optim == "radam" and self.warmup_type == "radam":
            raise ValueError("warmup_type='radam' with optim='radam': the optimizer rectifies already; leave it out.")

    @property
    def optimizer_is_ours(self) -> bool:
        """Whether `optim` is built from our table; the others are transformers' to build."""
        return self.optim.value in OPTIMIZERS

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """`W` in updates of a run of `num_training_steps`: from `warmup_steps`, a ratio, or `warmup_epochs`.

        Raises:
            `ValueError`: If it is longer than the run.
        """
        if self.warmup_epochs is not None:
            return updates_of_share(self.warmup_epochs, num_training_steps, whole=self.num_train_epochs)
        if 0 < self.warmup_steps < 1:
            return updates_of_share(self.warmup_steps, num_training_steps)
        warmup_steps = int(super().get_warmup_steps(num_training_steps))
        if warmup_steps > num_training_steps > 0:
            raise ValueError(
                f"warmup_steps={warmup_steps}: expected at most the {num_training_steps} updates of this run."
            )
        return warmup_steps

    def set_optimizer(self, name: Any = "adamw_torch", *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with our names."""
        name = _resolve_optim(name)
        super().set_optimizer("adamw_torch", *args, **kwargs)
        self.optim = name
        self._check_warmup_arguments()
        return self

    def set_lr_scheduler(self, name: Any = "linear", *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with our names."""
        name = _resolve_scheduler(name)
        super().set_lr_scheduler("linear", *args, **kwargs)
        self.lr_scheduler_type = name
        self._check_warmup_arguments()
        return self

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; our names are plain strings, as YAML and JSON need."""
        return {key: str(value) if isinstance(value, Name) else value for key, value in super().to_dict().items()}


@dataclass
class WarmupTrainingArguments(WarmupArgumentsMixin, TrainingArguments):
    """[`~transformers.TrainingArguments`] with the names and fields of [`WarmupArgumentsMixin`].

    Example:

    ```python
    >>> args = WarmupTrainingArguments("runs/a", optim="radam", lr_scheduler_type="noam", warmup_steps=0.06)
    >>> args.get_warmup_steps(1000)
    60

    ```
    """


@dataclass
class WarmupSeq2SeqTrainingArguments(WarmupArgumentsMixin, Seq2SeqTrainingArguments):
    """[`~transformers.Seq2SeqTrainingArguments`] with the names and fields of [`WarmupArgumentsMixin`]."""
