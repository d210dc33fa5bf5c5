"""Which optimizer needs which warmup, with Post-LN and Pre-LN, and at which learning rates does it train?"""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

from hf_warmup.report.figures import COLORS, blank_axes, blank_figure

from .kept_runs import Result, Settings, select
from .outcome import About, Outcome, ReproduceArguments, Verdict, every
from .reversal import WARMUPS, all_solved, draw_grid, folder_of, in_words, job, measures, none_solved, run_jobs, solved


if TYPE_CHECKING:
    from matplotlib.axes import Axes


Configuration = tuple[str, str, str]  # placement, optimizer, warmup

ABOUT = About(
    "Which optimizer needs which warmup, with Post-LN and Pre-LN",
    ("fill-mask", "sequence-reversal"),
    "Seeds that solved the task and their mean updates to loss 0.5; Adam over learning rates, one point per seed",
    "A synthetic task that separates the configurations in seconds, six layers of width 64, one warmup length; "
    "adjacent learning rates differ by a factor of 2 to 2.5.",
)
# Optimizer -> learning rate and updates of a run: those of the demo, and some with which SGD learns.
SIZES = {"adamw": (2e-3, 300), "sgdm": (0.05, 500), "radam": (2e-3, 300), "gi_adam": (2e-3, 300)}
NAMES = {"adamw": "Adam", "sgdm": "SGD, momentum", "radam": "RAdam", "gi_adam": "GI-Adam"}
BAND = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
BAND_CONFIGURATIONS = (("post", "none"), ("post", "linear"), ("pre", "none"))
PLAIN, WARMED, PRE = ("post", "adamw", "none"), ("post", "adamw", "linear"), ("pre", "adamw", "none")
QUICK_CONFIGURATIONS = (PLAIN, WARMED, ("post", "radam", "none"), PRE)
FASTER, WIDER = 1.2, 5.0


class Claim(NamedTuple):
    """A paper's claim: configurations in `fail` fail on every seed, those in `work` solve the task on every seed."""

    paper: str
    source: str
    fail: tuple[Configuration, ...] = ()
    work: tuple[Configuration, ...] = ()


XIONG = "Xiong et al. 2020, arXiv:2002.04745, "
CLAIMS = (
    Claim("Post-LN with Adam needs a warmup", XIONG + "section 3", (PLAIN,), (WARMED,)),
    Claim(
        "Post-LN with SGD needs a warmup, too",
        XIONG + "section 3",
        (("post", "sgdm", "none"),),
        (("post", "sgdm", "linear"),),
    ),
    Claim("Pre-LN needs no warmup", XIONG + "section 4", work=(PRE,)),
    Claim(
        "RAdam needs no warmup on a Transformer",
        "Liu et al. 2020, arXiv:1908.03265, section 5",
        work=(("post", "radam", "none"),),
    ),
    Claim(
        "a warmup that follows from beta2 alone works as well as a tuned one",
        "Ma & Yarats 2019, arXiv:1910.04209",
        work=(("post", "adamw", "untuned"),),
    ),
    Claim(
        "Adam started at v_0 = g_1^2 needs less warmup",
        "Kalra & Barkeshli 2024, arXiv:2406.09405",
        work=(("post", "gi_adam", "none"),),
    ),
)


def plan(args: ReproduceArguments) -> list[Settings]:
    """Return the settings of all runs, ordered so that an interrupted set already shows every configuration."""
    every_one = [(p, o, w) for o in SIZES for p in ("post", "pre") for w in WARMUPS]
    configurations = QUICK_CONFIGURATIONS if args.quick else every_one
    band = () if args.quick else [(p, "adamw", w, lr) for lr in BAND for p, w in BAND_CONFIGURATIONS]
    planned = [*((p, o, w, SIZES[o][0]) for p, o, w in configurations), *band]
    seeds = args.seeds_or(full=3)
    return [job(p, o, w, lr, args.max_steps or SIZES[o][1], seed) for seed in seeds for p, o, w, lr in planned]


def runs_of(results: list[Result], configuration: Configuration, lr: float | None = None) -> list[Result]:
    """Return the runs of one configuration at `lr`, by default at the learning rate of its optimizer."""
    placement, optim, warmup = configuration
    wanted = {"lr_scheduler_type": None, **WARMUPS[warmup], "norm_placement": placement, "optim": optim}
    return select(results, learning_rate=lr or SIZES[optim][0], **wanted)


def title(configuration: Configuration) -> str:
    """Return a name such as `Post-LN Adam, linear warmup`."""
    placement, optim, warmup = configuration
    return f"{placement.capitalize()}-LN {NAMES[optim]}, {'no' if warmup == 'none' else warmup} warmup"


def judge(claim: Claim, results: list[Result]) -> Verdict:
    """Judge a claim by the runs of its configurations."""
    answers = [none_solved(runs_of(results, each)) for each in claim.fail]
    answers += [all_solved(runs_of(results, each)) for each in claim.work]
    measured = "; ".join(f"{title(each)}: {in_words(runs_of(results, each))}" for each in claim.fail + claim.work)
    return Verdict(
        claim.paper, claim.source, f"seeds that solved the task, mean updates to loss 0.5: {measured}", every(*answers)
    )


def faster(results: list[Result]) -> Verdict:
    """Judge whether Pre-LN without warmup trains faster than Post-LN with it."""
    post, pre = (solved(runs_of(results, each)) for each in (WARMED, PRE))
    ratio = mean(post) / mean(pre) if post and pre else None
    measured = f"{ratio:.2f} times fewer updates to loss 0.5" if ratio else "one of the two never reached loss 0.5"
    claim = f"Pre-LN without warmup trains faster than Post-LN with it (here: at least {FASTER} times)"
    return Verdict(claim, XIONG + "section 4", measured, None if ratio is None else ratio >= FASTER)


def highest_working(results: list[Result], placement: str, warmup: str) -> float | None:
    """Return the largest learning rate at which every seed solved the task, or `None`."""
    rates = [lr for lr in BAND if all_solved(runs_of(results, (placement, "adamw", warmup), lr))]
    return max(rates, default=None)


def wider(results: list[Result]) -> Verdict:
    """Judge whether a warmup allows larger learning rates."""
    plain, warmed = (highest_working(results, "post", warmup) for warmup in ("none", "linear"))
    measured = "not enough learning rates were run"
    if plain and warmed:
        measured = f"Post-LN works up to {plain:g} without and up to {warmed:g} with warmup, {warmed / plain:.3g} times"
        measured += f" on the grid {', '.join(format(lr, 'g') for lr in BAND)}"
    claim = f"a warmup allows larger learning rates (here: at least {WIDER:g} times)"
    source = "Kalra & Barkeshli 2024, arXiv:2406.09405; Goyal et al. 2017, arXiv:1706.02677"
    return Verdict(claim, source, measured, warmed / plain >= WIDER if plain and warmed else None)


def draw_band(axes: Axes, results: list[Result]) -> None:
    """Draw updates to loss 0.5 over the learning rate; runs that never reached it are above the dotted line."""
    steps = max(result["max_steps"] for result in select(results, optim="adamw"))
    for color, (placement, warmup) in zip(COLORS, BAND_CONFIGURATIONS, strict=False):
        configuration = (placement, "adamw", warmup)
        runs = [run for lr in BAND for run in runs_of(results, configuration, lr)]
        rates, updates = [run["learning_rate"] for run in runs], [run["steps_to_loss_0.5"] for run in runs]
        shift = 1 + 0.04 * (BAND_CONFIGURATIONS.index((placement, warmup)) - 1)  # keeps overlapping points visible
        heights = [1.12 * steps if update is None else update for update in updates]
        axes.scatter([shift * rate for rate in rates], heights, color=color, s=22, label=title(configuration))
    axes.axhline(1.06 * steps, color="black", linewidth=0.8, linestyle=":")
    axes.text(0.01, 1.15 * steps, "never", transform=axes.get_yaxis_transform(), fontsize=8, va="bottom")
    axes.set(xscale="log", ylim=(0, 1.3 * steps))
    axes.set_xticks(BAND, [f"{lr:g}" for lr in BAND], minor=False)
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def run(args: ReproduceArguments) -> Outcome:
    """Execute all runs, draw the figure and judge the claims."""
    results = run_jobs(plan(args), args)
    figure = blank_figure(12, 4.4)
    grid = blank_axes(figure, "Seeds that solved the task, and mean updates to loss 0.5", "", "warmup", (1, 2, 1))
    kinds = [(p, o) for o in SIZES for p in ("post", "pre")]
    cells = [[runs_of(results, (p, o, w)) for w in WARMUPS] for p, o in kinds]
    names = [f"{p.capitalize()}-LN, {NAMES[o]}" for p, o in kinds]
    table = draw_grid(grid, cells, names, list(WARMUPS))
    band = blank_axes(figure, "Adam: updates to loss 0.5", "updates", "learning rate", (1, 2, 2))
    draw_band(band, results)
    configurations = [(p, o, w) for o in SIZES for p in ("post", "pre") for w in WARMUPS]
    named = measures({title(each): runs_of(results, each) for each in configurations})
    shown = [folder_of(args, run) for each in QUICK_CONFIGURATIONS for run in runs_of(results, each)[:1]]
    verdicts = [*(judge(claim, results) for claim in CLAIMS), faster(results), wider(results)]
    return Outcome(figure, verdicts, table, results, named, shown)
