"""A small BERT that `pretrain` has pretrained, fine-tuned on SST-2 with warmup and without, at three learning rates."""

from __future__ import annotations

from itertools import product
from statistics import mean
from typing import TYPE_CHECKING

from hf_warmup.report import mean_and_spread
from hf_warmup.report.figures import COLORS, blank_axes, blank_figure
from kept_runs import Result

from .outcome import About, Outcome, ReproduceArguments, Verdict, table_of
from .pretrain import LEARNED, MAJORITY, best_of, finetune_all, finetuning, pretrain_all
from .reversal import select
from .texts import find_texts


if TYPE_CHECKING:
    from matplotlib.figure import Figure


ABOUT = About(
    "A small pretrained BERT on SST-2, with and without warmup",
    ("text-classification", "glue"),
    "Loss and area under the ROC curve on the development set; a faint line a seed, bold the mean",
    "The model was pretrained on a million tokens by `pretrain`, a pretrained BERT-base is well above it; a quarter "
    "of an epoch, linear decay, one length of warmup.",
)
TASK = "SST-2"
RATES = (3e-4, 1e-3, 3e-3)
ARMS = tuple(product(("post", "pre"), ("none", "linear")))  # placement, warmup
CLOSE = 0.01  # in area under the ROC curve
KEYS = {"accuracy": "accuracy", "roc_auc": "AUC"}
ROWS = {"loss": 1, "area under the ROC curve": 3}  # title -> column of an evaluation


def title(placement: str, warmup: str) -> str:
    return f"{placement.capitalize()}-LN, {'warmup' if warmup == 'linear' else 'no warmup'}"


def runs_of(results: list[Result], placement: str, warmup: str, lr: float) -> list[Result]:
    """The runs of one arm at one learning rate, one a seed."""
    return select(results, norm_placement=placement, warmup_type=warmup, learning_rate=lr)


def failed(result: Result) -> bool:
    """Whether it learned nothing: no better than the larger class."""
    return result["accuracy"] <= MAJORITY[TASK] + LEARNED


def run(args: ReproduceArguments) -> Outcome:
    """Every arm at every learning rate from the better checkpoint of its placement, then curves and verdicts."""
    texts, seeds = find_texts(args.data_dir), args.seeds_or(full=3)
    arms = ARMS[:2] if args.quick else ARMS
    rates = RATES[1:2] if args.quick else RATES
    best = best_of(pretrain_all(args, texts, seeds[0]))
    jobs = {
        f"{placement}-{warmup}-lr{lr:g}-seed{seed}": finetuning(args, best[placement], TASK, warmup, lr, seed)
        for (placement, warmup), seed, lr in product(arms, seeds, rates)
    }
    results = finetune_all(args, texts, jobs)
    rows = [
        [title(*arm), *(mean_and_spread([r[key] for r in runs_of(results, *arm, lr)]) for key in KEYS for lr in rates)]
        for arm in arms
    ]
    header = ["", *(f"{words}, lr {lr:g}" for words in KEYS.values() for lr in rates)]
    named = {f"{title(*arm)}, lr {lr:g}": runs_of(results, *arm, lr) for lr in rates for arm in arms}
    measured = {
        words: {name: [run[key] for run in runs] for name, runs in named.items()} for key, words in KEYS.items()
    }
    recordings = [args.folder / "finetuned" / name for name in jobs if name.endswith(f"lr{rates[-1]:g}-seed{seeds[0]}")]
    table = table_of(header, rows)
    return Outcome(
        draw(results, arms, rates), verdicts(results, rates, args.quick), table, results, measured, recordings
    )


def draw(results: list[Result], arms: tuple[tuple[str, str], ...], rates: tuple[float, ...]) -> Figure:
    """Loss and area under the ROC curve over updates: a column a learning rate, a faint line a seed, bold the mean."""
    figure = blank_figure(4 * len(rates), 6)
    for (row, (words, column)), (i, lr) in product(enumerate(ROWS.items()), enumerate(rates)):
        where = (len(ROWS), len(rates), row * len(rates) + i + 1)
        heading = f"learning rate {lr:g}" if row == 0 else ""
        axes = blank_axes(figure, heading, words if i == 0 else "", "update" if row else "", where)
        for color, (placement, warmup) in zip(COLORS, arms, strict=False):
            curves = [run["evaluations"] for run in runs_of(results, placement, warmup, lr)]
            style = {"color": color, "linestyle": "-" if warmup == "linear" else "--"}
            steps = [evaluation[0] for evaluation in curves[0]]
            for curve in curves:
                axes.plot(steps, [evaluation[column] for evaluation in curve], alpha=0.25, linewidth=0.8, **style)
            middle = [mean(at[column] for at in step) for step in zip(*curves, strict=True)]
            axes.plot(steps, middle, label=title(placement, warmup), **style)
        if row and i == 0:
            axes.legend(frameon=False, fontsize=8)
    return figure


def verdicts(results: list[Result], rates: tuple[float, ...], quick: bool) -> list[Verdict]:
    """Whether a warmup keeps Post-LN from failing, and whether Pre-LN can do without."""
    fails = {arm: [sum(map(failed, runs_of(results, *arm, lr))) for lr in rates] for arm in ARMS}
    without, with_it = (fails["post", warmup] for warmup in ("none", "linear"))
    areas = {
        warmup: [[r["roc_auc"] for r in runs_of(results, "pre", warmup, lr)] for lr in rates]
        for warmup in ("none", "linear")
    }
    pairs = list(zip(areas["none"], areas["linear"], strict=True))
    words = [
        f"{mean_and_spread(none)} / {mean_and_spread(linear)} at {lr:g}"
        for lr, (none, linear) in zip(rates, pairs, strict=True)
        if none
    ]
    return [
        Verdict(
            "a warmup keeps fine-tuning from failing (here: fewer Post-LN runs no better than the larger class)",
            "Mosbach et al. 2021, arXiv:2006.04884, section 6",
            f"failed runs at learning rates {', '.join(f'{lr:g}' for lr in rates)}: {without} without, {with_it} with",
            None if quick or not any(without + with_it) else sum(with_it) < sum(without),
        ),
        Verdict(
            f"Pre-LN can do without a warmup (here: mean area under the ROC curve at most {CLOSE} lower)",
            "Xiong et al. 2020, arXiv:2002.04745, section 4",
            f"without / with: {', '.join(words) or 'nothing'}",
            None if quick else all(mean(none) >= mean(linear) - CLOSE for none, linear in pairs),
        ),
    ]
