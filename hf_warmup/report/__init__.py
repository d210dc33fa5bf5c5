"""Run folders in; figures, one self-contained HTML page and findings in words out.

`python -m hf_warmup.report RUN [RUN ...]` does it all. The libraries that draw are loaded when something is drawn.
"""

from .figures import draw_comparison, plot_gradient_norms, plot_learning_rate, plot_loss, plot_ratio
from .findings import DANGER_RATIO, RULES, Finding, find, in_words
from .run import Run, by_arm, differing_settings, find_runs, mean_and_spread, read_run, read_runs, shared_settings


__all__ = [
    "DANGER_RATIO",
    "RULES",
    "Finding",
    "Run",
    "by_arm",
    "differing_settings",
    "draw_comparison",
    "find",
    "find_runs",
    "in_words",
    "mean_and_spread",
    "plot_gradient_norms",
    "plot_learning_rate",
    "plot_loss",
    "plot_ratio",
    "read_run",
    "read_runs",
    "shared_settings",
]
