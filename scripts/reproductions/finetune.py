"""Does a small Post-LN BERT, pretrained by `pretrain`, need a warmup when it is fine-tuned on SST-2?"""

from __future__ import annotations

from itertools import product
from statistics import mean
from typing import TYPE_CHECKING

from hf_warmup.report import mean_and_spread

from .drawing import COLORS, blank_axes, blank_figure
from .kept_runs import Result
from .outcome import About, Outcome, ReproduceArguments, Verdict, table_of
from .pretrain import LEARNED, MAJORITY, best_of, finetune_all, finetuning, pretrain_all
from .reversal import select
from .texts import find_texts


if TYPE_CHECKING:
    from matplotlib.figure import Figure


ABOUT = About(
    "A small pretrained BERT on SST-2, with and without warmup",
    ("text-classification", "glue"),
    "Loss and area under the ROC curve on the development set; one faint line per seed, bold: the mean",
    "The model was pretrained on a million tokens by `pretrain`; a pretrained BERT-base is much better. A quarter of "
    "an epoch, linear decay, one warmup length (a tenth of the run).",
)
TASK = "SST-2"
RATES = (3e-4, 1e-3, 2e-3, 3e-3)
CONFIGURATIONS = {  # name -> settings besides the learning rate
    "none": {"warmup_type": "none"},
    "linear": {"warmup_type": "linear"},
    "radam": {"warmup_type": "none", "optim": "radam"},
}
NAMES = {"none": "no warmup", "linear": "linear warmup", "radam": "RAdam, no warmup"}
CLOSE = 0.01  # in accuracy
COLUMNS = {"loss": 1, "area under the ROC curve": 3}  # title -> column of an evaluation
KEYS = {"accuracy": "accuracy", "roc_auc": "AUC"}


def runs_of(results: list[Result], name: str, lr: float) -> list[Result]:
    """Return the runs of a configuration, one per seed."""
    return select(results, learning_rate=lr, **{"optim": None, **CONFIGURATIONS[name]})


def failed(result: Result) -> bool:
    """Return whether a run is no better than the majority class."""
    return result["accuracy"] <= MAJORITY[TASK] + LEARNED


def run(args: ReproduceArguments) -> Outcome:
    """Fine-tune the better Post-LN checkpoint with every configuration and learning rate."""
    texts, seeds = find_texts(args.data_dir), args.seeds_or(full=3)
    rates = RATES[1:2] if args.quick else RATES
    checkpoint = best_of(pretrain_all(args, texts, seeds[0]))["post"]
    jobs = {
        f"{name}-lr{lr:g}-seed{seed}": finetuning(args, checkpoint, TASK, "none", lr, seed) | CONFIGURATIONS[name]
        for lr, name, seed in product(rates, CONFIGURATIONS, seeds)
    }
    results = finetune_all(args, texts, jobs)
    named = {f"{words}, lr {lr:g}": runs_of(results, name, lr) for lr in rates for name, words in NAMES.items()}
    measured = {
        words: {name: [run[key] for run in runs] for name, runs in named.items()} for key, words in KEYS.items()
    }
    rows = [[name, *(mean_and_spread(measured[words][name]) for words in KEYS.values())] for name in named]
    table, judged = table_of(["", *KEYS.values()], rows), verdicts(results, rates, args.quick)
    recordings = [args.folder / "finetuned" / name for name in jobs if name.endswith(f"-seed{seeds[0]}")]
    return Outcome(draw(results, rates), judged, table, results, measured, recordings)


def draw(results: list[Result], rates: tuple[float, ...]) -> Figure:
    """Draw loss and area under the ROC curve over updates, with one column per learning rate."""
    figure = blank_figure(3.4 * len(rates), 5.6)
    for (row, (words, column)), (i, lr) in product(enumerate(COLUMNS.items()), enumerate(rates)):
        where = (len(COLUMNS), len(rates), row * len(rates) + i + 1)
        heading = f"learning rate {lr:g}" if row == 0 else ""
        axes = blank_axes(figure, heading, words if i == 0 else "", "update" if row else "", where)
        for color, (name, label) in zip(COLORS, NAMES.items(), strict=False):
            curves = [run["evaluations"] for run in runs_of(results, name, lr)]
            steps = [evaluation[0] for evaluation in curves[0]]
            for curve in curves:
                axes.plot(steps, [evaluation[column] for evaluation in curve], color=color, alpha=0.3, linewidth=0.8)
            middle = [mean(at[column] for at in step) for step in zip(*curves, strict=True)]
            axes.plot(steps, middle, color=color, label=label)
        values = [evaluation[column] for run in results for evaluation in run["evaluations"]]
        axes.set_ylim(min(values) - 0.02, max(values) + 0.02)  # one scale per row
        if row and i == 0:
            axes.legend(frameon=False, fontsize=8)
    return figure


def verdicts(results: list[Result], rates: tuple[float, ...], quick: bool) -> list[Verdict]:
    """Judge whether a warmup prevents failures, and whether it costs accuracy."""
    fails = {name: [sum(map(failed, runs_of(results, name, lr))) for lr in rates] for name in CONFIGURATIONS}
    any_failed = any(fails["none"] + fails["linear"])
    best = {
        name: max(([run["accuracy"] for run in runs_of(results, name, lr)] for lr in rates), key=mean)
        for name in CONFIGURATIONS
    }
    grid = ", ".join(f"{lr:g}" for lr in rates)
    return [
        Verdict(
            "a warmup prevents failed fine-tuning runs (here: fewer runs that are no better than the majority class)",
            "Mosbach et al. 2021, arXiv:2006.04884, section 6",
            f"failed runs at learning rates {grid}: {fails['none']} without, {fails['linear']} with, "
            f"{fails['radam']} with RAdam",
            None if quick or not any_failed else sum(fails["linear"]) < sum(fails["none"]),
        ),
        Verdict(
            f"at its best learning rate a run with warmup is no worse (here: mean accuracy at most {CLOSE} lower)",
            "Kalra & Barkeshli 2024, arXiv:2406.09405",
            f"best mean accuracy {mean_and_spread(best['none'])} without, {mean_and_spread(best['linear'])} with, "
            f"{mean_and_spread(best['radam'])} with RAdam",
            None if quick else mean(best["linear"]) >= mean(best["none"]) - CLOSE,
        ),
    ]
