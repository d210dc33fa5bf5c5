"""Figure and axes in the one style of all reproductions."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# The palette of Okabe and Ito, which colour-blind readers can tell apart.
COLORS = ("#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#7F7F7F", "#8C6D31")


def blank_figure(width: float, height: float) -> Figure:
    """Return an empty figure; `width` and `height` are in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("matplotlib is missing: install it with `pip install 'hf-warmup[plot]'`.") from None
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def blank_axes(
    figure: Figure, title: str, ylabel: str, xlabel: str = "update", place: tuple[int, int, int] = (1, 1, 1)
) -> Axes:
    """Add axes to `figure`; `place` is matplotlib's (rows, columns, index)."""
    axes = figure.add_subplot(*place)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes
