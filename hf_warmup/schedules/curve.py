"""The rows of the tables of curves: a function, its keywords with their ranges, and what it needs to be computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from .._validation import check_flag, check_name, check_number, import_from_path, is_import_path


@dataclass(frozen=True)
class Number:
    """The range of a keyword that is a number."""

    low: float = 0.0
    high: float = inf
    open_low: bool = False
    open_high: bool = False
    integer: bool = False
    optional: bool = False
    per_group: bool = False  # a list with one number for each parameter group is accepted too

    def check(self, name: str, value: Any) -> Any:
        """Return `value` with its numbers as plain Python ones, or raise a `ValueError`."""
        if value is None and self.optional:
            return None
        if self.per_group and isinstance(value, (list, tuple)):
            return [self.check(name, each) for each in value]
        ends = {"open_low": self.open_low, "open_high": self.open_high}
        return check_number(name, value, self.low, self.high, **ends, integer=self.integer)


@dataclass(frozen=True)
class Choice:
    """The allowed values of a keyword that is a name."""

    names: tuple[str, ...]

    def check(self, name: str, value: Any) -> str:
        """Return `value`, or raise a `ValueError`."""
        return check_name(name, value, self.names)


@dataclass(frozen=True)
class Flag:
    """A keyword that is `True` or `False`, or, with `optional`, `None`."""

    optional: bool = False

    def check(self, name: str, value: Any) -> bool | None:
        """Return `value`, or raise a `ValueError`."""
        return check_flag(name, value, optional=self.optional)


@dataclass(frozen=True)
class Anything:
    """A keyword of a curve that is given by its import path: its range is the curve's own affair."""

    def check(self, name: str, value: Any) -> Any:
        """Return `value`."""
        return value


Range = Number | Choice | Flag | Anything
ANY, COUNT, SHARE, BETA2 = Anything(), Number(integer=True), Number(high=1.0), Number(high=1.0, open_high=True)


@dataclass(frozen=True)
class Curve:
    """A row of `WARMUPS` or `DECAYS`.

    Args:
        function (`Callable`): `function(step, **needs, **keywords)` returns a multiplier of the learning rate.
        needs (`dict[str, Range]`): What [`get_schedule`] gives to the function, with the values for which it is
            defined: `num_warmup_steps`, `num_training_steps` or `base_lr`.
        keywords (`dict[str, Range]`): What users may set, with the allowed values. The default of `beta2` is the
            optimizer's.
        required (`tuple[str, ...]`): The keywords without a default.
    """

    function: Callable[..., float]
    needs: Mapping[str, Range] = field(default_factory=dict)
    keywords: Mapping[str, Range] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    @property
    def needs_length(self) -> bool:
        """Whether the curve depends on the number of warmup steps."""
        return "num_warmup_steps" in self.needs

    @property
    def needs_beta2(self) -> bool:
        """Whether the curve follows from Adam's beta2."""
        return "beta2" in self.keywords

    def bind(self, arguments: Mapping[str, Any]) -> Callable[[int], float]:
        """Return the function of the step alone, with those of `arguments` that it takes."""
        for key in self.needs.keys() & arguments.keys():
            self.needs[key].check(key, arguments[key])
        taken = {**self.needs, **self.keywords}.keys() & arguments.keys()
        return partial(self.function, **{key: arguments[key] for key in taken})


# What `get_schedule` gives to a curve that names it; any other parameter of a curve is a keyword that users set.
_GIVEN = ("num_warmup_steps", "num_training_steps", "base_lr")


def find_curve(kind: str, name: str, table: Mapping[str, Curve]) -> Curve:
    """Return the row of `table` called `name`, or a new row for the function at the import path `name`.

    Args:
        kind (`str`): The argument that `name` was given for, as error messages call it.
        name (`str`): A key of `table`, or an import path such as `my_curves:quadratic`.
        table (`dict[str, Curve]`): `WARMUPS` or `DECAYS`.

    Raises:
        `ValueError`: If there is no such row, or no function at the import path.
    """
    if not is_import_path(name):
        return table[check_name(kind, name, table)]
    function = import_from_path(kind, name)
    _step, *parameters = inspect.signature(function).parameters.values()
    named = [each for each in parameters if each.kind != each.VAR_KEYWORD]
    keywords = [each for each in named if each.name not in _GIVEN]
    return Curve(
        function,
        needs=dict.fromkeys(_GIVEN if len(named) < len(parameters) else {each.name for each in named} & {*_GIVEN}, ANY),
        keywords={each.name: BETA2 if each.name == "beta2" else ANY for each in keywords},
        required=tuple(each.name for each in keywords if each.default is each.empty and each.name != "beta2"),
    )
