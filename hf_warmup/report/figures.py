"""The panels of a report, listed once and drawn twice: as PNG files by matplotlib and for the page by plotly."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from itertools import accumulate
from math import inf, isfinite, log10, nan
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from .._validation import check_name
from ..norms.grouping import find_stacks
from .comparison import by_configuration, common_metric, label, names_of
from .findings import DANGER_RATIO, records_of
from .run import UPDATE_PREFIXES, Run, Series, as_runs


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as PlotlyFigure


# The colours of Okabe & Ito, which colour-blind readers can tell apart. Grey replaces black, which a dark page hides.
COLORS = ("#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#7F7F7F", "#8C6D31")
# plotly's name of a dash -> matplotlib's.
DASHES = {"solid": "solid", "dash": (0, (5, 2)), "dashdot": "dashdot", "longdash": (0, (10, 3))}
ZONE = "#888888"  # marks the ratios of runs that stall; no configuration has this colour


def line_style(i: int) -> tuple[str, str]:
    """Return the colour and the dash of configuration `i`: each dash goes through all colours."""
    return COLORS[i % len(COLORS)], tuple(DASHES)[i // len(COLORS) % len(DASHES)]


def need(module: str) -> None:
    """Raise `ImportError` with the pip command if a library that draws is missing."""
    if find_spec(module) is None:
        raise ImportError(f"{module} is missing. Install it: pip install 'hf-warmup[plot]'")


# --- the panels ---


@dataclass(frozen=True)
class Panel:
    """One quantity over updates.

    Args:
        key (`str`): The stem of its PNG file.
        title (`str`): The heading.
        unit (`str`): The label of its axis.
        lines (`Callable[[Run], list[tuple[str, Series]]]`): The lines of a run: suffix of its name, and values.
        log (`bool`): Whether the axis is logarithmic.
        noisy (`bool`): Whether a single run is drawn as a running median with the range around it.
    """

    key: str
    title: str
    unit: str
    lines: Callable[[Run], list[tuple[str, Series]]]
    log: bool = False
    noisy: bool = False


def _rates(run: Run) -> list[tuple[str, Series]]:
    """The effective rate, those of further parameter groups, and the schedule's if the optimizer changes it."""
    lines = [("", run.learning_rates)]
    groups = [run.recorded(key) for key in run.recording.values if re.fullmatch(r"learning_rate/\d+", key)]
    lines += [(f", group {i}", group) for i, group in enumerate(groups, 1) if group != run.learning_rates]
    if not run.recorded("learning_rate") and run.scheduled_rates != run.learning_rates:
        lines.append((", schedule", run.scheduled_rates))
    return lines


def _ratio(run: Run) -> Series:
    """The highest ratio of all stacks at each update; an infinite one is drawn at a million."""
    highest: dict[int, float] = {}
    for steps, values in records_of(run).ratios.values():
        for step, value in zip(steps, values, strict=True):
            highest[step] = max(highest.get(step, 0.0), min(value, 1e6))
    return Series(sorted(highest), [highest[step] for step in sorted(highest)])


def _ratio_lines(run: Run) -> list[tuple[str, Series]]:
    return [("", _ratio(run))]


def _update_ratios(run: Run) -> list[tuple[str, Series]]:
    """The ratio of update to weights of the first and last block of each stack."""
    blocks = dict.fromkeys(block for stack in find_stacks(run.norms).values() for block in (stack[0], stack[-1]))
    return [(f", {block}", run.recorded(f"{UPDATE_PREFIXES[1]}{block}")) for block in blocks] or [("", Series([], []))]


PANELS = (
    Panel("learning_rate", "Effective learning rate", "learning rate", _rates),
    Panel("loss", "Training loss", "loss", lambda run: [("", run.losses)]),
    Panel("gradient_norm", "Gradient norm before clipping", "L2 norm", lambda run: [("", run.total_norm)], True, True),
    Panel("gradient_norm_ratio", "Gradient norm, last layer over first", "ratio", _ratio_lines, True),
    Panel("update_ratio", "Update over weights, first and last block", "ratio of norms", _update_ratios, True, True),
)  # fmt: skip


def panels_of(runs: Sequence[Run], keys: Sequence[str] = ()) -> list[Panel]:
    """Return the panels for which `runs` have values, with the common evaluation metric and further log `keys`."""
    metric = common_metric(runs)
    more = [Panel(re.sub(r"\W+", "_", key), key, key, _series_of(key)) for key in keys]
    if metric is not None and metric != "loss":
        more.insert(0, Panel("evaluation", f"Evaluation: {metric}", metric, _series_of(metric)))
    panels = [*PANELS[:2], *more, *PANELS[2:]]
    return [panel for panel in panels if any(panel.lines(run)[0][1] for run in runs)]


def _series_of(key: str) -> Callable[[Run], list[tuple[str, Series]]]:
    return lambda run: [("", run.recorded(key) or run.series(key))]


def is_logarithmic(panel: Panel, runs: Sequence[Run]) -> bool:
    """Return whether a panel needs a logarithmic axis: always, or because losses or peak rates differ by orders."""
    columns = [[value for value in panel.lines(run)[0][1].values if isfinite(value)] for run in runs]
    if panel.key == "loss":
        values = [value for column in columns for value in column]
        return bool(values) and min(values) > 0 and max(values) > 300 * min(values)
    peaks = [max(column) for column in columns if column]
    return panel.log or (panel.key == "learning_rate" and max(peaks, default=0.0) > 300 * min(peaks, default=1.0) > 0)


X_AXES = {"update": "update", "epoch": "epoch", "share": "share of the planned updates"}


def resolve_x(runs: Sequence[Run], x: str = "auto") -> str:
    """Return the horizontal axis: `"auto"` is `"share"` if the runs' lengths differ 20-fold, else `"update"`.

    Raises:
        `ValueError`: If there is no such axis.
    """
    if x == "auto":
        lengths = [run.updates for run in runs]
        return "share" if max(lengths) > 20 * min(lengths) else "update"
    return check_name("x", x, [*X_AXES, "auto"])


def x_values(run: Run, steps: Sequence[int], x: str) -> list[float]:
    """Return updates as epochs, as shares of the planned updates, or as they are.

    Raises:
        `ValueError`: If `run` logged no epochs.
    """
    if x == "update":
        return list(steps)
    if x == "share":
        return [step / (run.num_training_steps or run.updates) for step in steps]
    epochs, at = run.series("epoch").values, run.series("epoch").steps
    if not epochs or not at[-1]:
        raise ValueError(f"x='epoch': {run.name} logged no epochs.")
    return [step * epochs[-1] / at[-1] for step in steps]


# --- thinning ---


def thin(steps: Sequence[float], values: Sequence[float], limit: int) -> tuple[list[float], list[float]]:
    """Return about `limit` points of a series at most: the lowest and the highest of each stretch, so that spikes stay.

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


def _value(point: tuple[float, float]) -> float:
    return point[1]


def spread(length: int, count: int) -> list[int]:
    """Return at most `count` indices of a list: half of them evenly spread, half denser at the beginning.

    Example:

    ```python
    >>> spread(1000, 8)
    [0, 1, 10, 100, 333, 666, 999]

    ```
    """
    if length <= count:
        return list(range(length))
    half, last = max(2, count // 2), length - 1
    return sorted(
        {each for i in range(half) for each in (round(i * last / (half - 1)), round(last ** (i / (half - 1))))}
    )


Band = tuple[list[float], list[float], list[float], list[float]]


def envelope(steps: Sequence[float], values: Sequence[float], limit: int) -> Band:
    """Return positions, lowest, median and highest value of at most `limit` stretches of a series.

    Example:

    ```python
    >>> envelope(range(6), [1, 2, 9, 4, 5, 6], 2)
    ([1, 4], [1, 4], [2, 5], [9, 6])

    ```
    """
    points = [(step, value) for step, value in zip(steps, values, strict=True) if isfinite(value)]
    width = -(-len(points) // max(limit, 1)) or 1
    parts = [points[i : i + width] for i in range(0, len(points), width)]
    columns = [[value for _, value in part] for part in parts]
    return (
        [part[len(part) // 2][0] for part in parts],
        [*map(min, columns)],
        [*map(median, columns)],
        [*map(max, columns)],
    )


def band(series: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Band:
    """Return positions, lowest, mean and highest value of several series, where at least half of them have one.

    Example:

    ```python
    >>> band([([1, 2], [1.0, 3.0]), ([1, 2], [2.0, 5.0])])
    ([1, 2], [1.0, 3.0], [1.5, 4.0], [2.0, 5.0])

    ```
    """
    at: dict[float, list[float]] = {}
    for steps, values in series:
        for step, value in zip(steps, values, strict=True):
            if isfinite(value):
                at.setdefault(step, []).append(value)
    steps = sorted(step for step, values in at.items() if 2 * len(values) >= len(series))
    return (
        steps,
        [min(at[step]) for step in steps],
        [fmean(at[step]) for step in steps],
        [max(at[step]) for step in steps],
    )


# --- matplotlib ---

LEGEND = 40  # configurations beyond which a figure has no legend
HEAT_MAPS = 24  # configurations beyond which a figure has no further heat maps


def blank_figure(width: float, height: float) -> Figure:
    """Return an empty figure in the style of the report. A notebook shows it as a picture."""
    need("matplotlib")
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure that a notebook shows without pyplot."""

        def _repr_png_(self) -> bytes:
            from io import BytesIO

            buffer = BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()

    return Picture(figsize=(width, height), layout="constrained", dpi=150)


def blank_axes(
    figure: Figure, title: str, ylabel: str, xlabel: str = "update", place: tuple[int, int, int] = (1, 1, 1)
) -> Axes:
    """Add axes in the style of the report; `place` is matplotlib's (rows, columns, index)."""
    axes = figure.add_subplot(*place)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes


def plot_panel(runs: Any, panel: Panel, x: str = "auto") -> Figure:
    """Draw a panel with matplotlib: one line per run, one colour per configuration."""
    runs = as_runs(runs)
    x = resolve_x(runs, x)
    configurations = by_configuration(runs)
    has_legend = len(configurations) <= LEGEND
    figure = blank_figure(8, max(3.6, 0.18 * len(configurations) * has_legend + 0.3))  # as high as the legend
    axes = blank_axes(figure, panel.title, panel.unit, X_AXES[x])
    for i, (name, members) in enumerate(configurations.items()):
        color, dash = line_style(i)
        for j, run in enumerate(members):
            steps, values = panel.lines(run)[0][1]
            at, values = thin(x_values(run, steps, x), values, 2000)
            axes.plot(
                at, values, color=color, linestyle=DASHES[dash], linewidth=1.3, alpha=0.9,
                marker="." if len(at) < 3 else None, label=None if j else label(name).replace("$", r"\$"),
            )  # fmt: skip
            if marks := _rewinds(run, panel.lines(run)[0][1], x):
                axes.plot(*zip(*marks, strict=True), "v", color=color, markersize=6)
            if panel.key == "evaluation" and (best := run.best(panel.unit)):
                axes.plot(x_values(run, [best.step], x), [best.value], "*", color=color, markersize=9)
    if is_logarithmic(panel, runs):
        axes.set_yscale("log")
    if has_legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3)
    low, high = axes.get_ylim()
    if panel.key == "gradient_norm_ratio" and high > DANGER_RATIO:
        axes.axhspan(DANGER_RATIO, high, color=ZONE, alpha=0.15, linewidth=0)
        axes.text(0.01, 0.97, "early sign of stalling", transform=axes.transAxes, va="top", fontsize=8, color="#555555")
        axes.set_ylim(low, high)
    return figure


def _rewinds(run: Run, series: Series, x: str) -> list[tuple[float, float]]:
    """Return the points of a line at which the guard rewound the run."""
    at = [bisect_right(series.steps, step) - 1 for step in run.recorded("rewound_to").steps]
    steps = [series.steps[i] for i in at if i >= 0]
    return list(zip(x_values(run, steps, x), [series.values[i] for i in at if i >= 0], strict=True))


def plot_learning_rate(runs: Any, x: str = "auto") -> Figure:
    """Draw the effective learning rate: what an optimizer with a warmup of its own really used.

    Args:
        runs (`str`, `os.PathLike`, [`Run`], a Trainer, or a list of these): What to draw.
        x (`str`, defaults to `"auto"`): The horizontal axis: `"update"`, `"epoch"`, or `"share"` of the planned run.
            `"auto"` is the share if the lengths of the runs differ 20-fold, else the update.
    """
    return plot_panel(runs, PANELS[0], x)


def plot_loss(runs: Any, x: str = "auto") -> Figure:
    """Draw the training loss, one line per run; takes the arguments of [`plot_learning_rate`]."""
    return plot_panel(runs, PANELS[1], x)


def plot_ratio(runs: Any, x: str = "auto") -> Figure:
    """Draw the last block's gradient norm over the first's, with the zone that stalling runs enter early.

    A ratio in that zone within the first tens of updates is a sign of a run that will not learn, which can leave the
    zone later. Takes the arguments of [`plot_learning_rate`].
    """
    return plot_panel(runs, PANELS[3], x)


def plot_gradient_norms(runs: Any, columns: int = 3) -> Figure:
    """Draw a heat map (layer over update) of the gradient norms before clipping, of each configuration's first run.

    Of more than 24 configurations the first 24 are drawn.

    Args:
        runs (`str`, `os.PathLike`, [`Run`], a Trainer, or a list of these): What to draw.
        columns (`int`, defaults to 3): Heat maps side by side.
    """
    need("matplotlib")
    from matplotlib.colors import LogNorm

    firsts = {name: members[0] for name, members in by_configuration(as_runs(runs)).items() if members[0].blocks}
    firsts = dict(list(firsts.items())[:HEAT_MAPS])
    columns = max(1, min(columns, len(firsts)))
    rows = -(-len(firsts) // columns) or 1
    columns = max(1, -(-len(firsts) // rows))  # four are two and two, not three and one
    figure = blank_figure(3.3 * columns + 1.2, 2.3 * rows + 0.4)
    if not firsts:
        figure.text(0.5, 0.5, "no gradient norms were recorded", ha="center")
        return figure
    tables = {
        name: [[value or nan for value in run.norms[block]] for block in run.blocks] for name, run in firsts.items()
    }
    finite = [value for table in tables.values() for row in table for value in row if value == value]
    norm = LogNorm(min(finite), max(finite)) if finite else None
    ends = [(run.steps[0] - 0.5, run.steps[-1] + 0.5) for run in firsts.values()]
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(firsts) :]:
        axes.set_axis_off()
    for i, (axes, (name, table), extent) in enumerate(zip(grid.flat, tables.items(), ends, strict=False)):
        layers = len(table)
        image = axes.imshow(
            table, aspect="auto", norm=norm, cmap="viridis", origin="lower", interpolation="nearest",
            extent=(*extent, 0.5, layers + 0.5),
        )  # fmt: skip
        # The same axis for all: a run that ended early leaves the rest of its heat map blank.
        axes.set_xlim(min(start for start, _ in ends), max(end for _, end in ends))
        axes.set_title(label(name).replace("$", r"\$"), loc="left", fontsize=8)
        axes.set_yticks(range(1, layers + 1, -(-layers // 12)))
        axes.tick_params(labelsize=8)
        if i % columns == 0:
            axes.set_ylabel("layer", fontsize=9)
        if i + columns >= len(firsts):
            axes.set_xlabel("update", fontsize=9)
    figure.colorbar(image, ax=grid, label="gradient norm (dark: vanishing)", shrink=0.8)
    return figure


def draw_comparison(runs: Any, output_dir: str | Path, x: str = "auto", keys: Sequence[str] = ()) -> list[Path]:
    """Write a PNG file for each panel that has values, and the heat maps if norms were recorded.

    Args:
        runs (`str`, `os.PathLike`, [`Run`], a Trainer, or a list of these): What to draw.
        output_dir (`str` or `Path`): Where the files go.
        x (`str`, defaults to `"auto"`): The horizontal axis, as in [`plot_learning_rate`].
        keys (`Sequence[str]`, *optional*): Further keys of the log to draw.

    Returns:
        `list[Path]`: The files.
    """
    need("matplotlib")
    runs, output_dir = as_runs(runs), Path(output_dir)
    x = resolve_x(runs, x)
    output_dir.mkdir(parents=True, exist_ok=True)
    figures = {panel.key: plot_panel(runs, panel, x) for panel in panels_of(runs, keys)}
    if any(run.blocks for run in runs):
        figures["gradient_norms"] = plot_gradient_norms(runs)
    paths = [output_dir / f"{key}.png" for key in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path)
    return paths


# --- plotly ---

POINTS = 40_000  # of all curves together
MANY = 60  # runs beyond which single runs are not drawn beside their mean
CELLS = 100_000  # of each set of heat maps
PANEL_HEIGHT = 260  # pixels
LABELLED = 8  # configurations whose names are written at the ends of their lines
SHOWN_FIRST = 20  # the update at which runs that stall and runs that learn are easiest to tell apart
DECADES = 8  # below the highest value, that a logarithmic axis or a heat map shows
CLEAR = "rgba(0,0,0,0)"
_BACKGROUND = {"paper_bgcolor": CLEAR, "plot_bgcolor": CLEAR, "template": "plotly_white"}


def _text(name: str) -> str:
    """Return a name for plotly, whose labels interpret tags."""
    return escape(name, quote=False)


def draw_curves(runs: Sequence[Run], x: str = "auto", keys: Sequence[str] = ()) -> PlotlyFigure | None:
    """Draw the panels with plotly: per configuration the mean of its runs with their range, or the one run's line.

    The lines of the single runs are hidden; `meta.single` tells them apart.
    """
    need("plotly")
    from plotly.subplots import make_subplots

    panels, x = panels_of(runs, keys), resolve_x(runs, x)
    if not panels:
        return None
    figure = make_subplots(
        len(panels), 1, shared_xaxes=True, vertical_spacing=60 / (PANEL_HEIGHT * len(panels)),
        subplot_titles=[_text(panel.title) for panel in panels],
    )  # fmt: skip
    figure.update_annotations(x=0, xanchor="left", font_size=14)
    configurations = by_configuration(runs)
    drawn_lines = 3 * len(configurations) + (len(runs) if len(runs) <= MANY else 0)
    limit = min(600, max(24, POINTS // (drawn_lines * len(panels))))
    names = names_of(runs)
    for row, panel in enumerate(panels, 1):
        ends = {}
        for i, (name, members) in enumerate(configurations.items()):
            painter = _Painter(figure, row, i, _text(label(name)), limit)
            drawn = [
                (run, suffix, x_values(run, s.steps, x), s.values) for run in members for suffix, s in panel.lines(run)
            ]
            drawn = [each for each in drawn if each[2]]
            first = [(at, values) for _, suffix, at, values in drawn if not suffix]
            if not first:
                continue
            if len(members) > 1:
                ends[i] = painter.add_band(band(first), "mean")
            elif panel.noisy and len(first[0][0]) > 2 * limit // 3:
                ends[i] = painter.add_band(envelope(*first[0], limit // 3), "median")
            for run, suffix, at, values in drawn:
                hidden = i in ends and not suffix
                if hidden and len(runs) > MANY:
                    continue
                end = painter.add_line(at, values, _text(names[run] + suffix), single=hidden, dotted=bool(suffix))
                ends.setdefault(i, end)
            if panel.key == "evaluation":
                at, _, middle, _ = band(first)
                pick = max if members[0].greater_is_better(panel.unit) else min
                best = [pick(zip(at, middle, strict=True), key=_value)] if at else []
                painter.add_marks(best, "best", symbol="star", size=11)
            for run in members if len(runs) <= MANY else ():
                marks = _rewinds(run, panel.lines(run)[0][1], x)
                painter.add_marks(marks, f"{names[run]} is rewound", symbol="triangle-down", size=9)
        _lay_out_panel(figure, row, panel, runs, ends, list(configurations))
    figure.update_xaxes(title_text=X_AXES[x], row=len(panels))
    figure.update_xaxes(showticklabels=True, automargin=False)
    figure.update_layout(
        height=PANEL_HEIGHT * len(panels) + 60, margin={"l": 60, "r": 12, "t": 30, "b": 45}, showlegend=False,
        hovermode="closest", **_BACKGROUND,
    )  # fmt: skip
    return figure


@dataclass
class _Painter:
    """Adds the lines of one configuration to one panel."""

    figure: PlotlyFigure
    row: int
    index: int
    name: str
    limit: int

    def _add(self, x: Sequence[float], y: Sequence[float], said: str, single: bool = False, **style: Any) -> None:
        self.figure.add_scatter(
            x=[_rounded(value) for value in x], y=[_rounded(value) for value in y],
            meta={"configuration": self.index, "single": single, "name": said},
            hovertemplate="%{meta.name}<br>%{x}: %{y:.4g}<extra></extra>", row=self.row, col=1, **style,
        )  # fmt: skip

    def add_line(self, x: Sequence[float], y: Sequence[float], name: str, single: bool, dotted: bool) -> float:
        """Add a line of a run; returns its last value."""
        at, values = thin(x, y, self.limit)
        color, dash = line_style(self.index)
        line = {"color": color, "dash": "dot" if dotted else dash, "width": 1 if single or dotted else 1.8}
        self._add(
            at, values, name, single, mode="lines" if len(at) > 2 else "lines+markers", line=line,
            visible=not single, opacity=0.6 if single else 1,
        )  # fmt: skip
        return values[-1] if values else nan

    def add_band(self, columns: Band, what: str) -> float:
        """Add the middle line and the range around it; returns its last value."""
        at, low, middle, high = columns
        kept = spread(len(at), self.limit)
        at, low, middle, high = ([column[i] for i in kept] for column in (at, low, middle, high))
        color, dash = line_style(self.index)
        if any(a != b for a, b in zip(low, high, strict=True)):
            fill: dict[str, Any] = {
                "fill": "toself",
                "fillcolor": color,
                "opacity": 0.18,
                "line": {"width": 0},
                "hoverinfo": "skip",
            }
            self._add([*at, *reversed(at)], [*high, *reversed(low)], self.name, mode="lines", **fill)
        line = {"color": color, "dash": dash, "width": 2}
        self._add(at, middle, f"{self.name}, {what}", mode="lines" if len(at) > 2 else "lines+markers", line=line)
        return middle[-1] if middle else nan

    def add_marks(self, points: Sequence[tuple[float, float]], what: str, **marker: Any) -> None:
        """Add a marker for each point."""
        for x, y in points:
            style = {"color": line_style(self.index)[0], **marker}
            self._add([x], [y], f"{self.name}, {_text(what)}", mode="markers", marker=style)


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if isfinite(value) else None


def _lay_out_panel(
    figure: PlotlyFigure, row: int, panel: Panel, runs: Sequence[Run], ends: dict[int, float], names: list[str]
) -> None:
    """Set the axis of a panel, and write the configurations' names at the ends of their lines."""
    log = is_logarithmic(panel, runs)
    values = [
        v for trace in figure.data if trace.yaxis == f"y{row if row > 1 else ''}" for v in trace.y if v is not None
    ]
    values = [log10(value) if log else value for value in values if isfinite(value) and (value > 0 or not log)] or [0.0]
    low, high = min(values), max(values)
    low = max(low, high - DECADES) if log else low  # a rate that decays to 0 has no lowest power of ten
    if panel.key == "gradient_norm_ratio":
        low, high = min(low, log10(0.5)), max(high, log10(3 * DANGER_RATIO))
    elif not log and low >= 0 and low < 0.5 * high:
        low = 0.0
    room = 0.06 * (high - low) or abs(high) or 1.0
    low, high = (low if low == 0 and not log else low - room), high + room
    figure.update_yaxes(
        title_text=_text(panel.unit),
        type="log" if log else "linear",
        dtick=1 if log and high - low > 1.2 else None,
        exponentformat="power",
        range=[low, high],
        row=row,
    )
    if panel.key == "gradient_norm_ratio":
        zone = {"fillcolor": ZONE, "opacity": 0.15, "line_width": 0, "layer": "below"}
        figure.add_hrect(y0=DANGER_RATIO, y1=10**high, row=row, col=1, **zone)
        figure.add_hline(y=DANGER_RATIO, row=row, col=1, line={"color": ZONE, "width": 1, "dash": "dot"})
        figure.add_annotation(
            text="stalling", x=0, xref="x domain", xanchor="left", y=log10(DANGER_RATIO), yanchor="bottom",
            showarrow=False, font={"size": 11, "color": ZONE}, row=row, col=1,
        )  # fmt: skip
    if not 1 < len(names) <= LABELLED:
        return
    axis = "" if row == 1 else str(row)
    at = {
        i: log10(end) if log and end > 0 else end for i, end in ends.items() if isfinite(end) and (end > 0 or not log)
    }
    for i, y in spread_labels(at, 15 * (high - low) / (PANEL_HEIGHT - 60), low, high).items():
        figure.add_annotation(
            text=_text(label(names[i])), x=1.005, xref="paper", xanchor="left", y=y, yref=f"y{axis}", showarrow=False,
            font={"size": 12, "color": line_style(i)[0]}, name=f"end-{i}",
        )  # fmt: skip


def spread_labels(positions: dict[int, float], gap: float, low: float, high: float) -> dict[int, float]:
    """Return positions that are at least `gap` apart, in the same order and within [low, high] if they fit.

    Example:

    ```python
    >>> spread_labels({0: 1.0, 1: 1.1, 2: 5.0}, 1.0, 0.0, 6.0)
    {0: 1.0, 1: 2.0, 2: 5.0}

    ```
    """
    order = sorted(positions, key=positions.__getitem__)
    placed, last = {}, -inf
    for key in order:
        placed[key] = last = max(positions[key], last + gap, low)
    top = high
    for key in reversed(order):
        placed[key] = min(placed[key], top)
        top = placed[key] - gap
    return {key: placed[key] for key in positions}


# --- heat maps ---


def _log10(value: float) -> float | None:
    return round(log10(value), 2) if value > 0 and isfinite(value) else None


def _coloraxis(runs: Sequence[Run]) -> dict[str, Any]:

    def norms() -> Iterator[float]:  # no list: there may be fifty million
        return (norm for run in runs for column in run.norms.values() for norm in column if norm > 0)

    high = log10(max(norms(), default=1.0))
    low = max(log10(min(norms(), default=1.0)), high - DECADES)
    powers = range(int(low // 1), int(-(-high // 1)) + 1)
    ticks = {float(power): f"10<sup>{power}</sup>" for power in powers}
    if high - low < 1.5:  # too few powers of ten to read a value from
        ticks = {power + log10(digit): f"{digit * 10.0**power:g}" for power in powers for digit in (1, 2, 5)}
    return {
        "colorscale": "Viridis", "cmin": low, "cmax": high,
        "colorbar": {
            "orientation": "h", "y": 1.0, "yanchor": "bottom", "thickness": 12, "tickvals": list(ticks),
            "ticktext": list(ticks.values()), "ticklabelposition": "outside top",
            "title": {"text": "gradient norm (dark: vanishing)", "side": "top"},
        },
    }  # fmt: skip


def _all_layers(runs: Sequence[Run]) -> list[str]:
    """Return the layers of the run with the most, in the model's order, then those that only other runs have."""
    ordered = sorted(runs, key=lambda run: -len(run.layers))
    return list(dict.fromkeys(layer for run in ordered for layer in run.layers))


def chosen_updates(runs: Sequence[Run], count: int) -> list[int]:
    """Return at most `count` of the recorded updates, denser at the beginning."""
    steps = sorted({step for run in runs for step in run.steps})
    return [steps[i] for i in spread(len(steps), count)]


def _rows_at(run: Run, updates: Sequence[int]) -> list[int | None]:
    """Return the index of the last row at or before each update, and `None` after the run's end."""
    end = max(run.steps[-1], run.updates)
    rows = (bisect_right(run.steps, update) - 1 for update in updates)
    return [row if row >= 0 and update <= end else None for row, update in zip(rows, updates, strict=True)]


def _norms_at(run: Run, layer: str, rows: Sequence[int | None]) -> list[float | None]:
    column = run.norms.get(layer)
    return [None if row is None or column is None else _log10(column[row]) for row in rows]


def draw_layers(runs: Sequence[Run]) -> tuple[PlotlyFigure, dict[str, Any]] | None:
    """Draw a heat map, layer over run, of the gradient norms at one update.

    Returns:
        `tuple[Figure, dict]`, *optional*: The figure and what the page's slider needs: `updates`, one table for each in
        `tables`, and the index `shown`. `None` if fewer than two runs recorded norms, or a model has one layer only.
    """
    need("plotly")
    from plotly.graph_objects import Figure, Heatmap

    runs = [run for run in runs if run.layers]
    layers = _all_layers(runs)
    if len(runs) < 2 or len(layers) < 2:
        return None
    updates = chosen_updates(runs, max(6, min(60, CELLS // (len(layers) * len(runs)))))
    rows = [_rows_at(run, updates) for run in runs]
    columns = [[_norms_at(run, layer, each) for run, each in zip(runs, rows, strict=True)] for layer in layers]
    tables = [[[values[i] for values in layer] for layer in columns] for i in range(len(updates))]
    shown = max((i for i, update in enumerate(updates) if update <= SHOWN_FIRST), default=0)
    names = names_of(runs)
    figure = Figure(
        Heatmap(
            x=[_text(names[run]) for run in runs], y=[_text(layer) for layer in layers], z=tables[shown],
            coloraxis="coloraxis", hovertemplate="%{x}<br>%{y}: 10<sup>%{z:.2f}</sup><extra></extra>",
        )
    )  # fmt: skip
    # One label per configuration, in the middle of its runs, and a line between configurations.
    groups = by_configuration(runs)
    ends = list(accumulate(map(len, groups.values())))
    middles = [end - (len(members) + 1) / 2 for end, members in zip(ends, groups.values(), strict=True)]
    labels = [_text(_shortened(label(name))) for name in groups]
    figure.update_layout(
        shapes=[_line_after(end) for end in ends[:-1]], **_lay_out_layers(runs, layers, 6 * max(map(len, labels)) + 30)
    )
    figure.update_xaxes(tickangle=-90, type="category", tickvals=middles, ticktext=labels, showgrid=False)
    return figure, {"updates": updates, "tables": tables, "shown": shown}


def _shortened(name: str, length: int = 32) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _line_after(run: int) -> dict[str, Any]:
    ends = {"x0": run - 0.5, "x1": run - 0.5, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **ends, "line": {"color": ZONE, "width": 1}}


def draw_run(runs: Sequence[Run]) -> PlotlyFigure | None:
    """Draw a heat map, layer over update, for each run that recorded norms; the first one is visible."""
    need("plotly")
    from plotly.graph_objects import Figure, Heatmap

    runs = [run for run in runs if len(run.layers) > 1]
    if not runs:
        return None
    names, figure = names_of(runs), Figure()
    cells = CELLS // (len(_all_layers(runs)) * len(runs))
    for i, run in enumerate(runs):
        updates = chosen_updates([run], max(12, min(200, cells)))
        rows = _rows_at(run, updates)
        figure.add_trace(
            Heatmap(
                x=updates, y=[_text(layer) for layer in run.layers],
                z=[_norms_at(run, layer, rows) for layer in run.layers], name=_text(names[run]), coloraxis="coloraxis",
                hovertemplate="update %{x}<br>%{y}: 10<sup>%{z:.2f}</sup><extra></extra>", visible=i == 0,
            )
        )  # fmt: skip
    figure.update_layout(**_lay_out_layers(runs, _all_layers(runs), 60))
    # An annotation, because plotly puts the axis title over the tick labels of a heat map that becomes visible later.
    figure.add_annotation(text="update", x=0.5, y=0, xref="paper", yref="paper", yshift=-40, showarrow=False)
    return figure


def _lay_out_layers(runs: Sequence[Run], layers: list[str], below: int) -> dict[str, Any]:
    return {
        "coloraxis": _coloraxis(runs),
        "height": max(240, 16 * len(layers)) + 80 + below,
        "margin": {"l": 10, "r": 10, "t": 80, "b": below},
        "yaxis": {"type": "category", "automargin": True, "autorange": "reversed"},
        **_BACKGROUND,
    }
