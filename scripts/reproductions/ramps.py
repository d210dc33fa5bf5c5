"""Do two published rules for a warmup without a length solve the task where rewinding does?"""

from __future__ import annotations

from functools import cache
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_warmup import WarmupTrainer
from hf_warmup.report.figures import blank_axes, blank_figure

from .auto import COLUMNS, STEPS, settings_of
from .kept_runs import Result, Settings, run_all, select
from .outcome import About, Outcome, ReproduceArguments, Verdict, every
from .reversal import all_solved, draw_grid, folder_name, in_words, job, measures
from .reversal import run_one as run_plain


ABOUT = About(
    "Warmups without a length: two published rules and rewinding",
    ("fill-mask", "sequence-reversal"),
    "Seeds that solved the task and their mean updates to loss 0.5, updates before a rewind included",
    "One synthetic task, one model (Post-LN, six layers of width 64), AdamW. Both rules are implemented from their "
    "descriptions for optimizers other than those of their papers, with one setting each.",
)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
FIXED = ("none", "linear 100", "auto")  # of the reproduction `auto`, whose runs are used again
MEASURE_EVERY = 5  # updates between two measurements of the critical learning rate
DIVISOR = 100.0  # the loss-gap rule begins at a hundredth of the learning rate, as its authors' code does


class CriticalRate(WarmupTrainer):
    """The learning rate is at most half of the smallest at which the optimizer's own step raises the batch's loss."""

    cap = 0.0

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        target = self.args.learning_rate
        if self.state.global_step % MEASURE_EVERY == 0:
            self.cap = min(target, critical_rate(model, inputs, self.optimizer, 2 * target) / 2)
        for group in self.optimizer.param_groups:
            group["lr"] = self.cap
        return loss


@torch.no_grad()
def critical_rate(model: nn.Module, inputs: dict[str, Tensor], optimizer: Any, highest: float) -> float:
    """Return the smallest learning rate, up to `highest`, at which the next step of AdamW raises the loss.

    Doubling from a 64th of `highest`, then three bisections.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    steps = [
        (p, adam_step(p, optimizer.state.get(p, {}), group))
        for group in optimizer.param_groups
        for p in group["params"]
    ]

    def loss_at(rate: float) -> float:
        for p, step in steps:
            p.sub_(step, alpha=rate)
        loss = model(**inputs).loss.item()
        for (p, _), value in zip(steps, kept, strict=True):
            p.copy_(value)
        return loss

    kept = [p.clone() for p, _ in steps]
    before, low, high = model(**inputs).loss.item(), 0.0, highest / 64
    while loss_at(high) <= before:
        low, high = high, 2 * high
        if low >= highest:
            return highest
    for _ in range(3):
        middle = (low + high) / 2
        low, high = (middle, high) if loss_at(middle) <= before else (low, middle)
    return high


def adam_step(p: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """Return the step that Adam would make for a learning rate of 1, from its moments and the gradient."""
    (beta1, beta2), t = group["betas"], (int(state["step"]) if state else 0) + 1
    assert p.grad is not None
    m, v = (state["exp_avg"], state["exp_avg_sq"]) if state else (torch.zeros_like(p), torch.zeros_like(p))
    m, v = m.lerp(p.grad, 1 - beta1), v.mul(beta2).addcmul(p.grad, p.grad, value=1 - beta2)
    return (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + group["eps"])


class LossGap(WarmupTrainer):
    """The learning rate is a function of the loss, until it has reached its peak."""

    first: float | None = None
    has_peaked = False

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, *args, **kwargs)
        gap = loss.item()  # the lowest loss of the task is 0
        self.first = self.first or gap
        peak = peak_gap(self.first)
        self.has_peaked = self.has_peaked or gap <= peak
        factor = 1.0 if self.has_peaked else gap_multiplier(gap, peak, self.first)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.learning_rate * factor
        return loss


def gap_multiplier(gap: float, peak: float, first: float) -> float:
    """Return `gap / (K0 + K1 gap + K2 gap^2)`, which is 1 at `peak` and 1 / `DIVISOR` at the first gap."""
    curvature = first * (DIVISOR - 1) / (first - peak) ** 2
    return min(1.0, gap / (gap + curvature * (gap - peak) ** 2))


@cache
def peak_gap(first: float) -> float:
    """Return the gap at the peak for which the curve is closest to a linear rise followed by a cosine."""
    gaps = [first * (i + 0.5) / 400 for i in range(400)]

    def target(gap: float, peak: float) -> float:
        if gap < peak:
            return 0.5 - 0.5 * cos(pi * gap / peak)
        return 1 - (1 - 1 / DIVISOR) * (gap - peak) / (first - peak)

    def distance(peak: float) -> float:
        return sum((gap_multiplier(gap, peak, first) - target(gap, peak)) ** 2 for gap in gaps)

    return min((first * i / 100 for i in range(1, 100)), key=distance)


TRAINERS: dict[str, type[WarmupTrainer]] = {"critical rate": CriticalRate, "loss gap": LossGap}
NAMES = ("none", "linear 100", *TRAINERS, "auto")


def run_one(settings: Settings, folder: Path) -> dict[str, Any]:
    """Train one configuration with one seed and return its result."""
    return run_plain(settings, folder, TRAINERS.get(settings.get("ramp", ""), WarmupTrainer))


def planned(args: ReproduceArguments) -> dict[str, Settings]:
    """Return name -> settings of all runs: those of the rules, and of `auto` those to compare with."""
    steps, rates = args.max_steps or STEPS, RATES[1:2] if args.quick else RATES
    found = {}
    for seed in args.seeds_or(full=5):
        for lr in rates:
            for ramp in TRAINERS:
                settings = job("post", "adamw", "none", lr, steps, seed) | {"ramp": ramp}
                found[f"{ramp.replace(' ', '_')}-lr{lr:g}-seed{seed}"] = settings
            for column in () if args.quick else FIXED:
                settings = settings_of(("post", "adamw", lr), column, steps, seed) or {}
                found[f"../../auto/runs/{folder_name(settings)}"] = settings
    return found


def runs_of(results: list[Result], lr: float, name: str) -> list[Result]:
    """Return the runs of one configuration."""
    if name in TRAINERS:
        return select(results, learning_rate=lr, ramp=name)
    return select(results, learning_rate=lr, ramp=None, warmup_type=COLUMNS[name][1]["warmup_type"])


def judge(results: list[Result], name: str) -> Verdict:
    """Judge whether a rule solves the task on every seed wherever rewinding does."""
    needed = [lr for lr in RATES if all_solved(runs_of(results, lr, "auto"))]
    counts = ", ".join(
        f"{in_words(runs_of(results, lr, name))} at {lr:g}" for lr in RATES if runs_of(results, lr, name)
    )
    answers = [all_solved(runs_of(results, lr, name)) for lr in needed]
    source = "arXiv:2406.09405" if name == "critical rate" else "arXiv:2602.05813"
    claim = f"a warmup that follows the {name} needs no length"
    return Verdict(claim, source, f"solved {counts}", every(*answers) if answers else None)


def run(args: ReproduceArguments) -> Outcome:
    """Execute all runs, draw the figure and judge the claims."""
    results = run_all(run_one, planned(args), args.folder / "runs", args.num_workers)
    figure = blank_figure(8, 3)
    axes = blank_axes(figure, "Seeds that solved the task, and mean updates to loss 0.5", "learning rate", "warmup")
    cells = [[runs_of(results, lr, name) for name in NAMES] for lr in RATES]
    table = draw_grid(axes, cells, [f"{lr:g}" for lr in RATES], NAMES)
    named = measures({f"{name} at {lr:g}": runs_of(results, lr, name) for lr in RATES for name in NAMES})
    return Outcome(figure, [judge(results, name) for name in TRAINERS], table, results, named)
