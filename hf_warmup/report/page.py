"""One self-contained HTML page: the runs as a table, what the recording says in words, and the plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from .. import __version__
from .comparison import (
    by_configuration,
    decimals,
    differing_settings,
    known_settings,
    mean_and_spread,
    names_of,
    shared_settings,
)
from .figures import draw_curves, draw_layers, draw_run, need
from .findings import RULES, group_findings
from .run import Run


TEMPLATE = Path(__file__).with_name("page.html.jinja")


def _table(runs: Sequence[Run]) -> dict[str, Any]:
    results = list(dict.fromkeys(key for run in runs for key in run.results()))
    settings, names = differing_settings(runs), names_of(runs)
    return {
        "results": results,
        "settings": settings,
        "rows": [
            {
                "name": names[run],
                "status": run.status,
                "cut_short": run.cut_short,
                "results": [f"{found[key]:.4g}" if key in found else "" for key in results],
                "settings": [known.get(key, "") for key in settings],
            }
            for run, found, known in ((run, run.results(), known_settings(run)) for run in runs)
        ],
    }


def _arms(runs: Sequence[Run]) -> dict[str, Any]:
    """The table of arms: how many seeds, and over those that have it each result and the updates made."""
    arms = {
        arm: [{**run.results(), "updates": run.updates} for run in seeds]
        for arm, seeds in by_configuration(runs).items()
    }
    seeds = list(chain(*arms.values()))
    results = [key for key in dict.fromkeys(chain(*seeds)) if key != "updates"]
    digits = {key: decimals(found[key] for found in seeds if key in found) for key in results} | {"updates": 0}
    rows = []
    for arm, members in arms.items():
        values = {key: [found[key] for found in members if key in found] for key in digits}
        cells = [mean_and_spread(values[key], digits[key]) if values[key] else "" for key in digits]
        rows.append({"name": arm, "cells": [*cells, len(members)]})
    return {"columns": [*digits, "seeds"], "rows": rows}


def draw_page(runs: Sequence[Run], title: str = "Runs compared") -> str:
    """The page as text: no network, no other file; it opens from disk.

    Args:
        runs (`Sequence[Run]`): At least one.
        title (`str`, defaults to `"Runs compared"`): Of the page.

    Raises:
        `ValueError`: If plotly is missing.
    """
    need("plotly")
    need("jinja2")
    from jinja2 import Environment
    from plotly.io import templates
    from plotly.offline import get_plotlyjs

    runs = [run for seeds in by_configuration(runs).values() for run in seeds]
    curves = draw_curves(runs)
    plots = {
        "curves": ("Curves", curves),
        "layers": ("Every run's layers at one update", draw_layers(runs)),
        "run": ("One run's layers over its updates", draw_run(runs)),
    }
    themes = {
        name: templates[f"plotly_{theme}"].to_plotly_json() for name, theme in (("light", "white"), ("dark", "dark"))
    }
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        version=__version__,
        table=_table(runs),
        shared=shared_settings(runs),
        arms=_arms(runs),
        findings=group_findings(runs),
        rules=RULES,
        plotly_js=get_plotlyjs(),
        themes=json.dumps(themes),
        curves=curves.layout,
        plots={
            key: (heading, figure.to_html(full_html=False, include_plotlyjs=False, div_id=key, config=CONFIG))
            for key, (heading, figure) in plots.items()
            if figure is not None
        },
    )


# A double click undoes a zoom; the bar of buttons would lie on the legend.
CONFIG = {"responsive": True, "displayModeBar": False}


def write_page(runs: Sequence[Run], path: str | Path, title: str = "Runs compared") -> Path:
    """Write [`draw_page`] to `path`."""
    path = Path(path)
    text = draw_page(runs, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
