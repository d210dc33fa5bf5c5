"""Does a BERT that is trained from scratch on SST-2 need a warmup, with Post-LN and Pre-LN?"""

from __future__ import annotations

from functools import partial
from itertools import product

from .drawing import Row, draw_evaluations
from .kept_runs import Result, Settings, run_all, select
from .outcome import About, Outcome, ReproduceArguments, Verdict, every
from .texts import find_texts
from .training import CLASSIFICATION, finetune_one, grid, summary


ABOUT = About(
    "A small BERT from scratch on SST-2, Post-LN and Pre-LN, with and without warmup",
    ("text-classification", "glue"),
    "Accuracy on the development set over updates: mean and range of the seeds",
    "From scratch in less than half an epoch: such a model reaches 0.80, a pretrained BERT more than 0.9. Linear decay "
    "to 0, one warmup length.",
)
XIONG = "Xiong et al. 2020, arXiv:2002.04745"
RATES = (2e-3, 3e-3)
STEPS, WARMUP_STEPS = 450, 200
SIZE = {"num_hidden_layers": 6, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
QUICK_SIZE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
CONFIGURATIONS: dict[str, Settings] = {
    "Post-LN, no warmup": {"norm_placement": "post", "warmup_type": "none"},
    "Post-LN, linear warmup": {"norm_placement": "post", "warmup_type": "linear"},
    "Post-LN, RAdam": {"norm_placement": "post", "warmup_type": "none", "optim": "radam"},
    "Post-LN, auto": {"norm_placement": "post", "warmup_type": "none", "guard": "rewind"},
    "Post-LN, untuned, then auto": {"norm_placement": "post", "warmup_type": "untuned_exponential", "guard": "rewind"},
    "Pre-LN, no warmup": {"norm_placement": "pre", "warmup_type": "none"},
}
LEARNED = 0.05  # a run has learned if its accuracy is this much above the majority class


def plan(args: ReproduceArguments) -> dict[str, Settings]:
    """Return folder name -> settings of all runs, seed by seed."""
    steps = args.max_steps or (10 if args.quick else STEPS)
    common = {
        "task": "SST-2",
        "max_steps": steps,
        "batch_size": 64,
        "warmup_steps": min(WARMUP_STEPS, steps),
        "grad_norm_steps": 1,
        **(QUICK_SIZE if args.quick else SIZE),
    }
    return grid(CONFIGURATIONS, RATES[:1] if args.quick else RATES, args.seeds_or(full=3), common)


def run(args: ReproduceArguments) -> Outcome:
    """Train with every configuration and seed; draw the curves and judge the claims."""
    jobs = plan(args)
    results = run_all(
        partial(finetune_one, texts=find_texts(args.data_dir)), jobs, args.folder / "runs", args.num_workers
    )
    table, measured = summary(results, CLASSIFICATION)
    figure = draw_evaluations(results, [Row("accuracy", 2)], {name: {"name": name} for name in CONFIGURATIONS})
    recordings = [args.folder / "runs" / name for name in jobs][: len(CONFIGURATIONS)]  # of the first seed and rate
    return Outcome(figure, verdicts(results, args.quick), table, results, measured, recordings)


def verdicts(results: list[Result], quick: bool) -> list[Verdict]:
    """Judge the claims of the papers, and that a run that rewinds needs no warmup length."""
    usual, high = RATES
    words: dict[tuple[str, float], str] = {}
    none: dict[tuple[str, float], bool | None] = {}
    every_seed: dict[tuple[str, float], bool | None] = {}
    for name, lr in product(CONFIGURATIONS, RATES):
        runs = select(results, name=name, learning_rate=lr)
        count = sum(run["accuracy"] > run["majority"] + LEARNED for run in runs)
        words[name, lr] = f"{count} of {len(runs)} seeds learn"
        none[name, lr], every_seed[name, lr] = (None, None) if quick else (count == 0, count == len(runs))
    plain, warmed, radam, auto, untuned, pre = CONFIGURATIONS

    return [
        Verdict(
            f"Post-LN needs a warmup (here: at {usual:g} no seed learns without, every seed with warmup)",
            XIONG + ", section 3",
            f"{words[plain, usual]} without, {words[warmed, usual]} with warmup",
            every(none[plain, usual], every_seed[warmed, usual]),
        ),
        *(
            Verdict(f"{what} at {lr:g} (here: every seed learns)", source, words[name, lr], every_seed[name, lr])
            for what, source, name in (
                ("Pre-LN needs no warmup", XIONG + ", section 4", pre),
                ("RAdam needs no warmup", "Liu et al. 2020, arXiv:1908.03265", radam),
            )
            for lr in RATES
        ),
        Verdict(
            f"a run that rewinds needs no warmup length (here: at {usual:g} every seed learns, as with "
            "the linear warmup)",
            "hf_warmup",
            f"{words[auto, usual]}, {words[warmed, usual]} with the linear warmup",
            every_seed[auto, usual] if every_seed[warmed, usual] else None,
        ),
        Verdict(
            f"at {high:g} a linear warmup of {WARMUP_STEPS} updates is too short (here: no seed learns)",
            "hf_warmup",
            words[warmed, high],
            none[warmed, high],
        ),
        Verdict(
            f"at {high:g} a run that rewinds finds a warmup that is long enough (here: every seed learns)",
            "hf_warmup",
            words[auto, high],
            every_seed[auto, high],
        ),
        Verdict(
            "a run that begins with the untuned warmup and rewinds needs no warmup length (here: every seed learns)",
            "hf_warmup",
            ", ".join(f"{words[untuned, lr]} at {lr:g}" for lr in RATES),
            every(*(every_seed[untuned, lr] for lr in RATES)),
        ),
    ]
