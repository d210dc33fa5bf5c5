"""One self-contained HTML page: the answer first, then findings, curves, heat maps and tables."""

from __future__ import annotations

import gzip
import json
import secrets
from base64 import b64encode
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from statistics import mean
from typing import Any

from .. import __version__
from .comparison import (
    by_configuration,
    common_metric,
    decimals,
    differing_settings,
    independent_settings,
    known_settings,
    mean_and_spread,
    names_of,
    results_by_metric,
    shared_settings,
)
from .figures import draw_curves, draw_layers, draw_run, line_style, need
from .findings import RULES, describe_coverage, group_findings
from .run import Run, by_number, find_runs
from .schedule import describe_schedule
from .text import (
    by_rule,
    count_failures,
    describe_ends,
    describe_schedules,
    headline,
    rank_configurations,
    without_problem,
)


TEMPLATE = Path(__file__).with_name("page.html.jinja")


def run_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Return header and rows of the table of all runs: results, status, and the settings in which they differ."""
    settings, names = differing_settings(runs), names_of(runs)
    keys = list(dict.fromkeys(key for run in runs for key in run.results()))[:12]
    rows = []
    for run in runs:
        results, known, best = run.results(), known_settings(run), run.best()
        values = [f"{results[key]:.4g}" if key in results else "" for key in keys]
        evaluated = f"{best.value:.4g} at {best.step}" if best else ""
        rows.append([names[run], *values, evaluated, run.status, *(known.get(key, "") for key in settings)])
    return {"header": ["run", *keys, "best evaluation", "status", *settings], "rows": rows}


def configuration_table(runs: Sequence[Run], failed: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row for each configuration, best first: colour, mean and spread of each result, how its runs ended."""
    groups, ranked, results = by_configuration(runs), rank_configurations(runs), results_by_metric(runs)
    order = [name for name, _ in ranked[1]] if ranked else []
    keys = [key for key in results if 3 * len(results[key]) >= len(groups)]
    first = common_metric(runs)
    keys = sorted(keys, key=lambda key: (key != first, key != "loss", key != "eval_loss"))[:5]
    digits = {key: decimals(value for values in results[key].values() for value in values) for key in keys}
    rows = [
        {
            "index": i,
            "name": name,
            "rank": order.index(name) if name in order else len(order),
            "style": line_style(i),
            "results": {
                key: mean_and_spread(results[key][name], digits[key]) if name in results[key] else "" for key in keys
            },
            "failed": failed[name],
            "ends": describe_ends(members),
            "schedule": describe_schedules(members),
        }
        for i, (name, members) in enumerate(groups.items())
    ]
    return sorted(rows, key=lambda row: row["rank"])


def sweep_grid(runs: Sequence[Run], failed: Mapping[str, int]) -> dict[str, Any] | None:
    """Return the grid of a sweep if exactly two settings vary: one cell per pair of values, shaded by the metric."""
    groups, ranked, differing = by_configuration(runs), rank_configurations(runs), independent_settings(runs)
    if len(differing) != 2 or len(groups) < 4 or ranked is None:
        return None
    metric, order = ranked
    places = {name: [known_settings(members[0]).get(key, "") for key in differing] for name, members in groups.items()}
    rows, columns = (sorted({*values}, key=by_number) for values in zip(*places.values(), strict=True))
    if min(len(rows), len(columns)) < 2 or 2 * len(groups) < len(rows) * len(columns):
        return None
    values = {name: mean(each) for name, each in order}
    digits = decimals(values.values())
    # By rank, so that one bad value does not make all others alike. Failed cells stay white.
    sound = dict.fromkeys(values[name] for name in values if isfinite(values[name]) and not failed[name])
    shares = {value: round(1 - i / len(sound), 2) for i, value in enumerate(sound)}
    cells: dict[tuple[str, ...], dict[str, Any]] = {
        tuple(place): {
            "text": f"{values[name]:.{digits}f}" if name in values else "",
            "share": 0 if failed[name] else shares.get(values.get(name, nan), 0),
            "failed": failed[name],
            "best": name == order[0][0],
        }
        for name, place in places.items()
    }
    return {
        "row": differing[0], "column": differing[1], "metric": metric, "columns": columns,
        "rows": [(row, [cells.get((row, column)) for column in columns]) for row in rows],
    }  # fmt: skip


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

    runs = [run for members in by_configuration(find_runs(runs)).values() for run in members]
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
            headline=headline(runs, groups),
            without_problem=without_problem(runs),
            single=single and [describe_schedule(single), describe_coverage(single)],
            configurations=configuration_table(runs, failed),
            grid=sweep_grid(runs, failed),
            levels={level: by_rule([group for group in groups if group.level == level]) for level in ICONS},
            icons=ICONS,
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
    path.write_text(text, encoding="utf-8", errors="replace")
    return path
