"""Run folders in, figures out: learning rate, loss, per-layer gradient norms, and their last/first-layer ratio.

A run folder holds `trainer_state.json` (from `trainer.save_state()`) and `gradient_norms.jsonl`. Folders that differ
only in a trailing `-seed<n>` are seeds of one arm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from .gradient_norms import FILE_NAME, KEY, read_gradient_norms


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by colour-blind readers; the arms that need telling apart most come first.
COLORS = ("#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#8C6D31")
# Of the last/first-layer ratio: stalling runs were seen at 68 to 414 after 20 updates, learning ones at 0.8 to 4.1.
DANGER_RATIO = 30.0


@dataclass(frozen=True)
class Run:
    """One run folder, read."""

    folder: Path
    log_history: list[dict[str, Any]]
    gradient_norms: list[dict[str, Any]]

    @property
    def arm(self) -> str:
        """The folder's name without its seed."""
        return re.sub(r"-seed\d+$", "", self.folder.name)

    def series(self, *keys: str) -> tuple[list[int], list[float]]:
        """Updates and values of the first of `keys` that the training log holds."""
        key = next((key for key in keys if any(key in entry for entry in self.log_history)), keys[0])
        entries = [entry for entry in self.log_history if key in entry]
        return [entry["step"] for entry in entries], [entry[key] for entry in entries]

    @cached_property
    def blocks(self) -> list[str]:
        """The numbered layers in order, such as `encoder.layer.0` to `encoder.layer.5`."""
        keys = {key for record in self.gradient_norms for key in record if key.startswith(f"{KEY}/")}
        numbered = [key for key in keys if re.search(r"\d+$", key)]
        return sorted(numbered, key=lambda key: [int(n) for n in re.findall(r"\d+", key)])

    def ratio(self) -> tuple[list[int], list[float]]:
        """Updates, and the last block's gradient norm over the first's."""
        if len(self.blocks) < 2:
            return [], []
        first, last = self.blocks[0], self.blocks[-1]
        records = [record for record in self.gradient_norms if record.get(first) and record.get(last)]
        return [record["step"] for record in records], [record[last] / record[first] for record in records]


def read_run(folder: str | Path) -> Run:
    """Read a run folder.

    Raises:
        `ValueError`: If there is no `trainer_state.json` in it.
    """
    folder = Path(folder)
    state = folder / "trainer_state.json"
    if not state.exists():
        raise ValueError(f"{state} is missing: expected the folder of a run that called trainer.save_state().")
    recorded = read_gradient_norms(folder) if (folder / FILE_NAME).exists() else []
    return Run(folder, json.loads(state.read_text(encoding="utf-8"))["log_history"], recorded)


def read_runs(folder: str | Path) -> list[Run]:
    """Read every run folder directly inside `folder`, in the order in which they were made."""
    states = sorted(Path(folder).glob("*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    return [read_run(path.parent) for path in states]


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """`mean ± sample standard deviation`.

    Example:

    ```python
    >>> mean_and_spread([0.8, 0.82])
    '0.810 ± 0.014'

    ```
    """
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def _by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms


def _label(arm: str) -> str:
    """`post-adamw-none-lr2e-3` as people write it; any other folder's name as it is."""
    placement, *rest = re.split(r"-(?=[a-z])", arm)
    if placement not in ("post", "pre") or not rest:
        return arm
    words = ["no warmup" if part == "none" else re.sub(r"^lr(?=\d)", "lr ", part) for part in rest]
    return ", ".join([f"{placement.capitalize()}-LN", *words])


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def _axes(figure: Figure, title: str, ylabel: str) -> Axes:
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel="update", ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes


def _lines(axes: Axes, runs: Sequence[Run], series: Callable[[Run], Any], wide: bool = False) -> None:
    arms = _by_arm(runs)
    for i, (arm, members) in enumerate(arms.items()):
        for j, run in enumerate(members):
            steps, values = series(run)
            # Earlier lines are wider, so that those that later ones cover still show.
            width = 1.3 + 3.0 * (len(arms) - 1 - i) / len(arms) if wide else 1.3
            axes.plot(
                steps,
                values,
                color=COLORS[i % len(COLORS)],
                linewidth=width,
                marker="." if len(steps) == 1 else None,
                label=None if j else _label(arm),
            )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def plot_learning_rate(runs: Sequence[Run]) -> Figure:
    """The learning rate in force over updates: what an optimizer that warms up by itself really used."""
    figure = _figure(8, 3.6)
    axes = _axes(figure, "Learning rate in force", "learning rate")
    firsts = [members[0] for members in _by_arm(runs).values()]
    _lines(axes, firsts, lambda run: run.series("scheduled_lr", "learning_rate"), wide=True)
    return figure


def plot_loss(runs: Sequence[Run]) -> Figure:
    """Training loss over updates, one line a seed, one colour an arm."""
    figure = _figure(8, 3.6)
    axes = _axes(figure, "Training loss", "loss")
    _lines(axes, runs, lambda run: run.series("loss"))
    return figure


def plot_ratio(runs: Sequence[Run]) -> Figure:
    """The last block's gradient norm over the first's, with the zone marked that runs which stall enter early.

    A sign of the first tens of updates: a run that never learns can leave the zone again.
    """
    figure = _figure(8, 3.6)
    axes = _axes(figure, "Gradient norm, last layer over first", "ratio")
    _lines(axes, runs, Run.ratio)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high > DANGER_RATIO:
        axes.axhspan(DANGER_RATIO, high, color=COLORS[0], alpha=0.08, linewidth=0)
        axes.text(0.01, 0.97, "early sign of stalling", transform=axes.transAxes, va="top", fontsize=8, color=COLORS[0])
        axes.set_ylim(low, high)
    return figure


def plot_gradient_norms(runs: Sequence[Run], columns: int = 3) -> Figure:
    """A heat map (layer × update) of the gradient norms before clipping, one an arm, of its first seed."""
    from matplotlib.colors import LogNorm

    arms = {arm: members[0] for arm, members in _by_arm(runs).items() if members[0].blocks}
    columns = max(1, min(columns, len(arms)))
    rows = -(-len(arms) // columns) or 1
    figure = _figure(3.3 * columns + 1.2, 2.3 * rows + 0.4)
    if not arms:
        figure.text(0.5, 0.5, "no gradient norms were recorded", ha="center")
        return figure
    tables = {
        arm: [[record.get(block) or nan for record in run.gradient_norms] for block in run.blocks]
        for arm, run in arms.items()
    }
    finite = [value for table in tables.values() for row in table for value in row if value == value]
    norm = LogNorm(min(finite), max(finite)) if finite else None
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(arms) :]:
        axes.set_axis_off()
    for i, (axes, (arm, table)) in enumerate(zip(grid.flat, tables.items(), strict=False)):
        steps = [record["step"] for record in arms[arm].gradient_norms]
        layers = len(table)
        image = axes.imshow(
            table,
            aspect="auto",
            norm=norm,
            cmap="viridis",
            origin="lower",
            interpolation="nearest",
            extent=(steps[0] - 0.5, steps[-1] + 0.5, 0.5, layers + 0.5),
        )
        axes.set_title(_label(arm), loc="left", fontsize=9)
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
