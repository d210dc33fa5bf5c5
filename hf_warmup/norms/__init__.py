"""Gradient norms of each layer: what to add up, the norms as one tensor, and a recorder that writes them."""

from .grouping import GROUPINGS, GroupBy, group_names, layer_names
from .measure import gradient_norms, group_norms
from .recorder import FILE_NAME, KEY, MAX_PENDING, GradientNormRecorder, read_gradient_norms, record_gradient_norms


__all__ = [
    "FILE_NAME",
    "GROUPINGS",
    "KEY",
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
