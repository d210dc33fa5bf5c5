"""How fast do fifteen optimizers train with and without warmup, each at its best learning rate of a small sweep?"""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

from hf_warmup.report.figures import COLORS, blank_axes, blank_figure

from .kept_runs import Result, Settings, select
from .outcome import About, Outcome, ReproduceArguments, Verdict, every, table_of
from .reversal import all_solved, in_words, job, measures, none_solved, run_jobs, solved


if TYPE_CHECKING:
    from matplotlib.figure import Figure


ABOUT = About(
    "Fifteen optimizers with and without warmup",
    ("fill-mask", "sequence-reversal"),
    "Updates to loss 0.5 at the best learning rate with warmup and at the best one without; hollow: never reached",
    "A synthetic task, Post-LN only, no weight decay; the learning rate is the best of four or five on the first seed.",
)
STEPS = 300


class Row(NamedTuple):
    """An optimizer: its name in `OPTIMIZERS`, the learning rates to choose from, and its options."""

    optim: str
    learning_rates: tuple[float, ...]
    optim_args: str = ""


ADAM = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
RMS = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
ROWS = {
    "SGD": Row("sgd", (0.03, 0.1, 0.3, 1.0)),
    "SGD, momentum": Row("sgdm", (0.01, 0.03, 0.05, 0.1)),
    "SGD, Nesterov": Row("nag", (0.01, 0.03, 0.05, 0.1)),
    "Adagrad": Row("adagrad", (2.5e-3, 5e-3, 1e-2, 2e-2)),
    "Adadelta": Row("adadelta", (0.1, 0.3, 1.0, 3.0)),
    "RMSprop": Row("rmsprop", RMS),
    "RMSprop, centered": Row("rmsprop", RMS, "centered=true"),
    "RMSprop, momentum": Row("rmsprop", (5e-5, 1e-4, 2e-4, 4e-4), "momentum=0.9"),
    "Adam": Row("adam", ADAM),
    "Adam, AMSGrad": Row("adam", ADAM, "amsgrad=true"),
    "NAdam": Row("nadam", ADAM),
    "AdamW": Row("adamw", ADAM),
    "RAdam": Row("radam", ADAM),
    "AdamWarmup": Row("adam_warmup", ADAM),
    "GI-Adam": Row("gi_adam", ADAM),
}
QUICK = ("SGD, momentum", "AdamW", "RAdam")
OWN_WARMUP = ("RAdam", "AdamWarmup", "GI-Adam")


def runs_of(results: list[Result], row: Row, warmup: str, lr: float) -> list[Result]:
    """Return the runs with one optimizer, warmup and learning rate."""
    wanted = {"optim": row.optim, "optim_args": row.optim_args or None, "warmup_type": warmup, "learning_rate": lr}
    return select(results, **wanted)


def warmups_of(row: Row) -> tuple[str, ...]:
    """Return the warmups to test; AdamWarmup has one built in and raises an error for a second."""
    return ("none",) if row.optim == "adam_warmup" else ("linear", "none")


def best_rate(results: list[Result], row: Row, warmup: str) -> float:
    """Return the learning rate of the best run of the sweep: the fewest updates to loss 0.5, else the lowest loss."""

    def cost(lr: float) -> tuple[float, float]:
        (run, *_) = runs_of(results, row, warmup, lr)
        updates = run["steps_to_loss_0.5"]
        return (float("inf") if updates is None else updates, run["final_loss"])

    return min(row.learning_rates, key=cost)


class Pick(NamedTuple):
    """A learning rate of an optimizer, and its runs at that rate with all seeds."""

    learning_rate: float
    runs: list[Result]


Picks = dict[str, Pick]  # key of `BARS` -> pick
BARS = {
    "warmup": "linear warmup, 100 updates",
    "same": "no warmup, same learning rate",
    "own": "no warmup, its own best",
}


def run(args: ReproduceArguments) -> Outcome:
    """Execute the sweeps with the first seed, then run every optimizer at its best learning rates with all seeds."""
    rows = {name: ROWS[name]._replace(learning_rates=ROWS[name].learning_rates[1:2]) for name in QUICK}
    rows = rows if args.quick else ROWS
    seeds, steps = args.seeds_or(full=3), args.max_steps or STEPS

    def of(row: Row, warmup: str, lr: float, seed: int) -> Settings:
        return job("post", row.optim, warmup, lr, steps, seed, row.optim_args)

    sweep = [
        of(row, warmup, lr, seeds[0])
        for row in rows.values()
        for warmup in warmups_of(row)
        for lr in row.learning_rates
    ]
    swept = run_jobs(sweep, args)
    rates = {name: {warmup: best_rate(swept, row, warmup) for warmup in warmups_of(row)} for name, row in rows.items()}
    final = [
        of(rows[name], warmup, lr, seed)
        for seed in seeds
        for name, best in rates.items()
        for warmup in best
        for lr in dict.fromkeys((best[warmup], best.get("linear", best[warmup])))
    ]
    results = run_jobs(final, args)
    picked: dict[str, Picks] = {}
    for name, row in rows.items():
        best = rates[name]
        picked[name] = {"own": Pick(best["none"], runs_of(results, row, "none", best["none"]))}
        if "linear" in best:
            lr = best["linear"]
            with_it, without = (Pick(lr, runs_of(results, row, warmup, lr)) for warmup in ("linear", "none"))
            picked[name] |= {"warmup": with_it, "same": without}
    numbers = {"learning_rates": rates, "sweep": swept, "runs": results}
    named = {
        f"{name}, {BARS[bar]}, lr {pick.learning_rate:g}": pick.runs
        for name, picks in picked.items()
        for bar, pick in picks.items()
    }
    return Outcome(draw(picked, steps), verdicts(picked), table(picked), numbers, measures(named))


def table(picked: dict[str, Picks]) -> str:
    """Return a table of solved seeds at the best learning rates with and without warmup."""
    nothing = Pick(float("nan"), [])
    lines = []
    for name, picks in picked.items():
        warmup, same, own = (picks.get(bar, nothing) for bar in BARS)
        rate = f"{warmup.learning_rate:g}" if warmup.runs else "-"
        lines.append(
            [name, rate, *map(in_words, (warmup.runs, same.runs)), f"{own.learning_rate:g}", in_words(own.runs)]
        )
    return table_of(["", "best lr", "linear warmup", "no warmup", "best lr without", "no warmup"], lines)


def draw(picked: dict[str, Picks], steps: int) -> Figure:
    """Draw three bars per optimizer; a hollow bar of full length means that no seed solved the task."""
    figure = blank_figure(9, 1.2 + 0.5 * len(picked))
    axes = blank_axes(figure, "Post-LN BERT, 6 layers: updates to loss 0.5", "", "updates")
    for shift, color, bar in zip((-0.27, 0.0, 0.27), (COLORS[1], COLORS[0], COLORS[2]), BARS, strict=True):
        for i, picks in enumerate(picked.values()):
            if bar not in picks:
                continue
            lr, runs = picks[bar]
            updates = solved(runs)
            length, face = (mean(updates), color) if updates else (steps, "none")
            axes.barh(i + shift, length, 0.25, color=face, edgecolor=color, hatch=None if updates else "////")
            words = in_words(runs) if updates else f"{in_words(runs)}, loss {mean(r['final_loss'] for r in runs):.2f}"
            axes.text(length + 0.015 * steps, i + shift, f"lr {lr:g}: {words}", va="center", fontsize=7)
        axes.barh(0, 0, color=color, label=BARS[bar])
    axes.set_yticks(range(len(picked)), list(picked), fontsize=8)
    axes.set_xlim(0, 1.35 * steps)
    axes.set_ylim(len(picked) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, -0.1), ncols=3)
    return figure


def verdicts(picked: dict[str, Picks]) -> list[Verdict]:
    """Judge the claims about optimizers with a built-in warmup and about the other optimizers."""

    def results_of(names: list[str], bar: str) -> str:
        return ", ".join(f"{name} {in_words(picked[name][bar].runs)}" for name in names)

    own = [name for name in OWN_WARMUP if name in picked]
    both = [name for name in own if "warmup" in picked[name]]
    others = [name for name in picked if name not in OWN_WARMUP]
    claimed = [name for name in others if name.startswith(("SGD", "Adam"))]
    helped = [
        name for name in others if len(solved(picked[name]["warmup"].runs)) > len(solved(picked[name]["same"].runs))
    ]
    rates = {name: (p["warmup"].learning_rate, p["own"].learning_rate) for name, p in picked.items() if "warmup" in p}
    papers = "arXiv:1908.03265, arXiv:1910.04209, arXiv:2406.09405"
    at_same = [picked[name]["same" if name in both else "own"].runs for name in own]
    return [
        Verdict(
            "RAdam, Adam with a warmup of 2 / (1 - beta2) updates (AdamWarmup) and GI-Adam need no warmup in the "
            "schedule (here: at the best learning rate with warmup)",
            papers,
            ", ".join(f"{name} {in_words(runs)}" for name, runs in zip(own, at_same, strict=True)),
            every(*map(all_solved, at_same)),
        ),
        Verdict(
            "the same at the best learning rate without warmup",
            papers,
            results_of(own, "own"),
            every(*(all_solved(picked[name]["own"].runs) for name in own)),
        ),
        Verdict(
            "a Post-LN Transformer needs a warmup with SGD as with Adam (here: no seed solves the task without, "
            "every seed with warmup)",
            "Xiong et al. 2020, arXiv:2002.04745, section 3",
            f"without: {results_of(claimed, 'same')}; with: {results_of(claimed, 'warmup')}; of all optimizers "
            f"warmup solved more seeds for {', '.join(helped) or 'none'}",
            every(
                *(none_solved(picked[name]["same"].runs) for name in claimed),
                *(all_solved(picked[name]["warmup"].runs) for name in claimed),
            ),
        ),
        Verdict(
            "a warmup allows larger learning rates (here: the best one with warmup is no smaller, for every optimizer)",
            "Kalra & Barkeshli 2024, arXiv:2406.09405",
            "best learning rates with and without: " + ", ".join(f"{n} {w:g}/{o:g}" for n, (w, o) in rates.items()),
            all(with_it >= without for with_it, without in rates.values()),
        ),
    ]
