"""Gradient norms of each layer: which parameters form a layer, their norms as one tensor, and a recorder.

[`grouping`][hf_warmup.norms.grouping] needs no torch. The names of the other modules are loaded when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..report.run import GRADIENT_NORMS_FILE, LOG_PREFIX
from .grouping import GROUPINGS, GroupBy, find_stacks, group_names, layer_names


if TYPE_CHECKING:
    from .measure import gradient_norms as gradient_norms
    from .measure import group_norms as group_norms
    from .recorder import MAX_PENDING as MAX_PENDING
    from .recorder import GradientNormRecorder as GradientNormRecorder
    from .recorder import read_gradient_norms as read_gradient_norms
    from .recorder import record_gradient_norms as record_gradient_norms

_MODULE_OF = {
    "MAX_PENDING": "recorder",
    "GradientNormRecorder": "recorder",
    "gradient_norms": "measure",
    "group_norms": "measure",
    "read_gradient_norms": "recorder",
    "record_gradient_norms": "recorder",
}

__all__ = [
    "GRADIENT_NORMS_FILE",
    "GROUPINGS",
    "LOG_PREFIX",
    "GroupBy",
    "find_stacks",
    "group_names",
    "layer_names",
    *_MODULE_OF,
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
