"""The PNG figures: learning rate, loss, per-layer gradient norms, and their last/first-layer ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arms import by_arm, label
from .findings import DANGER_RATIO
from .reading import Run


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by colour-blind readers; the arms that need telling apart most come first.
# A mid grey in place of their black, which a dark page would swallow.
COLORS = ("#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#7F7F7F", "#8C6D31")
# By plotly's names, as matplotlib writes them.
DASHES = {"solid": "solid", "dash": (0, (5, 2)), "dashdot": "dashdot", "longdash": (0, (10, 3))}
ZONE = "#888888"  # of runs that stall: no arm's colour


def line_style(i: int) -> tuple[str, str]:
    """Colour and plotly's dash of arm `i`, the same in every figure: each dash goes through all colours."""
    return COLORS[i % len(COLORS)], tuple(DASHES)[i // len(COLORS) % len(DASHES)]


def need(module: str) -> None:
    """Refuse in one sentence where a library that draws is missing."""
    if find_spec(module) is None:
        raise ValueError(f"{module} is missing: pip install 'hf-warmup[plot]' draws the figures and the page.")


def blank_figure(width: float, height: float) -> Figure:
    need("matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def blank_axes(
    figure: Figure, title: str, ylabel: str, xlabel: str = "update", place: tuple[int, int, int] = (1, 1, 1)
) -> Axes:
    """Axes in the style of every figure here; `place` is matplotlib's (rows, columns, index)."""
    axes = figure.add_subplot(*place)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes


def _lines(axes: Axes, runs: Sequence[Run], series: Callable[[Run], Any], wide: bool = False) -> None:
    arms = by_arm(runs)
    for i, (arm, members) in enumerate(arms.items()):
        color, dash = line_style(i)
        for j, run in enumerate(members):
            steps, values = series(run)
            # Earlier lines are wider, so that those that later ones cover still show.
            width = 1.3 + 3.0 * (len(arms) - 1 - i) / len(arms) if wide else 1.3
            axes.plot(
                steps,
                values,
                color=color,
                linestyle=DASHES[dash],
                linewidth=width,
                marker="." if len(steps) == 1 else None,
                label=None if j else label(arm),
            )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3)


def _figure_of_lines(runs: Sequence[Run], title: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = blank_figure(8, max(3.6, 0.18 * len(by_arm(runs)) + 0.3))  # as high as the legend
    return figure, blank_axes(figure, title, ylabel)


def plot_learning_rate(runs: Sequence[Run]) -> Figure:
    """The learning rate in force over updates: what an optimizer that warms up by itself really used."""
    figure, axes = _figure_of_lines(runs, "Learning rate in force", "learning rate")
    firsts = [members[0] for members in by_arm(runs).values()]
    _lines(axes, firsts, lambda run: run.series("scheduled_lr", "learning_rate"), wide=True)
    return figure


def plot_loss(runs: Sequence[Run]) -> Figure:
    """Training loss over updates, one line a seed, one colour an arm."""
    figure, axes = _figure_of_lines(runs, "Training loss", "loss")
    _lines(axes, runs, lambda run: run.series("loss"))
    return figure


def plot_ratio(runs: Sequence[Run]) -> Figure:
    """The last block's gradient norm over the first's, with the zone marked that runs which stall enter early.

    A sign of the first tens of updates: a run that never learns can leave the zone again.
    """
    figure, axes = _figure_of_lines(runs, "Gradient norm, last layer over first", "ratio")
    _lines(axes, runs, Run.ratio)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high > DANGER_RATIO:
        axes.axhspan(DANGER_RATIO, high, color=ZONE, alpha=0.15, linewidth=0)
        axes.text(0.01, 0.97, "early sign of stalling", transform=axes.transAxes, va="top", fontsize=8, color="#555555")
        axes.set_ylim(low, high)
    return figure


def plot_gradient_norms(runs: Sequence[Run], columns: int = 3) -> Figure:
    """A heat map (layer × update) of the gradient norms before clipping, one an arm, of its first seed."""
    need("matplotlib")
    from matplotlib.colors import LogNorm

    arms = {arm: members[0] for arm, members in by_arm(runs).items() if members[0].blocks}
    columns = max(1, min(columns, len(arms)))
    rows = -(-len(arms) // columns) or 1
    columns = max(1, -(-len(arms) // rows))  # four are two and two, not three and one
    figure = blank_figure(3.3 * columns + 1.2, 2.3 * rows + 0.4)
    if not arms:
        figure.text(0.5, 0.5, "no gradient norms were recorded", ha="center")
        return figure
    tables = {
        arm: [[record.get(block) or nan for record in run.gradient_norms] for block in run.blocks]
        for arm, run in arms.items()
    }
    finite = [value for table in tables.values() for row in table for value in row if value == value]
    norm = LogNorm(min(finite), max(finite)) if finite else None
    ends = [(run.gradient_norms[0]["step"] - 0.5, run.gradient_norms[-1]["step"] + 0.5) for run in arms.values()]
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(arms) :]:
        axes.set_axis_off()
    for i, (axes, (arm, table), extent) in enumerate(zip(grid.flat, tables.items(), ends, strict=False)):
        layers = len(table)
        image = axes.imshow(
            table,
            aspect="auto",
            norm=norm,
            cmap="viridis",
            origin="lower",
            interpolation="nearest",
            extent=(*extent, 0.5, layers + 0.5),
        )
        # All panels alike: a run that had ended leaves its panel blank.
        axes.set_xlim(min(start for start, _ in ends), max(end for _, end in ends))
        axes.set_title(label(arm), loc="left", fontsize=8)
        stride = -(-layers // 12)
        axes.set_yticks(range(1, layers + 1, stride))
        axes.tick_params(labelsize=8)
        if i % columns == 0:
            axes.set_ylabel("layer", fontsize=9)
        if i + columns >= len(arms):
            axes.set_xlabel("update", fontsize=9)
    figure.colorbar(image, ax=grid, label="gradient norm before clipping", shrink=0.8)
    return figure


def draw_comparison(runs: Sequence[Run], output_dir: str | Path) -> list[Path]:
    """Write the four figures as PNG files into `output_dir`; returns their paths."""
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    figures = {
        "learning_rate.png": plot_learning_rate,
        "loss.png": plot_loss,
        "gradient_norms.png": plot_gradient_norms,
        "gradient_norm_ratio.png": plot_ratio,
    }
    paths = []
    for name, plot in figures.items():
        plot(runs).savefig(output_dir / name)
        paths.append(output_dir / name)
    return paths
