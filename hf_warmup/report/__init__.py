"""Read run folders: findings in sentences, figures, one self-contained HTML page and a model card.

`python -m hf_warmup.report RUN [RUN ...]` does all of it. Names are loaded when they are first used, so that reading a
log imports neither torch nor transformers nor a library that draws.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .comparison import by_configuration as by_configuration
    from .comparison import differing_settings as differing_settings
    from .comparison import mean_and_spread as mean_and_spread
    from .comparison import shared_settings as shared_settings
    from .figures import draw_comparison as draw_comparison
    from .figures import plot_gradient_norms as plot_gradient_norms
    from .figures import plot_learning_rate as plot_learning_rate
    from .figures import plot_loss as plot_loss
    from .figures import plot_ratio as plot_ratio
    from .findings import DANGER_RATIO as DANGER_RATIO
    from .findings import RULES as RULES
    from .findings import Finding as Finding
    from .findings import find as find
    from .notebook import Report as Report
    from .notebook import show as show
    from .run import Run as Run
    from .run import find_runs as find_runs
    from .run import read_run as read_run
    from .run import read_runs as read_runs
    from .table import to_dataframe as to_dataframe

# Module -> its public names; the imports above say the same to type checkers.
_NAMES = {
    "comparison": ("by_configuration", "differing_settings", "mean_and_spread", "shared_settings"),
    "figures": ("draw_comparison", "plot_gradient_norms", "plot_learning_rate", "plot_loss", "plot_ratio"),
    "findings": ("DANGER_RATIO", "RULES", "Finding", "find"),
    "notebook": ("Report", "show"),
    "run": ("Run", "find_runs", "read_run", "read_runs"),
    "table": ("to_dataframe",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*_MODULE_OF, *globals()])
