"""Run folders written by hand, with curves that are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_warmup.report import Run, read_run


def write_run(
    folder: Path,
    layers: int = 3,
    steps: int = 5,
    growth: float = 1.0,
    *,
    onset: int = 1,
    loss: Callable[[int], float] = lambda t: 1 / t,
    norm: float = 1.0,
    log: dict[str, Any] | None = None,
    evaluations: dict[int, dict[str, float]] | None = None,
    planned: int | None = None,
    checkpoint: int | None = None,
    stopped: bool = False,
    state: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Write a run whose loss is 1/t and whose layer i has the norm 1/t, and growth^i / t from update `onset` on.

    With fewer steps than `planned` it was killed, and only a checkpoint has the state, unless a callback `stopped` it.
    `evaluations` maps updates to metrics. With `settings` there is a `run_settings.json`.
    """
    folder.mkdir(parents=True)
    entries = [{"loss": loss(t), "learning_rate": 0.1, **(log or {}), "step": t} for t in range(1, steps + 1)]
    evaluated = evaluations or {steps: {"eval_loss": 1.0}}
    entries += [{**metrics, "eval_runtime": 9.0, "step": step} for step, metrics in evaluated.items()]
    if stopped or steps >= (planned or 0):
        entries.append({"train_runtime": 1.0, "train_loss": 1.0, "step": steps})
    if checkpoint is None and steps < (planned or 0) and not stopped:
        checkpoint = steps
    where = folder / f"checkpoint-{checkpoint}" if checkpoint else folder
    write_state(where, entries, planned or steps, global_step=steps, **(state or {}))
    lines = [
        {"step": t, "grad_norm": norm, "grad_norm/embeddings": 1.0}
        | {f"grad_norm/encoder.layer.{i}": growth ** (i * (t >= onset)) / t for i in range(layers)}
        for t in range(1, steps + 1)
    ]
    (folder / "gradient_norms.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if settings:
        described = {"training_args": settings, "num_training_steps": planned or steps, "made_with": {"torch": "2"}}
        if "num_warmup_steps" in settings:
            described["num_warmup_steps"] = settings.pop("num_warmup_steps")
        (folder / "run_settings.json").write_text(json.dumps(described))
    return folder


def recorded(folder: Path, *args: Any, **kwargs: Any) -> Run:
    """Write such a run and read it."""
    return read_run(write_run(folder, *args, **kwargs))


def write_state(folder: Path, log: Sequence[dict[str, Any]], planned: int, **state: Any) -> Path:
    """Write a `trainer_state.json` as a Trainer of transformers 5 leaves it; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = max((entry["step"] for entry in log), default=0)
    content = {"log_history": list(log), "global_step": steps, "max_steps": planned, "best_global_step": None} | state
    (folder / "trainer_state.json").write_text(json.dumps(content))
    return folder


def logged(folder: Path, rates: Sequence[float], every: int = 1, planned: int | None = None, **state: Any) -> Run:
    """Write and read a run that logged these learning rates, and losses, every so many updates."""
    log = [{"step": every * (i + 1), "loss": 1.0, "learning_rate": rate} for i, rate in enumerate(rates)]
    return read_run(write_state(folder, log, planned or every * len(rates), **state))
