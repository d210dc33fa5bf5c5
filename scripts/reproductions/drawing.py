"""The figure of evaluations that several reproductions share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import mean
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_warmup.report.figures import COLORS, blank_axes, blank_figure

from .kept_runs import Result, Settings, select


if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Row(NamedTuple):
    """One row of a figure of evaluations."""

    words: str  # beside the axis
    column: int  # of an evaluation, whose column 0 is the update
    only: Mapping[str, Any] = MappingProxyType({})  # settings of the runs in this row
    scale: str = "linear"  # or "log"


def draw_evaluations(results: Sequence[Result], rows: Sequence[Row], configurations: Mapping[str, Settings]) -> Figure:
    """Draw evaluations over updates: one column per learning rate, one colour per configuration.

    Args:
        results (`Sequence[dict]`): Results with `evaluations`, one list per evaluation.
        rows (`Sequence[Row]`): What to draw.
        configurations (`Mapping[str, dict]`): Label to the settings of its runs. A line is the mean of the runs, a
            band their range.
    """
    rates = sorted({run["learning_rate"] for run in results})
    figure = blank_figure(3.2 * len(rates) + 1, 2.3 * len(rows) + 0.4)
    for (i, row), (j, lr) in product(enumerate(rows), enumerate(rates)):
        drawn = {name: select(results, learning_rate=lr, **row.only, **each) for name, each in configurations.items()}
        if not any(drawn.values()):
            continue
        values = [each[row.column] for run in select(results, **row.only) for each in run["evaluations"]]
        margin = 0.05 * (max(values) - min(values)) or 0.05
        limits = max(min(values), 1e-4 * max(values)) / 2, 2 * max(values)
        title = " ".join([*row.only.values(), f"learning rate {lr:g}"])
        axes = blank_axes(figure, title, row.words, place=(len(rows), len(rates), i * len(rates) + j + 1))
        axes.set_yscale(row.scale)  # one scale per row
        axes.set_ylim(*(limits if row.scale == "log" else (min(values) - margin, max(values) + margin)))
        for color, (name, runs) in zip(COLORS, drawn.items(), strict=False):
            if runs:
                updates = [evaluation[0] for evaluation in runs[0]["evaluations"]]
                points = list(zip(*([each[row.column] for each in run["evaluations"]] for run in runs), strict=True))
                axes.fill_between(updates, [*map(min, points)], [*map(max, points)], color=color, alpha=0.15, lw=0)
                axes.plot(updates, [*map(mean, points)], color=color, label=name)
    drawn_lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    handles = [drawn_lines[name] for name in configurations if name in drawn_lines]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), max(2, round(1.5 * len(rates)))),
        frameon=False,
    )
    return figure
