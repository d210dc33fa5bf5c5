"""Judge a run while it trains: `rules` decide what is wrong, `callback` decides what to do about it."""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
