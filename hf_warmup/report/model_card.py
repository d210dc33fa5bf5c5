"""Write a model card in the Hub's format: what was compared, how, on what, and what came out.

    hf-warmup card runs/compare_layer_norm --output_dir card --task fill-mask --dataset reversal

[`~hf_warmup.WarmupTrainer`] adds what it recorded to the card that the Trainer writes, also when it pushes to the Hub.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..cli import exit_on_user_error
from .comparison import (
    by_configuration,
    common_name,
    decimals,
    differing_settings,
    mean_and_spread,
    names_of,
    results_by_metric,
    settings_text,
    shared_settings,
)
from .figures import PANELS, draw_comparison, plot_gradient_norms
from .findings import describe_coverage, find, group_findings
from .run import Run, environment, find_runs, read_run
from .schedule import describe_schedule
from .text import describe_evaluations, describe_runs, without_problem


if TYPE_CHECKING:
    from transformers import TrainerState

TEMPLATE = Path(__file__).with_name("card.md.jinja")
TAGS = ("hf-warmup", "warmup", "learning-rate", "layer-normalization", "gradient-norm")
FIGURE = "gradient_norms.png"
HEAT_MAP = "Gradient norm of each layer before clipping"
CAPTIONS = {panel.key: panel.title for panel in PANELS} | {
    "gradient_norms": f"{HEAT_MAP}, first run of each configuration"
}
NOT_RECORDED = {"versions and machine": "not recorded"}

Results = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass
class Experiment:
    """What a card says that the runs themselves do not.

    Args:
        title (`str`): The first heading.
        question (`str`): The question and its answer, in Markdown.
        command (`str`): The command that repeats one run; the table says what differs between configurations.
        task (`tuple[str, str]`): The Hub's task type and dataset, such as `("text-classification", "glue")`.
        limits (`str`): What the numbers do not show, in Markdown.
        figures (`Mapping[str, str]`): Path of a figure relative to the card -> its caption.
        settings (`Mapping[str, str]`): Configuration -> what it adds to the command.
        license (`str`, defaults to `"apache-2.0"`): The Hub's name of the licence.
        tags (`Sequence[str]`): The Hub's tags.
    """

    title: str
    question: str
    command: str
    task: tuple[str, str]
    limits: str
    figures: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    license: str = "apache-2.0"
    tags: Sequence[str] = TAGS


def escape(text: Any) -> str:
    r"""Return text for Markdown: on one line, and nothing in it is markup.

    Example:

    ```python
    >>> print(escape("a_b <img src=x> [x](y) | z"))
    a\_b &lt;img src=x&gt; \[x\](y) \| z

    ```
    """
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_~\[\]|])", r"\\\1", line).replace("<", "&lt;").replace(">", "&gt;")


def code(text: Any) -> str:
    """Return text as inline code, also inside a table.

    Example:

    ```python
    >>> print(code("a|b"), code("a`b"))
    `a\\|b` ``a`b``

    ```
    """
    line = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else ""


def fenced(text: str) -> str:
    """Return text as a block of shell code, in a fence longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}bash\n{text}\n{fence}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def _metadata(experiment: Experiment, results: Results) -> ModelCardData:
    task, dataset = experiment.task
    evaluations = [
        EvalResult(
            task_type=task, dataset_type=dataset, dataset_name=dataset, metric_type=metric,
            metric_value=float(f"{mean(values):.4g}"), metric_name=f"{metric}, {configuration}",
        )
        for metric, configurations in results.items()
        for configuration, values in configurations.items()
        if isfinite(mean(values))
    ]  # fmt: skip
    return ModelCardData(
        license=experiment.license,
        library_name="transformers",
        tags=list(experiment.tags),
        model_name=experiment.title,
        eval_results=evaluations or None,
    )


def _cell(values: Sequence[float]) -> str:
    return mean_and_spread(values, decimals([mean(values)])) if values else ""


def _results_table(results: Results, settings: Mapping[str, str]) -> str:
    names = list(dict.fromkeys([*(name for values in results.values() for name in values), *settings]))
    header = ["configuration", *map(escape, results), *(["settings"] if settings else [])]
    rows = [
        [code(name), *(_cell(values.get(name, ())) for values in results.values())]
        + ([code(settings.get(name, ""))] if settings else [])
        for name in names
    ]
    return _table(header, rows) if names else ""


def experiment_card(experiment: Experiment, results: Results, runs: Sequence[Run] = ()) -> ModelCard:
    """Return the card of an experiment.

    Args:
        experiment ([`Experiment`]): Its words.
        results (`Mapping[str, Mapping[str, Sequence[float]]]`): Metric -> configuration -> one value per run.
        runs (`Sequence[Run]`, *optional*): The runs, which give the number of updates, the seeds and the machine.
            Without runs the machine is this one.

    Returns:
        `ModelCard`: With metadata that the Hub's validation accepts; `card.save(path)` writes it.
    """
    seeds = sorted({run.seed for run in runs if run.seed})
    updates = sorted({run.updates for run in runs})
    repeated = any(len(values) > 1 for configurations in results.values() for values in configurations.values())
    spread = "Mean ± sample standard deviation over the seeds" if repeated else "One value each"
    if runs:
        which = f"{'' if repeated else ', seed'} {', '.join(map(escape, seeds))}"
        spread += f"{which}; {' or '.join(map(str, updates))} updates per run"
    spread += "."
    made_with = next((run.made_with for run in runs if run.made_with), NOT_RECORDED) if runs else environment()
    return ModelCard.from_template(
        _metadata(experiment, results),
        template_path=str(TEMPLATE),
        title=escape(experiment.title),
        question=experiment.question,
        table=_results_table(results, experiment.settings),
        spread=spread,
        figures={path: escape(caption) for path, caption in experiment.figures.items()},
        command=fenced(experiment.command),
        made_with={escape(name): escape(value) for name, value in made_with.items() if name != "command"},
        limits=experiment.limits,
    )


def results_of(runs: Sequence[Run]) -> dict[str, dict[str, list[float]]]:
    """Return metric -> configuration -> one value per run, of the models that were kept.

    Without evaluations it is the last training loss; of runs that logged neither it is empty.
    """
    results = results_by_metric(runs)
    evaluated = {key.removeprefix("eval_"): results[key] for key in results if key.startswith("eval_")}
    return evaluated or results


def describe(runs: Sequence[Run], title: str, task: tuple[str, str], license: str = "unknown") -> Experiment:
    """Return an [`Experiment`] in the words that the runs give: settings, findings, and how they ended."""
    configurations, differing, groups = by_configuration(runs), differing_settings(runs), group_findings(runs)
    said = [f"- {code(group.whose)}: {escape(group.text)}" for group in groups]
    shared = ", ".join(f"{key} = {value}" for key, value in shared_settings(runs).items())
    answer = escape(describe_runs(runs, groups) + (f" All have {shared}." if shared else ""))
    fewest, names = min(map(len, configurations.values())), names_of(runs)
    limits = [f"At least {fewest} run{'s' * (fewest > 1)} per configuration; no other settings."]
    if short := [names[run] for run in runs if run.end in ("unfinished", "interrupted")]:
        limits.append(f"Unfinished: {', '.join(map(code, short))}.")
    limits.append("The findings come from rules of thumb, which were measured on small BERT models.")
    recorded, norms = any(run.made_with for run in runs), any(run.layers for run in runs)
    settings = {name: settings_text(members[0], differing) for name, members in configurations.items()}
    return Experiment(
        title=title,
        question="\n\n".join([answer, "What the recordings say:", "\n".join(said) or f"- {without_problem(runs)}"]),
        command=next((run.made_with["command"] for run in runs if "command" in run.made_with), "# not recorded"),
        task=task,
        limits=" ".join(limits),
        settings=settings if differing else {},
        license=license,
        tags=[*(["hf-warmup"] if recorded else []), "learning-rate", *(["gradient-norm"] if norms else [])],
    )


def write_card(runs: Any, output_dir: str | os.PathLike[str], experiment: Experiment) -> Path:
    """Write `README.md` and its figures into `output_dir`, and return the path of the card."""
    runs = find_runs(runs)
    figures = draw_comparison(runs, Path(output_dir) / "images")
    experiment.figures = {f"images/{path.name}": CAPTIONS.get(path.stem, path.stem) for path in figures}
    path = Path(output_dir) / "README.md"
    experiment_card(experiment, results_of(runs), runs).save(path)
    return path


def add_recording(folder: str | os.PathLike[str], state: TrainerState) -> None:
    """Add to the card that the Trainer wrote: schedule, findings, settings, the gradient norms.

    The Trainer puts the last evaluation into its card. If it loaded the best model at the end, that model's evaluation
    replaces it.

    Args:
        folder (`str` or `os.PathLike`): The output folder, with its `README.md`.
        state (`TrainerState`): The Trainer's state, which may not have been saved.
    """
    folder = Path(folder)
    run = read_run(folder, asdict(state))
    card = ModelCard.load(folder / "README.md")
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS[:2]]))
    text = card.text
    for key, value in run.results().items() if run.settings.get("load_best_model_at_end") else ():
        metric = key.removeprefix("eval_")
        name = " ".join(part.capitalize() for part in metric.split("_"))  # as the Trainer writes it
        text = re.sub(rf"(?m)^- {re.escape(name)}: .*$", f"- {name}: {value:.4f}", text) if key != "loss" else text
        for result in card.data.eval_results or []:
            if result.metric_type == metric:
                result.metric_value = value
    card.text = f"{text.rstrip()}\n\n{_recording_section(run)}"
    card.save(folder / "README.md")


def _recording_section(run: Run) -> str:
    sentences = [f"- {escape(finding.text)}" for finding in find(run)] or [f"- {without_problem([run])}"]
    words = [f"{run.status.capitalize()}.", describe_schedule(run), describe_evaluations(run)]
    parts = ["## Warmup and gradient norms", escape(" ".join(filter(None, words))), "\n".join(sentences)]
    parts.append(escape(describe_coverage(run)))
    if run.layers and find_spec("matplotlib") is not None:
        plot_gradient_norms([run]).savefig(run.folder / FIGURE)
        parts += [f"![Gradient norm of each layer over updates]({FIGURE})", f"*{HEAT_MAP}*"]
    rows = [[escape(key), escape(value)] for key, value in {**shared_settings([run]), **run.made_with}.items()]
    if rows:
        parts.append(_table(["setting", "value"], rows))
    return "\n\n".join(parts) + "\n"


@exit_on_user_error()
def main(argv: list[str] | None = None, prog: str = "python -m hf_warmup.model_card") -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder or file, or a folder of runs")
    parser.add_argument("--output_dir", default="card", help="folder of README.md and its images (default: card)")
    parser.add_argument("--title", help="title of the card (default: the folder's name)")
    parser.add_argument("--task", default="other", help="the Hub's task type, such as text-classification")
    parser.add_argument("--dataset", default="unknown", help="the Hub's dataset, such as glue")
    parser.add_argument("--license", default="unknown", help="the Hub's name of the licence, such as apache-2.0")
    args = parser.parse_args(argv)
    runs = find_runs(args.runs)
    title = args.title or common_name(args.runs)
    path = write_card(runs, args.output_dir, describe(runs, title, (args.task, args.dataset), args.license))
    print(f"Wrote {path}.")


if __name__ == "__main__":
    main()
