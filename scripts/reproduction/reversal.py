"""Runs of the demo's task, as `compare_layer_norm.py` makes and keeps them, for many optimizers and warmups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from compare_layer_norm import run_one
from kept_runs import Result, Settings, run_all

from .outcome import ReproduceArguments


WARMUP_STEPS = 100  # 2 / (1 - beta2) at the task's beta2 of 0.98
# Noam's curve with its peak at the learning rate; the untuned one is exponential, since linear 100 is the other.
WARMUPS: dict[str, Settings] = {
    "none": {"warmup_type": "none"},
    "linear": {"warmup_type": "linear"},
    "constant": {"warmup_type": "constant"},
    "untuned": {"warmup_type": "untuned_exponential", "lr_scheduler_kwargs": {"beta2": 0.98}},  # SGD has none
    "noam": {"warmup_type": "linear", "lr_scheduler_type": "noam"},
}


def job(placement: str, optim: str, warmup: str, lr: float, steps: int, seed: int, optim_args: str = "") -> Settings:
    """Settings of one run."""
    return {
        "norm_placement": placement,
        "optim": optim,
        "warmup_steps": min(WARMUP_STEPS, steps),
        "learning_rate": lr,
        "max_steps": steps,
        "num_hidden_layers": 6,
        "stop_when_solved": True,
        "seed": seed,
        **WARMUPS[warmup],
        **({"optim_args": optim_args} if optim_args else {}),
    }


def folder_name(settings: Settings) -> str:
    """What differs between the runs of one figure; the number of updates is among the settings that are compared."""
    optim = "_".join(filter(None, (settings["optim"], settings.get("optim_args"))))
    warmup = "noam" if settings.get("lr_scheduler_type") == "noam" else settings["warmup_type"]
    lr = f"{settings['learning_rate']:g}"
    return f"{settings['norm_placement']}-{optim}-{warmup}-lr{lr}-seed{settings['seed']}"


def run_jobs(jobs: Iterable[Settings], args: ReproduceArguments) -> list[Result]:
    """Run those that have not been run yet; results in the order of `jobs`."""
    runs = args.folder / "runs"
    planned = {runs / folder_name(settings): settings for settings in jobs}
    return run_all(run_one, planned, runs, args.num_workers)


def select(results: Iterable[Result], **wanted: Any) -> list[Result]:
    """Those whose settings are the `wanted` ones."""
    return [result for result in results if all(result.get(key) == value for key, value in wanted.items())]


def solved(results: Iterable[Result]) -> list[int]:
    """Updates to loss 0.5 of the runs that came there."""
    return [result["steps_to_loss_0.5"] for result in results if result["steps_to_loss_0.5"] is not None]


def measures(runs: Mapping[str, list[Result]]) -> dict[str, dict[str, list[float]]]:
    """Name -> runs as a card has them: the share that solved the task, and the updates of those that did."""
    named = {name: results for name, results in runs.items() if results}
    return {
        "solved": {name: [float(bool(solved([result]))) for result in results] for name, results in named.items()},
        "updates to loss 0.5": {name: solved(results) for name, results in named.items() if solved(results)},
    }


def folder_of(args: ReproduceArguments, result: Result) -> Path:
    """Where a run is kept."""
    return args.folder / "runs" / folder_name(result)


def in_words(results: list[Result]) -> str:
    """`3/3 at 152`: how many solved the task, and after how many updates on average."""
    if not results:
        return "-"
    updates = solved(results)
    return f"{len(updates)}/{len(results)}" + (f" at {mean(updates):.0f}" if updates else "")


def all_solved(results: list[Result]) -> bool | None:
    """Whether every run solved it; `None` without runs."""
    return len(solved(results)) == len(results) if results else None


def none_solved(results: list[Result]) -> bool | None:
    """Whether no run solved it; `None` without runs."""
    return not solved(results) if results else None


def every(*answers: bool | None) -> bool | None:
    """Whether all hold; `None` if one of them is open."""
    return None if None in answers else all(answers)
