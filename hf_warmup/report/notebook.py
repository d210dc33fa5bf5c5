"""Runs shown in a notebook: `hf_warmup.show("runs/a")`."""

from __future__ import annotations

import re
from base64 import b64encode
from html import escape
from typing import TYPE_CHECKING, Any

from .._validation import check_name
from .figures import Panel, panels_of, plot_gradient_norms, plot_panel, png
from .findings import Finding, find
from .run import find_runs
from .table import to_dataframe
from .text import paragraphs_of, write_text


if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

SCREEN = 40  # lines of text


class Findings(list[Finding]):
    """Findings, problems first. Printed, each is one line."""

    def __repr__(self) -> str:
        lines = [f"{'PROBLEM ' * each.is_problem}{each.rule}: {each.text}" for each in self[:SCREEN]]
        return "\n".join(lines) or "no findings"


class Frame:
    """A page inside a notebook, in a frame of its own: its style does not reach the notebook."""

    def __init__(self, page: str, height: int):
        self.page = page
        self.height = height

    def __repr__(self) -> str:
        return f"<Frame of {len(self.page):,} characters, shown by a notebook>"

    def _repr_html_(self) -> str:
        style = f"width: 100%; height: {self.height}px; border: 1px solid #8886"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{escape(self.page)}"></iframe>'


class Report:
    """What [`show`] returns: text and one figure as the last expression of a notebook's cell, text when printed."""

    def __init__(self, runs: Any):
        self.runs = find_runs(runs)

    @property
    def findings(self) -> Findings:
        """The findings of all runs as [`~hf_warmup.report.Finding`], problems first."""
        return Findings(find(self.runs))

    @property
    def figure_names(self) -> list[str]:
        """The names that `figure` takes."""
        norms = ["gradient_norms"] if any(run.blocks for run in self.runs) else []
        return [panel.key for panel in panels_of(self.runs)] + norms

    def figure(self, name: str = "loss", x: str = "auto") -> Figure:
        """Return a figure by its name, or of any logged key.

        Args:
            name (`str`, defaults to `"loss"`): One of `figure_names`, or a key of the log.
            x (`str`, defaults to `"auto"`): The horizontal axis, as in `plot_learning_rate`.

        Raises:
            `ValueError`: If there is neither such a figure nor such a key.
            `ImportError`: If matplotlib is missing.
        """
        if name == "gradient_norms":
            return plot_gradient_norms(self.runs)
        keys = {key for run in self.runs for entry in run.log_history for key in entry} - {"step"}
        panels: dict[str, Panel] = {panel.key: panel for panel in panels_of(self.runs)}
        if name not in panels and name in keys:
            name = re.sub(r"\W+", "_", key := name)
            panels |= {panel.key: panel for panel in panels_of(self.runs, [key])}
        check_name("name", name, [*panels, *keys, "gradient_norms"])
        return plot_panel(self.runs, panels[name], x)

    def to_dataframe(self) -> DataFrame:
        """Return all values as a tidy `pandas.DataFrame`, as `hf_warmup.report.to_dataframe` does."""
        return to_dataframe(self.runs)

    def iframe(self, height: int = 800) -> Frame:
        """Return the whole page in a frame of `height` pixels.

        Raises:
            `ImportError`: If plotly or jinja2 is missing.
        """
        from .page import draw_page

        title = self.runs[0].name if len(self.runs) == 1 else f"{len(self.runs)} runs"
        return Frame(draw_page(self.runs, title), height)

    def __repr__(self) -> str:
        lines = write_text(self.runs).splitlines()
        cut = [f"... ({len(lines) - SCREEN} more lines)"] if len(lines) > SCREEN else []
        return "\n".join(lines[:SCREEN] + cut)

    def _repr_html_(self) -> str:
        first, *others = paragraphs_of(self.runs)[:SCREEN]
        words = "".join(f"<li>{escape(text.removeprefix('- '))}</li>" for text in others)
        return f"<div><p><b>{escape(first)}</b></p><ul>{words}</ul>{self._picture()}</div>"

    def _picture(self) -> str:
        names = self.figure_names
        stalls = any(finding.rule == "stalling" for finding in self.findings)
        wanted = ["gradient_norm_ratio"] * stalls + ["loss", *names]
        shown = next((name for name in wanted if name in names), None)
        try:
            figure = self.figure(shown) if shown else None
        except ImportError:
            return "<p>pip install 'hf-warmup[plot]' shows a figure here.</p>"
        if figure is None:
            return ""
        return f'<img alt="{shown}" src="data:image/png;base64,{b64encode(png(figure, dpi=100)).decode()}">'


def show(runs: Any) -> Report:
    """Show runs in a notebook: how they ended, what their schedules were, the findings, and one figure.

    Args:
        runs (`str`, `os.PathLike`, [`~hf_warmup.report.Run`], a Trainer, or a list of these): A folder of any depth, a
            checkpoint, a `trainer_state.json`, or a Trainer that trains or has trained.

    Returns:
        [`Report`]: With `findings`, `figure(name)`, `to_dataframe()` and `iframe()`.

    Raises:
        `ValueError`: If nothing can be read.

    Example:

    ```py
    report = hf_warmup.show("runs/a")
    report  # the last expression of a cell
    report.figure("learning_rate")
    report.iframe()
    ```
    """
    return Report(runs)
