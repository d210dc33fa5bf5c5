"""Gradient norms of each layer: which parameters form a layer, their norms as one tensor, and a recorder.

[`grouping`][hf_warmup.norms.grouping] needs no torch. The names of the other modules are loaded when they are used.
"""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
