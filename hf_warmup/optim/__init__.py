"""Optimizers with a built-in warmup, and the table of names that `optim=` accepts in addition to transformers' own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, cast

import torch
from torch.optim import Optimizer

from .._validation import check_name, import_from_path, is_import_path, short_repr
from ..schedules.curve import COUNT, Flag, Number, Range
from .adam_family import AdamFamily, effective_learning_rates
from .adam_warmup import AdamWarmup
from .gi_adam import GIAdam
from .radam import RAdam
from .updates import knows_updates_of, update_norms


__all__ = [
    "OPTIMIZERS",
    "AdamFamily",
    "AdamWarmup",
    "GIAdam",
    "OptimizerSpec",
    "RAdam",
    "effective_learning_rates",
    "get_optimizer_spec",
    "knows_updates_of",
    "optimizer_kwargs",
    "parse_optim_args",
    "update_norms",
]

# The class of the optimizer checks its own ranges.
NUMBER, FLAG, OPTIONAL_FLAG = Number(low=-inf), Flag(), Flag(optional=True)


@dataclass(frozen=True)
class OptimizerSpec:
    """A row of the table [`OPTIMIZERS`].

    Args:
        cls (`type[Optimizer]`): The class.
        summary (`str`): One line about it.
        paper (`str`): Where it was published.
        defaults (`dict`): The keyword arguments that the name stands for.
        options (`dict[str, Range]`, *optional*): The keywords that `optim_args` may set, with their values. `None` if
            they are not known.
    """

    cls: type[Optimizer]
    summary: str
    paper: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)
    options: Mapping[str, Range] | None = None

    @property
    def takes_betas(self) -> bool:
        """Whether the class is of the Adam family, which takes `betas` and `eps`."""
        family = (AdamFamily, torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax)
        return isinstance(self.cls, type) and issubclass(self.cls, family)


_SHARED: dict[str, Range] = {"maximize": FLAG, "foreach": OPTIONAL_FLAG, "differentiable": FLAG}
_FAMILY: dict[str, Range] = _SHARED | {"eps": NUMBER, "fused": OPTIONAL_FLAG, "capturable": FLAG}
_SGD: dict[str, Range] = _SHARED | {"momentum": NUMBER, "dampening": NUMBER, "nesterov": FLAG, "fused": OPTIONAL_FLAG}

OPTIMIZERS: dict[str, OptimizerSpec] = {
    "radam": OptimizerSpec(
        RAdam,
        "Adam with a rectified variance of its early steps",
        "arXiv:1908.03265",
        options=_FAMILY | {"decoupled_weight_decay": FLAG, "degenerated_to_sgd": FLAG},
    ),
    "adam_warmup": OptimizerSpec(
        AdamWarmup, "AdamW with a built-in linear warmup", "arXiv:1910.04209", options=_FAMILY | {"warmup_steps": COUNT}
    ),
    "gi_adam": OptimizerSpec(GIAdam, "AdamW whose second moment starts at g_1^2", "arXiv:2406.09405", options=_FAMILY),
    "adam": OptimizerSpec(
        torch.optim.Adam,
        "torch's Adam with L2 weight decay",
        "arXiv:1412.6980",
        {"fused": True},
        _FAMILY | {"amsgrad": FLAG, "decoupled_weight_decay": FLAG},
    ),
    "adamw": OptimizerSpec(
        torch.optim.AdamW, "torch's AdamW", "arXiv:1711.05101", {"fused": True}, _FAMILY | {"amsgrad": FLAG}
    ),
    "nadam": OptimizerSpec(
        torch.optim.NAdam,
        "Adam with Nesterov momentum",
        "Dozat 2016",
        options=_SHARED | {"eps": NUMBER, "momentum_decay": NUMBER, "decoupled_weight_decay": FLAG, "capturable": FLAG},
    ),
    "adadelta": OptimizerSpec(
        torch.optim.Adadelta,
        "RMS of updates over RMS of gradients",
        "arXiv:1212.5701",
        options=_SHARED | {"rho": NUMBER, "eps": NUMBER, "capturable": FLAG},
    ),
    "adagrad": OptimizerSpec(
        torch.optim.Adagrad,
        "sum of squared gradients",
        "Duchi et al. 2011",
        options=_SHARED
        | {"lr_decay": NUMBER, "initial_accumulator_value": NUMBER, "eps": NUMBER, "fused": OPTIONAL_FLAG},
    ),
    "rmsprop": OptimizerSpec(
        torch.optim.RMSprop,
        "moving average of squared gradients",
        "Hinton 2012",
        options=_SHARED | {"alpha": NUMBER, "eps": NUMBER, "momentum": NUMBER, "centered": FLAG, "capturable": FLAG},
    ),
    "sgd": OptimizerSpec(torch.optim.SGD, "plain stochastic gradient descent", "Robbins & Monro 1951", options=_SGD),
    "sgdm": OptimizerSpec(torch.optim.SGD, "SGD with momentum 0.9", "Polyak 1964", {"momentum": 0.9}, _SGD),
    "nag": OptimizerSpec(
        torch.optim.SGD, "SGD with Nesterov momentum 0.9", "Nesterov 1983", {"momentum": 0.9, "nesterov": True}, _SGD
    ),
}

# Options that have an argument of their own. `weight_decay` would silently be overridden by the parameter groups.
_FLAGS = {"lr": "learning_rate", "betas": "adam_beta1 and adam_beta2", "weight_decay": "weight_decay"}


def get_optimizer_spec(name: str) -> OptimizerSpec:
    """Return the row of [`OPTIMIZERS`] for a name, or a row for the class at an import path such as `my_optim:MyAdam`.

    Raises:
        `ValueError`: If there is no such name, or nothing that can be called at the import path.

    Example:

    ```python
    >>> get_optimizer_spec("nag").defaults, get_optimizer_spec("torch.optim:Adamax").cls.__name__
    ({'momentum': 0.9, 'nesterov': True}, 'Adamax')

    ```
    """
    if is_import_path(name):
        return OptimizerSpec(cast(Any, import_from_path("optim", name)), f"the class at {name}")
    return OPTIMIZERS[check_name("optim", name, OPTIMIZERS)]


def _parse_value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def parse_optim_args(name: str, optim_args: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `optim_args` such as `"degenerated_to_sgd=true,eps=1e-6"` as keyword arguments of the optimizer `name`.

    Args:
        name (`str`): A name of [`OPTIMIZERS`], or an import path. The options of an import path are not checked.
        optim_args (`str` or `Mapping[str, Any]`, *optional*): Text as in transformers, or the options themselves.

    Raises:
        `ValueError`: If a piece is not `key=value`, the optimizer has no such option, or a value is of the wrong kind.

    Example:

    ```python
    >>> parse_optim_args("radam", "degenerated_to_sgd=true, eps=1e-6")
    {'degenerated_to_sgd': True, 'eps': 1e-06}

    ```
    """
    options = get_optimizer_spec(name).options
    kwargs = {}
    for key, value in _items(optim_args).items():
        if key in _FLAGS:
            raise ValueError(f"optim_args={optim_args!r}: {key} is set by {_FLAGS[key]}.")
        if options is not None:
            check_name("optim_args", key, options, of=name)
            options[key].check(f"{key} in optim_args", value)
        kwargs[key] = value
    return kwargs


def _items(optim_args: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Split `"key=value,key=value"` into a dictionary."""
    if isinstance(optim_args, Mapping):
        return dict(optim_args)
    if not isinstance(optim_args, (str, type(None))):
        raise ValueError(f"optim_args={short_repr(optim_args)}: expected text, key=value,key=value.")
    items = {}
    for piece in filter(None, (optim_args or "").replace(" ", "").split(",")):
        key, _, text = piece.partition("=")
        if not (key and text):
            raise ValueError(f"optim_args={optim_args!r}: expected key=value,key=value, found {piece!r}.")
        items[key] = _parse_value(text)
    return items


def optimizer_kwargs(
    name: str,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    optim_args: str | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the keyword arguments for the class behind `name`: its defaults, then the arguments, then `optim_args`.

    As in transformers, only optimizers of the Adam family get `betas` and `eps`.

    Example:

    ```python
    >>> optimizer_kwargs("nag", lr=0.1, betas=(0.9, 0.999), eps=1e-8, optim_args="momentum=0.8")
    {'momentum': 0.8, 'nesterov': True, 'lr': 0.1}

    ```
    """
    spec = get_optimizer_spec(name)
    own = parse_optim_args(name, optim_args)
    defaults = {key: value for key, value in spec.defaults.items() if not (key == "fused" and "foreach" in own)}
    return defaults | {"lr": lr} | ({"betas": betas, "eps": eps} if spec.takes_betas else {}) | own
