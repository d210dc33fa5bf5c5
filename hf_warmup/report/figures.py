"""The figures: PNG files by matplotlib, and the panels of the page by plotly."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import accumulate
from math import isfinite, log10, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .comparison import by_configuration, label, names_of
from .findings import DANGER_RATIO
from .run import Run


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as PlotlyFigure


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
    arms = by_configuration(runs)
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
    figure = blank_figure(8, max(3.6, 0.18 * len(by_configuration(runs)) + 0.3))  # as high as the legend
    return figure, blank_axes(figure, title, ylabel)


def plot_learning_rate(runs: Sequence[Run]) -> Figure:
    """The learning rate in force over updates: what an optimizer that warms up by itself really used."""
    figure, axes = _figure_of_lines(runs, "Learning rate in force", "learning rate")
    firsts = [members[0] for members in by_configuration(runs).values()]
    _lines(axes, firsts, lambda run: run.learning_rates, wide=True)
    return figure


def plot_loss(runs: Sequence[Run]) -> Figure:
    """Training loss over updates, one line a seed, one colour an arm."""
    figure, axes = _figure_of_lines(runs, "Training loss", "loss")
    _lines(axes, runs, lambda run: run.losses)
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

    arms = {arm: members[0] for arm, members in by_configuration(runs).items() if members[0].blocks}
    columns = max(1, min(columns, len(arms)))
    rows = -(-len(arms) // columns) or 1
    columns = max(1, -(-len(arms) // rows))  # four are two and two, not three and one
    figure = blank_figure(3.3 * columns + 1.2, 2.3 * rows + 0.4)
    if not arms:
        figure.text(0.5, 0.5, "no gradient norms were recorded", ha="center")
        return figure
    tables = {arm: [[value or nan for value in run.norms[block]] for block in run.blocks] for arm, run in arms.items()}
    finite = [value for table in tables.values() for row in table for value in row if value == value]
    norm = LogNorm(min(finite), max(finite)) if finite else None
    ends = [(run.steps[0] - 0.5, run.steps[-1] + 0.5) for run in arms.values()]
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


POINTS = 60_000  # of all curves together; at most 1000 of one
SLIDER_STEPS = 100
COLUMNS = 240  # updates in the heat map of one run
SHOWN_FIRST = 20  # the update at which runs that stall and runs that learn are told apart best
DECADES = 8  # below its highest value, that a heat map tells apart
PANEL_HEIGHT = 280  # pixels
CLEAR = "rgba(0,0,0,0)"

# Title, unit, and whether the axis is logarithmic.
PANELS = {
    "lr": ("Learning rate in force", "learning rate", False),
    "loss": ("Training loss", "loss", False),
    "norm": ("Gradient norm before clipping", "L2 norm", True),
    "ratio": ("Last over first layer's norm (shaded: stalling)", "ratio", True),
}


def thin(steps: Sequence[int], values: Sequence[float], limit: int) -> tuple[list[int], list[float]]:
    """At most about `limit` points of a series: of each stretch its lowest and its highest, so that no spike is lost.

    Example:

    ```python
    >>> thin(range(8), [0, 1, 9, 1, 3, 1, -5, 1], 4)
    ([0, 2, 4, 6, 7], [0, 9, 3, -5, 1])

    ```
    """
    points = [(step, value) for step, value in zip(steps, values, strict=True) if isfinite(value)]
    width = -(-2 * len(points) // max(limit, 2))
    if width > 2:
        stretches = [points[i : i + width] for i in range(0, len(points), width)]
        kept = {point for part in stretches for point in (min(part, key=_value), max(part, key=_value))}
        points = sorted(kept | {points[0], points[-1]})
    return [step for step, _ in points], [value for _, value in points]


def _value(point: tuple[int, float]) -> float:
    return point[1]


_Lines = list[tuple[str, tuple[list[int], list[float]]]]


def _series(run: Run, panel: str) -> _Lines:
    """The lines of a run in a panel: what is said of each behind the run's name, and its points."""
    if panel == "lr":
        lines = [("", run.learning_rates)]
        if run.learning_rates.values != run.scheduled_rates.values:  # an optimizer that warms up by itself
            lines.append((", of the schedule", run.scheduled_rates))
        return lines
    points = {"loss": run.losses, "norm": run.total_norm, "ratio": run.ratio()}[panel]
    return [("", points)]


def draw_curves(runs: Sequence[Run]) -> PlotlyFigure:
    """Learning rate, loss, total gradient norm and last/first-layer ratio: one colour an arm, one legend for all."""
    need("plotly")
    from plotly.subplots import make_subplots

    panels = [panel for panel in PANELS if any(_series(run, panel)[0][1][0] for run in runs)] or ["loss"]
    figure = make_subplots(
        len(panels),
        1,
        shared_xaxes=True,
        vertical_spacing=60 / (PANEL_HEIGHT * len(panels)),
        subplot_titles=[PANELS[panel][0] for panel in panels],
    )
    limit = min(1000, max(100, POINTS // (len(runs) * len(PANELS))))
    names = names_of(runs)
    for i, (arm, seeds) in enumerate(by_configuration(runs).items()):
        color, dash = line_style(i)
        style = {"legendgroup": arm, "line": {"color": color, "dash": dash, "width": 1.5}, "marker": {"color": color}}
        # The legend's entry is a line of its own, so that it stays when a seed is switched off.
        figure.add_scatter(x=[None], y=[None], mode="lines", name=label(arm), **style)
        for run in seeds:
            for row, panel in enumerate(panels, 1):
                _add_lines(figure, row, _series(run, panel), names[run], limit, style)
    _lay_out_curves(figure, panels, runs)
    return figure


def _add_lines(figure: PlotlyFigure, row: int, lines: _Lines, name: str, limit: int, style: dict[str, Any]) -> None:
    for what, points in lines:
        steps, values = thin(*points, limit)
        figure.add_scatter(
            x=steps,
            y=values,
            mode="lines" if len(steps) > 1 else "markers",
            meta={"run": name, "name": name + what},
            hovertemplate="%{meta.name}<br>update %{x}: %{y:.4g}<extra></extra>",
            showlegend=False,
            row=row,
            col=1,
            **{**style, "line": {**style["line"], **({"dash": "dot", "width": 1} if what else {})}},
        )


def _lay_out_curves(figure: PlotlyFigure, panels: list[str], runs: Sequence[Run]) -> None:
    for row, panel in enumerate(panels, 1):
        _, unit, logarithmic = PANELS[panel]
        figure.update_yaxes(title_text=unit, type="log" if logarithmic else "linear", exponentformat="power", row=row)
    figure.update_xaxes(title_text="update", row=len(panels))
    figure.update_xaxes(showticklabels=True)
    figure.update_yaxes(rangemode="tozero")
    figure.update_annotations(x=0, xanchor="left", font_size=14)
    if "ratio" in panels:
        row, ratios = panels.index("ratio") + 1, [ratio for run in runs for ratio in run.ratio()[1]]
        low, high = min(0.5, *ratios), max(3 * DANGER_RATIO, 1.5 * max(ratios))
        zone = {"fillcolor": ZONE, "opacity": 0.15, "line_width": 0}
        figure.add_hrect(y0=DANGER_RATIO, y1=high, row=row, col=1, **zone)
        figure.add_hline(y=DANGER_RATIO, row=row, col=1, line={"color": ZONE, "width": 1, "dash": "dot"})
        figure.update_yaxes(range=[log10(low), log10(high)], row=row)
    height = PANEL_HEIGHT * len(panels)
    figure.update_layout(
        height=height + 100,  # the page adds the legend's, to the margin too
        margin={"l": 60, "r": 10, "t": 50, "b": 50},
        legend={
            "orientation": "h", "x": 0, "y": 1 + 36 / height, "yanchor": "bottom", "groupclick": "togglegroup",
            "maxheight": 1e5,  # never scrolled
        },
        hovermode="closest",
        **_BACKGROUND,
    )  # fmt: skip


_BACKGROUND = {"paper_bgcolor": CLEAR, "plot_bgcolor": CLEAR, "template": "plotly_white"}


def _log10(value: float | None) -> float | None:
    return round(log10(value), 3) if value and value > 0 else None


def _limits(runs: Sequence[Run]) -> tuple[float, float]:
    """Of the colours of both heat maps, as powers of ten."""
    norms = [norm for run in runs for column in run.norms.values() for norm in column if norm > 0] or [1.0]
    high = log10(max(norms))
    return max(log10(min(norms)), high - DECADES), high


def _coloraxis(runs: Sequence[Run]) -> dict[str, Any]:
    low, high = _limits(runs)
    powers = list(range(int(low // 1), int(-(-high // 1)) + 1))
    return {
        "colorscale": "Viridis",
        "cmin": low,
        "cmax": high,
        "colorbar": {
            "orientation": "h", "y": 1.0, "yanchor": "bottom", "thickness": 12, "tickvals": powers,
            "ticktext": [f"10<sup>{power}</sup>" for power in powers], "ticklabelposition": "outside top",
            "title": {"text": "gradient norm before clipping", "side": "top"},
        },
    }  # fmt: skip


def _all_layers(runs: Sequence[Run]) -> list[str]:
    """Those of the run with the most, in the model's order, then what only other runs have."""
    ordered = sorted(runs, key=lambda run: -len(run.layers))
    return list(dict.fromkeys(layer for run in ordered for layer in run.layers))


def chosen_updates(runs: Sequence[Run], count: int) -> list[int]:
    """At most `count` of the recorded updates: half of them evenly spread, half denser at the beginning."""
    steps = sorted({step for run in runs for step in run.steps})
    if len(steps) <= count:
        return steps
    half, last = count // 2, len(steps) - 1
    evenly = {round(i * last / (half - 1)) for i in range(half)}
    early = {round(last ** (i / (half - 1))) for i in range(half)}
    return [steps[i] for i in sorted(evenly | early)]


def _rows_at(run: Run, updates: Sequence[int]) -> list[int | None]:
    """Return the index of the last row at or before each update, and `None` after the run's end."""
    end = max(run.steps[-1], run.updates)
    rows = (bisect_right(run.steps, update) - 1 for update in updates)
    return [row if row >= 0 and update <= end else None for row, update in zip(rows, updates, strict=True)]


def _norms_at(run: Run, layer: str, rows: Sequence[int | None]) -> list[float | None]:
    column = run.norms.get(layer)
    return [None if row is None or column is None else _log10(column[row]) for row in rows]


def draw_layers(runs: Sequence[Run]) -> PlotlyFigure | None:
    """A heat map, layer × run, of the gradient norms at one update, with a slider over the updates."""
    need("plotly")
    from plotly.graph_objects import Figure, Heatmap

    runs = [run for run in runs if run.layers]
    if not runs:
        return None
    layers, updates = _all_layers(runs), chosen_updates(runs, SLIDER_STEPS)
    rows = [_rows_at(run, updates) for run in runs]
    columns = [[_norms_at(run, layer, each) for run, each in zip(runs, rows, strict=True)] for layer in layers]
    tables = [[[values[i] for values in layer] for layer in columns] for i in range(len(updates))]
    start = max((i for i, update in enumerate(updates) if update <= SHOWN_FIRST), default=0)
    names = names_of(runs)
    heat_map = Heatmap(
        x=[names[run] for run in runs],
        y=layers,
        z=tables[start],
        coloraxis="coloraxis",
        hovertemplate="%{x}<br>%{y}: 10<sup>%{z:.2f}</sup><extra></extra>",
    )
    steps = [
        {"method": "restyle", "label": str(update), "args": [{"z": [table]}]}
        for update, table in zip(updates, tables, strict=True)
    ]
    figure = Figure(heat_map)
    # One label an arm, in the middle of its seeds, and a line between arms.
    arms = by_configuration(runs)
    ends = list(accumulate(map(len, arms.values())))
    middles = [end - (len(seeds) + 1) / 2 for end, seeds in zip(ends, arms.values(), strict=True)]
    figure.update_layout(shapes=[_line_behind(end) for end in ends[:-1]])
    longest = max(map(len, arms))
    figure.update_layout(
        sliders=[
            {"active": start, "steps": steps, "currentvalue": {"prefix": "update "}, "pad": {"t": 6 * longest + 20}}
        ],
        **_lay_out_layers(runs, layers, 6 * longest + 90),
    )
    figure.update_xaxes(tickangle=-90, type="category", tickvals=middles, ticktext=list(arms), showgrid=False)
    return figure


def _line_behind(run: int) -> dict[str, Any]:
    ends = {"x0": run - 0.5, "x1": run - 0.5, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **ends, "line": {"color": ZONE, "width": 1}}


def draw_run(runs: Sequence[Run]) -> PlotlyFigure | None:
    """A heat map, layer × update, of one run: a trace for each of those that recorded any, the first is shown."""
    need("plotly")
    from plotly.graph_objects import Figure, Heatmap

    runs = [run for run in runs if run.layers]
    if not runs:
        return None
    names = names_of(runs)
    figure = Figure()
    for i, run in enumerate(runs):
        updates = chosen_updates([run], COLUMNS)
        rows = _rows_at(run, updates)
        table = [_norms_at(run, layer, rows) for layer in run.layers]
        hover = "update %{x}<br>%{y}: 10<sup>%{z:.2f}</sup><extra></extra>"
        style = {"name": names[run], "coloraxis": "coloraxis", "hovertemplate": hover}
        figure.add_trace(Heatmap(x=updates, y=run.layers, z=table, visible=i == 0, **style))
    figure.update_layout(**_lay_out_layers(runs, _all_layers(runs), 60))
    # No title of the axis: plotly lays it on the ticks' labels where a map is drawn later than the page.
    figure.add_annotation(text="update", x=0.5, y=0, xref="paper", yref="paper", yshift=-40, showarrow=False)
    return figure


def _lay_out_layers(runs: Sequence[Run], layers: list[str], below: int) -> dict[str, Any]:
    return {
        "coloraxis": _coloraxis(runs),
        "height": max(260, 16 * len(layers)) + 80 + below,
        "margin": {"l": 10, "r": 10, "t": 80, "b": below},
        "yaxis": {"type": "category", "automargin": True},
        **_BACKGROUND,
    }
