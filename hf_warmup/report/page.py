"""One self-contained HTML page: the runs as a table, what the recording says in words, and the plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .figures import need
from .findings import RULES, in_words
from .interactive import draw_curves, draw_layers, draw_run
from .reading import Run, by_arm, names_of


TEMPLATE = Path(__file__).with_name("page.html.jinja")
# What every run has and no reader compares.
_NO_SETTINGS = {
    "output_dir", "logging_dir", "run_name", "seed", "data_seed", "local_rank", "_name_or_path", "architectures",
    "transformers_version", "project", "trackio_space_id", "hub_model_id", "num_training_steps",
}  # fmt: skip
MAIN_SETTINGS = (
    "model_type", "norm_placement", "num_hidden_layers", "hidden_size", "optim", "optim_args", "learning_rate",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_type", "warmup_steps", "num_warmup_steps", "max_steps",
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16",
)  # fmt: skip


def _known(run: Run) -> dict[str, str]:
    """Settings as text; lists and tables have no place in a cell."""
    return {
        key: f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in run.settings.items()
        if key not in _NO_SETTINGS and not isinstance(value, (list, dict))
    }


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Names of the settings in which runs that know them differ, the main ones first."""
    known = [_known(run) for run in runs]
    names = dict.fromkeys(key for settings in known for key in (*MAIN_SETTINGS, *sorted(settings)))
    return [key for key in names if len({settings[key] for settings in known if key in settings}) > 1]


def shared_settings(runs: Sequence[Run]) -> dict[str, str]:
    """The main settings that every run which knows them has."""
    found = {key: {_known(run)[key] for run in runs if key in _known(run)} for key in MAIN_SETTINGS}
    return {key: min(values) for key, values in found.items() if len(values) == 1 and values != {"None"}}


def _table(runs: Sequence[Run]) -> dict[str, Any]:
    results = list(dict.fromkeys(key for run in runs for key in run.results()))
    settings, names = differing_settings(runs), names_of(runs)
    ordered = [run for seeds in by_arm(runs).values() for run in seeds]
    return {
        "results": results,
        "settings": settings,
        "rows": [
            {
                "name": names[run.folder],
                "status": run.status,
                "cut_short": run.cut_short,
                "results": [f"{found[key]:.4g}" if key in found else "" for key in results],
                "settings": [known.get(key, "") for key in settings],
            }
            for run, found, known in ((run, run.results(), _known(run)) for run in ordered)
        ],
    }


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

    names = names_of(runs)
    plots = {
        "curves": ("Curves", draw_curves(runs)),
        "layers": ("Every run's layers at one update", draw_layers(runs)),
        "run": ("One run's layers over its updates", draw_run(runs)),
    }
    themes = {name: templates[f"plotly_{theme}"].to_plotly_json() for name, theme in (("light", "white"), ("dark", "dark"))}
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        version=version("hf-warmup"),
        table=_table(runs),
        shared=shared_settings(runs),
        findings=in_words(runs, [names[run.folder] for run in runs]),
        rules=RULES,
        plotly_js=get_plotlyjs(),
        themes=json.dumps(themes),
        plots={
            key: (heading, figure.to_html(full_html=False, include_plotlyjs=False, div_id=key, config=CONFIG))
            for key, (heading, figure) in plots.items()
            if figure is not None
        },
    )


CONFIG = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d"]}


def write_page(runs: Sequence[Run], path: str | Path, title: str = "Runs compared") -> Path:
    """Write [`draw_page`] to `path`."""
    path = Path(path)
    text = draw_page(runs, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
