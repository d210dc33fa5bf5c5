"""`TrainingArguments` of transformers with the optimizers, warmups and schedules of hf_warmup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import nn
from torch.optim import Optimizer
from transformers import SchedulerType, Seq2SeqTrainingArguments, TrainingArguments
from transformers.training_args import OptimizerNames

from ._validation import (
    check_name,
    check_number,
    check_updates_or_share,
    is_import_path,
    short_repr,
    updates_of_share,
)
from .cli import WARMUP_FLAGS, default_of, read_mapping
from .guard.callback import ACTIONS
from .norms import GROUPINGS
from .optim import OPTIMIZERS, get_optimizer_spec, optimizer_kwargs, parse_optim_args
from .optim.parameter_groups import check_learning_rates, parameter_groups
from .schedules import DECAYS, METRIC_SCHEDULERS, check_schedule, find_schedule, plain_name
from .schedules.curve import COUNT, Choice, Flag, Number, Range


if TYPE_CHECKING:
    # What users may give differs from what `__post_init__` makes of it.
    _Base = TrainingArguments
    _Text: TypeAlias = Any
    _Number: TypeAlias = Any
    _Json: TypeAlias = Any
else:
    _Base = object
    _Text, _Number, _Json = str | None, float | None, dict | str | None


class _Name(str, Enum):  # noqa: UP042  (transformers prints the class of a name that it refuses)
    """A name that transformers does not know, with the `value` that it reads from members of its own enums."""

    @classmethod
    def _missing_(cls, value: object) -> _Name:
        """Return a new member for an import path, which no enum can list."""
        member = str.__new__(cls, value)
        member._name_ = member._value_ = str(value)
        return member


class _ScheduleName(_Name):
    """A name for `lr_scheduler_type` that only hf_warmup can use: its own, or one of transformers with a `warmup_type`.

    A plain Trainer would ignore the warmup. It raises instead, because `SchedulerType` looks names up by their hash.
    """

    def __hash__(self) -> int:
        return hash((type(self), self.value))


def _names(base: type[_Name], class_name: str, names: Iterable[str]) -> Any:
    return base(class_name, {name: name for name in names}, module=__name__)  # type: ignore[call-overload]


_TRANSFORMERS_OPTIMIZERS = {member.value for member in OptimizerNames}
_TRANSFORMERS_SCHEDULERS = {member.value for member in SchedulerType}
WarmupTrainerOptimizer = _names(_Name, "WarmupTrainerOptimizer", OPTIMIZERS)
WarmupTrainerSchedule = _names(_ScheduleName, "WarmupTrainerSchedule", [*DECAYS, *_TRANSFORMERS_SCHEDULERS])


def _optimizer_name(value: Any) -> OptimizerNames | _Name:
    name = plain_name(value)
    if is_import_path(name):
        get_optimizer_spec(name)
        return WarmupTrainerOptimizer(name)
    check_name("optim", name, {*OPTIMIZERS, *_TRANSFORMERS_OPTIMIZERS})
    return OptimizerNames(name) if name in _TRANSFORMERS_OPTIMIZERS else WarmupTrainerOptimizer(name)


def _scheduler_name(value: Any, warmup_type: str | None) -> SchedulerType | _Name:
    name = plain_name(value)
    find_schedule(name)
    return (
        SchedulerType(name) if warmup_type is None and name in _TRANSFORMERS_SCHEDULERS else WarmupTrainerSchedule(name)
    )


def _as_options(value: Any) -> str | None:
    """Return `optim_args` as the text that transformers reads: `key=value,key=value`."""
    if isinstance(value, str) and value.startswith("{"):  # from an arguments file
        value = json.loads(value)
    if isinstance(value, dict):
        return ",".join(f"{key}={each}" for key, each in value.items())
    if not isinstance(value, (str, type(None))):
        raise ValueError(f"optim_args={short_repr(value)}: expected key=value,key=value, or a dictionary.")
    return value


AUTO = "auto"  # a warmup whose length the guard finds
_COEFFICIENT, _AT_LEAST_ONE = Number(high=1.0, open_high=True), Number(low=1, integer=True)
# transformers accepts any value here. Values outside these ranges fail late, or train nothing.
_RANGES: dict[str, Range] = {
    "learning_rate": Number(),
    "weight_decay": Number(),
    "adam_epsilon": Number(),
    "adam_beta1": _COEFFICIENT,
    "adam_beta2": _COEFFICIENT,
    "max_grad_norm": Number(low=-inf, optional=True),
    "num_train_epochs": Number(),
    "max_steps": Number(low=-1, integer=True),
    "per_device_train_batch_size": _AT_LEAST_ONE,
    "per_device_eval_batch_size": _AT_LEAST_ONE,
    "gradient_accumulation_steps": _AT_LEAST_ONE,
    "grad_norm_steps": COUNT,
    "grad_norm_group_by": Choice(GROUPINGS),
    "stop_on_signal": Flag(),
    "guard": Choice(("off", *ACTIONS)),
    "guard_max_rewinds": COUNT,
}


def _help(name: str) -> dict[str, str]:
    return {"help": WARMUP_FLAGS[name]}


@dataclass
class WarmupArgumentsMixin(_Base):
    """Arguments of hf_warmup.

    Mix the class into any arguments of transformers: `class MyArguments(WarmupArgumentsMixin, DPOConfig)`. An argument
    that the other class has as well keeps the default of that class.

    Args:
        optim (`str`, *optional*): A name of `hf_warmup.OPTIMIZERS`, a name of transformers, or the import
            path of an optimizer class, such as `my_optim:MyAdam`.
        optim_args (`str` or `dict`, *optional*): Options of the optimizer, `key=value,key=value`. An option that the
            optimizer does not have is an error.
        lr_scheduler_type (`str`, *optional*): `noam`, `exponential`, `power`, `sine`, `inverse_time`, a name of
            transformers, or the import path of a function, such as `my_curves:cooldown`.
        lr_scheduler_kwargs (`dict` or `str`, *optional*): Keywords of the decay and of the warmup, or JSON of them.
        warmup_type (`str`, *optional*): `linear`, `constant`, `exponential`, `cosine`, `untuned_linear`,
            `untuned_exponential`, `radam`, `none`, or an import path; before any `lr_scheduler_type`. By default a name
            of transformers keeps its own warmup, and any other decay follows a `linear` one. `auto` begins with
            `warmup_steps`, by default without a warmup, and lets [`WarmupGuard`] rewind the run to a longer one.
        warmup_steps (`float`, *optional*): Length of the warmup in updates, or a share of the run in (0, 1).
        warmup_ratio (`float`, *optional*): Only where the other class has it. Otherwise use `warmup_steps`.
        warmup_epochs (`float`, *optional*): Length of the warmup in epochs, instead of `warmup_steps`.
        learning_rate_mapping (`dict` or `str`, *optional*): Learning rates of the parameters whose names contain a
            regular expression, `{"expression": learning_rate}`. The last match counts. Every group has the schedule.
        layerwise_lr_decay (`float`, *optional*): Factor in (0, 1] by which the learning rate falls from each block to
            the one below it; the head has the full learning rate and the embeddings the lowest.
        grad_norm_steps (`int`, defaults to 1): Record gradient norms at updates 1, 1 + n, 1 + 2 n, ...; 0 for never.
        grad_norm_group_by (`str`, defaults to `"layer"`): `"layer"`, `"module"`, `"parameter"`, `"attention"` or
            `"mlp"`.
        record (`Sequence[str]`, defaults to `("gradients",)`): With `"updates"` as well, the norm of each layer's
            update and its ratio to the norm of the weights are recorded alongside the gradient norms. Needs an
            optimizer that [`update_norms`][hf_warmup.optim.update_norms] knows.
        stop_on_signal (`bool`, defaults to `False`): Save a complete checkpoint and stop on SIGTERM or SIGUSR1, as
            [`StopOnSignalCallback`] does.
        guard (`str`, defaults to `"warn"`): What [`WarmupGuard`] does if the run goes wrong: `off`, `warn`, `stop` or
            `rewind`.
        guard_max_rewinds (`int`, defaults to 5): Rewinds after which `guard="rewind"` stops the run.

    Raises:
        `ValueError`: If an argument is invalid, when the arguments are created and again when training begins.
    """

    optim: _Text = field(default=None, metadata=_help("optim"))
    optim_args: _Json = field(default=None, metadata=_help("optim_args"))
    lr_scheduler_type: _Text = field(default=None, metadata=_help("lr_scheduler_type"))
    lr_scheduler_kwargs: _Json = field(default=None, metadata=_help("lr_scheduler_kwargs"))
    warmup_type: str | None = field(default=None, metadata=_help("warmup_type"))
    warmup_steps: _Number = field(default=None, metadata=_help("warmup_steps"))
    warmup_ratio: float | None = field(default=None, metadata={"help": "Use --warmup_steps with a value below 1."})
    warmup_epochs: float | None = field(default=None, metadata=_help("warmup_epochs"))
    learning_rate_mapping: _Json = field(default=None, metadata=_help("learning_rate_mapping"))
    layerwise_lr_decay: float | None = field(default=None, metadata=_help("layerwise_lr_decay"))
    grad_norm_steps: int = field(default=1, metadata=_help("grad_norm_steps"))
    grad_norm_group_by: str = field(default="layer", metadata=_help("grad_norm_group_by"))
    record: list[str] = field(default_factory=lambda: ["gradients"], metadata=_help("record"))
    stop_on_signal: bool = field(default=False, metadata=_help("stop_on_signal"))
    guard: str = field(default="warn", metadata=_help("guard"))
    guard_max_rewinds: int = field(default=5, metadata=_help("guard_max_rewinds"))

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, np.generic):  # 0.07 in 32 bits is 0.07, not 0.07000000029802322
            value = float(str(value)) if isinstance(value, np.floating) else value.item()
        if name == "record":
            value = re.split(r"[\s,]+", value) if isinstance(value, str) else list(value)
        if name == "optim" and value is not None:
            value = _optimizer_name(value)
        super().__setattr__(name, value)
        if name in ("lr_scheduler_type", "warmup_type") and self.lr_scheduler_type is not None:
            super().__setattr__("lr_scheduler_type", _scheduler_name(self.lr_scheduler_type, self.warmup_type))

    def __post_init__(self) -> None:
        inherited = {each.name: each for each in fields(super(WarmupArgumentsMixin, type(self)))}  # type: ignore[arg-type]
        for name in inherited.keys() & {each.name for each in fields(WarmupArgumentsMixin)}:
            if getattr(self, name) is None:
                setattr(self, name, default_of(inherited[name]))
        if self.warmup_ratio is not None and "warmup_ratio" not in inherited:
            raise ValueError(
                f"warmup_ratio={self.warmup_ratio} is not an argument of transformers any more. Use warmup_steps="
                f"{self.warmup_ratio}: a value below 1 is a share of the run."
            )
        self.check_warmup_arguments()
        own = {name: getattr(self, name) for name in ("optim", "lr_scheduler_type", "warmup_steps")}
        # transformers checks these three by itself: it accepts only its own names, and before 5.0 no share of the run.
        accepted = {
            "optim": self.optim if isinstance(self.optim, OptimizerNames) else OptimizerNames.ADAMW_TORCH,
            "lr_scheduler_type": SchedulerType(self.lr_scheduler_type.value)
            if self.lr_scheduler_type.value in _TRANSFORMERS_SCHEDULERS
            else SchedulerType.LINEAR,
            "warmup_steps": 0,
        }
        for name, value in accepted.items():
            super().__setattr__(name, value)
        super().__post_init__()
        own["warmup_steps"] = own["warmup_steps"] or self.warmup_steps  # the other class may put its warmup_ratio there
        for name, value in own.items():
            setattr(self, name, value)

    def check_warmup_arguments(self) -> None:
        """Check the arguments of hf_warmup, and those that transformers accepts although they break training.

        Raises:
            `ValueError`: If an argument is invalid.
        """
        for name, allowed in _RANGES.items():
            setattr(self, name, allowed.check(name, getattr(self, name)))
        self.optim = _optimizer_name(self.optim)  # an error for `None` too
        for each in self.record:
            check_name("record", each, ("gradients", "updates"))
        if "gradients" not in self.record:
            raise ValueError(f"record={self.record!r}: expected gradients too. grad_norm_steps=0 records nothing.")
        if self.warmup_type == AUTO:
            self._check_auto()
        self.optim_args = _as_options(self.optim_args)
        if self.optimizer_is_ours:
            parse_optim_args(self.optim.value, self.optim_args)
        kwargs = read_mapping("lr_scheduler_kwargs", self.lr_scheduler_kwargs, '{"d_model": 768}')
        self.lr_scheduler_kwargs = check_schedule(self.lr_scheduler_type, self.schedule_warmup_type, kwargs)
        self.learning_rate_mapping = read_mapping(
            "learning_rate_mapping", self.learning_rate_mapping, '{"embeddings": 1e-5}'
        )
        check_learning_rates(self.learning_rate_mapping, self.layerwise_lr_decay)
        self.warmup_steps = float(check_updates_or_share("warmup_steps", self.warmup_steps))
        if self.optim == self.warmup_type == "radam":
            raise ValueError("warmup_type='radam' with optim='radam' would rectify twice. Leave out one of them.")
        self._check_warmup_length()

    def _check_auto(self) -> None:
        reasons = {
            f"guard={self.guard!r} does not rewind": self.guard in ("off", "stop"),
            "grad_norm_steps=0 records no gradient norms to judge by": not self.grad_norm_steps,
            f"optim={self.optim.value!r} has a warmup of its own": self.optim == "adam_warmup",
            f"lr_scheduler_type={self.lr_scheduler_type.value!r} follows a metric": (
                self.lr_scheduler_type.value in METRIC_SCHEDULERS
            ),
        }
        for reason, holds in reasons.items():
            if holds:
                raise ValueError(f"warmup_type='auto' finds the warmup by rewinding, and {reason}. Change one of them.")

    def _check_warmup_length(self) -> None:
        if self.warmup_epochs is not None:
            check_number("warmup_epochs", self.warmup_epochs, 0.0, self.num_train_epochs)
            if self.warmup_steps:
                raise ValueError(
                    f"warmup_epochs={self.warmup_epochs} and warmup_steps={self.warmup_steps:g} are two lengths of the "
                    "warmup. Leave one of them out."
                )
            if self.max_steps > 0:
                raise ValueError(
                    f"warmup_epochs={self.warmup_epochs} needs num_train_epochs, but max_steps={self.max_steps} sets "
                    "the length of the run. Use warmup_steps instead."
                )
        if 0 < self.max_steps < self.warmup_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps:g}: expected at most max_steps={self.max_steps}.")

    @property
    def schedule_warmup_type(self) -> str | None:
        """The warmup that the schedule begins with: for `"auto"` none, or `linear` if a length is given."""
        if self.warmup_type != AUTO:
            return self.warmup_type
        return "linear" if self.warmup_steps or self.warmup_epochs else "none"

    @property
    def guard_action(self) -> str:
        """What the guard does: `guard`, or `rewind` for `warmup_type="auto"`."""
        return "rewind" if self.warmup_type == AUTO else self.guard

    @property
    def optimizer_is_ours(self) -> bool:
        """Whether hf_warmup builds the optimizer, and not transformers."""
        return self.optim.value in OPTIMIZERS or is_import_path(self.optim.value)

    @property
    def scheduler_is_ours(self) -> bool:
        """Whether only hf_warmup can build the schedule, because of its name or its `warmup_type`."""
        return isinstance(self.lr_scheduler_type, _Name)

    @property
    def learning_rates_differ(self) -> bool:
        """Whether parameters have different learning rates, by name or by depth."""
        return bool(self.learning_rate_mapping) or self.layerwise_lr_decay is not None

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the parameter groups of an optimizer for `model`; see [`parameter_groups`]."""
        return parameter_groups(
            model, self.weight_decay, self.learning_rate, self.learning_rate_mapping, self.layerwise_lr_decay
        )

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Return the number of warmup updates in a run of `num_training_steps`; shares and epochs are rounded up.

        Raises:
            `ValueError`: If the warmup is longer than the run.
        """
        self.check_warmup_arguments()
        if self.warmup_epochs is not None:
            return updates_of_share(self.warmup_epochs, num_training_steps, whole=self.num_train_epochs)
        if self.warmup_steps < 1:
            return updates_of_share(self.warmup_steps or self.warmup_ratio or 0, num_training_steps)
        if self.warmup_steps > num_training_steps > 0:
            raise ValueError(
                f"warmup_steps={self.warmup_steps:g}: expected at most the {num_training_steps} updates of this run."
            )
        return int(self.warmup_steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments, and the resolved length of the warmup once the scheduler has been created."""
        resolved = getattr(self, "num_warmup_steps", None)
        return super().to_dict() | ({} if resolved is None else {"num_warmup_steps": resolved})


@dataclass
class WarmupTrainingArguments(WarmupArgumentsMixin, TrainingArguments):
    """[`~transformers.TrainingArguments`] with the arguments of [`WarmupArgumentsMixin`].

    Example:

    ```python
    >>> args = WarmupTrainingArguments("runs/a", optim="radam", lr_scheduler_type="noam", warmup_steps=0.06)
    >>> args.get_warmup_steps(1000)
    60

    ```
    """


@dataclass
class WarmupSeq2SeqTrainingArguments(WarmupArgumentsMixin, Seq2SeqTrainingArguments):
    """[`~transformers.Seq2SeqTrainingArguments`] with the arguments of [`WarmupArgumentsMixin`]."""


def optimizer_cls_and_kwargs(args: WarmupArgumentsMixin) -> tuple[type[Optimizer], dict[str, Any]]:
    """Return the class of an optimizer of hf_warmup and its keyword arguments, for `args.optimizer_is_ours`.

    Example:

    ```python
    >>> args = WarmupTrainingArguments("runs/a", optim="sgd", learning_rate=0.1, optim_args="momentum=0.8")
    >>> cls, kwargs = optimizer_cls_and_kwargs(args)
    >>> cls.__name__, kwargs
    ('SGD', {'lr': 0.1, 'momentum': 0.8})

    ```
    """
    name = args.optim.value
    kwargs = optimizer_kwargs(
        name,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        optim_args=args.optim_args,
    )
    return get_optimizer_spec(name).cls, kwargs
