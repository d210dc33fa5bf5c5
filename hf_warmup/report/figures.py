"""The panels of a report, listed once and drawn twice: as PNG files by matplotlib and for the page by plotly."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from io import BytesIO
from itertools import accumulate
from math import inf, isfinite, log10, nan
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from .._validation import check_name
from .comparison import by_configuration, common_metric, names_of, short_label
from .findings import DANGER_RATIO, records_of
from .run import UPDATE_PREFIXES, Run, Series, find_runs


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as PlotlyFigure


# The colours of Okabe & Ito, which colour-blind readers can tell apart. Grey replaces black, which a dark page hides.
COLORS = ("#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#7F7F7F", "#8C6D31")
# plotly's name of a dash -> matplotlib's.
DASHES = {"solid": "solid", "dash": (0, (5, 2)), "dashdot": "dashdot", "longdash": (0, (10, 3)), "dot": "dotted"}
ZONE = "#888888"  # marks the ratios of runs that stall; no configuration has this colour
NORM = "gradient norm (dark: vanishing)"


def line_style(i: int) -> tuple[str, str]:
    """Return the colour and the dash of configuration `i`: each dash but dots goes through all colours."""
    return COLORS[i % len(COLORS)], tuple(DASHES)[i // len(COLORS) % 4]


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


def _ratio(run: Run) -> list[tuple[str, Series]]:
    """The ratio of last to first block; an infinite one is drawn at a million."""
    steps, ratios = run.ratio()
    return [("", Series(steps, [min(ratio, 1e6) for ratio in ratios]))]


def _update_ratios(run: Run) -> list[tuple[str, Series]]:
    """The ratio of update to weights of the last block, and of the first block and of further stacks' ends."""
    blocks = dict.fromkeys(block for stack in records_of(run).stacks.values() for block in (stack[-1], stack[0]))
    ratios = {block: run.recorded(f"{UPDATE_PREFIXES[1]}{block}") for block in blocks}
    lines = [(f", {block}" if i else "", series) for i, (block, series) in enumerate(ratios.items())]
    return lines or [("", Series([], []))]


PANELS = (
    Panel("learning_rate", "Effective learning rate", "learning rate", _rates),
    Panel("loss", "Training loss", "loss", lambda run: [("", run.losses)]),
    Panel("gradient_norm", "Gradient norm before clipping", "L2 norm", lambda run: [("", run.total_norm)], True, True),
    Panel("gradient_norm_ratio", "Ratio of gradient norms (grey: stalling)", "last layer over first", _ratio, True),
    Panel("update_ratio", "Update over weights, last block (dotted: first)", "ratio", _update_ratios, True, True),
)  # fmt: skip


def panels_of(runs: Sequence[Run], keys: Sequence[str] = ()) -> list[Panel]:
    """Return the panels for which `runs` have values, with the common evaluation metric and further `keys`.

    Raises:
        `ValueError`: If no run logged or recorded one of `keys`.
    """
    known = {key for run in runs for entry in (*run.log_history, run.recording.values) for key in entry} - {"step"}
    for key in keys:
        check_name("keys", key, known)
    metric = common_metric(runs)
    more = [Panel(re.sub(r"\W+", "_", key), key, key, _series_of(key)) for key in keys]
    evaluated = [run.evaluations[metric].steps for run in runs if metric in run.evaluations]
    if metric and any(steps[0] < steps[-1] for steps in evaluated):  # one evaluation is no curve
        more.insert(0, Panel("evaluation", f"Evaluation: {metric}", metric, _series_of(metric)))
    panels = [*PANELS[:2], *more, *PANELS[2:]]
    return [panel for panel in panels if any(panel.lines(run)[0][1] for run in runs)]


def _series_of(key: str) -> Callable[[Run], list[tuple[str, Series]]]:
    return lambda run: [("", run.recorded(key) or run.series(key))]


def is_logarithmic(panel: Panel, runs: Sequence[Run]) -> bool:
    """Return whether a panel needs a logarithmic axis: always, or because losses or peak rates differ by orders."""
    columns = [[value for value in panel.lines(run)[0][1].values if isfinite(value)] for run in runs]
    if panel.key == "learning_rate":
        columns = [[max(column)] for column in columns if column]
    values = [value for column in columns for value in column]
    return panel.log or (bool(values) and 0 < 300 * min(values) < max(values))


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

Point = tuple[float, float]
Band = tuple[list[float], list[float], list[float], list[float]]


def _stretches(steps: Sequence[float], values: Sequence[float], count: int) -> list[list[Point]]:
    """Return the finite points of a series in at most `count` stretches of the same number of points."""
    points = [(step, value) for step, value in zip(steps, values, strict=True) if isfinite(value)]
    width = -(-len(points) // max(count, 1)) or 1
    return [points[i : i + width] for i in range(0, len(points), width)]


def thin(steps: Sequence[float], values: Sequence[float], limit: int) -> tuple[list[float], list[float]]:
    """Return about `limit` points of a series at most: the lowest and the highest of each stretch, so that spikes stay.

    Example:

    ```python
    >>> thin(range(8), [0, 1, 9, 1, 3, 1, -5, 1], 4)
    ([0, 2, 4, 6, 7], [0, 9, 3, -5, 1])

    ```
    """
    parts = _stretches(steps, values, max(limit // 2, 1))
    kept = {point for part in parts for point in (min(part, key=_value), max(part, key=_value))}
    if parts:
        kept |= {parts[0][0], parts[-1][-1]}
    return [step for step, _ in sorted(kept)], [value for _, value in sorted(kept)]


def _value(point: Point) -> float:
    return point[1]


def envelope(steps: Sequence[float], values: Sequence[float], limit: int) -> Band:
    """Return positions, lowest, median and highest value of at most `limit` stretches of a series.

    Example:

    ```python
    >>> envelope(range(6), [1, 2, 9, 4, 5, 6], 2)
    ([1, 4], [1, 4], [2, 5], [9, 6])

    ```
    """
    parts = _stretches(steps, values, limit)
    columns = [[value for _, value in part] for part in parts]
    positions = [part[len(part) // 2][0] for part in parts]
    return positions, [*map(min, columns)], [*map(median, columns)], [*map(max, columns)]


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
    columns = [at[step] for step in steps]
    return steps, [*map(min, columns)], [*map(fmean, columns)], [*map(max, columns)]


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


def round_updates(first: int, last: int, count: int) -> list[int]:
    """Return at most about `count` round numbers from `first` to `last`, denser at the beginning, and `last`.

    Example:

    ```python
    >>> round_updates(1, 400, 20)
    [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 400]

    ```
    """
    powers = range(len(str(last)))
    numbers = [int(digit * 10**power) for power in powers for digit in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    found = sorted({each for each in numbers if first <= each < last})
    return [*found[:: -(-len(found) // max(1, count - 1)) or 1], last]


# --- matplotlib ---

SYMBOLS = {"star": "*", "triangle-down": "v", "diamond": "D"}  # plotly's name of a symbol -> matplotlib's
LEGEND = 40  # configurations beyond which a figure has no legend
HEAT_MAPS = 24  # configurations beyond which a figure has no further heat maps


def blank_figure(width: float, height: float) -> Figure:
    """Return an empty figure in the style of the report. A notebook shows it as a picture."""
    need("matplotlib")
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure that a notebook shows without pyplot."""

        def _repr_png_(self) -> bytes:
            return png(self)

    return Picture(figsize=(width, height), layout="constrained", dpi=150)


def png(figure: Figure, **options: Any) -> bytes:
    """Return a figure as the bytes of a PNG file; `options` are matplotlib's, such as `dpi`."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", **options)
    return buffer.getvalue()


def blank_axes(
    figure: Figure, title: str, ylabel: str, xlabel: str = "update", place: tuple[int, int, int] = (1, 1, 1)
) -> Axes:
    """Add axes in the style of the report; `place` is matplotlib's (rows, columns, index)."""
    axes = figure.add_subplot(*place)
    axes.set_title(title.replace("$", r"\$"), loc="left", fontsize=11)
    axes.set(xlabel=xlabel, ylabel=ylabel.replace("$", r"\$"))  # a metric of any name, no formula
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes


def plot_panel(runs: Any, panel: Panel, x: str = "auto") -> Figure:
    """Draw a panel with matplotlib, as [`draw_curves`] draws it for the page."""
    runs = find_runs(runs)
    x, configurations, names = resolve_x(runs, x), by_configuration(runs), names_of(runs)
    labels = list(configurations)
    has_legend = len(labels) <= LEGEND
    figure = blank_figure(8, max(3.6, 0.18 * len(labels) * has_legend + 0.3))  # as high as the legend
    axes = blank_axes(figure, panel.title, panel.unit, X_AXES[x])
    for i, members in enumerate(configurations.values()):
        color, dash = line_style(i)
        axes.plot([], [], color=color, linestyle=DASHES[dash], label=plain(labels[i]))
        for trace in _traces(panel, i, labels, members, names, x, 2000):
            at, values, line = trace["x"], trace["y"], trace.get("line", {})
            if "fill" in trace:
                axes.fill(at, values, color=color, alpha=trace["opacity"], linewidth=0)
            elif "marker" in trace:
                axes.plot(at, values, SYMBOLS[trace["marker"]["symbol"]], color=color, markersize=6)
            elif not trace["meta"]["single"]:
                marker = "." if len(at) < 3 else None
                axes.plot(
                    at, values, color=color, linestyle=DASHES[line["dash"]], linewidth=line["width"], marker=marker
                )
    if is_logarithmic(panel, runs):
        axes.set_yscale("log")
    if has_legend:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3)
    if panel.key == "gradient_norm_ratio":
        low, high = axes.get_ylim()
        axes.set_ylim(low, max(high, 3 * DANGER_RATIO))
        axes.axhspan(DANGER_RATIO, axes.get_ylim()[1], color=ZONE, alpha=0.15, linewidth=0)
    return figure


def plain(name: str) -> str:
    """Return a name for matplotlib, which sets text between dollar signs as a formula."""
    return name.replace("$", r"\$")


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


def plot_gradient_norms(runs: Any) -> Figure:
    """Draw a heat map (layer over update) of the gradient norms before clipping, of each configuration's first run.

    Of more than 24 configurations the first 24 are drawn.

    Args:
        runs (`str`, `os.PathLike`, [`Run`], a Trainer, or a list of these): What to draw.
    """
    need("matplotlib")
    from matplotlib.colors import LogNorm

    firsts = {name: members[0] for name, members in by_configuration(runs).items() if members[0].blocks}
    firsts = dict(list(firsts.items())[:HEAT_MAPS])
    rows = -(-len(firsts) // 3) or 1
    columns = max(1, -(-len(firsts) // rows))  # four are two and two, not three and one
    figure = blank_figure(3.3 * columns + 1.2, 2.3 * rows + 0.4)
    if not firsts:
        figure.text(0.5, 0.5, "no gradient norms were recorded", ha="center")
        return figure
    tables = [[[value or nan for value in run.norms[block]] for block in run.blocks] for run in firsts.values()]
    finite = [value for table in tables for row in table for value in row if value == value]
    norm = LogNorm(min(finite), max(finite)) if finite else None
    ends = [(run.steps[0] - 0.5, run.steps[-1] + 0.5) for run in firsts.values()]
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(firsts) :]:
        axes.set_axis_off()
    for i, (axes, name, table, extent) in enumerate(zip(grid.flat, firsts, tables, ends, strict=False)):
        layers = len(table)
        image = axes.imshow(
            table, aspect="auto", norm=norm, cmap="viridis", origin="lower", interpolation="nearest",
            extent=(*extent, 0.5, layers + 0.5),
        )  # fmt: skip
        # The same axis for all: a run that ended early leaves the rest of its heat map blank.
        axes.set_xlim(min(start for start, _ in ends), max(end for _, end in ends))
        axes.set_title(plain(name), loc="left", fontsize=8)
        axes.set_yticks(range(1, layers + 1, -(-layers // 12)))
        axes.tick_params(labelsize=8)
        axes.set_ylabel("layer" if i % columns == 0 else "", fontsize=9)
        axes.set_xlabel("update" if i + columns >= len(firsts) else "", fontsize=9)
    figure.colorbar(image, ax=grid, label=NORM, shrink=0.8)
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
    runs, output_dir = find_runs(runs), Path(output_dir)
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
LABELLED = 8  # configurations that have their names at the ends of their lines, and bands around them
SHOWN_FIRST = 20  # the update at which runs that stall and runs that learn are easiest to tell apart
DECADES = 8  # below the highest value, that a logarithmic axis or a heat map shows
# Recorded keys of updates that are marked on a line: the symbol, and what happened.
MARKS = {"rewound_to": ("triangle-down", "is rewound"), "num_processes": ("diamond", "changes its number of processes")}
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
    lines = 3 * len(configurations) + (len(runs) if len(runs) <= MANY else 0)
    limit = min(600, max(24, POINTS // (lines * len(panels))))
    names = names_of(runs) if len(runs) <= MANY else {}
    labels = list(configurations)
    for row, panel in enumerate(panels, 1):
        traces = [
            trace
            for i, members in enumerate(configurations.values())
            for trace in _traces(panel, i, labels, members, names, x, limit)
        ]
        for trace in traces:
            trace["meta"]["name"] = _text(trace["meta"]["name"])
            figure.add_scatter(row=row, col=1, **trace)
        _lay_out_panel(figure, row, panel, is_logarithmic(panel, runs), traces, [*configurations])
    figure.update_xaxes(title_text=X_AXES[x], row=len(panels))
    figure.update_xaxes(showticklabels=True, automargin=False)
    figure.update_layout(
        height=PANEL_HEIGHT * len(panels) + 60, margin={"l": 60, "r": 12, "t": 30, "b": 45}, showlegend=False,
        hovermode="closest", **_BACKGROUND,
    )  # fmt: skip
    return figure


def _traces(
    panel: Panel, i: int, labels: list[str], members: list[Run], names: Mapping[Run, str], x: str, limit: int
) -> list[dict[str, Any]]:
    """Return what a panel shows of configuration `i`: middle line and range, the runs' lines, marks.

    Runs that have no name in `names` are not drawn beside their mean.
    """
    color, dash = line_style(i)

    def trace(at: Sequence[float], values: Sequence[float], name: str, **style: Any) -> dict[str, Any]:
        return {
            "x": [_rounded(value) for value in at], "y": [_rounded(value) for value in values],
            "mode": "lines" if len(at) > 2 else "lines+markers",
            "meta": {"configuration": i, "single": style.get("visible") is False, "name": name},
            "hovertemplate": "%{meta.name}<br>%{x}: %{y:.4g}<extra></extra>", **style,
        }  # fmt: skip

    def mark(at: Sequence[float], values: Sequence[float], name: str, symbol: str) -> dict[str, Any]:
        return trace(at, values, name, mode="markers", marker={"color": color, "symbol": symbol, "size": 10})

    found = [(run, suffix, series) for run in members for suffix, series in panel.lines(run) if series]
    drawn = [(names.get(run, labels[i]) + suffix, x_values(run, s.steps, x), s.values) for run, suffix, s in found]
    first = [each[1:] for each, (_, suffix, _) in zip(drawn, found, strict=True) if not suffix]
    traces, middle, what = [], _middle(panel, first, limit), "mean" if len(first) > 1 else "median"
    if middle:
        at, low, line, high = middle
        if low != high and len(labels) <= LABELLED:
            (above, top), (below, bottom) = thin(at, high, limit), thin(at, low, limit)
            shape = {"fill": "toself", "fillcolor": color, "opacity": 0.18, "line": {"width": 0}, "hoverinfo": "skip"}
            traces.append(trace([*above, *reversed(below)], [*top, *reversed(bottom)], labels[i], **shape))
        style = {"color": color, "dash": dash, "width": 2 if len(labels) <= LABELLED else 1.2}
        traces.append(trace(*thin(at, line, limit), f"{labels[i]}, {what}", line=style))
    for (run, suffix, _), (name, at, values) in zip(found, drawn, strict=True):
        single = middle is not None and not suffix
        style = {"color": color, "dash": "dot" if suffix else dash, "width": 1 if single or suffix else 1.8}
        if run in names or not single:
            opacity = 0.6 if single else 1
            traces.append(trace(*thin(at, values, limit), name, line=style, visible=not single, opacity=opacity))
    if panel.key == "evaluation":
        pick = max if members[0].greater_is_better(panel.unit) else min
        for at, values in [(middle[0], middle[2])] if middle else first:
            step, value = pick(zip(at, values, strict=True), key=_value)
            traces.append(mark([step], [value], f"{labels[i]}, best", "star"))
    for run, series in ((run, series) for run, suffix, series in found if run in names and not suffix):
        for key, (symbol, event) in MARKS.items():
            places = [bisect_right(series.steps, step) - 1 for step in run.recorded(key).steps]
            if places := [k for k in places if k >= 0]:
                at = x_values(run, [series.steps[k] for k in places], x)
                traces.append(mark(at, [series.values[k] for k in places], f"{names[run]} {event}", symbol))
    return traces


def _middle(panel: Panel, series: Sequence[tuple[Sequence[float], Sequence[float]]], limit: int) -> Band | None:
    """Return the mean of several series, the running median of a noisy one, or `None` if the lines themselves say more.

    They do for runs that were evaluated at different updates, of which there is hardly a mean.
    """
    longest = max((len(at) for at, _ in series), default=0)
    if len(series) > 1:
        middle = band(series)
        return middle if 2 * len(middle[0]) > longest else None
    return envelope(*series[0], limit // 3) if panel.noisy and longest > 2 * limit // 3 else None


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if isfinite(value) else None


def _lay_out_panel(
    figure: PlotlyFigure, row: int, panel: Panel, log: bool, traces: list[dict[str, Any]], names: list[str]
) -> None:
    """Set the axis of a panel, and write the configurations' names at the ends of their lines."""
    scale = log10 if log else float
    known = [value for trace in traces for value in trace["y"] if value is not None]
    values = [scale(value) for value in known if value > 0 or not log] or [0.0]
    low, high = min(values), max(values)
    low = max(low, high - DECADES) if log else low  # a rate that decays to 0 has no lowest power of ten
    if panel.key == "gradient_norm_ratio":
        low, high = min(low, log10(0.5)), max(high, log10(3 * DANGER_RATIO))
    elif not log and 0 <= low < 0.5 * high:
        low = 0.0
    room = 0.06 * (high - low) or abs(high) or 1.0
    low, high = (low if low == 0 and not log else low - room), high + room
    figure.update_yaxes(
        title_text=_text(panel.unit), type="log" if log else "linear", dtick=1 if log and high - low > 1.2 else None,
        exponentformat="power", range=[low, high], row=row,
    )  # fmt: skip
    note = {"showarrow": False, "xanchor": "left", "font": {"size": 12, "color": ZONE}}
    if panel.key == "gradient_norm_ratio":
        zone = {"fillcolor": ZONE, "opacity": 0.15, "line_width": 0, "layer": "below"}
        figure.add_hrect(y0=DANGER_RATIO, y1=10**high, row=row, col=1, **zone)
    ends: dict[int, float] = {}
    for trace in traces:
        if "fill" not in trace and not trace["meta"]["single"] and trace["y"] and trace["y"][-1] is not None:
            ends.setdefault(trace["meta"]["configuration"], trace["y"][-1])
    if 1 < len(names) <= LABELLED:
        at = {i: scale(end) for i, end in ends.items() if end > 0 or not log}
        for i, y in spread_labels(at, 15 * (high - low) / (PANEL_HEIGHT - 60), low, high).items():
            figure.add_annotation(
                note, text=_text(short_label(names[i])), x=1.005, xref="paper", y=y, yref=f"y{row if row > 1 else ''}",
                font_color=line_style(i)[0], name=f"end-{i}",
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
            "title": {"text": NORM, "side": "top"},
        },
    }  # fmt: skip


def _all_layers(runs: Sequence[Run]) -> list[str]:
    """Return the layers of the run with the most, in the model's order, then those that only other runs have."""
    ordered = sorted(runs, key=lambda run: -len(run.layers))
    return list(dict.fromkeys(layer for run in ordered for layer in run.layers))


def _cells(run: Run, layers: Sequence[str], updates: Sequence[int]) -> list[list[float | None]]:
    """Return each layer's norm, as a power of ten, at or last before each update; `None` after the run's end."""
    end = max(run.steps[-1], run.updates)
    rows = [bisect_right(run.steps, update) - 1 if update <= end else -1 for update in updates]
    columns = [run.norms.get(layer) for layer in layers]
    return [[_power(column[row]) if column and row >= 0 else None for row in rows] for column in columns]


def _power(value: float) -> float | None:
    return round(log10(value), 2) if value > 0 and isfinite(value) else None


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
    last = max(run.steps[-1] for run in runs)
    updates = round_updates(min(run.steps[0] for run in runs), last, max(6, CELLS // (len(layers) * len(runs))))
    columns = [_cells(run, layers, updates) for run in runs]
    tables = [[[column[j][k] for column in columns] for j in range(len(layers))] for k in range(len(updates))]
    shown = max((i for i, update in enumerate(updates) if update <= SHOWN_FIRST), default=0)
    names, groups = names_of(runs), by_configuration(runs)
    figure = Figure(
        Heatmap(
            x=[_text(names[run]) for run in runs], y=[_text(layer) for layer in layers], z=tables[shown],
            coloraxis="coloraxis", hovertemplate="%{x}<br>%{y}: 10<sup>%{z:.2f}</sup><extra></extra>",
        )
    )  # fmt: skip
    # One label per configuration, in the middle of its runs, and a line between configurations.
    ends = list(accumulate(map(len, groups.values())))
    middles = [end - (len(members) + 1) / 2 for end, members in zip(ends, groups.values(), strict=True)]
    labels = [_text(short_label(name)) for name in groups]
    for end in ends[:-1]:
        figure.add_vline(end - 0.5, line={"color": ZONE, "width": 1})
    figure.update_layout(_lay_out_layers(runs, layers, 6 * max(map(len, labels)) + 30))
    figure.update_xaxes(tickangle=-90, type="category", tickvals=middles, ticktext=labels, showgrid=False)
    return figure, {"updates": updates, "tables": tables, "shown": shown}


def draw_run(runs: Sequence[Run]) -> PlotlyFigure | None:
    """Draw a heat map, layer over update, for each run that recorded norms; the first one is visible."""
    need("plotly")
    from plotly.graph_objects import Figure, Heatmap

    runs = [run for run in runs if len(run.layers) > 1]
    if not runs:
        return None
    names, layers, figure = names_of(runs), _all_layers(runs), Figure()
    count = max(12, min(200, CELLS // (len(layers) * len(runs))))
    for run in runs:
        updates = [run.steps[i] for i in spread(len(run.steps), count)]
        figure.add_trace(
            Heatmap(
                x=updates, y=[_text(layer) for layer in run.layers], z=_cells(run, run.layers, updates),
                name=_text(names[run]), coloraxis="coloraxis", visible=run is runs[0],
                hovertemplate="update %{x}<br>%{y}: 10<sup>%{z:.2f}</sup><extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(_lay_out_layers(runs, layers, 60))
    # An annotation, because plotly puts the axis title over the tick labels of a heat map that becomes visible later.
    figure.add_annotation(text="update", x=0.5, y=0, xref="paper", yref="paper", yshift=-40, showarrow=False)
    return figure


def _lay_out_layers(runs: Sequence[Run], layers: list[str], below: int) -> dict[str, Any]:
    return {
        "coloraxis": _coloraxis(runs),
        "height": max(240, 16 * len(layers)) + 60 + below,
        "margin": {"l": 10, "r": 10, "t": 60, "b": below},
        "yaxis": {"type": "category", "automargin": True, "autorange": "reversed"},
        **_BACKGROUND,
    }
