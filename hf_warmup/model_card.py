"""An experiment's runs as a model card in the Hub's format: what was compared, how, on what, and what came out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainerState

from .report import Run, find, mean_and_spread, plot_gradient_norms, read_run, shared_settings
from .run_settings import environment


TAGS = ("hf-warmup", "warmup", "learning-rate", "layer-normalization", "gradient-norm")
FIGURE = "gradient_norms.png"


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
        commit (`str`, *optional*): That the runs were made with; by default the one checked out.
    """

    title: str
    question: str
    command: str
    task: tuple[str, str]
    limits: str
    figures: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None


def experiment_card(
    experiment: Experiment, results: Mapping[str, Mapping[str, Sequence[float]]], runs: Sequence[Run]
) -> ModelCard:
    """The card of `experiment`.

    Args:
        experiment ([`Experiment`]): Its words.
        results (`Mapping[str, Mapping[str, Sequence[float]]]`): Metric -> arm -> one value a seed.
        runs (`Sequence[Run]`): The runs; they give the number of updates and the seeds.

    Returns:
        `ModelCard`: With metadata that the Hub's validation accepts; `card.save(path)` writes it.
    """
    task, dataset = experiment.task
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        tags=list(TAGS),
        model_name=experiment.title,
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=dataset,
                dataset_name=dataset,
                metric_type=metric,
                metric_value=round(mean(values), 4),
                metric_name=f"{metric}, {arm}",
            )
            for metric, arms in results.items()
            for arm, values in arms.items()
        ],
    )
    arms = list(dict.fromkeys(arm for by_arm in results.values() for arm in by_arm))
    seeds = sorted({run.folder.name.rpartition("-seed")[2] for run in runs})
    updates = sorted({run.series("loss")[0][-1] for run in runs if run.series("loss")[0]})
    header = ["arm", *results, *(["adds to the command"] if experiment.settings else [])]
    rows = [
        [
            f"`{arm}`",
            *(mean_and_spread(by_arm[arm]) if arm in by_arm else "" for by_arm in results.values()),
            *([f"`{experiment.settings.get(arm, '')}`"] if experiment.settings else []),
        ]
        for arm in arms
    ]
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    pictures = "\n\n".join(f"![{caption}]({path})\n\n*{caption}*" for path, caption in experiment.figures.items())
    made_with = (runs[0].made_with if runs else {}) or environment()
    made_with = made_with | ({"commit": experiment.commit} if experiment.commit else {})
    machine = "\n".join(f"- {name}: {value}" for name, value in made_with.items() if name != "command")
    text = f"""---
{data.to_yaml()}
---

# {experiment.title}

{experiment.question}

## Results

Mean ± sample standard deviation over the seeds {", ".join(seeds)}; {" or ".join(map(str, updates))} updates a run.

{chr(10).join(lines)}

{pictures}

## Made by

```bash
{experiment.command}
```

{machine}

## Limits

{experiment.limits}
"""
    return ModelCard(text)


def add_recording(folder: str | os.PathLike[str], state: TrainerState) -> None:
    """Add what was recorded to the card that the Trainer wrote: settings, findings, and the gradient norms.

    Args:
        folder (`str` or `os.PathLike`): The output folder, with its `README.md`.
        state (`TrainerState`): The Trainer's, which may not have been saved.
    """
    folder = Path(folder)
    run = read_run(folder, asdict(state))
    card = ModelCard.load(folder / "README.md")
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS[:2]]))
    card.text = f"{card.text.rstrip()}\n\n{recording_section(run)}"
    card.save(folder / "README.md")


def recording_section(run: Run) -> str:
    """A run's recording as a section of a card; the figure goes into the run's folder."""
    sentences = [f"- {finding.text}" for finding in find(run)] or ["- The recording gives no reason to worry."]
    parts = ["## Warmup and gradient norms", run.status.capitalize() + ".", "\n".join(sentences)]
    if run.layers and find_spec("matplotlib") is not None:
        plot_gradient_norms([run]).savefig(run.folder / FIGURE)
        parts.append(f"![Gradient norm of each layer over updates]({FIGURE})")
        parts.append("*Gradient norm of each layer before clipping.*")
    rows = [f"| {key} | {value} |" for key, value in {**shared_settings([run]), **run.made_with}.items()]
    parts.append("\n".join(["| setting | value |", "| --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"
