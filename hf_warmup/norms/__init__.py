"""Gradient norms of each layer: what to add up, the norms as one tensor, and a recorder that writes them."""

from .grouping import GROUPINGS, GroupBy, group_names, layer_names
from .measure import gradient_norms, group_norms
from .recorder import (
    GRADIENT_NORMS_FILE,
    LOG_PREFIX,
    MAX_PENDING,
    GradientNormRecorder,
    read_gradient_norms,
    record_gradient_norms,
)


__all__ = [
    "GRADIENT_NORMS_FILE",
    "GROUPINGS",
    "LOG_PREFIX",
    "MAX_PENDING",
    "GradientNormRecorder",
    "GroupBy",
    "gradient_norms",
    "group_names",
    "group_norms",
    "layer_names",
    "read_gradient_norms",
    "record_gradient_norms",
]
