"""Does a small Post-LN BERT, pretrained by `pretrain`, need a warmup when it is fine-tuned on SST-2?"""

from __future__ import annotations

from statistics import mean

from hf_warmup.report import mean_and_spread

from .drawing import Row, draw_evaluations
from .kept_runs import Result, select
from .outcome import About, Outcome, ReproduceArguments, Verdict
from .pretrain import LEARNED, MAJORITY, best_of, finetune_all, finetuning, pretrain_all
from .texts import find_texts
from .training import CLASSIFICATION, grid, summary


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
    "no warmup": {"warmup_type": "none"},
    "linear warmup": {"warmup_type": "linear"},
    "RAdam, no warmup": {"warmup_type": "none", "optim": "radam"},
}
CLOSE = 0.01  # in accuracy
ROWS = (Row("loss", 1), Row("area under the ROC curve", 3))


def failed(result: Result) -> bool:
    """Return whether a run is no better than the majority class."""
    return result["accuracy"] <= MAJORITY[TASK] + LEARNED


def run(args: ReproduceArguments) -> Outcome:
    """Fine-tune the better Post-LN checkpoint with every configuration and learning rate."""
    texts, seeds = find_texts(args.data_dir), args.seeds_or(full=3)
    rates = RATES[1:2] if args.quick else RATES
    checkpoint = best_of(pretrain_all(args, texts, seeds[0]))["post"]
    jobs = grid(CONFIGURATIONS, rates, seeds, finetuning(args, checkpoint, TASK))
    results = finetune_all(args, texts, jobs)
    table, measured = summary(results, CLASSIFICATION)
    figure = draw_evaluations(results, ROWS, {name: {"name": name} for name in CONFIGURATIONS})
    recordings = [args.folder / "finetuned" / name for name in jobs if name.endswith(f"-seed{seeds[0]}")]
    return Outcome(figure, verdicts(results, rates, args.quick), table, results, measured, recordings)


def verdicts(results: list[Result], rates: tuple[float, ...], quick: bool) -> list[Verdict]:
    """Judge whether a warmup prevents failures, and whether it costs accuracy."""
    runs = {name: [select(results, name=name, learning_rate=lr) for lr in rates] for name in CONFIGURATIONS}
    fails = [[sum(map(failed, each)) for each in by_rate] for by_rate in runs.values()]
    plain, warmed, radam = (
        max(([run["accuracy"] for run in each] for each in by_rate), key=mean) for by_rate in runs.values()
    )
    tried = ", ".join(f"{lr:g}" for lr in rates)
    return [
        Verdict(
            "a warmup prevents failed fine-tuning runs (here: fewer runs that are no better than the majority class)",
            "Mosbach et al. 2021, arXiv:2006.04884, section 6",
            f"failed runs at learning rates {tried}: {fails[0]} without, {fails[1]} with, {fails[2]} with RAdam",
            None if quick or not any(fails[0] + fails[1]) else sum(fails[1]) < sum(fails[0]),
        ),
        Verdict(
            f"at its best learning rate a run with warmup is no worse (here: mean accuracy at most {CLOSE} lower)",
            "Kalra & Barkeshli 2024, arXiv:2406.09405",
            f"best mean accuracy {mean_and_spread(plain)} without, {mean_and_spread(warmed)} with, "
            f"{mean_and_spread(radam)} with RAdam",
            None if quick else mean(warmed) >= mean(plain) - CLOSE,
        ),
    ]
