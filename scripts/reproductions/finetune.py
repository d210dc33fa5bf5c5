"""Does a small Post-LN BERT, pretrained by `pretrain`, need a warmup when it is fine-tuned on SST-2?"""

from __future__ import annotations

from itertools import product
from statistics import mean

from hf_warmup.report import mean_and_spread

from .drawing import Row, draw_evaluations
from .kept_runs import Result, select
from .outcome import About, Outcome, ReproduceArguments, Verdict, table_of
from .pretrain import LEARNED, MAJORITY, best_of, finetune_all, finetuning, pretrain_all
from .texts import find_texts


ABOUT = About(
    "A small pretrained BERT on SST-2, with and without warmup",
    ("text-classification", "glue"),
    "Loss and area under the ROC curve on the development set: mean and range of the seeds",
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
SETTINGS = {words: {"optim": None, **CONFIGURATIONS[name]} for name, words in NAMES.items()}
CLOSE = 0.01  # in accuracy
ROWS = (Row("loss", 1), Row("area under the ROC curve", 3))
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
    return Outcome(draw_evaluations(results, ROWS, SETTINGS), judged, table, results, measured, recordings)


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
