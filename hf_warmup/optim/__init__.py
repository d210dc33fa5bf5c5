"""Optimizers, and the table of names that `optim=` accepts beside transformers' own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch

from .._validation import check_name, check_number, short_repr
from .adam_warmup import AdamWarmup
from .gi_adam import GIAdam
from .radam import RAdam


__all__ = ["OPTIMIZERS", "AdamWarmup", "GIAdam", "OptimizerSpec", "RAdam", "optimizer_kwargs", "parse_optim_args"]


@dataclass(frozen=True)
class OptimizerSpec:
    """One row of the table: the class, the arguments that its name stands for, its paper, and one line about it."""

    cls: type[torch.optim.Optimizer]
    summary: str
    paper: str
    defaults: dict[str, Any] = field(default_factory=dict)


OPTIMIZERS: dict[str, OptimizerSpec] = {
    "radam": OptimizerSpec(RAdam, "Adam with the variance of its early step rectified", "arXiv:1908.03265"),
    "adam_warmup": OptimizerSpec(AdamWarmup, "AdamW with a linear warmup built in", "arXiv:1910.04209"),
    "gi_adam": OptimizerSpec(GIAdam, "AdamW with its second moment started at g_1^2", "arXiv:2406.09405"),
    "adam": OptimizerSpec(torch.optim.Adam, "torch's Adam, L2 decay", "arXiv:1412.6980", {"fused": True}),
    "adamw": OptimizerSpec(torch.optim.AdamW, "torch's AdamW", "arXiv:1711.05101", {"fused": True}),
    "nadam": OptimizerSpec(torch.optim.NAdam, "Adam with Nesterov momentum", "Dozat 2016"),
    "adadelta": OptimizerSpec(torch.optim.Adadelta, "RMS of updates over RMS of gradients", "arXiv:1212.5701"),
    "adagrad": OptimizerSpec(torch.optim.Adagrad, "sum of squared gradients", "Duchi et al. 2011"),
    "rmsprop": OptimizerSpec(torch.optim.RMSprop, "moving average of squared gradients", "Hinton 2012"),
    "sgd": OptimizerSpec(torch.optim.SGD, "plain stochastic gradient descent", "Robbins & Monro 1951"),
    "sgdm": OptimizerSpec(torch.optim.SGD, "SGD with momentum 0.9", "Polyak 1964", {"momentum": 0.9}),
    "nag": OptimizerSpec(
        torch.optim.SGD, "SGD with Nesterov momentum 0.9", "Nesterov 1983", {"momentum": 0.9, "nesterov": True}
    ),
}

# Set by flags of their own; the Trainer's parameter groups would silently win over `weight_decay`.
_FLAGS = {"lr": "learning_rate", "betas": "adam_beta1 and adam_beta2", "weight_decay": "weight_decay"}


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


def parse_optim_args(name: str, optim_args: str | None) -> dict[str, Any]:
    """`--optim_args "degenerated_to_sgd=true,eps=1e-6"` as keyword arguments of the optimizer called `name`.

    Raises:
        `ValueError`: For a piece that is not `key=value`, a key that the optimizer does not take, or a value of the
            wrong kind. Nothing is ignored.

    Example:

    ```python
    >>> parse_optim_args("radam", "degenerated_to_sgd=true, eps=1e-6")
    {'degenerated_to_sgd': True, 'eps': 1e-06}

    ```
    """
    if not isinstance(optim_args, (str, type(None))):
        raise ValueError(f"optim_args={short_repr(optim_args)}: expected text, key=value,key=value.")
    parameters = inspect.signature(OPTIMIZERS[name].cls).parameters
    allowed = set(parameters) - _FLAGS.keys() - {"params"}
    kwargs = {}
    for piece in (optim_args or "").replace(" ", "").split(","):
        if not piece:
            continue
        key, equals, text = piece.partition("=")
        if not (key and equals and text):
            raise ValueError(f"optim_args={optim_args!r}: expected key=value,key=value, found {piece!r}.")
        if key in _FLAGS:
            raise ValueError(f"optim_args={optim_args!r}: {key} is set by {_FLAGS[key]}.")
        check_name("optim_args", key, allowed, of=name)
        value, default = _parse_value(text), parameters[key].default
        kinds: dict[type, Any] = {bool: bool, int: (int, float), float: (int, float), type(None): (bool, type(None))}
        expected = kinds.get(type(default), str)
        if not isinstance(value, expected) or (isinstance(value, bool) and type(default) in (int, float)):
            raise ValueError(f"optim_args={optim_args!r}: {key}={text} is not of the kind of its default, {default!r}.")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            check_number(f"{key} in optim_args", value, -inf)
        kwargs[key] = value
    return kwargs


def optimizer_kwargs(
    name: str, *, lr: float, betas: tuple[float, float], eps: float, optim_args: str | None = None
) -> dict[str, Any]:
    """Keyword arguments for `OPTIMIZERS[name].cls`: the table's, the flags that it takes, and `optim_args` over both.

    As in transformers, `betas` and `eps` go to the members of the Adam family alone.

    Example:

    ```python
    >>> optimizer_kwargs("nag", lr=0.1, betas=(0.9, 0.999), eps=1e-8, optim_args="momentum=0.8")
    {'momentum': 0.8, 'nesterov': True, 'lr': 0.1}

    ```
    """
    spec = OPTIMIZERS[name]
    flags: dict[str, Any] = {"lr": lr}
    if "betas" in inspect.signature(spec.cls).parameters:
        flags |= {"betas": betas, "eps": eps}
    own = parse_optim_args(name, optim_args)
    defaults = {key: value for key, value in spec.defaults.items() if not (key == "fused" and "foreach" in own)}
    return {**defaults, **flags, **own}
