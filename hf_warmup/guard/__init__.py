"""Judge a run while it trains: `rules` decide what is wrong, `callback` decides what to do about it."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .callback import WarmupGuard as WarmupGuard

__all__ = ["WarmupGuard"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # loaded when it is used, since the rules need neither torch nor transformers
        from . import callback

        return getattr(callback, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
