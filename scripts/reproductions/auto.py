"""Does a run that rewinds find the warmup that it needs, and does it cost nothing where none is needed?"""

from __future__ import annotations

from statistics import mean

from hf_warmup.report.figures import blank_axes, blank_figure

from .kept_runs import Result, Settings, select
from .outcome import About, Outcome, ReproduceArguments, Verdict
from .reversal import all_solved, draw_grid, folder_of, job, measures, run_jobs, solved


ABOUT = About(
    "Let the run find its warmup: rewinding against fixed warmups",
    ("fill-mask", "sequence-reversal"),
    "Seeds that solved the task and their mean updates to loss 0.5, updates before a rewind included",
    "A synthetic task that separates the configurations in seconds, six layers of width 64, one batch size; adjacent "
    "learning rates differ by a factor of 2. `auto` begins without a warmup and judges every 5 updates.",
)
STEPS = 400
SLOWER = 1.5
# Optimizer -> learning rates. SGD needs others than Adam.
RATES = {"adamw": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), "sgdm": (0.05, 0.1)}
# Name -> optimizer (of Adam's kind) and warmup.
COLUMNS: dict[str, tuple[str, Settings]] = {
    "none": ("adamw", {"warmup_type": "none"}),
    "linear 100": ("adamw", {"warmup_type": "linear"}),
    "untuned": ("adamw", {"warmup_type": "untuned_exponential", "lr_scheduler_kwargs": {"beta2": 0.98}}),
    "RAdam": ("radam", {"warmup_type": "none"}),
    "auto": ("adamw", {"warmup_type": "auto"}),
}
COLUMNS["untuned, then auto"] = ("adamw", COLUMNS["untuned"][1] | {"guard": "rewind"})
FIXED = ("linear 100", "untuned")
Row = tuple[str, str, float]  # placement, optimizer, learning rate
ROWS: list[Row] = [(p, optim, lr) for optim, rates in RATES.items() for p in ("post", "pre") for lr in rates]


def settings_of(row: Row, column: str, steps: int, seed: int) -> Settings | None:
    """Return the settings of one run, or `None` where there is no such configuration: RAdam is of Adam's kind."""
    placement, family, lr = row
    optim, warmup = COLUMNS[column]
    if family == "sgdm" and optim == "radam":
        return None
    return job(placement, optim if family == "adamw" else family, "none", lr, steps, seed) | warmup


def plan(args: ReproduceArguments) -> list[Settings]:
    """Return the settings of all runs, ordered so that an interrupted set already shows every configuration."""
    rows = [("post", "adamw", 2e-3)] if args.quick else ROWS
    columns = ("none", "auto") if args.quick else tuple(COLUMNS)
    steps = args.max_steps or STEPS
    seeds = args.seeds_or(full=5)
    planned = [settings_of(row, column, steps, seed) for seed in seeds for row in rows for column in columns]
    return [settings for settings in planned if settings is not None]


def runs_of(results: list[Result], row: Row, column: str) -> list[Result]:
    """Return the runs of one configuration."""
    wanted = settings_of(row, column, 0, 0)
    if wanted is None:
        return []
    keys = ("norm_placement", "optim", "warmup_type", "learning_rate", "guard")
    return select(results, **{key: wanted.get(key) for key in keys})


def succeeds(results: list[Result]) -> Verdict:
    """Judge whether `auto` solves the task wherever a fixed warmup does."""
    needed = [row for row in ROWS if any(all_solved(runs_of(results, row, column)) for column in FIXED)]
    failed = [row for row in needed if not all_solved(runs_of(results, row, "auto"))]
    measured = f"{len(needed) - len(failed)} of {len(needed)} settings in which a fixed warmup solves it on every seed"
    if failed:
        measured += f"; not {', '.join(map(name_of, failed))}"
    return Verdict(
        "auto solves the task wherever a fixed warmup does", "hf_warmup", measured, not failed if needed else None
    )


def in_time(results: list[Result]) -> Verdict:
    """Judge whether `auto` needs at most `SLOWER` times the updates of the best fixed warmup."""
    ratios = {}
    for row in ROWS:
        fixed = [mean(solved(runs)) for column in FIXED if all_solved(runs := runs_of(results, row, column))]
        if fixed and all_solved(runs := runs_of(results, row, "auto")):
            ratios[name_of(row)] = mean(solved(runs)) / min(fixed)
    worst = max(ratios, key=ratios.__getitem__, default=None)
    measured = f"at most {ratios[worst]:.2f} times, {worst}" if worst else "no setting in which both solve it"
    claim = f"auto needs at most {SLOWER} times the updates of the best fixed warmup, lost updates included"
    return Verdict(claim, "hf_warmup", measured, ratios[worst] <= SLOWER if worst else None)


def free(results: list[Result]) -> Verdict:
    """Judge whether `auto` changes nothing where no warmup is needed."""
    sound = [row for row in ROWS if all_solved(runs_of(results, row, "none")) and runs_of(results, row, "auto")]
    pairs = [[solved(runs_of(results, row, column)) for column in ("none", "auto")] for row in sound]
    same = sum(none == auto for none, auto in pairs)
    measured = f"the same updates to loss 0.5 on every seed in {same} of {len(sound)} settings that need no warmup"
    return Verdict(
        "auto costs nothing where no warmup is needed", "hf_warmup", measured, same == len(sound) if sound else None
    )


def start(results: list[Result]) -> Verdict:
    """Judge whether `auto` should begin without a warmup or with the untuned one."""
    names = "auto", "untuned, then auto"
    runs = {name: [run for row in ROWS for run in runs_of(results, row, name)] for name in names}
    counts = {name: len(solved(each)) for name, each in runs.items()}
    return Verdict(
        "auto may begin without a warmup (here: it solves the task on at least as many seeds as if it began with the "
        "untuned one)",
        "hf_warmup",
        ", ".join(f"{counts[name]} of {len(runs[name])} seeds: {name}" for name in names),
        counts[names[0]] >= counts[names[1]] if all(runs.values()) else None,
    )


def name_of(row: Row) -> str:
    """Return a name such as `Post-LN adamw at 0.002`."""
    return f"{row[0].capitalize()}-LN {row[1]} at {row[2]:g}"


def run(args: ReproduceArguments) -> Outcome:
    """Execute all runs, draw the figure and judge the claims."""
    results = run_jobs(plan(args), args)
    figure = blank_figure(9, 5)
    axes = blank_axes(figure, "Seeds that solved the task, and mean updates to loss 0.5", "", "warmup")
    cells = [[runs_of(results, row, column) for column in COLUMNS] for row in ROWS]
    table = draw_grid(axes, cells, [name_of(row) for row in ROWS], list(COLUMNS))
    named = measures({f"{name_of(row)}, {column}": runs_of(results, row, column) for row in ROWS for column in COLUMNS})
    shown = [folder_of(args, run) for column in ("none", "auto") for run in runs_of(results, ROWS[1], column)[:1]]
    verdicts = [succeeds(results), in_time(results), free(results), start(results)]
    return Outcome(figure, verdicts, table, results, named, shown)
