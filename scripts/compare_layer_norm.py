"""Compare Post-LN and Pre-LN with and without warmup on a task that trains in seconds.

    python scripts/compare_layer_norm.py                                   # six configurations, three seeds
    python scripts/compare_layer_norm.py --arms post:gi_adam:none --seeds 0 1 2 3 4
    python scripts/compare_layer_norm.py --arms post:adamw:none --learning_rate 5e-4 --output_dir runs/low_lr

A configuration (`--arms`) is `norm_placement:optim:warmup_type`. Optimizer and warmup may be import paths, such as
`post:my_optim:MyAdam:my_curves:quadratic`. If only one of them is, as in `post:adamw:my_curves:quadratic`, the second
word decides: it is the optimizer if it is the name of one. Modules are imported from
the current folder and from `PYTHONPATH`.

A small BERT learns to reverse 16 random tokens from a masked-LM loss at every position, with a new batch per update.
All configurations of a seed have the same batches and the same initial values. The output folder receives the runs,
`results.json`, the figures, `report.html` and a model card, `README.md`. A finished run with the same settings is not
repeated.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser
from transformers.training_args import OptimizerNames

from hf_warmup import OPTIMIZERS
from hf_warmup.cli import check_minimums, check_process_count, exit_on_user_error, parse_arguments
from hf_warmup.model_card import Experiment, experiment_card
from hf_warmup.report import Run, draw_comparison, mean_and_spread, read_run
from hf_warmup.report.page import write_page
from reproductions.card import publish_card
from reproductions.kept_runs import Result, Settings, run_all
from reproductions.reversal import (
    CHANCE_LOSS,
    FIRST_SYMBOL,
    VOCAB_SIZE,
    measures,
    run_one,
    solved,
    training_arguments,
)


DEFAULT_ARMS = [
    "post:adamw:none",
    "post:adamw:linear",
    "post:adamw:constant",
    "post:radam:none",
    "pre:adamw:none",
    "post:adamw:auto",
]
DOCS_IMAGES = Path(__file__).parents[1] / "docs" / "images"


@dataclass
class CompareArguments:
    """What to compare."""

    arms: list[str] = field(
        default_factory=lambda: list(DEFAULT_ARMS),
        metadata={"help": "Configurations: norm_placement:optim:warmup_type, for example post:adamw:linear."},
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run per seed and arm."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate, constant after the warmup."})
    warmup_steps: int = field(default=100, metadata={"help": "Updates of warmup in configurations that have one."})
    max_steps: int = field(default=300, metadata={"help": "Updates per run."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Layers of the BERT."})
    output_dir: str = field(default="runs/compare_layer_norm", metadata={"help": "Folder for runs and figures."})
    num_workers: int = field(default=0, metadata={"help": "Runs at a time; 0 for one per core."})
    card: bool = field(default=False, metadata={"help": "Also store the model card and its figures in model_cards/."})


def split_arm(arm: str) -> tuple[str, str, str]:
    """Split a configuration into norm placement, optimizer and warmup.

    Raises:
        `ValueError`: If it does not have three parts, or the first is neither `post` nor `pre`.

    Example:

    ```python
    >>> split_arm("post:adamw:my_curves:quadratic")
    ('post', 'adamw', 'my_curves:quadratic')
    >>> split_arm("pre:my_optim:MyAdam:linear")
    ('pre', 'my_optim:MyAdam', 'linear')

    ```
    """
    placement, *words = arm.split(":")
    if placement not in ("post", "pre") or len(words) not in (2, 3, 4):
        raise ValueError(f"arms={arm!r}: expected post or pre:optim:warmup_type, such as post:adamw:linear.")
    optimizer_names = {*OPTIMIZERS, *(name.value for name in OptimizerNames)}
    has_name = len(words) == 2 or (len(words) == 3 and words[0] in optimizer_names)
    end = 1 if has_name else 2
    return placement, ":".join(words[:end]), ":".join(words[end:])


def plan(args: CompareArguments) -> dict[str, Settings]:
    """Return name to settings for all configurations and seeds; raise `ValueError` for invalid arguments."""
    check_minimums(args, max_steps=1, num_hidden_layers=1, warmup_steps=0, num_workers=0, seeds=0)
    jobs = {}
    for seed in args.seeds:
        for arm in args.arms:
            placement, optim, warmup_type = split_arm(arm)
            settings = {
                "norm_placement": placement,
                "optim": optim,
                "warmup_type": warmup_type,
                "warmup_steps": args.warmup_steps,
                "learning_rate": args.learning_rate,
                "max_steps": args.max_steps,
                "num_hidden_layers": args.num_hidden_layers,
                "seed": seed,
            }
            name = f"{arm.replace(':', '-')}-seed{seed}"
            training_arguments(settings, Path(args.output_dir) / name)  # checks the settings before anything runs
            jobs[name] = settings
    return jobs


def name_of(result: Settings | Result) -> str:
    """Return the configuration of a run."""
    return ":".join(result[key] for key in ("norm_placement", "optim", "warmup_type"))


def by_configuration(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return configuration to its results, one per seed."""
    return {name: [each for each in results if name_of(each) == name] for name in dict.fromkeys(map(name_of, results))}


def summarize(results: Sequence[Result]) -> tuple[str, str]:
    """Return the table of results, and the conclusion in words."""
    groups = by_configuration(results)
    width = max(24, *(len(name) + 2 for name in groups))
    lines = [f"{'configuration':<{width}}{'solved':>8}{'final loss':>18}{'accuracy':>18}{'updates to loss 0.5':>22}"]
    conclusions = ("failed on every seed", "solved the task on every seed", "solved the task on some seeds")
    concluded: dict[str, list[str]] = {conclusion: [] for conclusion in conclusions}
    for name, runs in groups.items():
        updates = solved(runs)
        lines.append(
            f"{name:<{width}}{f'{len(updates)}/{len(runs)}':>8}"
            f"{mean_and_spread([run['final_loss'] for run in runs]):>18}"
            f"{mean_and_spread([run['accuracy'] for run in runs]):>18}"
            f"{mean_and_spread(updates, digits=0) if updates else 'never':>22}"
        )
        concluded[conclusions[0 if not updates else 1 if len(updates) == len(runs) else 2]].append(name)
    words = [f"{', '.join(names)} {conclusion}." for conclusion, names in concluded.items() if names]
    words.append(f"Chance level: loss {CHANCE_LOSS:.3f}, accuracy {1 / (VOCAB_SIZE - FIRST_SYMBOL):.3f}.")
    return "\n".join(lines), " ".join(words)


def write_card(results: Sequence[Result], runs: Sequence[Run], args: CompareArguments) -> None:
    """Write the model card of the comparison, `README.md`, into the output folder."""
    configurations = by_configuration(results)
    metrics: dict[str, dict[str, list[float]]] = {
        metric: {name: [each[key] for each in group] for name, group in configurations.items()}
        for metric, key in {"accuracy": "accuracy", "loss": "final_loss"}.items()
    }
    metrics["updates to loss 0.5"] = measures(configurations)["updates to loss 0.5"]
    is_default = args == CompareArguments(output_dir=args.output_dir, num_workers=args.num_workers, card=args.card)
    experiment = Experiment(
        title="Post-LN and Pre-LN BERT on sequence reversal, with and without warmup",
        question=(
            f"Does a Post-LN BERT need a warmup, and does a Pre-LN BERT not? A {args.num_hidden_layers}-layer BERT of "
            f"width 64 learns to reverse 16 random tokens at learning rate {args.learning_rate:g}. All configurations "
            f"of a seed have the same batches and the same initial values. {summarize(results)[1]} The experiment "
            "follows Xiong et al. 2020, https://arxiv.org/abs/2002.04745."
        ),
        command="make demo" if is_default else " ".join(["python", "scripts/compare_layer_norm.py", *sys.argv[1:]]),
        task=("fill-mask", "sequence-reversal"),
        limits=(
            "A synthetic task that separates the configurations in seconds, one learning rate, one depth. At 5e-4 "
            "Post-LN learns without a warmup, too. The ratio of last to first layer compares whole layers, not one "
            "matrix as in the paper."
        ),
        figures={
            "loss.png": "Training loss, mean and range of the seeds",
            "gradient_norms.png": "Gradient norm of each layer before clipping, first seed",
            "gradient_norm_ratio.png": "Gradient norm of the last layer divided by that of the first",
        },
    )
    experiment_card(experiment, metrics, runs).save(Path(args.output_dir) / "README.md")


def main() -> None:
    with exit_on_user_error():
        (args,) = parse_arguments(HfArgumentParser(CompareArguments))
        check_process_count(1)
        jobs = plan(args)
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    try:
        results = run_all(run_one, jobs, Path(args.output_dir), args.num_workers)
    except (KeyboardInterrupt, BrokenProcessPool):
        print(f"\nstopped: the same command continues with the finished runs in {args.output_dir}", file=sys.stderr)
        sys.exit(130)
    runs = [read_run(Path(args.output_dir) / name) for name in jobs]
    figures = draw_comparison(runs, args.output_dir)
    page = write_page(runs, Path(args.output_dir) / "report.html")
    write_card(results, runs, args)
    table, conclusion = summarize(results)
    print(
        f"\n{table}\n\n{conclusion}\n\nWrote results.json, the runs and the model card README.md to {args.output_dir}:"
    )
    print("\n".join(f"  {path}" for path in (*figures, page)))
    if args.card:
        for figure in figures:
            if (DOCS_IMAGES / figure.name).exists():  # README and docs show it
                shutil.copy(figure, DOCS_IMAGES)
        print(f"Wrote {publish_card(Path(args.output_dir), 'compare_layer_norm')}")


if __name__ == "__main__":
    main()
