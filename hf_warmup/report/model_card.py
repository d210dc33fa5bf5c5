"""Runs as a model card in the Hub's format: what was compared, how, on what, and what came out.

    python -m hf_warmup.model_card runs/compare_layer_norm --output_dir card --task fill-mask --dataset reversal

[`~hf_warmup.WarmupTrainer`] adds what it recorded to the card that the Trainer writes, also when it pushes to the Hub.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from statistics import mean

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainerState

from ..cli import exit_on_user_error
from . import (
    Run,
    by_configuration,
    differing_settings,
    draw_comparison,
    find,
    find_runs,
    in_words,
    mean_and_spread,
    plot_gradient_norms,
    read_run,
    shared_settings,
)
from .comparison import common_name, decimals
from .run import environment


TAGS = ("hf-warmup", "warmup", "learning-rate", "layer-normalization", "gradient-norm")
FIGURE = "gradient_norms.png"
CAPTIONS = {
    "learning_rate.png": "Learning rate in force",
    "loss.png": "Training loss, one line a seed",
    "gradient_norms.png": "Gradient norm of each layer before clipping, first seed",
    "gradient_norm_ratio.png": "Gradient norm of the last layer over the first's",
}

Results = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass
class Experiment:
    """What a card says that the runs themselves do not.

    Args:
        title (`str`): First heading.
        question (`str`): What was asked, and the answer in words.
        command (`str`): What to type to have one run again; the table says what differs between arms.
        task (`tuple[str, str]`): The Hub's task type and dataset, such as `("text-classification", "glue")`.
        limits (`str`): What the numbers do not show.
        figures (`Mapping[str, str]`): Path, as seen from the card, to caption.
        settings (`Mapping[str, str]`): Arm to what it adds to the command.
        commit (`str`, *optional*): That the runs were made with; by default the one they wrote down.
        license (`str`, defaults to `"apache-2.0"`): The Hub's name of it.
    """

    title: str
    question: str
    command: str
    task: tuple[str, str]
    limits: str
    figures: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    license: str = "apache-2.0"


def _metadata(experiment: Experiment, results: Results) -> ModelCardData:
    task, dataset = experiment.task
    return ModelCardData(
        license=experiment.license,
        library_name="transformers",
        tags=list(TAGS),
        model_name=experiment.title,
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=dataset,
                dataset_name=dataset,
                metric_type=metric,
                metric_value=float(f"{mean(values):.4g}"),
                metric_name=f"{metric}, {arm}",
            )
            for metric, arms in results.items()
            for arm, values in arms.items()
            if isfinite(mean(values))
        ],
    )


def _cell(values: Sequence[float]) -> str:
    return mean_and_spread(values, decimals([mean(values)])) if values else ""


def _results_table(results: Results, settings: Mapping[str, str]) -> str:
    arms = list(dict.fromkeys([*(arm for values in results.values() for arm in values), *settings]))
    header = ["arm", *results, *(["settings"] if settings else [])]
    rows = [
        [
            f"`{arm}`",
            *(_cell(values.get(arm, ())) for values in results.values()),
            *([f"`{settings.get(arm, '')}`"] if settings else []),
        ]
        for arm in arms
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def experiment_card(experiment: Experiment, results: Results, runs: Sequence[Run] = ()) -> ModelCard:
    """The card of `experiment`.

    Args:
        experiment ([`Experiment`]): Its words.
        results (`Mapping[str, Mapping[str, Sequence[float]]]`): Metric -> arm -> one value a seed.
        runs (`Sequence[Run]`, *optional*): The runs; they give the number of updates, the seeds and the machine, which
            is otherwise this one.

    Returns:
        `ModelCard`: With metadata that the Hub's validation accepts; `card.save(path)` writes it.
    """
    seeds = sorted({run.seed for run in runs if run.seed})
    updates = sorted({run.updates for run in runs})
    repeated = any(len(values) > 1 for arms in results.values() for values in arms.values())
    spread = "Mean ± sample standard deviation over the seeds" if repeated else "One value each"
    spread += f" {', '.join(seeds)}; {' or '.join(map(str, updates))} updates a run." if runs else "."
    pictures = "\n\n".join(f"![{caption}]({path})\n\n*{caption}*" for path, caption in experiment.figures.items())
    made_with = next((run.made_with for run in runs if run.made_with), None) or environment()
    made_with = made_with | ({"commit": experiment.commit} if experiment.commit else {})
    machine = "\n".join(f"- {name}: {value}" for name, value in made_with.items() if name != "command")
    return ModelCard(f"""---
{_metadata(experiment, results).to_yaml()}
---

# {experiment.title}

{experiment.question}

## Results

{spread}

{_results_table(results, experiment.settings)}

{pictures}

## Made by

```bash
{experiment.command}
```

{machine}

## Limits

{experiment.limits}
""")


def results_of(runs: Sequence[Run]) -> dict[str, dict[str, list[float]]]:
    """Metric -> arm -> one value a seed: the last evaluation, the training loss where nothing was evaluated, or how far
    the runs came where nothing was logged."""
    results: dict[str, dict[str, list[float]]] = {}
    evaluated = any(key.startswith("eval_") for run in runs for key in run.results())
    if not any(run.results() for run in runs):
        return {"updates": {arm: [run.updates for run in seeds] for arm, seeds in by_configuration(runs).items()}}
    for arm, seeds in by_configuration(runs).items():
        for run in seeds:
            for key, value in run.results().items():
                if key.startswith("eval_") is evaluated:
                    results.setdefault(key.removeprefix("eval_"), {}).setdefault(arm, []).append(value)
    return results


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def describe(runs: Sequence[Run], title: str, task: tuple[str, str], license: str = "unknown") -> Experiment:
    """An [`Experiment`] in the words that the runs give: settings, findings, and how they end."""
    arms, differing = by_configuration(runs), differing_settings(runs)
    said = [f"- `{names}`: {text}" for names, text in in_words(runs)]
    shared = ", ".join(f"{key} = {value}" for key, value in shared_settings(runs).items())
    question = [
        f"{_count(len(runs), 'run')} of {_count(len(arms), 'arm')}"
        + (f", which differ in {', '.join(differing)}." if differing else ".")
        + (f" All have {shared}." if shared else ""),
        "What their recordings say:\n\n" + ("\n".join(said) or "- Nothing to worry about."),
    ]
    fewest = min(map(len, arms.values()))
    short = [run.name for run in runs if run.cut_short]
    limits = [f"{'At least ' * (len(arms) > 1)}{_count(fewest, 'seed')} an arm; the settings above and no others."]
    limits += [f"Cut short: {', '.join(short)}."] if short else []
    limits.append("What the recordings say comes from rules of thumb, measured on small BERTs.")
    return Experiment(
        title=title,
        question="\n\n".join(question),
        command=next((run.made_with["command"] for run in runs if "command" in run.made_with), "# not recorded"),
        task=task,
        limits=" ".join(limits),
        settings={
            arm: ", ".join(f"{key}={seeds[0].settings[key]}" for key in differing if key in seeds[0].settings)
            for arm, seeds in arms.items()
        }
        if differing
        else {},
        license=license,
    )


def write_card(runs: Sequence[Run], output_dir: str | os.PathLike[str], experiment: Experiment) -> Path:
    """Write `README.md` and its figures into `output_dir`; returns the card's path."""
    figures = draw_comparison(runs, Path(output_dir) / "images")
    experiment.figures = {f"images/{path.name}": CAPTIONS[path.name] for path in figures}
    path = Path(output_dir) / "README.md"
    experiment_card(experiment, results_of(runs), runs).save(path)
    return path


def add_recording(folder: str | os.PathLike[str], state: TrainerState) -> None:
    """Add what was recorded to the card that the Trainer wrote: settings, findings, and the gradient norms.

    Args:
        folder (`str` or `os.PathLike`): The output folder, with its `README.md`.
        state (`TrainerState`): The Trainer's, which may not have been saved.
    """
    folder = Path(folder)
    card = ModelCard.load(folder / "README.md")
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS[:2]]))
    card.text = f"{card.text.rstrip()}\n\n{_recording_section(read_run(folder, asdict(state)))}"
    card.save(folder / "README.md")


def _recording_section(run: Run) -> str:
    sentences = [f"- {finding.text}" for finding in find(run)] or ["- The recording gives no reason to worry."]
    parts = ["## Warmup and gradient norms", f"{run.status.capitalize()}.", "\n".join(sentences)]
    if run.layers and find_spec("matplotlib") is not None:
        plot_gradient_norms([run]).savefig(run.folder / FIGURE)
        parts += [f"![Gradient norm of each layer over updates]({FIGURE})", f"*{CAPTIONS[FIGURE].partition(',')[0]}*"]
    rows = [f"| {key} | {value} |" for key, value in {**shared_settings([run]), **run.made_with}.items()]
    parts.append("\n".join(["| setting | value |", "| --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m hf_warmup.model_card", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's output folder, or a folder of such folders")
    parser.add_argument("--output_dir", default="card", help="where README.md and its images go (default: card)")
    parser.add_argument("--title", help="of the card (default: the first folder's name)")
    parser.add_argument("--task", default="other", help="the Hub's task type, such as text-classification")
    parser.add_argument("--dataset", default="unknown", help="the Hub's dataset, such as glue")
    parser.add_argument("--license", default="unknown", help="the Hub's name of it, such as apache-2.0")
    args = parser.parse_args(argv)
    with exit_on_user_error():
        runs = find_runs(args.runs)
        title = args.title or common_name(args.runs)
        path = write_card(runs, args.output_dir, describe(runs, title, (args.task, args.dataset), args.license))
    print(f"Wrote {path}.")


if __name__ == "__main__":
    main()
