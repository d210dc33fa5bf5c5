"""One self-contained HTML page: the answer first, then findings, curves, heat maps and tables."""

from __future__ import annotations

import gzip
import json
import secrets
from base64 import b64encode
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any

from .. import __version__
from .comparison import (
    by_configuration,
    common_metric,
    decimals,
    differing_settings,
    known_settings,
    label,
    mean_and_spread,
    names_of,
    shared_settings,
)
from .figures import draw_curves, draw_layers, draw_run, line_style, need
from .findings import RULES, describe_coverage, group_findings
from .run import Run, as_runs
from .schedule import describe_schedule
from .text import by_rule, count_failures, describe_evaluations, describe_group, headline, rank_configurations


TEMPLATE = Path(__file__).with_name("page.html.jinja")


def _number(value: float) -> str:
    return f"{value:.4g}"


def run_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the table of all runs: results, status, and the settings in which they differ."""
    settings, names = differing_settings(runs), names_of(runs)
    results = list(dict.fromkeys(key for run in runs for key in run.results()))[:12]
    rows = []
    for run in runs:
        found, known = run.results(), known_settings(run)
        best = run.best()
        rows.append(
            {
                "name": names[run],
                "status": run.status,
                "cut_short": run.cut_short,
                "results": [_number(found[key]) if key in found else "" for key in results],
                "best": f"{_number(best.value)} at {best.step}" if best else "",
                "settings": [known.get(key, "") for key in settings],
            }
        )
    return {"results": results, "settings": settings, "rows": rows, "best": any(row["best"] for row in rows)}


def configuration_table(runs: Sequence[Run], failed: Mapping[str, int]) -> dict[str, Any]:
    """Return the table of configurations: colour, mean and spread of each result over the runs, how they ended."""
    groups = by_configuration(runs)
    found = {name: [run.results() for run in members] for name, members in groups.items()}
    keys = list(dict.fromkeys(key for results in found.values() for result in results for key in result))
    keys = [key for key in keys if 3 * sum(any(key in each for each in found[name]) for name in found) >= len(found)]
    first = common_metric(runs)
    keys = sorted(keys, key=lambda key: (key != first, key != "loss", key != "eval_loss"))[:5]
    digits = {key: decimals(v[key] for results in found.values() for v in results if key in v) for key in keys}
    rows = []
    for i, (name, members) in enumerate(groups.items()):
        values = {key: [result[key] for result in found[name] if key in result] for key in keys}
        ends = [run.end for run in members]
        rows.append(
            {
                "name": label(name),
                "color": line_style(i)[0],
                "dash": line_style(i)[1],
                "cells": [mean_and_spread(values[key], digits[key]) if values[key] else "" for key in keys],
                "updates": mean_and_spread([run.updates for run in members], 0).removesuffix(" ± 0"),
                "failed": failed[name],
                "ends": ", ".join(f"{ends.count(end)} {end}" if len(ends) > 1 else end for end in dict.fromkeys(ends)),
                "schedule": describe_schedule(members[0]),
            }
        )
    return {"columns": keys, "rows": rows}


def sweep_grid(runs: Sequence[Run], failed: Mapping[str, int]) -> dict[str, Any] | None:
    """Return the grid of a sweep if exactly two settings vary: one cell per pair of values, shaded by the metric."""
    groups, ranked = by_configuration(runs), rank_configurations(runs)
    known = {name: known_settings(members[0]) for name, members in groups.items()}
    differing = _independent(differing_settings(runs), list(known.values()))
    if len(differing) != 2 or len(groups) < 4 or ranked is None:
        return None
    metric, order = ranked
    rows, columns = (
        sorted({settings[key] for settings in known.values() if key in settings}, key=_as_number) for key in differing
    )
    if min(len(rows), len(columns)) < 2 or 2 * len(groups) < len(rows) * len(columns):
        return None
    values = {name: mean(each) for name, each in order}
    best, digits = order[0][0], decimals(values.values())
    # Failed cells stay white, so that the shades tell the others apart.
    sound = [values[name] for name, _ in order if isfinite(values[name]) and not failed[name]] or [values[best]]
    worst, top = sound[-1], sound[0]
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for name, settings in known.items():
        value = values.get(name)
        share = 0.0
        if value is not None and isfinite(value) and not failed[name]:
            share = 0.15 + 0.85 * ((value - worst) / (top - worst) if top != worst else 1.0)
        cells[settings.get(differing[0], ""), settings.get(differing[1], "")] = {
            "text": f"{value:.{digits}f}" if value is not None else "",
            "share": round(share, 2),
            "failed": failed[name],
            "best": name == best,
        }
    return {
        "row": differing[0], "column": differing[1], "metric": metric, "columns": columns, "best": label(best),
        "rows": [(row, [cells.get((row, column)) for column in columns]) for row in rows],
    }  # fmt: skip


def _independent(keys: Sequence[str], known: Sequence[Mapping[str, str]]) -> list[str]:
    """Return `keys` without those whose values follow from another key's, as `warmup_type` from the warmup's length."""
    columns = {key: [settings.get(key, "") for settings in known] for key in keys}
    words_first = sorted(keys, key=lambda key: -max(map(_as_number, columns[key]))[0])
    for key in words_first:
        others = [columns[other] for other in columns if other != key]
        if any(len({*zip(other, columns[key], strict=True)}) == len(set(other)) for other in others):
            del columns[key]
    return list(columns)


def _as_number(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def draw_page(runs: Any, title: str = "Runs compared", x: str = "auto", keys: Sequence[str] = ()) -> str:
    """Return the page as text. It needs no network and no other file.

    Args:
        runs (`str`, `os.PathLike`, [`Run`], a Trainer, or a list of these): What to show.
        title (`str`, defaults to `"Runs compared"`): The title of the page.
        x (`str`, defaults to `"auto"`): The horizontal axis, as in `plot_learning_rate`.
        keys (`Sequence[str]`, *optional*): Further keys of the log to draw.

    Raises:
        `ImportError`: If plotly or jinja2 is missing.
    """
    need("plotly")
    need("jinja2")
    from jinja2 import Environment
    from plotly.io import templates
    from plotly.offline import get_plotlyjs

    runs = [run for members in by_configuration(as_runs(runs)).values() for run in members]
    layers = draw_layers(runs)
    figures = {"curves": draw_curves(runs, x, keys), "layers": layers and layers[0], "run": draw_run(runs)}
    data = {key: figure.to_plotly_json() for key, figure in figures.items() if figure is not None}
    for figure in data.values():
        figure["layout"].pop("template", None)  # the page chooses a light or a dark one
    themes = {
        name: templates[f"plotly_{theme}"].to_plotly_json() for name, theme in (("light", "white"), ("dark", "dark"))
    }
    groups = group_findings(runs)
    failed = count_failures(runs, groups)
    packed = b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
    single = runs[0] if len(runs) == 1 else None
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(
            title=title,
            version=__version__,
            headline=headline(runs, failed),
            single=single and [describe_schedule(single), describe_evaluations(single), describe_coverage(single)],
            configurations=configuration_table(runs, failed),
            grid=sweep_grid(runs, failed),
            levels={level: by_rule([group for group in groups if group.level == level]) for level in ICONS},
            icons=ICONS,
            line=describe_group,
            table=run_table(runs),
            shared=shared_settings(runs),
            rules=RULES,
            plots=list(data),
            singles=any(trace["meta"]["single"] for trace in data.get("curves", {}).get("data", [])),
            run_names=[trace["name"] for trace in data.get("run", {}).get("data", [])],
            slider=layers and layers[1]["updates"],
            shown=layers[1]["shown"] if layers else 0,
            plotly=packed if data else "",
            nonce=secrets.token_urlsafe(12),
            data=_json({"figures": data, "themes": themes, "slider": layers[1] if layers else None}),
        )
    )


ICONS = {"problem": "✖", "advice": "▲", "note": "•"}


def _json(content: Any) -> str:
    """Return JSON for a script element, which ends at the first `</`."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False, default=_plain).replace("<", "\\u003c")


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def write_page(
    runs: Any, path: str | Path, title: str = "Runs compared", x: str = "auto", keys: Sequence[str] = ()
) -> Path:
    """Write [`draw_page`] to `path`, and return the path."""
    path = Path(path)
    text = draw_page(runs, title, x, keys)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
