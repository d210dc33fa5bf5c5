"""Fifteen optimizers on one task, with warmup and without, each at the best learning rate of a small sweep."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

from hf_warmup.report.figures import COLORS, blank_axes, blank_figure

from .outcome import Outcome, ReproduceArguments, Verdict, table_of
from .reversal import Result, Settings, all_solved, every, in_words, job, none_solved, run_jobs, select, solved


if TYPE_CHECKING:
    from matplotlib.figure import Figure


STEPS = 300


class Row(NamedTuple):
    """A name of `OPTIMIZERS` with its options, and the learning rates to choose from."""

    optim: str
    learning_rates: tuple[float, ...]
    optim_args: str = ""


ADAM = (1e-3, 2e-3, 4e-3)
RMS = (2.5e-4, 5e-4, 1e-3)
ROWS = {
    "SGD": Row("sgd", (0.1, 0.3, 1.0)),
    "SGD, momentum": Row("sgdm", (0.03, 0.05, 0.1)),
    "SGD, Nesterov": Row("nag", (0.03, 0.05, 0.1)),
    "Adagrad": Row("adagrad", (5e-3, 1e-2, 2e-2)),
    "Adadelta": Row("adadelta", (0.3, 1.0, 3.0)),
    "RMSprop": Row("rmsprop", RMS),
    "RMSprop, centered": Row("rmsprop", RMS, "centered=true"),
    "RMSprop, momentum": Row("rmsprop", (5e-5, 1e-4, 2e-4), "momentum=0.9"),
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
    """The runs of one optimizer, warmup and learning rate."""
    wanted = {"optim": row.optim, "optim_args": row.optim_args or None, "warmup_type": warmup, "learning_rate": lr}
    return select(results, **wanted)


def swept_with(row: Row) -> str:
    """The warmup of the sweep: linear, or none where the optimizer brings its own and refuses another."""
    return "none" if row.optim == "adam_warmup" else "linear"


def best_rate(results: list[Result], row: Row) -> float:
    """The learning rate of the sweep's best run: fewest updates to loss 0.5, else the lowest loss."""

    def cost(lr: float) -> tuple[float, float]:
        (run, *_) = runs_of(results, row, swept_with(row), lr)
        updates = run["steps_to_loss_0.5"]
        return (float("inf") if updates is None else updates, run["final_loss"])

    return min(row.learning_rates, key=cost)


def run(args: ReproduceArguments) -> Outcome:
    """The sweep with the first seed, then every optimizer at its best learning rate with all of them."""
    rows = {name: ROWS[name]._replace(learning_rates=ROWS[name].learning_rates[1:2]) for name in QUICK}
    rows = rows if args.quick else ROWS
    seeds, steps = args.seeds_or(full=2), args.max_steps or STEPS

    def jobs(row: Row, warmup: str, lr: float, *chosen: int) -> list[Settings]:
        return [job("post", row.optim, warmup, lr, steps, seed, row.optim_args) for seed in chosen]

    sweep = [
        each for row in rows.values() for lr in row.learning_rates for each in jobs(row, swept_with(row), lr, seeds[0])
    ]
    swept = run_jobs(sweep, args)
    rates = {name: best_rate(swept, row) for name, row in rows.items()}
    final = [
        each
        for seed in seeds
        for name, row in rows.items()
        for warmup in dict.fromkeys((swept_with(row), "none"))
        for each in jobs(row, warmup, rates[name], seed)
    ]
    results = run_jobs(final, args)
    pairs = {
        name: {warmup: runs_of(results, row, warmup, rates[name]) for warmup in ("linear", "none")}
        for name, row in rows.items()
    }
    lines = [
        [name, f"{rates[name]:g}", in_words(pair["linear"]), in_words(pair["none"])] for name, pair in pairs.items()
    ]
    table = table_of(["", "learning rate", "linear warmup", "no warmup"], lines)
    numbers = {"learning_rates": rates, "sweep": swept, "runs": results}
    return Outcome(draw(pairs, rates, steps), verdicts(pairs), table, numbers)


def draw(pairs: dict[str, dict[str, list[Result]]], rates: dict[str, float], steps: int) -> Figure:
    """Two bars an optimizer; a hollow one as long as the run where no seed solved the task."""
    figure = blank_figure(9, 1.2 + 0.36 * len(pairs))
    axes = blank_axes(figure, "Post-LN BERT, 6 layers: updates to loss 0.5", "", "updates")
    for shift, color, warmup in ((-0.2, COLORS[1], "linear"), (0.2, COLORS[0], "none")):
        label = "linear warmup, 100 updates" if warmup == "linear" else "no warmup"
        for i, pair in enumerate(pairs.values()):
            runs = pair[warmup]
            if not runs:
                continue
            updates = solved(runs)
            length, face = (mean(updates), color) if updates else (steps, "none")
            axes.barh(i + shift, length, 0.36, color=face, edgecolor=color, hatch=None if updates else "////")
            words = in_words(runs) if updates else f"{in_words(runs)}, loss {mean(r['final_loss'] for r in runs):.2f}"
            axes.text(length + 0.015 * steps, i + shift, words, va="center", fontsize=7)
        axes.barh(0, 0, color=color, label=label)
    axes.set_yticks(range(len(pairs)), [f"{name}, lr {rates[name]:g}" for name in pairs], fontsize=8)
    axes.set_xlim(0, 1.25 * steps)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2)
    return figure


def verdicts(pairs: dict[str, dict[str, list[Result]]]) -> list[Verdict]:
    """What the papers of the optimizers that warm up by themselves promise, and what the others need."""

    def said(names: list[str], warmup: str) -> str:
        return ", ".join(f"{name} {in_words(pairs[name][warmup])}" for name in names)

    own = [name for name in OWN_WARMUP if name in pairs]
    others = [name for name in pairs if name not in OWN_WARMUP]
    claimed = [name for name in others if name.startswith(("SGD", "Adam"))]
    helped = [name for name in others if len(solved(pairs[name]["linear"])) > len(solved(pairs[name]["none"]))]
    return [
        Verdict(
            "RAdam, Adam over 2 / (1 - beta2) updates (AdamWarmup) and GI-Adam need no warmup of the schedule's",
            "arXiv:1908.03265, arXiv:1910.04209, arXiv:2406.09405",
            said(own, "none"),
            every(*(all_solved(pairs[name]["none"]) for name in own)),
        ),
        Verdict(
            "a Post-LN Transformer needs a warmup with SGD as with Adam (here: no seed without it, every seed with it)",
            "Xiong et al. 2020, arXiv:2002.04745, section 3",
            f"without: {said(claimed, 'none')}; with: {said(claimed, 'linear')}; of all optimizers warmup solved more "
            f"seeds for {', '.join(helped) or 'none'}",
            every(
                *(none_solved(pairs[name]["none"]) for name in claimed),
                *(all_solved(pairs[name]["linear"]) for name in claimed),
            ),
        ),
    ]
