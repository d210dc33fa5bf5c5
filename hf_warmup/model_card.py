"""An experiment's runs as a model card in the Hub's format: what was compared, how, on what, and what came out."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import mean

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .report import Run, mean_and_spread


PACKAGES = ("hf-warmup", "torch", "transformers", "accelerate", "datasets")


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


def environment() -> dict[str, str]:
    """Versions, commit and machine that the card names."""
    described = {name: version(name) for name in PACKAGES}
    described["python"] = platform.python_version()
    try:
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        described["commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # installed from a wheel
        pass
    described["machine"] = f"{platform.system()} {platform.machine()}, CPU, one thread a run"
    return described


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
        tags=["hf-warmup", "warmup", "learning-rate", "layer-normalization", "gradient-norm"],
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
    made_with = environment() | ({"commit": experiment.commit} if experiment.commit else {})
    machine = "\n".join(f"- {name}: {value}" for name, value in made_with.items())
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
